"""A part is remade when the engine's version or a library changes, and not when a source file does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvguard
from kvguard.store import parts

MADE_OF = {"weights": "abc", "conditions": ["none", "knorm@0.5"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, free to edit."""
    folder = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(Path(kvguard.__file__).parent, folder / "kvguard", ignore=ignore)
    return folder


def fingerprint_by(sources: Path) -> str:
    """The fingerprint that the package in a folder gives, in an interpreter of its own."""
    code = f"from kvguard.store import parts; print(parts.__file__); print(parts.fingerprint({MADE_OF!r}))"
    environment = {**os.environ, "PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=sources, capture_output=True, text=True, check=True
    )
    file, found = done.stdout.split()
    assert Path(file).is_relative_to(sources)
    return found


def test_an_edited_source_file_remakes_nothing(sources: Path) -> None:
    for path in sources.rglob("*.py"):
        path.write_text(path.read_text() + "\n# moved, and formatted anew\n")
    assert fingerprint_by(sources) == parts.fingerprint(MADE_OF)


def test_a_raised_version_of_the_engine_remakes_every_part(sources: Path) -> None:
    path = sources / "kvguard" / "engine" / "__init__.py"
    path.write_text(path.read_text() + "\nVERSION += 1\n")
    assert fingerprint_by(sources) != parts.fingerprint(MADE_OF)


@pytest.mark.parametrize("library", ["torch", "transformers", "kvpress", "tokenizers", "numba"])
def test_another_version_of_a_library_remakes_every_part(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before, real = parts.fingerprint(MADE_OF), parts.version
    monkeypatch.setattr(parts, "version", lambda name: "0" if name == library else real(name))
    assert parts.fingerprint(MADE_OF) != before


@pytest.mark.parametrize("change", [{"weights": "abd"}, {"conditions": ["none"]}, {"batch_size": 8}])
def test_what_a_part_is_made_of_is_in_its_fingerprint(change: dict[str, object]) -> None:
    assert parts.fingerprint({**MADE_OF, **change}) != parts.fingerprint(MADE_OF)
