"""What `pip install kvguard` brings is what `Guard` needs; commands of the pipeline name what they miss."""

import importlib.metadata as installed
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = "src/kvguard/models/reference/weights/qwen2"
NOT_FOR_A_GUARD = {"dvc", "mlflow", "pandera", "matplotlib", "optuna", "plotly", "ray", "hypothesis"}

LOAD = "import kvguard; guard = kvguard.Guard.load('models/reference')\n"
GENERATE = f"""
from kvpress import SnapKVPress
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained({SOURCE!r}), AutoTokenizer.from_pretrained({SOURCE!r})
prompts = ["Tom has 3 apples and buys 4 more, then 5 more. How many apples does he have? " * 3]
out = guard.generate(model, tokenizer, prompts, press=SnapKVPress(0.5, window_size=16), max_new_tokens=8)
assert out[0].error is None and len(out[0].hazard), out
"""
WITHOUT = """
import json, sys
from importlib.machinery import PathFinder
absent = set(json.loads(sys.argv.pop(1)))
class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Rest
"""


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def closure(requirements):
    """Return the distributions that pip would install for some requirements: {name}."""
    found, pending = set(), [(line, ("",)) for line in requirements]
    while pending:
        line, extras = pending.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        wanted = (name, *sorted(requirement.extras))
        if wanted in found or (marker and not any(marker.evaluate({"extra": extra}) for extra in extras)):
            continue
        found.add(wanted)
        try:
            needed = installed.requires(name) or []
        except installed.PackageNotFoundError:
            continue
        pending += [(line, ("", *requirement.extras)) for line in needed]
    return {name for name, *_ in found}


@pytest.fixture(scope="module")
def absent():
    """Return the top-level modules that only `kvguard[pipeline]` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = closure(project["dependencies"])
    return sorted(
        module
        for module, owners in installed.packages_distributions().items()
        if re.fullmatch(r"\w+", module)
        and module not in sys.stdlib_module_names
        and not {canonicalize_name(owner) for owner in owners} & (base | {"kvguard", "setuptools", "pip"})
    )


def test_what_a_guard_does_not_need_is_left_out_of_the_plain_install(absent):
    assert set(absent) >= NOT_FOR_A_GUARD
    assert not {"torch", "transformers", "kvpress", "xgboost", "numba", "numpy", "click", "pydantic"} & set(
        absent
    )


def test_loading_a_guard_imports_nothing_of_the_pipeline():
    done = python(LOAD + "import json, sys; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "xgboost" in loaded  # the guard is really there
    assert not loaded & NOT_FOR_A_GUARD


def test_a_guard_generates_where_only_its_own_dependencies_are_installed(absent):
    done = python(WITHOUT + LOAD + GENERATE, json.dumps(absent))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--model", "reference", "-n", "1", "--out", "/nonexistent/kvguard"],
        ["compare", "v1", "v2"],
        ["run", "--model", "reference", "--compressor", "snapkv", "--ratio", "0.5", "-n", "1"],
        ["run", "--model", "path:nowhere", "--prompts", "f.jsonl", "--preset", "experiment-001"],
    ],
)
def test_a_command_without_the_extra_says_what_to_install(absent, arguments):
    done = python(WITHOUT + "from kvguard.cli import main; main()", json.dumps(absent), *arguments)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is not installed: pip install 'kvguard[pipeline]'"), done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_needs_no_extra(absent):
    done = python(WITHOUT + "from kvguard.cli import main; main()", json.dumps(absent), "--help")
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout
