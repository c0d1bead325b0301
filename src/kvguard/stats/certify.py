"""Learn, then test: which settings of several policies are certified, all of them together at one level.

Every policy is a sequence of hypotheses from mild to severe, "this setting breaks its limit". Within a policy
they are tested in that fixed order, the first that is not rejected ends it, and so none is corrected for the
others (fixed-sequence testing; Angelopoulos, Bates, Candes, Jordan and Lei 2021, "Learn then Test").

Between policies the level is passed on in a graph (Bretz, Maurer, Brannath and Posch 2009): each of m
policies begins with delta / m, and one whose every setting is certified leaves its share, in equal parts, to
those that are still tested. The probability that any certified setting breaks its limit is at most delta,
whatever the policies have to do with each other. It certifies all that Bonferroni's correction of the
sequences does. Holm's method over the policies' first settings would pass a share on once one setting is
certified, but then the severer settings of that policy would have none left; and they are what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kvguard.stats.bootstrap import Floats


def both(*p: ArrayLike) -> Floats:
    """Return the p-values of "one of these limits is broken", from those of each; shapes broadcast.

    A rejection claims all of the limits, so each must be rejected, and none is corrected for the others: the
    intersection-union test (Berger 1982).
    """
    largest: Floats = np.maximum.reduce([np.asarray(one, dtype=np.float64) for one in p])
    return largest


def fixed_sequence(p: ArrayLike, delta: float) -> int:
    """Return how many hypotheses of a sequence are rejected: all before the first with p > delta."""
    passed = np.asarray(p) <= delta
    return len(passed) if passed.all() else int(np.argmin(passed))


def certify(p: Sequence[Sequence[float] | Floats], delta: float) -> list[int]:
    """Return how many hypotheses of each policy's sequence are rejected, family-wise at level ``delta``.

    Parameters
    ----------
    p
        The p-values of each policy's settings, from mild to severe; policies may have different numbers.
    """
    done, share = [0] * len(p), [delta / max(len(p), 1)] * len(p)
    open_ = [i for i in range(len(p)) if len(p[i])]
    for i in set(range(len(p))) - set(open_):
        share[i] = 0.0  # nothing is asked of it: nobody may gain by such policies
    moved = True
    while moved:
        moved = False
        for i in list(open_):
            done[i] += fixed_sequence(p[i][done[i] :], share[i])
            if done[i] == len(p[i]):
                open_.remove(i)
                for j in open_:
                    share[j] += share[i] / len(open_)
                moved = bool(open_)
    return done
