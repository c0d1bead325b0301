"""How likely the detector is to find a zone that is there, by the number of examples in a bin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kv_transition.analysis.transition import permutation_test
from kv_transition.settings import Analysis

BINS, ZONE = 5, (2, 3)  # of the simulated curves: two quiet bins, two of the zone, a collapse
QUIET = 0.05
RISES = (0.2, 0.3, 0.45)
SIZES = (5, 10, 20, 40, 80)


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
    """Return answers with these rates of errors and failures in each bin, as the detector takes them. [4, P]"""
    bins = []
    for error, failure in zip(wrong, failed, strict=True):
        score = (rng.random(n_per_bin) >= error).astype(np.float64)
        bins.append(np.stack([np.ones(n_per_bin), score, score, (rng.random(n_per_bin) < failure).astype(np.float64)]))
    return bins


def power_curve(settings: Analysis, n_simulations: int = 200, n_permutations: int = 199) -> list[Power]:
    """Return the power for zones of three sizes, and the share of false zones on flat curves.

    A zone of rise ``r`` has ``r`` more errors and ``r`` more failures than the quiet bins before it. The bins of the
    collapse have no part in the test. One budget: with several, Holm's correction finds somewhat fewer.
    """
    rng = np.random.default_rng(settings.seed)
    curve = []
    for size in SIZES:
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
