"""README and docs agree with metrics/, and hold no measured number that could not."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvguard.cli import main
from kvguard.report.prose import BLOCK, documents

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"```.*?```|^    .*?$|`[^`]*`", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d*\.\d+(?!\.?\d)|\d+(\.\d+)? ?%")
RESULTS = {  # where a number can only be a result; None: the whole document
    "README.md": None,
    "docs/results.md": None,
    "docs/reference-models.md": "Measured",
}
DOCUMENTS = ["README.md", "AGENTS.md", "docs/guard.md", "docs/method.md", "docs/design.md"]
SETTINGS = {"95 %", "5 %", "3.11"}  # a level, the rate at which recall is read, a Python


def loose_numbers(text: str) -> list[str]:
    outside = CODE.sub("", BLOCK.sub("", text))
    return [found[0] for found in NUMBER.finditer(outside) if found[0] not in SETTINGS]


def test_documents_agree_with_the_last_run():
    done = CliRunner().invoke(main, ["numbers", "--check", "--root", str(ROOT)])
    assert done.exit_code == 0, done.output


def test_every_result_is_filled_from_the_run():
    filled = [path.name for path in documents(ROOT) if BLOCK.search(path.read_text(encoding="utf-8"))]
    assert {"README.md", "results.md", "reference-models.md"} <= set(filled)


@pytest.mark.parametrize(("name", "section"), RESULTS.items())
def test_no_result_is_typed(name, section):
    text = (ROOT / name).read_text(encoding="utf-8")
    if section is not None:
        text = re.split(r"^## ", text.partition(f"\n## {section}\n")[2], flags=re.MULTILINE)[0]
        assert text
    assert not loose_numbers(text)


@pytest.mark.parametrize("typed", ["a CBR of 0.017 is left", "34.5 minutes", "98 % of them", "| x | .5 |"])
def test_a_typed_result_is_seen(typed):
    assert loose_numbers(f"Text.\n\n{typed}\n")


def test_code_and_filled_blocks_are_no_typed_results():
    filled = "<!-- run {{ x }} -->0.4<!-- /run -->"
    assert not loose_numbers(f"`snapkv@0.75`, {filled}\n\n    pip install torch==2.13\n\n```\n0.5\n```\n")


def test_links_and_pictures_of_the_documents_exist():
    for path in [*documents(ROOT), ROOT / "AGENTS.md", ROOT / "docker" / "README.md"]:
        text = CODE.sub("", path.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", BLOCK.sub(lambda found: found["text"], text)):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_that_the_documents_name_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests|pipeline|docs|benchmarks|docker|paper)/[\w/.-]+)`", text):
        if "NAME" not in path and "STAGE" not in path:
            assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "outputs").glob("*.txt")), ids=lambda path: path.stem
)
def test_outputs_are_what_their_commands_print(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    head, _, kept = path.read_text(encoding="utf-8").partition("\n")
    program, *arguments = head.removeprefix("$ ").split()
    assert program == "kvguard"
    assert CliRunner().invoke(main, arguments).stdout.strip() == kept.strip()
