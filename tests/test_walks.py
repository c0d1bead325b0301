"""The walks of docs/design.md lead through files and functions that are there, and stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOUNDS = {
    "From a prompt to its stored trace": (10, 3),
    "From a ratio to its press": (5, 0),
    "From a hazard to a decision": (5, 0),
}


def walks() -> dict[str, list[tuple[str, str]]]:
    text = (ROOT / "docs/design.md").read_text()
    section = re.split(r"^## ", text.partition("\n## Walks\n")[2], flags=re.M)[0]
    pieces = re.split(r"^### (.*)$", section, flags=re.M)[1:]
    return {
        title: re.findall(r"^\d+\. `(\S+): (\S+)`", steps, flags=re.M)
        for title, steps in zip(pieces[::2], pieces[1::2], strict=True)
    }


def names(path: Path) -> set[str]:
    """Functions of a module, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def test_the_three_walks_are_written_down() -> None:
    assert set(walks()) == set(BOUNDS)


@pytest.mark.parametrize("title", BOUNDS)
def test_a_walk_is_short_and_every_step_of_it_is_there(title: str) -> None:
    steps, (most_files, most_returns) = walks()[title], BOUNDS[title]
    files = {file for file, _ in steps}
    assert len(files) <= most_files
    assert len(steps) - len(files) <= most_returns
    for file, function in steps:
        assert function in names(ROOT / file), f"{file} has no {function}"
