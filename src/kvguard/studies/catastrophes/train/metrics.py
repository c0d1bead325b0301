"""How well hazards rank and flag tokens, for the sample and for all resamples of its prompts at once.

Tokens are counted once per prompt and score level. The counts of a resample are then a matrix product of
its weights, and its curve a cumulative sum: a thousand resamples cost about as much as one sort. Pre-onset
tokens are the headline.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.judging.catastrophes import NO_ONSET
from kvguard.stats.bootstrap import count_by, mean_by, quantile, share, sum_by
from kvguard.studies.catastrophes.train.labels import Bools, all_token_target
from kvguard.studies.catastrophes.train.rows import Rows

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
Scores = NDArray[np.floating[Any]]

MAX_FPR = 0.05
MAX_LEVELS = 2048
N_BINS = 10
RANKING = ("auroc", "auprc", "recall_at_5pct_fpr")
QUARTILES = {"lead_time_median": 0.5, "lead_time_q25": 0.25, "lead_time_q75": 0.75}


@dataclass(frozen=True)
class Curve:
    """What each threshold would flag, thresholds falling; the first point flags nothing.

    Attributes
    ----------
    threshold
        Scores at or above it are flagged; the first is infinite. [K]
    true_positives, false_positives
        Flagged tokens of either class, of the sample or of each resample. [K] or [R, K]
    """

    threshold: Floats
    true_positives: Floats
    false_positives: Floats

    @classmethod
    def of(cls, scores: Scores, target: Bools) -> "Curve":
        """Return the curve of the sample; tied scores make one point."""
        one = np.zeros(len(scores), dtype=np.int64)
        curve = cls.resampled(np.ones((1, 1)), one, scores, target, max_levels=None)
        return cls(curve.threshold, curve.true_positives[0], curve.false_positives[0])

    @classmethod
    def resampled(
        cls,
        weights: Floats,
        cluster: Ints,
        scores: Scores,
        target: Bools,
        max_levels: int | None = MAX_LEVELS,
    ) -> "Curve":
        """Return the curves of all resamples.

        With more than ``max_levels`` distinct scores neighbours share a point. No point then holds more
        than 2 / ``max_levels`` of either class, unless it is one tie, so the AUROC of the sample is off by
        at most 1 / ``max_levels``.

        Parameters
        ----------
        weights
            [R, P]
        cluster, scores, target
            Of each token; clusters are rows of ``weights``' columns. [N]
        """
        lowest, level = np.unique(scores, return_inverse=True)  # lowest score of each level, rising
        if max_levels is not None and len(lowest) > max_levels:
            lowest = _lowest_of_groups(scores, target, max_levels)
            level = np.searchsorted(lowest, scores, side="right") - 1
        n_clusters = weights.shape[1]
        flagged = []
        for of_class in (target, ~target):
            counts = count_by(cluster[of_class], level[of_class], n_clusters, len(lowest))
            rising = np.cumsum((weights @ counts)[:, ::-1], axis=1)
            flagged.append(np.pad(rising, ((0, 0), (1, 0))))
        threshold = np.concatenate([[np.inf], lowest[::-1]])
        return cls(threshold, *flagged)

    @property
    def has_both_classes(self) -> Any:
        """Whether rates are defined at all. [] or [R]"""
        return (self.true_positives[..., -1] > 0) & (self.false_positives[..., -1] > 0)

    @property
    def recall(self) -> Floats:
        """Share of the positives that is flagged, NaN without any. [K] or [R, K]"""
        return _ratio(self.true_positives, self.true_positives[..., -1:])

    @property
    def fpr(self) -> Floats:
        """Share of the negatives that is flagged, NaN without any. [K] or [R, K]"""
        return _ratio(self.false_positives, self.false_positives[..., -1:])

    @property
    def precision(self) -> Floats:
        """Share of the flagged that is positive; 1 where nothing is flagged. [K] or [R, K]"""
        return _ratio(self.true_positives, self.true_positives + self.false_positives, otherwise=1)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall. [K] or [R, K]"""
        positives = self.true_positives[..., -1:]
        return _ratio(2 * self.true_positives, self.true_positives + self.false_positives + positives)


