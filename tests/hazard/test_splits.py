"""Splits: no prompt in two parts, strata kept, the same for the same seed."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.config import SplitParams
from kvguard.errors import KvguardError
from kvguard.hazard.splits import part_of_traces, split_by_prompt
from kvguard.schemas import check_table

SHARES = SplitParams(train=0.6, tune=0.2, test=0.2)


def traces_of(fails, per_prompt=3):
    rows = [
        {"prompt_id": f"p{prompt:03d}", "catastrophes": ["looping"] if failing and trace == 1 else []}
        for prompt, failing in enumerate(fails)
        for trace in range(per_prompt)
    ]
    return pd.DataFrame(rows)


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=6, max_size=80), st.integers(0, 5))
def test_every_prompt_is_in_exactly_one_part_and_shares_hold_in_every_stratum(fails, seed):
    traces = traces_of(fails)
    split = split_by_prompt(traces, SHARES, seed)
    check_table("split", split, "here")
    assert sorted(split["prompt_id"]) == sorted(set(traces["prompt_id"]))
    in_parts = traces.assign(part=part_of_traces(traces, split)).groupby("prompt_id")["part"].nunique()
    assert (in_parts == 1).all()
    failing = dict(zip(sorted(set(traces["prompt_id"])), fails, strict=True))
    for fate in (True, False):
        stratum = split[split["prompt_id"].map(failing) == fate]
        for part, share in SHARES.model_dump().items():
            assert abs((stratum["part"] == part).sum() - share * len(stratum)) < 2


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_traces():
    traces = traces_of([True, False] * 20)
    shuffled = traces.sample(frac=1, random_state=1).reset_index(drop=True)
    once = split_by_prompt(traces, SHARES, 17)
    pd.testing.assert_frame_equal(once, split_by_prompt(shuffled, SHARES, 17))
    assert not once.equals(split_by_prompt(traces, SHARES, 18))


@pytest.mark.parametrize(("fate", "said"), [(True, "every prompt has"), (False, "no prompt has")])
def test_one_class_is_said_in_one_line_and_split_all_the_same(fate, said, caplog):
    with caplog.at_level(logging.WARNING):
        split = split_by_prompt(traces_of([fate] * 10), SHARES, 17)
    assert split["part"].value_counts().to_dict() == {"train": 6, "tune": 2, "test": 2}
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]


def test_a_part_without_prompts_is_an_error():
    with pytest.raises(KvguardError, match=r"no prompt is left for t.*: 2 prompts"):
        split_by_prompt(traces_of([True, False]), SHARES, 17)


def test_a_trace_outside_the_split_is_an_error():
    traces = traces_of([True, False] * 5)
    split = split_by_prompt(traces, SHARES, 17)
    with pytest.raises(KvguardError, match="prompt p000 is in no part"):
        part_of_traces(traces, split.iloc[1:])
    assert part_of_traces(traces, split).dtype == np.object_
