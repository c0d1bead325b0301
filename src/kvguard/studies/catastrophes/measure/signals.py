"""What the signals look like under each condition, and before a failure."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE
from kvguard.judging.catastrophes import DETECTORS, NO_ONSET, is_catastrophic
from kvguard.stats.bootstrap import Floats, share, sum_by
from kvguard.store.results import Results
from kvguard.studies.catastrophes.measure.outcomes import CONDITION, OVERALL, subjects
from kvguard.studies.catastrophes.train.metrics import Curve, auroc

Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
Sums = tuple[Floats, Floats]  # counts and summed values

BEFORE = 10  # tokens before an onset that are looked at
_BLOCK = 128  # resamples held in memory at once


def trace_signals(traces: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """Reduce the signals of each trace.

    Parameters
    ----------
    tokens
        trace_id, entropy and top1_prob, the tokens of a trace in a row, as ``read_tokens`` gives them.

    Returns
    -------
    DataFrame
        One row for each of ``traces``: tokens (their number), entropy (their sum), max_entropy,
        min_top1_prob.
    """
    trace_id = tokens["trace_id"].to_numpy()
    starts = np.flatnonzero(np.diff(trace_id, prepend=-1))
    entropy, top1 = (tokens[name].to_numpy() for name in ("entropy", "top1_prob"))
    reduced = pd.DataFrame(
        {
            "tokens": np.diff(starts, append=len(trace_id)),
            "entropy": np.add.reduceat(entropy, starts, dtype=np.float64),
            "max_entropy": np.maximum.reduceat(entropy, starts),
            "min_top1_prob": np.minimum.reduceat(top1, starts),
        },
        index=trace_id[starts],
    )
    return reduced.reindex(traces["trace_id"]).set_axis(traces.index)


def signal_ranges(traces: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """Return mean and largest entropy and smallest top-1 probability over the tokens of each condition."""
    grouped = trace_signals(traces, tokens).join(traces[CONDITION]).groupby(CONDITION, sort=False)
    sums = grouped[["entropy", "tokens"]].sum()
    return pd.DataFrame(
        {
            "mean_entropy": sums["entropy"] / sums["tokens"],
            "max_entropy": grouped["max_entropy"].max(),
            "min_top1_prob": grouped["min_top1_prob"].min(),
        }
    )


def add_signals(
    results: Results, traces: pd.DataFrame, tokens: pd.DataFrame, prompt: Ints, weights: Floats
) -> None:
    """Add the tables ``signals`` and ``max_entropy``.

    Extremes have no interval: a resample of prompts holds no larger one. ``max_entropy`` tells how well the
    largest entropy of a trace separates the catastrophic ones: its AUROC, below 0.5 where they are the
    calmer ones.

    Parameters
    ----------
    prompt
        Number of each trace's prompt. [T]
    weights
        Of the prompts in each resample. [R, P]
    """
    reduced = trace_signals(traces, tokens)
    catastrophic = is_catastrophic(traces)
    for subject, here in subjects(traces).items():
        own, of = reduced[here], prompt[here]
        if subject != OVERALL:
            sums = (sum_by(of, own[name].to_numpy(), weights.shape[1]) for name in ("entropy", "tokens"))
            results.add_resampled("signals", subject, {"mean_entropy": share(weights, *sums)})
            extremes = {"max_entropy": own["max_entropy"].max(), "min_top1_prob": own["min_top1_prob"].min()}
            results.add("signals", subject, extremes)
        curve = Curve.resampled(weights, of, own["max_entropy"].to_numpy(), catastrophic[here])
        results.add_resampled("max_entropy", subject, {"auroc": auroc(curve)})


def add_onset_entropy(
    results: Results, traces: pd.DataFrame, tokens: pd.DataFrame, prompt: Ints, weights: Floats
) -> None:
    """Add the table ``onset_entropy``: the last tokens before an onset against healthy ones as far in.

    Each of the ``BEFORE`` tokens before an onset is held against the mean of the healthy traces (without a
    catastrophe) of its condition at the same position, or where none of them reaches it, of the
    uncompressed ones; where those do not either, it is left out. ``n_tokens`` are left. Traces that both
    loop and do not end count as looping, which began first. Every resample draws failing and healthy
    traces alike.

    Parameters
    ----------
    tokens
        trace_id, t and entropy.
    prompt
        Number of each trace's prompt. [T]
    weights
        Of the prompts in each resample. [R, P]
    """
    row = pd.Index(traces["trace_id"]).get_indexer(tokens["trace_id"])  # of each token
    t, entropy = tokens["t"].to_numpy(), tokens["entropy"].to_numpy()
    onset = traces["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int64)[row]
    near = (onset != NO_ONSET) & (t < onset) & (t >= onset - BEFORE)
    place = traces.groupby(CONDITION, sort=False).ngroup().to_numpy()[row] * (int(t.max()) + 1) + t
    wanted, first = np.unique(place[near], return_index=True)  # K places: a position under a condition
    position, at = np.unique(t[near][first], return_inverse=True)

    def by_place(chosen: Bools, of: Ints, places: Ints) -> Sums:
        chosen = chosen & np.isin(of, places)
        cell = prompt[row[chosen]] * len(places) + np.searchsorted(places, of[chosen])
        shape = (weights.shape[1], len(places))
        values = (np.ones(len(cell)), entropy[chosen])
        counts, sums = (sum_by(cell, numbers, shape[0] * shape[1]).reshape(shape) for numbers in values)
        return counts, sums

    catastrophic = is_catastrophic(traces)
    healthy = by_place(~catastrophic[row], place, wanted)
    plain = ~catastrophic & (traces["compressor"] == NONE).to_numpy()
    counts, sums = by_place(plain[row], t, position)
    uncompressed = counts[:, at], sums[:, at]
    kind = traces["catastrophes"].map(lambda found: next((k for k in DETECTORS if k in found), None))
    for subject in (OVERALL, *DETECTORS):
        chosen = catastrophic if subject == OVERALL else (kind == subject).to_numpy()
        failing = by_place(near & chosen[row], place, wanted)
        blocks = [weights[begin : begin + _BLOCK] for begin in range(0, len(weights), _BLOCK)]
        found = [_before_onset(block, failing, healthy, uncompressed) for block in blocks]
        before, matched, n_tokens = (np.concatenate(parts) for parts in zip(*found, strict=True))
        values = {"before_onset": before, "matched": matched, "difference": before - matched}
        results.add_resampled("onset_entropy", subject, values)
        results.add("onset_entropy", subject, {"n_tokens": int(n_tokens[0])})


def _before_onset(
    weights: Floats, failing: Sums, healthy: Sums, uncompressed: Sums
) -> tuple[Floats, Floats, Floats]:
    """Return mean entropy before the onsets, mean matched entropy, and over how many tokens. [R] each

    Parameters
    ----------
    weights
        [R, P]
    failing, healthy, uncompressed
        Number and summed entropy, by prompt and place, of tokens before an onset, of the healthy tokens
        that match them, and of those that stand in where a place has none. [P, K] each
    """
    expected = _mean(weights, healthy)
    expected = np.where(np.isnan(expected), _mean(weights, uncompressed), expected)  # [R, K]
    known = np.isfinite(expected)
    counts, sums = (weights @ table for table in failing)
    n_tokens = (counts * known).sum(axis=1)
    before = (sums * known).sum(axis=1)
    matched = (counts * np.nan_to_num(expected)).sum(axis=1)
    return _ratio(before, n_tokens), _ratio(matched, n_tokens), n_tokens


def _mean(weights: Floats, table: Sums) -> Floats:
    return _ratio(weights @ table[1], weights @ table[0])


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
