"""Numbers in prose: documents name the numbers of a run, and are filled from its metrics.

A document holds blocks ``<!-- run TEMPLATE -->TEXT<!-- /run -->``. The template is Jinja's and stays in the
document; the text is what it makes of the numbers. A template on the marker's own line fills a place in a
sentence, one on lines of its own fills whole lines. Templates may call:

``fraction(name)``, ``percent``, ``points``, ``decimal``, ``whole``
    A number with its interval; ``interval=False`` leaves that out. Its name is its path in ``metrics/``:
    ``measure/reference/outcomes/overall/cbr``.
``compared(name)``
    What the interval of a difference allows to say.
``subjects(name)``
    The names below one, to loop over.
``known(name, ...)``
    Whether the run has all of them.
``measured(name)``
    A number that no stage measures, from ``docs/measured.yaml``.
``output(name)``
    What a command printed: ``docs/outputs/NAME.txt``, which opens with ``$ command``.
``picture(source, title)``
    A figure of the run, which is copied beside the document.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kvguard.errors import KvguardError

BLOCK = re.compile(r"(?P<head><!-- run(?=\s)(?P<template>.*?)-->)(?P<text>.*?)<!-- /run -->", re.DOTALL)
_MARKER = re.compile(r"<!-- /?run\b")
_KINDS = {
    "fraction": (1.0, 3, ""),
    "percent": (100.0, 1, " %"),
    "points": (100.0, 1, " points"),
    "decimal": (1.0, 2, ""),
    "whole": (1.0, 0, ""),
}


class Prose:
    """Fills the documents of a repository.

    Parameters
    ----------
    root
        The repository's folder; it holds ``metrics/`` and ``docs/``.

    Attributes
    ----------
    pictures
        The figures that the documents filled so far show: where each comes from, by where it goes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures: dict[Path, Path] = {}
        self._metrics: dict[Path, Any] = {}
        self._stands_in: dict[str, Path] = {}
        self._document = root

    def fill(self, document: Path) -> str:
        """Return the text of ``document`` with every block filled.

        Raises
        ------
        KvguardError
            A block is not closed, begins a line in a sentence, is no valid template, names what is not there,
            or writes a number that stands elsewhere already.
        """
        self._document = document
        text = document.read_text(encoding="utf-8")
        if len(_MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
            raise KvguardError(f"{document}: a block is not closed: write <!-- run ... -->...<!-- /run -->")
        return BLOCK.sub(self._block, text)

    def _block(self, found: re.Match[str]) -> str:
        template, lines = found["template"], found["template"].startswith("\n")
        begins_line = found.start() == 0 or found.string[found.start() - 1] == "\n"
        if begins_line and not lines:
            raise KvguardError(
                f"{self._document}: a block in a sentence begins a line, which Markdown takes for HTML: "
                f"break the line elsewhere ({found['head']})"
            )
        try:
            filled = self._templates.from_string(template).render().strip()
        except jinja2.TemplateError as error:
            raise KvguardError(f"{self._document}: {error}: fix the template {found['head']}") from None
        return (
            f"{found['head']}\n{filled}\n<!-- /run -->" if lines else f"{found['head']}{filled}<!-- /run -->"
        )

    @functools.cached_property
    def _templates(self) -> jinja2.Environment:
        templates = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        calls: dict[str, Callable[..., Any]] = {
            **{kind: functools.partial(self._write, *how) for kind, how in _KINDS.items()},
            "compared": self._compared,
            "subjects": lambda name: list(self._find(name)),
            "known": self._known,
            "measured": self._measured,
            "output": self._output,
            "picture": self._picture,
        }
        templates.globals.update(calls)
        return templates

    def _write(self, factor: float, decimals: int, unit: str, name: str, interval: bool = True) -> str:
        found = self._once(name, self._find(name))
        value, low, high = _estimate(found, self._document, name)

        def text(number: float) -> str:
            return re.sub(r"^-(?=[0.,]*$)", "", f"{number * factor:,.{decimals}f}")  # no negative zero

        if value is None:
            return "–"
        if not interval or low is None or high is None or low == high:
            return f"{text(value)}{unit}"
        return f"{text(value)}{unit} [{text(low)}, {text(high)}]"

    def _compared(self, name: str) -> str:
        _, low, high = _estimate(self._find(name), self._document, name)
        if low is not None and low > 0:
            return "higher than"
        return "lower than" if high is not None and high < 0 else "not distinguishable from"

    def _measured(self, name: str) -> str:
        path = self.root / "docs" / "measured.yaml"
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        value = self._once(name, _pick(known, (name,), self._document, name))["value"]
        return f"{value:,}" if isinstance(value, int) else str(value)

    def _output(self, name: str) -> str:
        return (self.root / "docs" / "outputs" / f"{name}.txt").read_text(encoding="utf-8").rstrip()

    def _picture(self, source: str, title: str) -> str:
        path = self.root / "docs" / Path(source).name
        self.pictures[path] = self.root / source
        return f"![{title}]({path.relative_to(self._document.parent).as_posix()})"

    def _find(self, name: str) -> Any:
        stage, _, rest = name.partition("/")
        model, _, rest = rest.partition("/")
        path = self.root / "metrics" / stage / f"{model}.json"
        if path not in self._metrics:
            if not path.is_file():
                raise KvguardError(f"{self._document}: {path} does not exist: fix {name}, or run `dvc repro`")
            self._metrics[path] = json.loads(path.read_text(encoding="utf-8"))
        return _pick(self._metrics[path], rest.split("/"), self._document, name)

    def _known(self, *names: str) -> bool:
        try:
            for name in names:
                self._find(name)
        except KvguardError:
            return False
        return True

    def _once(self, name: str, found: Any) -> Any:
        """Hold that a number stands in one place only."""
        if name in self._stands_in:
            raise KvguardError(
                f"{self._document}: {name} stands in {self._stands_in[name]} already: leave it out of one"
            )
        self._stands_in[name] = self._document
        return found


def documents(root: Path) -> list[Path]:
    """Return the documents of a repository that may hold blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def rerun(outputs: Sequence[Path], root: Path) -> None:
    """Run the command that each output opens with once more, and keep what it prints.

    Raises
    ------
    KvguardError
        A command fails.
    """
    for path in outputs:
        head = path.read_text(encoding="utf-8").partition("\n")[0]
        command = shlex.split(head.removeprefix("$ "))
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise KvguardError(
                f"{path}: `{head[2:]}` fails: {(done.stderr.splitlines() or ['see there'])[-1]}"
            )
        path.write_text(f"{head}\n{done.stdout}", encoding="utf-8")


def _pick(values: Any, parts: Sequence[str], document: Path, name: str) -> Any:
    for part in parts:
        if not isinstance(values, Mapping) or part not in values:
            near = difflib.get_close_matches(part, list(values) if isinstance(values, Mapping) else [], n=1)
            hint = f" (the nearest is {near[0]})" if near else ""
            raise KvguardError(
                f"{document}: no number is called {name}: there is no {part}{hint}: fix the name"
            )
        values = values[part]
    return values


def _estimate(found: Any, document: Path, name: str) -> tuple[float | None, float | None, float | None]:
    """Return a number and its interval; what is undefined is None."""
    if isinstance(found, Mapping) and "value" in found:
        return found["value"], found.get("low"), found.get("high")
    if isinstance(found, int | float):
        return float(found), None, None
    raise KvguardError(f"{document}: {name} is no number: name one below it")
