"""How good forecasts are by metrics that a clock cannot pass, for each kind of catastrophe apart."""

from typing import Any

from numpy.typing import NDArray

from kvguard.judging.catastrophes import DETECTORS, NO_ONSET
from kvguard.store.results import Results
from kvguard.studies.catastrophes.train.labels import Bools
from kvguard.studies.catastrophes.train.matched import by_position_only, matched_auroc, pre_onset_of
from kvguard.studies.catastrophes.train.metrics import Floats, Measured, Scores, ranking_metrics

PRE_ONSET = "pre_onset"


def add_matched(
    results: Results, tested: Measured, hazard: Scores, kinds: NDArray[Any], weights: Floats
) -> None:
    """Add to the table predictor what a clock cannot pass, and what it can.

    The subject pre_onset gets ``matched_auroc``, the same weighted by positives, and what
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

    assert set(kinds[tested.onset != NO_ONSET]) <= set(DETECTORS), "every onset is of a known kind"

    def values(chosen: Bools) -> dict[str, Floats]:
        prompt, t, target = tested.token_prompt[chosen], tested.rows.t[chosen], tested.rows.label[chosen]
        tokens = prompt, t, hazard[chosen], target
        return {
            "matched_auroc": matched_auroc(weights, *tokens),
            "matched_auroc_by_positives": matched_auroc(weights, *tokens, by_positives=True),
            **by_position_only(weights, prompt, t, target),
        }

    results.add_resampled("predictor", PRE_ONSET, values(tested.rows.pre_onset))
    for kind in DETECTORS:
        chosen, subject = pre_onset_of(tested, kinds, kind), f"{PRE_ONSET}_{kind}"
        label = tested.rows.label[chosen]
        ranking = ranking_metrics(weights, tested.token_prompt[chosen], hazard[chosen], label)
        results.add_resampled("predictor", subject, ranking | values(chosen))
        results.add("predictor", subject, {"n_tokens": len(label), "n_positive": int(label.sum())})
