"""Whether what a server generates still looks like what certified it; see :mod:`kvguard.guard.drift`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvguard.guard.drift import Drift, InOrder, score, warn_of_drift

if TYPE_CHECKING:
    from kvguard.guard.actions import Guarded
    from kvguard.guard.certificate import Certified

_VOID = ("invalid", "cancelled")  # texts that came to nothing


@dataclass(frozen=True)
class Place:
    """A text's place among those of its certified setting."""

    setting: str
    number: int
    of: InOrder


class Drifts:
    """The drift of every certified setting that texts are generated under, by its name."""

    def __init__(self) -> None:
        self._found: dict[str, InOrder] = {}

    def begin(self, covered: Certified | None) -> Place | None:
        """Give a text that begins now its place; None where no score certified it."""
        if covered is None or not covered.scores:
            return None
        name = str(covered)
        if name not in self._found:
            self._found[name] = InOrder(Drift(covered.scores))
        of = self._found[name]
        return Place(name, of.begin(), of)

    def end(self, place: Place | None, found: Guarded | None) -> None:
        """Take what became of a text, None where it was lost."""
        if place is None:
            return
        known = found is not None and found.stop_reason not in _VOID
        value = score(found.hazard, found.safe_at) if known and found is not None else None
        if place.of.end(place.number, value):
            warn_of_drift(place.of.drift, place.setting)

    @property
    def found(self) -> dict[str, Drift]:
        """The gamblers by setting."""
        return {name: of.drift for name, of in self._found.items()}
