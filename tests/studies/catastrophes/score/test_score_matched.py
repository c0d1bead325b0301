"""The rows of the table predictor that a clock cannot pass."""

import numpy as np
import pandas as pd
import pytest

from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.score.hazards import rows_of
from kvguard.studies.catastrophes.score.matched import add_matched
from kvguard.studies.catastrophes.train.matched import matched_auroc
from kvguard.studies.catastrophes.train.metrics import Measured

N_TOKENS, HORIZON = 40, 8


def measured(kinds, onsets):
    """Traces of two conditions of each prompt, all of one length."""
    traces = pd.DataFrame(
        {
            "trace_id": np.arange(len(kinds), dtype=np.int32),
            "prompt_id": [f"p{number // 2}" for number in range(len(kinds))],
            "onset": pd.array(onsets, dtype="Int32"),
        }
    )
    t = np.tile(np.arange(N_TOKENS, dtype=np.int32), len(kinds))
    trace_id = np.repeat(traces["trace_id"].to_numpy(), N_TOKENS)
    return Measured.of(traces, rows_of(pd.DataFrame({"trace_id": trace_id, "t": t}), traces, HORIZON))


def found(kinds, onsets, hazard_of):
    tested = measured(kinds, onsets)
    weights = resample_weights(tested.n_prompts, 30, 0)
    results = Results("train", "tiny", "v2")
    hazard = hazard_of(tested)
    add_matched(results, tested, hazard, np.array(kinds, dtype=object), weights)
    frame = results.frame
    assert (frame["table"] == "predictor").all()
    return frame.set_index(["subject", "metric"])["value"], tested, hazard


def test_a_hazard_that_knows_loops_and_takes_run_ons_by_the_clock():
    rng = np.random.default_rng(0)
    kinds = ["looping", None, "non_termination", None] * 10
    at = {None: lambda: None, "looping": lambda: int(rng.integers(8, 38)), "non_termination": lambda: 30}
    onsets = [at[kind]() for kind in kinds]
    kind_of = np.repeat(np.array(kinds, dtype=object), N_TOKENS)

    def hazard(tested):
        clock = np.where((tested.rows.t >= 22) & (tested.rows.t < 30), 0.5, 0.1)
        return np.where(tested.rows.label & (kind_of == "looping"), 0.9, clock).astype(np.float32)

    values, tested, scores = found(kinds, onsets, hazard)
    assert values["pre_onset_looping", "auroc"] == values["pre_onset_looping", "matched_auroc"] == 1
    assert values["pre_onset_non_termination", "auroc"] > 0.8
    assert values["pre_onset_non_termination", "matched_auroc"] == 0.5
    assert values["pre_onset_non_termination", "n_positive"] == 10 * HORIZON
    assert values["pre_onset_looping", "n_positive"] == 10 * HORIZON
    early = tested.rows.pre_onset
    prompt, label = tested.token_prompt[early], tested.rows.label[early]
    [whole] = matched_auroc(np.ones((1, 20)), prompt, tested.rows.t[early], scores[early], label)
    assert values["pre_onset", "matched_auroc"] == whole
    for subject in ("pre_onset", "pre_onset_looping", "pre_onset_non_termination"):
        assert values[subject, "matched_auroc_position_only"] == 0.5
        assert values[subject, "auroc_best_clock"] >= values[subject, "auroc_position_only"]


def test_an_onset_of_no_known_kind_is_never_passed_over():
    with pytest.raises(AssertionError, match="known kind"):
        found(["looping", "answer"], [20, 20], lambda tested: np.zeros(len(tested.rows.t)))


def test_a_kind_that_never_occurs_has_rows_without_a_value():
    values, *_ = found(["looping", None] * 3, [20, None] * 3, lambda tested: np.zeros(len(tested.rows.t)))
    of_kind = values["pre_onset_non_termination"]
    assert of_kind.drop(["n_tokens", "n_positive"]).isna().all()
    assert of_kind["n_positive"] == 0
    assert values["pre_onset_looping", "auroc"] == pytest.approx(0.5)
