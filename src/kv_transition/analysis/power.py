"""How likely the detector is to find a zone that is there, by the number of examples in a bin.

The curve depends on no data, so the package has it ready: ``python -m kv_transition.analysis.power`` makes
it anew.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path

import numpy as np

from kv_transition.analysis.transition import permutation_test
from kv_transition.settings import Analysis

BINS, ZONE = 5, (2, 3)  # of the simulated curves: two quiet bins, two of the zone, a collapse
QUIET = 0.05
RISES = (0.2, 0.3, 0.45)
SIZES = (5, 10, 20, 40, 80)
_FILE = "power.csv"
_SIMULATIONS = 300


@dataclass(frozen=True)
class Power:
    """The share of simulated zones that were found."""

    n_per_bin: int
    rise: float
    found: float
    false: float


def simulate(
    rng: np.random.Generator, n_per_bin: int, wrong: tuple[float, ...], failed: tuple[float, ...]
) -> list[np.ndarray]:
    """Return answers with these rates of errors and failures, as the detector takes a bin. [4, P]"""
    bins = []
    for error, failure in zip(wrong, failed, strict=True):
        score = (rng.random(n_per_bin) >= error).astype(np.float64)
        bins.append(
            np.stack([np.ones(n_per_bin), score, score, (rng.random(n_per_bin) < failure).astype(np.float64)])
        )
    return bins


def power_curve() -> list[Power]:
    """Return the curve that the package has, at the level of the default settings."""
    with (files("kv_transition.analysis") / _FILE).open(encoding="utf-8") as file:
        return [
            Power(int(row["n_per_bin"]), *(float(row[name]) for name in ("rise", "found", "false")))
            for row in csv.DictReader(file)
        ]


def simulated_curve(
    settings: Analysis,
    sizes: Iterable[int] = SIZES,
    n_simulations: int = _SIMULATIONS,
    n_permutations: int = 199,
) -> list[Power]:
    """Return the power for zones of three sizes, and the share of false zones on flat curves.

    A zone of rise ``r`` has ``r`` more errors and ``r`` more failures than the quiet bins before it. The
    bins of the
    collapse have no part in the test. One budget: with several, Holm's correction finds somewhat fewer.
    """
    rng = np.random.default_rng(settings.seed)
    curve = []
    for size in sizes:
        false = _share(rng, size, 0.0, settings, n_simulations, n_permutations)
        for rise in RISES:
            found = _share(rng, size, rise, settings, n_simulations, n_permutations)
            curve.append(Power(size, rise, found, false))
    return curve


def _share(
    rng: np.random.Generator, size: int, rise: float, settings: Analysis, n: int, permutations: int
) -> float:
    rates = tuple(QUIET + (rise if index >= ZONE[0] else 0.0) for index in range(ZONE[1] + 1))
    p_values = [
        permutation_test(simulate(rng, size, rates, rates), permutations, int(rng.integers(2**31))).p_value
        for _ in range(n)
    ]
    return float(np.mean([p <= settings.alpha for p in p_values]))


def main() -> None:
    """Write the curve of the package."""
    with (Path(__file__).parent / _FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Power)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {**asdict(one), "found": round(one.found, 3), "false": round(one.false, 3)}
            for one in simulated_curve(Analysis())
        )


if __name__ == "__main__":
    main()
