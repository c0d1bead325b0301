"""The HTML report: one file that opens from disk and asks the network for nothing.

It knows no study. Each hands in a :class:`Chapter`, and the page lays out the chapters that it is given.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from kvguard.report.numbers import Cell, Table


@dataclass(frozen=True)
class Picture:
    """A figure in the page: base64 of a PNG, its caption, what it is of, its size in pixels."""

    data: str
    caption: str
    of: str
    width: int
    height: int

    @classmethod
    def read(cls, path: Path, caption: str, of: str) -> Picture:
        """Read a PNG."""
        with Image.open(path) as image:
            width, height = image.size
        return cls(base64.b64encode(path.read_bytes()).decode(), caption, of, width, height)

    @property
    def is_wide(self) -> bool:
        """Whether it takes a row of its own."""
        return self.width > 2.2 * self.height


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    number: Cell
    unit: str


@dataclass(frozen=True)
class Findings:
    """What was found on one subject: headline numbers and sentences."""

    title: str
    sentences: Sequence[str]
    tiles: Sequence[Tile] = ()


@dataclass(frozen=True)
class Section:
    """A section of a chapter, in the order in which the page shows what is in it."""

    anchor: str
    title: str
    text: str
    findings: Sequence[Findings] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Appendix:
    """A part of the page that a study makes itself.

    Attributes
    ----------
    scripts
        JavaScript that runs once the page is there, in order.
    data
        What the scripts read: the id of a JSON element -> what it holds.
    """

    anchor: str
    title: str
    html: Markup
    scripts: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chapter:
    """What a study hands in.

    Attributes
    ----------
    name
        In the page's links, where there are several chapters.
    lead
        What was run.
    summaries
        What was found, for each subject.
    caveat, note
        Above and below the summaries.
    words
        The study's terms, explained: what a description list holds, as Markup.
    """

    name: str
    title: str
    lead: str
    summaries: Sequence[Findings]
    sections: Sequence[Section]
    caveat: str = ""
    note: str = ""
    words: str = ""
    appendices: Sequence[Appendix] = ()


def render(
    chapters: Sequence[Chapter], command: str = "dvc repro report", tables: str = "reports/tables"
) -> str:
    """Return the page of some chapters.

    Parameters
    ----------
    command, tables
        What writes the page, and where its tables lie: told at its foot.
    """
    loader = PackageLoader("kvguard.report")
    environment = Environment(loader=loader, autoescape=True)
    appendices = [appendix for chapter in chapters for appendix in chapter.appendices]
    scripts = list(dict.fromkeys(script for appendix in appendices for script in appendix.scripts))
    return environment.get_template("report.html.j2").render(
        css=loader.get_source(environment, "report.css")[0],
        chapters=chapters,
        command=command,
        tables=tables,
        data={key: value for appendix in appendices for key, value in appendix.data.items()},
        scripts=scripts,
        allowed_scripts=" ".join(map(_csp_hash, scripts)) or "'none'",
    )


def _csp_hash(script: str) -> str:
    """Return what allows this script, and no other, to run under a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
