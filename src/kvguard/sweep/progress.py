"""Finished traces, counted: what makers of parts report, and the bar that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Tally:
    """Traces finished so far: how many, with a catastrophe, scored; and the sum of their headline scores."""

    n: int = 0
    catastrophic: int = 0
    scored: int = 0
    correct: float = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n + other.n,
            self.catastrophic + other.catastrophic,
            self.scored + other.scored,
            self.correct + other.correct,
        )


Report = Callable[[Tally], None]


class Progress:
    """A bar of finished traces: traces/s, time left, running CBR and accuracy."""

    def __init__(self, name: str, total: int, kept: int, show: bool) -> None:
        self.tally = Tally()
        self.bar = tqdm(total=total, initial=kept, desc=name, unit="trace", smoothing=0.05, disable=not show)

    def __call__(self, tally: Tally) -> None:
        """Count finished traces."""
        self.tally += tally
        self.bar.set_postfix_str(
            f"CBR {self.tally.catastrophic / self.tally.n:.3f}"
            + (f", accuracy {self.tally.correct / self.tally.scored:.3f}" if self.tally.scored else ""),
            refresh=False,
        )
        self.bar.update(tally.n)

    def expect(self, n: int) -> None:
        """Extend the bar by ``n`` traces that are generated again."""
        self.bar.total += n
