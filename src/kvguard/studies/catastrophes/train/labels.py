"""The hazard label of a token, and which tokens stand before the onset."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def hazard_labels(t: NDArray[Any], onset: NDArray[Any], horizon: int) -> Bools:
    """Return which tokens have the onset ahead of them, at most ``horizon`` tokens: the label. [N]

    0 < onset - t <= horizon; false at the onset and after it, and everywhere in a trace without one. So a
    token is exactly one of: label, before the onset without label, not before the onset.

    Parameters
    ----------
    t, onset
        Token index and onset of its trace, negative for none. [N]
    horizon
        H, in tokens.
    """
    ahead = onset.astype(np.int64) - t
    return (onset >= 0) & (ahead > 0) & (ahead <= horizon)


def before_onset(t: NDArray[Any], onset: NDArray[Any]) -> Bools:
    """Return which tokens stand before the onset: all of a trace without one. [N]"""
    return (onset < 0) | (t < onset)


def all_token_target(label: Bools, pre_onset: Bools) -> Bools:
    """Return the target when tokens at and after the onset count too: imminent or already begun. [N]

    Before the onset it is the label, so pre-onset metrics are the same with either.
    """
    return label | ~pre_onset
