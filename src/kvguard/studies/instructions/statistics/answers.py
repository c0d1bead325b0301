"""The results of a run as arrays: an outcome of every example under every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kvguard.stats.bootstrap import Floats, resample_weights
from kvguard.studies.instructions.arms import BASELINE, Arm, parse_arm
from kvguard.studies.instructions.scoring import prompt_level

LEVELS = ("strict", "loose")


@dataclass(frozen=True)
class Answers:
    """The results of a run, and resamples of its examples.

    Parameters
    ----------
    rows : mapping of (example, arm) to result
    keys : tuple of str
        Examples, in order.
    arms : tuple of Arm
        The baseline first.
    weights : ndarray
        Of the examples in each resample. [R, P]
    """

    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    keys: tuple[str, ...]
    arms: tuple[Arm, ...]
    weights: Floats

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], n_resamples: int, seed: int) -> Answers:
        """Gather results; examples without a baseline are left out, since nothing can be held against it."""
        by_key = {(row["key"], row["arm"]): row for row in rows}
        keys = tuple(key for key, arm in by_key if arm == BASELINE)
        named = dict.fromkeys([BASELINE, *sorted({str(row["arm"]) for row in rows})])
        presses = [name.partition("@")[0].partition(":")[0].partition("+")[0] for name in named]
        arms = tuple(parse_arm(name, presses) for name in named)
        return cls(by_key, tuple(sorted(keys)), arms, resample_weights(max(1, len(keys)), n_resamples, seed))

    @property
    def others(self) -> tuple[Arm, ...]:
        """The arms but for the baseline."""
        return tuple(arm for arm in self.arms if arm.press != BASELINE)

    def get(self, key: str, arm: Arm) -> Mapping[str, Any] | None:
        """Return a result; None where it is not there, or the arm did not apply."""
        row = self.rows.get((key, str(arm)))
        return None if row is None or "unfit" in row else row

    def column(self, arm: Arm, name: str) -> Floats:
        """Return a number of each example's result, NaN where there is none. [P]"""
        found = [(self.get(key, arm) or {}).get(name) for key in self.keys]
        return np.array([np.nan if value is None else float(value) for value in found])

    @cached_property
    def prompt(self) -> dict[str, dict[Arm, Floats]]:
        """Whether each example's instructions were all followed, by level and arm. [P] each"""
        return {level: {arm: self._prompt(arm, level) for arm in self.arms} for level in LEVELS}

    def _prompt(self, arm: Arm, level: str) -> Floats:
        found = [
            None if row is None else prompt_level(row[level])
            for row in (self.get(key, arm) for key in self.keys)
        ]
        return np.array([np.nan if value is None else float(value) for value in found])

    def verdicts(self, arm: Arm, level: str = "strict") -> tuple[np.ndarray, Floats]:
        """Return the example of each instruction under an arm, and whether it was followed. [I], [I]"""
        places, values = [], []
        for place, key in enumerate(self.keys):
            row = self.get(key, arm)
            for verdict in row[level] if row is not None else ():
                places.append(place)
                values.append(np.nan if verdict is None else float(verdict))
        return np.array(places, dtype=np.int64), np.array(values, dtype=np.float64)

    def against_baseline(self, arm: Arm) -> list[tuple[int, int, bool, bool]]:
        """List instructions with a verdict in both: example, place, and whether baseline and arm followed."""
        found = []
        for place, key in enumerate(self.keys):
            base, other = self.get(key, Arm(BASELINE)), self.get(key, arm)
            if base is None or other is None:
                continue
            for number, (before, after) in enumerate(zip(base["strict"], other["strict"], strict=True)):
                if before is not None and after is not None:
                    found.append((place, number, before, after))
        return found
