"""What is certified of judged traces, and what is rejected before it is asked."""

import numpy as np
import pandas as pd
import pytest
from made_traces import traces

from kvguard.errors import KvguardError
from kvguard.studies.catastrophes.certify.losses import Setting, losses_of, outcomes_of
from kvguard.studies.catastrophes.certify.recommend import Limits, recommend

SAFE, BAD = (0.0, 0.0), (0.4, 0.0)


def test_what_saves_most_among_the_certified_is_recommended():
    found = recommend(
        traces(300, {("a", 0.25): SAFE, ("a", 0.5): SAFE, ("a", 0.75): BAD, ("b", 0.25): SAFE}), Limits()
    )
    assert [row.certified for row in found.rows] == [True, True, False, True]
    assert found.best.setting == Setting("a", "none", 0.5)
    assert {name: row.setting.ratio for name, row in found.by_compressor.items()} == {"a": 0.5, "b": 0.25}
    assert found.best.kv_saved == pytest.approx(np.mean([50 / (100 + t) for t in range(10)]))


def test_memory_that_sliding_windows_free_by_themselves_is_not_saved():
    judged = traces(300, {("a", 0.25): SAFE})
    kept = judged["n_kept_tokens"].where(judged["compressor"] == "a", 90.0)
    found = recommend(judged.assign(n_kept_tokens=kept), Limits())
    assert found.best.kv_saved == pytest.approx(np.mean([15 / (90 + t) for t in range(10)]))


def test_no_setting_is_certified_beyond_one_that_is_not():
    found = recommend(traces(300, {("a", 0.25): BAD, ("a", 0.5): SAFE}), Limits())
    assert [row.certified for row in found.rows] == [False, False]
    assert found.best is None


def test_ratios_are_tested_from_mild_to_severe_in_whatever_order_they_come():
    found = recommend(traces(300, {("a", 0.75): BAD, ("a", 0.25): SAFE, ("a", 0.5): SAFE}), Limits())
    assert [row.setting.ratio for row in found.rows] == [0.25, 0.5, 0.75]
    assert [row.certified for row in found.rows] == [True, True, False]


def test_both_losses_must_be_certified():
    found = recommend(traces(300, {("a", 0.25): (0.0, 0.3)}), Limits())
    assert (found.rows[0].added, found.rows[0].certified) == (0, False)
    assert found.rows[0].lost > 50
    free = recommend(traces(300, {("a", 0.25): (0.0, 0.3)}), Limits(max_lost_answers=None))
    assert free.rows[0].certified
    assert free.rows[0].lost is None


def test_what_fails_and_errs_uncompressed_as_well_is_no_loss():
    same = traces(400, {("a", 0.25): (0.0, 0.0)}, baseline=(0.5, 0.5), seed=3)
    bare = same[same["compressor"] == "none"]
    copied = same["compressor"] == "a"
    for name in ("catastrophes", "correct"):
        same.loc[copied, name] = bare[name].to_numpy()
    row = recommend(same, Limits()).rows[0]
    assert (row.added, row.lost, row.certified) == (0, 0, True)


def test_texts_that_broke_off_for_nan_have_failed():
    made = traces(300, {("a", 0.25): SAFE})
    made.loc[made["compressor"] == "a", "stop_reason"] = "invalid"
    row = recommend(made, Limits()).rows[0]
    assert (row.added, row.lost) == (300, 300)


def test_prompts_that_are_not_scored_count_for_catastrophes_alone():
    made = traces(400, {("a", 0.25): SAFE})
    made.loc[made["prompt_id"].isin([f"p{i}" for i in range(250)]), "correct"] = np.nan
    found = recommend(made, Limits())
    assert (found.n, found.n_scored) == (400, 150)
    assert found.rows[0].certified


def test_twice_the_prompts_certify_more_where_the_rates_are_low_enough():
    made = traces(200, {("a", 0.25): SAFE, ("a", 0.5): SAFE})
    one = made.index[(made["compressor"] == "a") & (made["ratio"] == 0.5)][0]
    made.at[one, "catastrophes"] = ["looping"]
    found = recommend(made, Limits())
    assert [row.certified for row in found.rows] == [True, False]
    assert Setting("a", "none", 0.5) in found.with_twice


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_added_cbr": 0.0}, ["max_added_cbr", "0.0"]),
        ({"max_added_cbr": 1}, ["max_added_cbr"]),
        ({"max_lost_answers": -0.1}, ["max_lost_answers"]),
        ({"confidence": 1.0}, ["confidence", "1.0"]),
        ({"confidence": float("nan")}, ["confidence"]),
    ],
)
def test_what_no_sample_can_show_is_rejected(limits, words):
    with pytest.raises(KvguardError) as error:
        Limits(**limits)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("made", "limits", "words"),
    [
        (traces(60, {("a", 0.5): SAFE}), Limits(), ["60 prompts", "149"]),
        (traces(150, {("a", 0.5): SAFE, ("b", 0.5): SAFE}), Limits(), ["2 policies", "183"]),
        (traces(300, {("a", 0.5): SAFE}, scored=False), Limits(), ["max_lost_answers", "scored"]),
        (traces(300, {("a", 0.5): SAFE}, model="other"), Limits(), ["other", "not of made"]),
        (traces(300, {}), Limits(), ["none is compressed"]),
        (traces(300, {("a", 0.5): SAFE}).iloc[300:], Limits(), ["none is uncompressed"]),
        (traces(300, {("a", 0.5): SAFE}).iloc[:-1], Limits(), ["p299", "no text under a@0.5"]),
        (traces(300, {("a", 0.5): SAFE}).iloc[1:], Limits(), ["p0", "no uncompressed text"]),
        (pd.concat([traces(300, {("a", 0.5): SAFE})] * 2), Limits(), ["p0", "twice"]),
    ],
)
def test_traces_that_carry_no_certificate_are_one_line(made, limits, words):
    with pytest.raises(KvguardError) as error:
        recommend(made, limits, model="made")
    assert len(str(error.value).splitlines()) == 1
    for word in words:
        assert word in str(error.value)


def test_a_live_table_tells_guarded_settings_from_others():
    made = traces(300, {("a", 0.5): BAD})
    live = made.assign(
        regime="prefill",
        fit=1,
        kv_saved=0.4,
        n_steps=12,
        n_rewound=2,
        safe_at=-1,
        hazard=[[0.2, 0.4]] * len(made),
    )
    live["policy"] = np.where(live["compressor"] == "none", "uncompressed", "static")
    guarded = live[live["policy"] == "static"].assign(policy="rollback", hazard=[[]] * 300)
    guarded["catastrophes"] = [[] for _ in range(300)]
    other = guarded.assign(policy="loop")
    further = guarded.assign(fit=2)
    losses = losses_of(outcomes_of(pd.concat([live, guarded, other, further], ignore_index=True)))
    assert list(map(str, losses.settings)) == ["a@0.5", "a@0.5 under rollback"]
    assert losses.added.sum(axis=0)[1] == 0 < losses.added.sum(axis=0)[0]
    assert losses.score == pytest.approx(0.4)  # of the unguarded text, which is the guarded one until it acts
