"""What a track is: a loaded model that gives values to cells of examples.

A cell is a condition in a setting: what stands before the document, and what else varies (a press at a ratio,
a mask, a padded length). A track may score many cells of many examples in one pass; every row that it returns
depends on its own example and cell alone, and on what its fingerprint names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import PLAIN

if TYPE_CHECKING:
    from kvguard.models.spec import ModelSpec
    from kvguard.studies.directed import params as settings
    from kvguard.studies.directed.sources import Dataset


@dataclass(frozen=True, order=True)
class Cell:
    """A condition in a setting."""

    condition: str
    setting: str = PLAIN


@dataclass(frozen=True)
class Row:
    """What was found of one example in one cell.

    Attributes
    ----------
    metrics
        Name -> number; NaN or None: there is none (a condition without a prefix for this example, say).
    texts
        What the example's page shows: the prefix, an answer.
    """

    example: str
    cell: Cell
    metrics: Mapping[str, float | None]
    texts: Mapping[str, str] = field(default_factory=dict)


class Bench(Protocol):
    """A track's loaded model."""

    @property
    def fingerprint(self) -> str:
        """Names all that its rows depend on, but their example and cell."""

    def length(self, example: Example) -> int:
        """Return the tokens of an example's document."""

    def room(self, example: Example) -> int:
        """Return how many tokens of a document the model can read with the rest of the example."""

    def cut(self, example: Example, n: int) -> Example:
        """Return an example whose document is cut to its first ``n`` tokens."""

    def rows(self, examples: Sequence[Example], cells: Sequence[Cell]) -> list[Row]:
        """Return a row for each example in each cell, in whatever order."""


@dataclass(frozen=True)
class Opening:
    """What a track is opened with.

    Attributes
    ----------
    name
        The experiment's.
    folder
        Where it may keep what it makes, prefixes say.
    """

    name: str
    model: str
    spec: ModelSpec
    params: settings.Params
    protocol: settings.Protocol
    dataset: Dataset
    folder: Path


Track = Callable[[Opening], AbstractContextManager[Bench]]


def _decoder(opening: Opening) -> AbstractContextManager[Bench]:
    from kvguard.studies.directed.decoder import opened

    return opened(opening, generates=False)


def _compression(opening: Opening) -> AbstractContextManager[Bench]:
    from kvguard.studies.directed.decoder import opened

    return opened(opening, generates=True)


def _prefix_lm(opening: Opening) -> AbstractContextManager[Bench]:
    from kvguard.studies.directed.decoder import opened
    from kvguard.studies.directed.prefixlm import PrefixLMBench

    return opened(opening, generates=False, bench=PrefixLMBench)


def _encoder_decoder(opening: Opening) -> AbstractContextManager[Bench]:
    from kvguard.studies.directed.encdec import opened

    return opened(opening)


# A track that joins is one entry here: what opens its bench, models and all.
TRACKS: dict[str, Track] = {
    "decoder": _decoder,
    "compression": _compression,
    "prefix_lm": _prefix_lm,
    "encoder_decoder": _encoder_decoder,
}
