"""Splits: no prompt in two parts, strata kept, the same for the same seed; planted leaks are caught."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.store.schemas import PARTS, check_table
from kvguard.studies.catastrophes.params import SplitParams
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from kvguard.studies.catastrophes.train.splits import (
    make_split,
    part_of_traces,
    read_split,
    reject_leaks,
    split_by_prompt,
    split_by_trace,
    write_split,
)

SHARES = SplitParams(train=0.6, tune=0.2, test=0.2)
V1, V2 = PROTOCOLS["v1"], PROTOCOLS["v2"]


def traces_of(fails, per_prompt=3):
    rows = [
        {"prompt_id": f"p{prompt:03d}", "catastrophes": ["looping"] if failing and trace == 1 else []}
        for prompt, failing in enumerate(fails)
        for trace in range(per_prompt)
    ]
    return pd.DataFrame(rows).assign(trace_id=np.arange(len(rows), dtype=np.int32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=80), st.integers(0, 5))
def test_every_prompt_is_in_exactly_one_part_and_shares_hold_in_every_stratum(fails, seed):
    traces = traces_of(fails)
    split = make_split(traces, V2, SHARES, seed)
    check_table("split", split, "here")
    assert sorted(split["prompt_id"]) == sorted(set(traces["prompt_id"]))
    in_parts = traces.assign(part=part_of_traces(traces, split)).groupby("prompt_id")["part"].nunique()
    assert (in_parts == 1).all()
    failing = dict(zip(sorted(set(traces["prompt_id"])), fails, strict=True))
    for fate in (True, False):
        stratum = split[split["prompt_id"].map(failing) == fate]
        for part, share in SHARES.model_dump().items():
            assert abs((stratum["part"] == part).sum() - share * len(stratum)) < 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(PARTS)), max_size=30),
)
def test_a_leak_is_rejected_exactly_where_a_prompt_is_in_two_parts(pairs):
    prompt_id = pd.Series([f"p{number}" for number, _ in pairs], dtype=object)
    part = np.array([part for _, part in pairs], dtype=object)
    leaks = len(set(pairs)) > len({number for number, _ in pairs})
    if leaks:
        with pytest.raises(KvguardError, match=r"prompt p\d is in t\w+ and t\w+"):
            reject_leaks(prompt_id, part)
    else:
        reject_leaks(prompt_id, part)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_traces():
    traces = traces_of([True, False] * 20)
    shuffled = traces.sample(frac=1, random_state=1).reset_index(drop=True)
    for protocol in (V1, V2):
        once = make_split(traces, protocol, SHARES, 17)
        pd.testing.assert_frame_equal(once, make_split(shuffled, protocol, SHARES, 17))
        assert not once.equals(make_split(traces, protocol, SHARES, 18))


@pytest.mark.parametrize(("fate", "said"), [(True, "every prompt has"), (False, "no prompt has")])
def test_one_class_is_said_in_one_line_and_split_all_the_same(fate, said, caplog):
    with caplog.at_level(logging.WARNING):
        split = split_by_prompt(traces_of([fate] * 10), SHARES, 17)
    assert split["part"].value_counts().to_dict() == {"train": 6, "tune": 2, "test": 2}
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]


def test_a_part_without_prompts_or_traces_is_an_error():
    with pytest.raises(KvguardError, match=r"no prompt is left for t.*: 2 prompts"):
        split_by_prompt(traces_of([True, False]), SHARES, 17)
    with pytest.raises(KvguardError, match=r"no trace is left for t.*: 2 traces"):
        split_by_trace(traces_of([True, False], per_prompt=1), SHARES, 17)


def test_a_trace_outside_the_split_is_an_error():
    traces = traces_of([True, False] * 5)
    split = split_by_prompt(traces, SHARES, 17)
    with pytest.raises(KvguardError, match="prompt p000 is in no part"):
        part_of_traces(traces, split.iloc[1:])
    with pytest.raises(KvguardError, match="trace 0 is in no part"):
        part_of_traces(traces, split_by_trace(traces, SHARES, 17).iloc[1:])
    assert part_of_traces(traces, split).dtype == np.object_


def test_protocol_v1_splits_traces_stratified_so_that_prompts_leak():
    traces = traces_of([True, False] * 15)
    split = make_split(traces, V1, SHARES, 17)
    check_table("split_v1", split, "here")
    part = part_of_traces(traces, split)
    failing = traces["catastrophes"].map(len) > 0
    assert pd.Series(part[failing]).value_counts().to_dict() == {"train": 9, "tune": 3, "test": 3}
    with pytest.raises(KvguardError, match="a leak"):
        reject_leaks(traces["prompt_id"], part)


def test_a_split_is_read_back_and_only_as_what_it_is(tmp_path):
    traces = traces_of([True, False] * 5)
    for protocol, other in ((V1, V2), (V2, V1)):
        split = make_split(traces, protocol, SHARES, 17)
        write_split(split, protocol, tmp_path)
        pd.testing.assert_frame_equal(read_split(protocol, tmp_path), split)
        with pytest.raises(KvguardError, match=r"split.parquet .*table\): column \w+_id"):
            read_split(other, tmp_path)


def test_a_hand_edited_split_with_a_prompt_in_two_parts_is_caught(tmp_path):
    traces = traces_of([True, False] * 5)
    split = split_by_prompt(traces, SHARES, 17)
    tested = split["prompt_id"][split["part"] == "test"].iloc[0]
    leaking = pd.concat([split, pd.DataFrame({"prompt_id": [tested], "part": ["train"]})], ignore_index=True)
    with pytest.raises(KvguardError, match=f"prompt {tested} is in test and train: a leak"):
        part_of_traces(traces, leaking)
    with pytest.raises(KvguardError, match=f"duplicate {tested}"):
        write_split(leaking, V2, tmp_path)
    leaking.to_parquet(tmp_path / "split.parquet", index=False)  # as an editor would, past all checks
    with pytest.raises(KvguardError, match=r"split\.parquet") as rejection:
        read_split(V2, tmp_path)
    assert "\n" not in str(rejection.value)
