"""How good forecasts are by metrics that a clock cannot pass, for each kind of catastrophe apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvguard.judging.catastrophes import DETECTORS
from kvguard.store.results import Results
from kvguard.studies.catastrophes.train.labels import Bools
from kvguard.studies.catastrophes.train.matched import by_position_only, matched_auroc, pre_onset_of
from kvguard.studies.catastrophes.train.metrics import Floats, Measured, Scores, ranking_metrics

PRE_ONSET = "pre_onset"


def add_matched(
    results: Results, tested: Measured, hazard: Scores, kinds: NDArray[Any], weights: Floats
) -> None:
    """Add to the table predictor what a clock cannot pass, and what it can.

    The subject pre_onset gets ``matched_auroc`` and what
    :func:`~kvguard.studies.catastrophes.train.matched.by_position_only` says; pre_onset_KIND, one for each
    kind of catastrophe, gets these, the ranking metrics, n_tokens and n_positive.

    Parameters
    ----------
    hazard
        Of the tokens of ``tested``. [N]
    kinds
        Of the onset of each trace of ``tested``; None where there is none. [T]
    weights
        [R, P]
    """

    def values(chosen: Bools) -> tuple[dict[str, Floats], dict[str, Floats]]:
        prompt, t, target = tested.token_prompt[chosen], tested.rows.t[chosen], tested.rows.label[chosen]
        ranking = ranking_metrics(weights, prompt, hazard[chosen], target)
        matched = matched_auroc(weights, prompt, t, hazard[chosen], target)
        return ranking, {"matched_auroc": matched, **by_position_only(weights, prompt, t, target)}

    _, found = values(tested.rows.pre_onset)
    results.add_resampled("predictor", PRE_ONSET, found)
    for kind in DETECTORS:
        chosen, subject = pre_onset_of(tested, kinds, kind), f"{PRE_ONSET}_{kind}"
        ranking, found = values(chosen)
        results.add_resampled("predictor", subject, ranking | found)
        n_positive = int(np.sum(tested.rows.label[chosen]))
        results.add("predictor", subject, {"n_tokens": int(chosen.sum()), "n_positive": n_positive})
