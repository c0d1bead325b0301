"""Features: token by token the same bits as in bulk, causal, and right on hand-computed cases."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import synthetic
from kvguard.engine.columns import SIGNALS
from kvguard.errors import KvguardError
from kvguard.guard.columns import DRIFT, FEATURES
from kvguard.guard.features import FeatureState, thinking_mask
from kvguard.store.schemas import check_table
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.featurize import featurize, featurize_tokens
from kvguard.studies.catastrophes.protocols import PROTOCOLS

MAX_NEW_TOKENS = 64
MASK = synthetic.MASK


def dataset(token_ids, seed=0):
    rng = np.random.default_rng(seed)
    tokens = synthetic.tokens_table(rng, [np.asarray(ids, dtype=np.int32) for ids in token_ids])
    traces = pd.DataFrame(
        {
            "trace_id": np.arange(len(token_ids), dtype=np.int32),
            "ratio": rng.choice([0.0, 0.25, 0.625], len(token_ids)),
        }
    )
    return tokens, traces


def stream(tokens, traces):
    """Feed all traces through one state, each row by its own clock, rows leaving as they end."""
    state = FeatureState(traces["ratio"].to_numpy(), MASK, MAX_NEW_TOKENS)
    signals = tokens[list(SIGNALS)].to_numpy()
    found = np.full((len(tokens), len(FEATURES)), np.nan, dtype=np.float32)
    for t in range(int(tokens["t"].max()) + 1):
        here = np.flatnonzero(tokens["t"] == t)
        rows = tokens["trace_id"].to_numpy()[here].astype(np.int64)
        found[here] = state.update(signals[here], tokens["token_id"].to_numpy()[here], rows)
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=MAX_NEW_TOKENS), min_size=1, max_size=6))
def test_streaming_and_bulk_features_are_the_same_bits(token_ids):
    tokens, traces = dataset(token_ids)
    bulk = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)[list(FEATURES)].to_numpy()
    assert stream(tokens, traces).tobytes() == np.ascontiguousarray(bulk).tobytes()


def test_they_are_the_same_bits_in_loops():
    rng = np.random.default_rng(1)
    tokens, traces = dataset([np.resize(rng.integers(0, 50, period), 60) for period in range(1, 12)])
    bulk = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)
    assert bulk["rep_count"].max() > 30
    assert stream(tokens, traces).tobytes() == np.ascontiguousarray(bulk[list(FEATURES)].to_numpy()).tobytes()


def test_a_row_takes_no_more_tokens_than_it_has_room_for():
    tokens, traces = dataset([[1] * MAX_NEW_TOKENS, [2]])
    state = FeatureState(traces["ratio"].to_numpy(), MASK, MAX_NEW_TOKENS)
    one = tokens[list(SIGNALS)].to_numpy()[:1]
    for _ in range(MAX_NEW_TOKENS):
        state.update(one, np.array([1]), np.array([0]))
    with pytest.raises(IndexError):
        state.update(one, np.array([1]), np.array([0]))


def test_rows_may_stand_at_different_tokens():
    tokens, traces = dataset([[1, 2, 3], [4, 5, 6]])
    state = FeatureState(traces["ratio"].to_numpy(), MASK, MAX_NEW_TOKENS)
    signals, ids = tokens[list(SIGNALS)].to_numpy(), tokens["token_id"].to_numpy()
    bulk = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)[list(FEATURES)].to_numpy()
    state.update(signals[:1], ids[:1], np.array([0]))
    both = state.update(signals[[1, 3]], ids[[1, 3]])
    assert (both == bulk[[1, 3]]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(0, 3),
)
def test_a_rewound_row_is_one_that_never_saw_what_it_forgot(excursions, period, seed):
    """Row 1 takes ``beyond`` stray tokens after its first ``kept`` ones, and is rewound, each time."""
    rng = np.random.default_rng(seed)
    traces = [np.resize(rng.integers(0, 50, period), 60) for _ in range(3)]
    tokens, traces = dataset([*traces, np.resize(traces[1], 60)], seed)  # the stray tokens go on like row 1's
    signals, ids = (tokens[name].to_numpy().reshape(4, 60, -1) for name in (list(SIGNALS), ["token_id"]))
    signals[3, 30:, 5] = np.nan
    state = FeatureState(traces["ratio"].to_numpy(), MASK, MAX_NEW_TOKENS)
    found = np.empty((3, 60, len(FEATURES)), dtype=np.float32)
    stops = dict(sorted(excursions))
    for t in range(60):
        if beyond := min(stops.get(t, 0), MAX_NEW_TOKENS - t):
            for stray in range(beyond):
                state.update(signals[3, stray, None], ids[3, stray], np.array([1]))
            state.rewind(1, t)
        found[:, t] = state.update(signals[:3, t], ids[:3, t, 0], np.arange(3))
    bulk = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)[list(FEATURES)].to_numpy()
    assert found.tobytes() == np.ascontiguousarray(bulk[:180]).tobytes()


def test_a_row_opened_again_serves_another_trace_at_another_ratio():
    tokens, traces = dataset([np.resize([1, 2], 50), np.resize([2, 1], 50)])
    traces["ratio"] = [0.25, 0.75]
    state = FeatureState(np.array([0.25]), MASK, MAX_NEW_TOKENS)
    signals, ids = tokens[list(SIGNALS)].to_numpy(), tokens["token_id"].to_numpy()
    for n in range(50):
        state.update(signals[n : n + 1], ids[n : n + 1])
    state.open(0, 0.75, MAX_NEW_TOKENS)
    found = np.concatenate([state.update(signals[n : n + 1], ids[n : n + 1]) for n in range(50, 100)])
    bulk = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)[list(FEATURES)].to_numpy()
    assert found.tobytes() == np.ascontiguousarray(bulk[50:]).tobytes()


def test_a_ratio_changes_for_its_row_alone_and_from_its_next_token_on():
    tokens, _ = dataset([[1, 2, 3], [4, 5, 6]])
    ratios = np.array([0.5, 0.25])
    state = FeatureState(ratios, MASK, MAX_NEW_TOKENS)
    signals, ids = tokens[list(SIGNALS)].to_numpy(), tokens["token_id"].to_numpy()
    column = FEATURES.index("compression_ratio")
    found = [state.update(signals[[0, 3]], ids[[0, 3]])[:, column].tolist()]
    state.set_ratio(0, 0.0)
    found.append(state.update(signals[[1, 4]], ids[[1, 4]])[:, column].tolist())
    assert found == [[0.5, 0.25], [0.0, 0.25]]
    assert ratios.tolist() == [0.5, 0.25]  # the caller's own array


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_signals_that_are_no_numbers_stay_in_their_row(bad):
    tokens, traces = dataset([np.arange(30), np.arange(30)])
    signals, ids = tokens[list(SIGNALS)].to_numpy(), tokens["token_id"].to_numpy()
    clean = stream(tokens, traces)
    state = FeatureState(traces["ratio"].to_numpy(), MASK, MAX_NEW_TOKENS)
    signals[4] = bad
    with np.errstate(invalid="ignore"):
        found = np.stack([state.update(signals[[n, 30 + n]], ids[[n, 30 + n]]) for n in range(30)], axis=1)
    assert found[1].tobytes() == clean[30:].tobytes()
    assert np.isfinite(found[0]).all(axis=1).tolist() == [not 4 <= n < 13 for n in range(30)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 59), st.integers(0, 10))
def test_no_feature_depends_on_a_later_token(cut, seed):
    rng = np.random.default_rng(seed)
    tokens, traces = dataset([rng.integers(0, 3, 60), rng.integers(0, 50, 60)], seed)
    whole = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)
    short = tokens[tokens["t"] < cut].reset_index(drop=True)
    cut_short = featurize_tokens(short, traces, MAX_NEW_TOKENS, MASK)
    kept = whole[whole["t"] < cut].reset_index(drop=True)
    pd.testing.assert_frame_equal(cut_short[list(FEATURES)], kept[list(FEATURES)], check_exact=True)


def test_rolling_features_follow_their_definition():
    rng = np.random.default_rng(2)
    tokens, traces = dataset([rng.integers(0, 2, 50), [3], rng.integers(0, 2, 30)])
    found = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)
    for _, trace in found.groupby("trace_id"):
        delta = trace["entropy"].astype(np.float64).diff().fillna(0)
        np.testing.assert_allclose(trace["delta_h"], delta, atol=1e-6)
        assert trace["delta_h_valid"].tolist() == [0.0] + [1.0] * (len(trace) - 1)
        for name in ("entropy", "top1_prob", "h_alts", "delta_h"):
            rolled = trace[name].astype(np.float64).rolling(8, min_periods=1)
            np.testing.assert_allclose(trace[f"{name}_mean_8"], rolled.mean(), atol=1e-6)
            np.testing.assert_allclose(trace[f"{name}_std_8"], rolled.std(ddof=0), atol=1e-6)
        assert (trace["rep_count_sum_8"] == trace["rep_count"].rolling(8, min_periods=1).sum()).all()


def test_drift_is_of_the_text_so_far_against_its_own_beginning():
    rng = np.random.default_rng(3)
    tokens, traces = dataset([rng.integers(0, 50, n) for n in (MAX_NEW_TOKENS, 1, 20)])
    found = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)
    for _, trace in found.groupby("trace_id"):
        so_far = [trace["entropy"].to_numpy(dtype=np.float64)[: t + 1] for t in trace["t"]]
        expected = {
            "entropy_mean": [past.mean() for past in so_far],
            "entropy_mean_first_16": [past[:16].mean() for past in so_far],
            "entropy_drift_32": [past[-32:].mean() - past[:16].mean() for past in so_far],
            "entropy_max": [past.max() for past in so_far],
        }
        assert set(expected) == set(DRIFT)
        for name, values in expected.items():
            np.testing.assert_allclose(trace[name], values, atol=1e-5)


def test_hand_computed_row():
    tokens, traces = dataset([[7, 8, 14]])
    tokens["entropy"] = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    row = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK).iloc[2]
    assert row["delta_h"] == -1.0
    assert row["entropy_mean_8"] == 2.0
    assert row["entropy_std_8"] == np.float32(np.sqrt(2 / 3))
    assert row["delta_h_mean_8"] == np.float32(1 / 3)
    assert row["is_thinking_token"] == 1.0
    assert row["token_position"] == np.float32(2 / 64)
    assert row["token_position_v1"] == np.float32(2 / 3)
    assert row["compression_ratio"] == np.float32(traces["ratio"][0])


def test_the_table_fits_its_schema_and_knows_no_onset(tmp_path):
    tokens, traces = dataset([range(50), range(40)])
    found = featurize_tokens(tokens, traces, MAX_NEW_TOKENS, MASK)
    check_table("features", found, tmp_path)
    assert not {"label", "pre_onset"} & set(found)
    for onset in (0, 7, 40, None):
        known = traces.assign(onset=pd.array([onset] * 2, dtype="Int32"), onset_by="answer")
        pd.testing.assert_frame_equal(featurize_tokens(tokens, known, MAX_NEW_TOKENS, MASK), found)


def test_the_protocols_differ_by_their_position_the_rank_and_the_drift():
    v1, v2, v3 = (PROTOCOLS[name].features for name in ("v1", "v2", "v3"))
    assert (len(v1), len(v2), len(v3)) == (41, 40, 44)
    assert set(v3) - set(v2) == set(DRIFT)
    assert v3[:40] == v2
    assert set(v1) - set(v2) == {"token_position_v1", "rank_of_chosen"}
    assert set(v2) - set(v1) == {"token_position"}


def test_tokens_out_of_order_or_of_an_unknown_trace_are_rejected():
    tokens, traces = dataset([[1, 2], [3]])
    with pytest.raises(KvguardError, match="column t, row 0: trace 0 has t = 1 where 0 is due"):
        featurize_tokens(tokens.iloc[1:], traces, MAX_NEW_TOKENS, MASK)
    with pytest.raises(KvguardError, match="trace 1 is not in the traces table"):
        featurize_tokens(tokens, traces.iloc[:1], MAX_NEW_TOKENS, MASK)


def test_thinking_words_are_whole_tokens_whatever_their_case_and_spaces():
    class Words:
        texts = ("So", " so", "soon", "", " Wait")

        def __len__(self):
            return len(self.texts)

        def batch_decode(self, sequences):
            return [self.texts[token_id] for (token_id,) in sequences]

    assert thinking_mask(Words(), ["so", "wait"]).tolist() == [True, True, False, False, True]


def test_a_dataset_is_featurised_part_by_part(tmp_path):
    traces = synthetic.build(tmp_path, n_prompts=5)
    found = read_table("features", tmp_path / "features.parquet")
    assert len(found) == traces["token_ids"].map(len).sum()
    tokens = pd.concat(
        [read_table("tokens", tmp_path / "generate" / f"tokens-{part}.parquet") for part in "ab"],
        ignore_index=True,
    )
    whole = featurize_tokens(tokens, traces, synthetic.MAX_NEW_TOKENS, MASK)
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    before = (tmp_path / "features.parquet").read_bytes()
    summary = featurize(tmp_path / "generate", synthetic.MAX_NEW_TOKENS, MASK, tmp_path / "features.parquet")
    assert (tmp_path / "features.parquet").read_bytes() == before
    assert summary == {"n_tokens": len(found), "n_traces": len(traces)}