def _lowest_of_groups(scores: Scores, target: Bools, n_groups: int) -> Floats:
    """Return the bounds of groups that hold even shares of both classes: quantiles of each. [<= n_groups]"""
    steps = np.linspace(0, 1, n_groups // 2, endpoint=False)
    classes = [scores[of_class] for of_class in (target, ~target) if of_class.any()]
    bounds = [np.quantile(of_class, steps, method="higher") for of_class in classes]
    return np.unique(np.concatenate(bounds))


def _ratio(above: Floats, below: Floats, otherwise: float = np.nan) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), float(otherwise)), where=below > 0)


def auroc(curve: Curve) -> Any:
    """Return the area under the ROC curve, ties counting half; NaN unless both classes occur. [] or [R]"""
    area = np.trapezoid(curve.recall, curve.fpr, axis=-1)
    return np.where(curve.has_both_classes, area, np.nan)


def auprc(curve: Curve) -> Any:
    """Return the average precision; NaN unless both classes occur. [] or [R]"""
    steps = np.diff(curve.recall, axis=-1) * curve.precision[..., 1:]
    return np.where(curve.has_both_classes, np.sum(steps, axis=-1), np.nan)


def recall_at_max_fpr(curve: Curve) -> Any:
    """Return the highest recall at an FPR of at most ``MAX_FPR``; NaN unless both classes occur. [] or [R]"""
    within = np.where(curve.fpr <= MAX_FPR, curve.recall, 0.0)
    return np.where(curve.has_both_classes, np.max(within, axis=-1), np.nan)


def best_f1_threshold(scores: Scores, target: Bools) -> float:
    """Return the threshold of the highest F1 (the highest such threshold); infinite without positives."""
    if not target.any():
        return float("inf")
    curve = Curve.of(scores, target)
    return float(curve.threshold[np.argmax(curve.f1)])


