"""The hazard label of a token, and which tokens stand before the onset."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def hazard_labels(t: NDArray[Any], onset: NDArray[Any], horizon: int) -> tuple[Bools, Bools]:
    """Label the tokens ``t`` of traces whose catastrophe begins at ``onset``.

    ``label`` is true when 0 < onset - t <= horizon: the onset lies ahead, and at most ``horizon`` tokens
    ahead. It is false at the onset and after it, and everywhere in a trace without a catastrophe.
    ``pre_onset`` is true when t < onset, and everywhere in a trace without a catastrophe. So a token is
    exactly one of: label, pre-onset without label, not pre-onset.

    Parameters
    ----------
    t, onset
        Token index and onset of its trace, negative for none. [N]
    horizon
        H, in tokens.

    Returns
    -------
    label, pre_onset
        [N], [N]
    """
    ahead = onset.astype(np.int64) - t
    catastrophic = onset >= 0
    return catastrophic & (ahead > 0) & (ahead <= horizon), ~catastrophic | (ahead > 0)


def all_token_target(label: Bools, pre_onset: Bools) -> Bools:
    """Return the target when tokens at and after the onset count too: imminent or already begun. [N]

    Before the onset it is the label, so pre-onset metrics are the same with either.
    """
    return label | ~pre_onset
