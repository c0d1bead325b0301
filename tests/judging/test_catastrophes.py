"""Detectors against a literal reading of their definitions, and the judging of whole traces."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvguard.engine import repetition
from kvguard.engine.repetition import RepeatCounter, repeat_counts, window_occurrences
from kvguard.errors import KvguardError
from kvguard.judging import catastrophes
from kvguard.judging.catastrophes import NO_ONSET, CatastropheParams, TraceTokens, looping_onset, onsets
from kvguard.judging.judge import judge, score, with_scores
from kvguard.studies.catastrophes.protocols import is_failure_v1
from kvguard.tasks import make_task

TASK = make_task("arithmetic", max_new_tokens=16)
WINDOW = 4
PARAMS = CatastropheParams(loop_window=WINDOW, loop_repeats=3)
few_tokens = st.lists(st.integers(0, 2), min_size=0, max_size=40)
tables = st.lists(few_tokens, min_size=1, max_size=5)


def batch(traces, stop_reason="eos"):
    flat = np.array([token for trace in traces for token in trace], dtype=np.int64)
    lengths = np.array([len(trace) for trace in traces], dtype=np.int64)
    return TraceTokens(flat, lengths, np.array([stop_reason] * len(traces), dtype=object))


def counts_by_definition(trace, window):
    seen, counts = Counter(), []
    for t in range(len(trace)):
        key = tuple(trace[t - window + 1 : t + 1]) if t >= window - 1 else None
        counts.append(seen[key] if key else 0)
        seen[key] += 1
    return counts


def onset_by_definition(trace, window, repeats):
    starts = {}
    for start in range(len(trace) - window + 1):
        starts.setdefault(tuple(trace[start : start + window]), []).append(start)
    return min((found[1] for found in starts.values() if len(found) >= repeats), default=NO_ONSET)


@given(tables)
def test_repeat_counts_in_bulk_are_those_of_the_definition(traces):
    found = repeat_counts(batch(traces).token_ids, batch(traces).lengths, WINDOW)
    assert found.tolist() == [count for trace in traces for count in counts_by_definition(trace, WINDOW)]


@settings(deadline=None)  # the first call may compile
@given(tables)
def test_repeat_counts_token_by_token_are_those_of_the_definition(traces):
    counter = RepeatCounter(len(traces), WINDOW, capacity=2)
    found = [[] for _ in traces]
    for t in range(max(map(len, traces))):
        rows = np.array([row for row, trace in enumerate(traces) if len(trace) > t])
        for row, count in zip(
            rows, counter.update(np.array([traces[r][t] for r in rows]), rows), strict=True
        ):
            found[row].append(int(count))
    assert found == [counts_by_definition(trace, WINDOW) for trace in traces]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.lists(st.integers(0, 1), min_size=5, max_size=30)),
        min_size=2,
        max_size=5,
    )
)
def test_repeat_counts_after_rewinding_are_those_of_the_tokens_kept(rounds):
    """Row 1 is rewound to a share of its tokens and goes on, again and again, beside a row far ahead."""
    counter = RepeatCounter(2, WINDOW, capacity=2)
    for token in range(60):
        counter.update(np.array([token]), np.array([0]))
    trace = []
    for share, more in rounds:
        trace = trace[: int(share * len(trace))]
        counter.rewind(1, len(trace))
        for token in more:
            trace.append(token)
            found = counter.update(np.array([-2, token]), np.array([0, 1]))
            assert found[1] == counts_by_definition(trace, WINDOW)[-1]


@given(tables)
def test_looping_begins_at_the_earliest_second_occurrence_of_a_window_repeated_often_enough(traces):
    found = looping_onset(batch(traces), PARAMS, 40)
    assert found.tolist() == [onset_by_definition(trace, WINDOW, 3) for trace in traces]


def test_two_windows_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        repetition, "_MULTIPLIERS", (0, *repetition._MULTIPLIERS)
    )  # the first hash is constant
    trace = [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert repeat_counts(np.array(trace), np.array([9]), WINDOW).tolist() == [0] * 8 + [1]


def test_traces_longer_than_a_chunk_and_many_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 50)
    tokens = rng.integers(0, 3, int(lengths.sum()))
    whole = repeat_counts(tokens, lengths, WINDOW)
    groups = window_occurrences(tokens, lengths, WINDOW).group
    monkeypatch.setattr(repetition, "_CHUNK", 37)
    assert (repeat_counts(tokens, lengths, WINDOW) == whole).all()
    assert np.unique(window_occurrences(tokens, lengths, WINDOW).group).size == np.unique(groups).size


def test_a_window_does_not_reach_across_traces():
    assert looping_onset(batch([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]), PARAMS, 40).tolist() == [-1, -1]
    assert looping_onset(batch([[1, 1, 1, 1, 1, 1]]), PARAMS, 40).tolist() == [1]


def test_twenty_two_equal_tokens_are_a_loop_and_twenty_one_are_not():
    default = CatastropheParams()
    assert looping_onset(batch([[7] * 22, [7] * 21]), default, 256).tolist() == [1, -1]


def test_non_termination_begins_at_its_proxy():
    found = onsets(batch([[1, 2], [3]], "length"), CatastropheParams(), 255)
    assert found["non_termination"].tolist() == [191, 191]
    assert onsets(batch([[1]]), PARAMS, 255)["non_termination"].tolist() == [NO_ONSET]


def test_a_table_without_traces_has_no_onsets():
    assert all(len(found) == 0 for found in onsets(batch([]), PARAMS, 40).values())


def decode(token_ids):
    return "." * len(token_ids)


@pytest.fixture
def raw():
    loop = [1, 2, 3] * 4
    return pd.DataFrame(
        {
            "trace_id": [0, 1, 2, 3],
            "prompt_id": ["a", "a", "b", "b"],
            "token_ids": [
                np.array(ids) for ids in ([1, 2], loop, list(range(16)), loop + list(range(4))[:4])
            ],
            "text": ["#### 5", "6", "", "#### 7"],
            "stop_reason": ["eos", "eos", "length", "length"],
        },
        index=[3, 1, 4, 0],
    )


@pytest.fixture
def prompts():
    return pd.DataFrame(
        {
            "prompt_id": ["a", "b"],
            "question": ["2 and 3?", "Why?"],
            "references": [["5"], ["because"]],
            "metadata": "{}",
        }
    )


def test_judging_keeps_catastrophes_answers_and_unscored_apart(raw, prompts):
    judged = judge(raw, TASK, PARAMS, decode)
    assert judged.index.tolist() == [3, 1, 4, 0]
    assert judged["predicted"].tolist() == ["5", "6", None, "7"]
    assert judged["catastrophes"].tolist() == [
        [], ["looping"], ["non_termination"], ["looping", "non_termination"]
    ]  # fmt: skip
    assert judged["onset"].tolist() == judged["proxy_onset"].tolist() == [pd.NA, 3, 12, 3]
    assert judged["onset_by"].tolist() == [None, "looping", "proxy", "looping"]
    assert judged["proxy_onset_by"].tolist() == [None, "looping", "non_termination", "looping"]
    assert catastrophes.is_catastrophic(judged).tolist() == [False, True, True, True]


def test_scores_are_long_and_null_where_there_is_nothing_to_score(raw, prompts):
    scores = score(raw, prompts, TASK)
    assert list(scores.columns) == ["trace_id", "metric", "value"]
    wide = scores.pivot(index="trace_id", columns="metric", values="value")
    assert wide["accuracy"].fillna(-1).tolist() == [1, 0, -1, -1]
    assert wide["amnesia"].isna().tolist() == [False, False, True, False]


def test_each_score_is_a_column_of_its_trace_whatever_the_order(raw, prompts):
    scores = score(raw, prompts, TASK).sample(frac=1, random_state=0)
    found = with_scores(raw.iloc[::-1], scores, TASK.headline)
    assert found["correct"].fillna(-1).tolist() == [-1, -1, 0, 1]
    assert found.index.tolist() == raw.index.tolist()[::-1]
    assert set(found) - set(raw) == {"accuracy_last", "amnesia", "correct"}


@pytest.mark.parametrize("lost", ["traces", "scores"])
def test_scores_that_do_not_fit_their_traces_are_rejected(raw, prompts, lost):
    scores = score(raw, prompts, TASK)
    raw, scores = (raw[1:], scores) if lost == "traces" else (raw, scores[scores["trace_id"] > 0])
    with pytest.raises(KvguardError, match="trace 0 is in the traces or in the scores, not in both"):
        with_scores(raw, scores, TASK.headline)


def test_a_wrong_answer_is_a_failure_of_protocol_v1_only(raw, prompts):
    raw["token_ids"] = [np.array([1, 2])] * 4
    raw["stop_reason"] = "eos"
    judged = raw.join(judge(raw, TASK, PARAMS, decode))
    judged = with_scores(judged, score(raw, prompts, TASK), TASK.headline)
    assert not catastrophes.is_catastrophic(judged).any()
    assert is_failure_v1(judged).tolist() == [False, True, False, False]


def test_a_trace_of_an_unknown_prompt_is_rejected(raw, prompts):
    with pytest.raises(KvguardError, match="prompt b is not in the prompts table"):
        score(raw, prompts.iloc[:1], TASK)


@settings(max_examples=20)
@given(st.integers(1, 3))
def test_a_new_detector_joins_by_one_entry(n_traces):
    def first_token(traces, params, max_new_tokens):
        return np.zeros(len(traces.lengths), dtype=np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catastrophes, "DETECTORS", {**catastrophes.DETECTORS, "always": first_token})
        assert onsets(batch([[1]] * n_traces), PARAMS, 40)["always"].tolist() == [0] * n_traces