@dataclass(frozen=True)
class Measured:
    """Tokens and traces that are measured, their prompts numbered 0, 1, 2, ... as the bootstrap's clusters.

    Attributes
    ----------
    rows
        N tokens.
    token_prompt
        [N]
    trace_id, trace_prompt, onset
        Of each trace; onset ``NO_ONSET`` for none. [T]
    n_prompts
        P
    """

    rows: Rows
    token_prompt: Ints
    trace_id: Ints
    trace_prompt: Ints
    onset: Ints
    n_prompts: int

    @classmethod
    def of(cls, traces: pd.DataFrame, rows: Rows) -> "Measured":
        """Number the prompts of those of the judged ``traces`` that ``rows`` are of."""
        traces = traces[traces["trace_id"].isin(np.unique(rows.trace_id))]
        number, names = pd.factorize(traces["prompt_id"], sort=True)
        trace_id = traces["trace_id"].to_numpy()
        token_prompt = pd.Series(number, index=trace_id).reindex(rows.trace_id).to_numpy(dtype=np.int64)
        onset = traces["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int64)
        return cls(rows, token_prompt, trace_id, number, onset, len(names))


def pre_onset_metrics(
    weights: Floats, tested: Measured, hazard: Scores, threshold: float
) -> dict[str, Floats]:
    """Return every metric over the tokens before an onset. {metric: [R]}

    Parameters
    ----------
    weights
        [R, P]
    hazard
        Of the tokens of ``tested``. [N]
    threshold
        At which tokens are flagged, for F1, the trace detection rate and the lead time.
    """
    early = tested.rows.pre_onset
    tokens = token_metrics(
        weights, tested.token_prompt[early], hazard[early], tested.rows.label[early], threshold
    )
    return {**tokens, **detection_metrics(weights, tested, hazard, threshold)}


def all_token_metrics(
    weights: Floats, tested: Measured, hazard: Scores, threshold: float
) -> dict[str, Floats]:
    """Return the metrics over all tokens, those at and after an onset being positives. {metric: [R]}"""
    target = all_token_target(tested.rows.label, tested.rows.pre_onset)
    return token_metrics(weights, tested.token_prompt, hazard, target, threshold)


def pre_onset_ranking(weights: Floats, tested: Measured, hazard: Scores) -> dict[str, Floats]:
    """Return the ranking metrics over the tokens before an onset. {metric: [R]}"""
    early = tested.rows.pre_onset
    return ranking_metrics(weights, tested.token_prompt[early], hazard[early], tested.rows.label[early])


def ranking_metrics(weights: Floats, cluster: Ints, scores: Scores, target: Bools) -> dict[str, Floats]:
    """Return AUROC, AUPRC and recall at 5 % FPR; NaN unless both classes occur. {metric: [R]}"""
    curve = Curve.resampled(weights, cluster, scores, target)
    return dict(zip(RANKING, (auroc(curve), auprc(curve), recall_at_max_fpr(curve)), strict=True))


def token_metrics(
    weights: Floats, cluster: Ints, hazard: Scores, target: Bools, threshold: float
) -> dict[str, Floats]:
    """Return the ranking metrics, F1 at ``threshold`` and the Brier score. {metric: [R]}"""
    n_clusters = weights.shape[1]
    flagged = hazard >= threshold
    hits, found, positives = (
        sum_by(cluster, of_kind, n_clusters) for of_kind in (flagged & target, flagged, target)
    )
    f1 = share(weights, 2 * hits, found + positives)
    return {
        **ranking_metrics(weights, cluster, hazard, target),
        "f1": np.where(weights @ positives > 0, f1, np.nan),
        "brier": mean_by(weights, cluster, np.square(hazard - target.astype(np.float64))),
    }


def lead_times(tested: Measured, hazard: Scores, threshold: float) -> Floats:
    """Return onset minus the first flagged token before it; NaN if none is, or without an onset. [T]"""
    flagged = np.flatnonzero(tested.rows.pre_onset & (hazard >= threshold))
    trace_id, first = np.unique(tested.rows.trace_id[flagged], return_index=True)
    t = pd.Series(tested.rows.t[flagged[first]], index=trace_id, dtype=np.float64)
    lead = tested.onset - t.reindex(tested.trace_id).to_numpy()
    return np.where(tested.onset == NO_ONSET, np.nan, lead)


def detection_metrics(
    weights: Floats, tested: Measured, hazard: Scores, threshold: float
) -> dict[str, Floats]:
    """Return the share of catastrophic traces flagged before their onset, and how early. {metric: [R]}"""
    lead = lead_times(tested, hazard, threshold)
    catastrophic = tested.onset != NO_ONSET
    foreseen = ~np.isnan(lead)
    whole, part = (sum_by(tested.trace_prompt, kind, tested.n_prompts) for kind in (catastrophic, foreseen))
    leads = lead[foreseen].astype(np.int64)
    counts = count_by(tested.trace_prompt[foreseen], leads, tested.n_prompts, int(leads.max(initial=0)) + 1)
    return {
        "trace_detection_rate": share(weights, part, whole),
        **{name: quantile(weights, counts, q) for name, q in QUARTILES.items()},
    }


def reliability(weights: Floats, tested: Measured, hazard: Scores) -> list[tuple[dict[str, Floats], int]]:
    """Return, for each tenth of the hazard's range, what was forecast and what came true before the onset.

    Returns
    -------
    list
        Of ``N_BINS`` pairs: mean_hazard and observed, {metric: [R]}, and the number of tokens.
    """
    early = tested.rows.pre_onset
    prompt, forecast = tested.token_prompt[early], hazard[early]
    observed = tested.rows.label[early].astype(np.float64)
    number = np.minimum((forecast * N_BINS).astype(np.int64), N_BINS - 1)
    bins = []
    for here in (number == this for this in range(N_BINS)):
        means = {
            "mean_hazard": mean_by(weights, prompt[here], forecast[here]),
            "observed": mean_by(weights, prompt[here], observed[here]),
        }
        bins.append((means, int(here.sum())))
    return bins
