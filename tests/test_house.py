"""The rules of the house: who may import whom, and what a stage depends on."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from imports import ROOT, SRC, closure, imported, modules, needed

REPOSITORY = SRC.parent
SCRIPTS = sorted((REPOSITORY / "pipeline").glob("*.py"))
STUDIES = {path.name for path in (ROOT / "studies").iterdir() if (path / "__init__.py").is_file()}
ALLOWED = {  # what else a room may import
    "engine": {"errors"},
    "guard": {"engine", "models", "errors", "config"},
    "serve": {"guard", "engine", "models", "errors", "config"},
}
OUTSIDE = {"cli"}  # the rooms that may know a study


def room(path: Path) -> str:
    """The folder of a module inside the package, or the module itself where it lies in none."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def edges(path: Path) -> set[Path]:
    """What a module imports, the packages on the way left out."""
    found = imported(path)
    return {target for target in found if not (target.name == "__init__.py" and _is_above(target, found))}


def _is_above(package: Path, found: frozenset[Path]) -> bool:
    return any(package.parent in other.parents and other != package for other in found)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_room_imports_only_what_it_may(name):
    strays = {
        f"{path.relative_to(SRC)} imports {target.relative_to(SRC)}"
        for path in modules()
        if room(path) == name
        for target in edges(path)
        if room(target) not in {name, "__init__", *ALLOWED[name]}
    }
    assert not strays


def test_nothing_but_the_shell_knows_a_study():
    strays = {
        f"{path.relative_to(SRC)} imports {target.relative_to(SRC)}"
        for path in modules()
        if room(path) not in {"studies", *OUTSIDE}
        for target in edges(path)
        if room(target) == "studies"
    }
    assert not strays


def test_studies_never_import_one_another():
    def study(path: Path) -> str:
        return path.relative_to(ROOT).parts[1]

    strays = {
        f"{path.relative_to(SRC)} imports {target.relative_to(SRC)}"
        for path in modules()
        if room(path) == "studies" and study(path) in STUDIES
        for target in edges(path)
        if room(target) == "studies" and study(target) != study(path)
    }
    assert STUDIES
    assert not strays


@pytest.mark.parametrize("parent", [ROOT, *(ROOT / "studies" / name for name in sorted(STUDIES))], ids=str)
def test_no_folder_imports_another_in_a_circle(parent):
    def folder(path: Path) -> str | None:
        parts = path.relative_to(parent).parts if path.is_relative_to(parent) else ()
        return parts[0] if len(parts) > 1 else None

    graph: dict[str, set[str]] = {}
    for path in modules():
        for target in edges(path):
            here, there = folder(path), folder(target)
            if here and there and here != there:
                graph.setdefault(here, set()).add(there)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def stages() -> dict[Path, list[str]]:
    """The deps in src/kvguard of each stage, by its script."""
    found = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    listed = {}
    for stage in found.values():
        [script] = [dep for dep in stage["deps"] if dep.startswith("pipeline/")]
        assert f"python {script} " in f"{stage['cmd']} "
        listed[REPOSITORY / script] = [dep for dep in stage["deps"] if dep.startswith("src/")]
    return listed


def test_every_script_is_a_stage():
    assert sorted(stages()) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_stage_lists_what_it_imports_and_nothing_else(script):
    listed = [REPOSITORY / dep for dep in stages()[script]]
    wanted = needed(script)
    missing = [path for path in wanted if not any(path == dep or dep in path.parents for dep in listed)]
    idle = [dep for dep in listed if not any(path == dep or dep in path.parents for path in wanted)]
    told = [[str(path.relative_to(REPOSITORY)) for path in sorted(paths)] for paths in (missing, idle)]
    assert told == [[], []], "missing, and listed in vain: run `python tests/imports.py`"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_draws_reruns_no_stage_but_the_report(script):
    drawing = {
        str(path.relative_to(SRC))
        for path in closure(script)
        if room(path) == "report" or "chapter" in path.relative_to(ROOT).parts
    }
    assert bool(drawing) == (script.stem == "report"), drawing
