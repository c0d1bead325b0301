"""What imports what in src/kvguard, read from the source: also what functions import as they run."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
ROOT = SRC / "kvguard"


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(ROOT.rglob("*.py"))


def closure(script: Path) -> set[Path]:
    """Every module of the package that a script may come to import, packages on the way among them."""
    found: set[Path] = set()
    to_visit = [script]
    while to_visit:
        new = imported(to_visit.pop()) - found
        found |= new
        to_visit += new
    return found


@cache
def imported(path: Path) -> frozenset[Path]:
    """The modules that one file imports, and the packages that they lie in."""
    found = set()
    for name in _names(ast.parse(path.read_text())):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            if module := _module(parts[:length]):
                found.add(module)
    if path == ROOT / "__init__.py":  # it looks `Guard` up for who asks for it, and nobody in here does
        assert found == {path, ROOT / "guard" / "__init__.py", ROOT / "guard" / "session.py"}
        return frozenset()
    return frozenset(found - {path})


def _module(parts: list[str]) -> Path | None:
    base = SRC.joinpath(*parts)
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def _names(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from _names(other)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.split(".")[0] == "kvguard")
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{ast.unparse(child)}: imports are absolute"
            if child.module and child.module.split(".")[0] == "kvguard":
                yield child.module
                for alias in child.names:
                    assert child.module != "kvguard" or alias.name != "Guard", "import Guard from its module"
                    yield f"{child.module}.{alias.name}"
        else:
            yield from _names(child)
