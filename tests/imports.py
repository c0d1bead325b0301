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


def decides_nothing(path: Path) -> bool:
    """Whether a module holds no more than its docstring."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def needed(script: Path) -> set[Path]:
    """What a stage depends on: modules, and the reference models' weights where it may load one."""
    found = {path for path in closure(script) if not decides_nothing(path)}
    reference = ROOT / "models" / "reference"
    return found | ({reference / "weights"} if reference / "__init__.py" in found else set())


def deps(script: Path) -> list[str]:
    """The deps in src of a stage: a folder where the stage needs most of what is in it, else its files."""
    wanted, found = needed(script), set()

    def visit(folder: Path) -> None:
        inside = [path for path in folder.rglob("*.py") if not decides_nothing(path)]
        if folder.parent == ROOT or (ROOT / "studies") in folder.parent.parents:
            used = wanted.intersection(inside)
            if len(inside) > 1 and len(used) / len(inside) > 0.7:
                found.add(folder)
                return
        for path in folder.iterdir():
            if path in wanted:
                found.add(path)
            elif path.is_dir():
                visit(path)

    visit(ROOT)
    return sorted(path.relative_to(SRC.parent).as_posix() for path in found)


def main() -> None:
    """Write the deps in src of every stage into dvc.yaml: `python tests/imports.py`."""
    pipeline = SRC.parent / "dvc.yaml"
    lines: list[str] = []
    for line in pipeline.read_text().splitlines():
        if line.startswith("      - src/"):
            continue
        lines.append(line)
        if line.startswith("      - pipeline/"):
            lines += [f"      - {dep}" for dep in deps(SRC.parent / line.removeprefix("      - "))]
    pipeline.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
