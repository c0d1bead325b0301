"""How well hazards rank tokens that stand at the same place: what a clock cannot pass.

Failures come at typical places, so a score that only tells the time ranks tokens well. Among tokens of one
index all clocks are equal: there it ranks like a coin.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.compiled import compiled
from kvguard.studies.catastrophes.train.labels import Bools
from kvguard.studies.catastrophes.train.metrics import Curve, Floats, Ints, Measured, Scores, auroc


def matched_auroc(
    weights: Floats, cluster: Ints, t: Ints, scores: Scores, target: Bools, by_positives: bool = False
) -> Floats:
    """Return the AUROC among tokens of one index, averaged over indices. [R]

    The average is over the indices at which both classes occur in the resample. It is plain: an index counts
    once, however many tokens it has, so the last ones, which few traces reach, weigh as much as the first.
    Weighted by positives it is the chance that a positive ranks above a negative of its index. Exact: pairs
    are counted, ties half. NaN where no index has both classes.

    Parameters
    ----------
    weights
        [R, P]
    cluster, t, scores, target
        Of each token; clusters number ``weights``' columns, ``t`` is the index. [N]
    by_positives
        Weigh an index by its positives.
    """
    n_indices = int(t.max(initial=-1)) + 1
    both = np.ones(n_indices, dtype=bool)
    for of_class in (target, ~target):
        both &= np.bincount(t[of_class], minlength=n_indices) > 0
    chosen = np.flatnonzero(both[t])
    order = chosen[np.lexsort((scores[chosen], t[chosen]))]
    total, whole = _sum_over_indices(
        np.ascontiguousarray(weights.T),
        cluster[order].astype(np.int64),
        t[order].astype(np.int64),
        scores[order].astype(np.float64),
        target[order],
        by_positives,
    )
    return np.divide(total, whole, out=np.full(len(weights), np.nan), where=whole > 0)


def pre_onset_matched(weights: Floats, tested: Measured, hazard: Scores) -> dict[str, Floats]:
    """Return the AUROCs at matched positions over the tokens before an onset. {metric: [R]}"""
    early = tested.rows.pre_onset
    tokens = tested.token_prompt[early], tested.rows.t[early], hazard[early], tested.rows.label[early]
    return {
        "matched_auroc": matched_auroc(weights, *tokens),
        "matched_auroc_by_positives": matched_auroc(weights, *tokens, by_positives=True),
    }


@compiled()
def _add_negatives(
    below: Floats, weights: Floats, cluster: Ints, target: Bools, begin: int, end: int, times: float
) -> None:
    for token in range(begin, end):
        if not target[token]:
            row = weights[cluster[token]]
            for resample in range(len(below)):
                below[resample] += times * row[resample]


@compiled()
def _sum_over_indices(
    weights: Floats, cluster: Ints, t: Ints, scores: Floats, target: Bools, by_positives: bool
) -> tuple[Floats, Floats]:
    """Return the weighted sum of the AUROCs of all indices that have one, and of their weights. [R], [R]

    Parameters
    ----------
    weights
        A row for each cluster, so that a token reads its own in one go. [P, R]
    cluster, t, scores, target
        Sorted by index, then by rising score. [N]
    """
    n_resamples, n_tokens = weights.shape[1], len(t)
    total, whole = np.zeros(n_resamples), np.zeros(n_resamples)
    below, above, won = np.zeros(n_resamples), np.zeros(n_resamples), np.zeros(n_resamples)
    begin = 0
    while begin < n_tokens:
        end = begin + 1  # of the tie
        mixed = False
        while end < n_tokens and t[end] == t[begin] and scores[end] == scores[begin]:
            mixed |= target[end] != target[begin]
            end += 1
        # A positive of the tie is to see half of the tie's negatives below it.
        _add_negatives(below, weights, cluster, target, begin, end, 0.5 if mixed else 1.0)
        for token in range(begin, end):
            if target[token]:
                row = weights[cluster[token]]
                for resample in range(n_resamples):
                    above[resample] += row[resample]
                    won[resample] += row[resample] * below[resample]
        if mixed:
            _add_negatives(below, weights, cluster, target, begin, end, 0.5)
        if end == n_tokens or t[end] != t[begin]:
            for resample in range(n_resamples):
                if above[resample] > 0 and below[resample] > 0:
                    weight = above[resample] if by_positives else 1.0
                    total[resample] += weight * won[resample] / (above[resample] * below[resample])
                    whole[resample] += weight
            below[:], above[:], won[:] = 0.0, 0.0, 0.0
        begin = end
    return total, whole


def by_position_only(weights: Floats, cluster: Ints, t: Ints, target: Bools) -> dict[str, Floats]:
    """Return what a clock reaches on the same tokens. {metric: [R]}

    ``auroc_position_only`` and ``matched_auroc_position_only`` are those of the index itself as a score.
    ``auroc_best_clock`` is that of the share of positives at each index of the sample: there no function of
    the index ranks better (Neyman and Pearson), however failures are spread over it.
    """
    clock, n_tokens, n_positive = t.astype(np.float64), np.bincount(t), np.bincount(t, weights=target)
    best = np.divide(n_positive, n_tokens, out=np.zeros(len(n_tokens)), where=n_tokens > 0)[t]
    return {
        "auroc_position_only": auroc(Curve.resampled(weights, cluster, clock, target)),
        "auroc_best_clock": auroc(Curve.resampled(weights, cluster, best, target)),
        "matched_auroc_position_only": matched_auroc(weights, cluster, t, clock, target),
    }


def pre_onset_of(tested: Measured, kinds: NDArray[Any], kind: str) -> Bools:
    """Return the tokens by which forecasts of one kind of catastrophe are measured. [N]

    The positives are labelled tokens of traces whose onset is of that kind. The negatives are the same for
    every kind: all unlabelled tokens before an onset, those of traces without one and those further than H
    before one of any kind. So the pre-onset AUROC is the mean of those of the kinds, weighted by positives.

    Parameters
    ----------
    kinds
        Of the onset of each trace of ``tested``; None where there is none. [T]
    """
    trace = pd.Index(tested.trace_id).get_indexer(tested.rows.trace_id)
    its = np.equal(np.asarray(kinds, dtype=object), kind).astype(bool)
    return tested.rows.pre_onset & (its[trace] | ~tested.rows.label)
