"""Watching: the offline forecast and controller, bit for bit, whatever rows a step holds."""

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

import synthetic
from kvguard.engine.columns import SIGNALS
from kvguard.engine.repetition import repeat_counts
from kvguard.errors import KvguardError
from kvguard.guard.calibration import Platt
from kvguard.guard.columns import FEATURES
from kvguard.guard.controller import ControllerParams, State, states_of
from kvguard.guard.features import FeatureState
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.watch import ClockTrigger, EntropyTrigger, HazardTrigger, LoopTrigger, Watch
from kvguard.studies.catastrophes.featurize import featurize_tokens

SETTINGS = {"objective": "binary:logistic", "max_depth": 4, "base_score": 0.5}
N_TOKENS = 48
RATIOS = np.array([0.0, 0.25, 0.5, 0.75])
PARAMS = ControllerParams(tau_low=0.1, tau_high=0.9, k_escalate=2, j_deescalate=3)
READ = ("compression_ratio", "entropy", "rep_count_sum_8", "entropy_mean_8", "token_position")


class Recorded:
    """Four traces that repeat themselves more and more, with all that is known of them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.token_ids = np.stack([np.resize(rng.integers(0, 50, n), N_TOKENS) for n in (60, 13, 5, 1)])
        self.tokens = synthetic.tokens_table(rng, list(self.token_ids))
        self.lengths = np.full(len(RATIOS), N_TOKENS)
        self.signals = self.tokens[list(SIGNALS)].to_numpy().reshape(len(RATIOS), N_TOKENS, -1)
        rows = self.rows(RATIOS)
        target = rows[:, 0] + rows[:, 1] + rows[:, 2] / 40 > 1.8
        booster = xgb.train(SETTINGS, xgb.DMatrix(rows, target), 20)
        self.model = HazardModel(booster, READ, Platt(1.0, 0.0), 0.5)
        self.hazard = self.offline(RATIOS)

    def rows(self, ratios):
        traces = pd.DataFrame({"trace_id": range(4), "ratio": ratios})
        features = featurize_tokens(self.tokens, traces, N_TOKENS, synthetic.MASK)
        return features[list(READ)].to_numpy()

    def offline(self, ratios):
        return self.model.predict(self.rows(ratios)).reshape(len(RATIOS), N_TOKENS)

    def trigger(self):
        return HazardTrigger(self.model, synthetic.MASK)

    def watch(self):
        return opened(Watch(self.trigger(), PARAMS))

    def step(self, watch, rows, t):
        """Feed token ``t[i]`` of each row; return what the watch or the trigger says."""
        rows, t = np.array(rows), np.array(t)
        return watch.update(self.signals[rows, t], self.token_ids[rows, t], rows)

    def feed(self, watch, row, start, stop):
        return [float(self.step(watch, [row], [t])[0][0]) for t in range(start, stop)]


def opened(watch):
    for row, ratio in enumerate(RATIOS):
        watch.open(row, ratio, N_TOKENS)
    return watch


@pytest.fixture(scope="module")
def recorded():
    return Recorded()


def test_live_hazards_and_states_are_those_of_the_stored_traces(recorded):
    """Rows start one after another, so that no two of a step stand at the same token."""
    watch = recorded.watch()
    hazard = np.full_like(recorded.hazard, np.nan)
    states = np.zeros(hazard.shape, dtype=np.uint8)
    for now in range(N_TOKENS + 9):
        rows = np.array([row for row in (2, 0, 3, 1) if 0 <= now - 3 * row < N_TOKENS])
        t = now - 3 * rows
        hazard[rows, t], states[rows, t] = recorded.step(watch, rows, t)
    assert hazard.tobytes() == recorded.hazard.tobytes()
    expected = states_of(recorded.hazard.ravel(), recorded.lengths, PARAMS)
    assert states.ravel().tolist() == expected.tolist()
    assert set(expected) == set(State)


def test_a_step_without_rows_is_none(recorded):
    risk, states = recorded.step(recorded.watch(), np.zeros(0, int), np.zeros(0, int))
    assert len(risk) == len(states) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, N_TOKENS - 1), st.integers(0, 40))
def test_a_rewound_row_forecasts_as_if_it_had_never_seen_what_it_forgot(recorded, row, kept, beyond):
    watch = recorded.watch()
    other = (row + 1) % 4
    recorded.feed(watch, row, 0, kept)
    recorded.feed(watch, other, 0, 20)
    for t in range(min(beyond, N_TOKENS - kept)):
        watch.update(recorded.signals[other, t, None], recorded.token_ids[other, t, None], np.array([row]))
    watch.rewind(row, kept)
    assert recorded.feed(watch, row, kept, N_TOKENS) == recorded.hazard[row, kept:].tolist()
    assert recorded.feed(watch, other, 20, N_TOKENS) == recorded.hazard[other, 20:].tolist()


def test_rewinding_ends_the_runs_and_keeps_the_state(recorded):
    watch = opened(Watch(LoopTrigger(), PARAMS))
    states = [recorded.step(watch, [3], [t])[1][0] for t in range(22)]
    assert states == [State.NORMAL] * 21 + [State.SAFE]
    assert watch.escalated(np.arange(4)).tolist() == [False, False, False, True]
    watch.rewind(3, 20)
    assert not watch.escalated(np.array([3])).any()
    assert recorded.step(watch, [3], [20])[1] == State.SAFE
    assert not watch.escalated(np.array([3])).any()
    recorded.step(watch, [3], [21])
    assert watch.escalated(np.array([3])).all()


def test_a_ratio_counts_for_its_own_row_from_its_next_token_on(recorded):
    watch = recorded.watch()
    rows = np.arange(4)
    recorded.step(watch, rows, [0] * 4)
    watch.set_ratio(3, 0.0)
    relaxed = recorded.offline(np.zeros(4))[3]
    for t in range(1, N_TOKENS):
        hazard, _ = recorded.step(watch, rows, [t] * 4)
        assert hazard[:3].tolist() == recorded.hazard[:3, t].tolist()
        assert hazard[3] == relaxed[t]
    assert (relaxed != recorded.hazard[3]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_signals_that_are_no_numbers_are_a_risk_unknown_for_their_row_alone(recorded, bad):
    watch = recorded.watch()
    rows = np.arange(4)
    unknown, states = [], []
    for t in range(N_TOKENS):
        signals = recorded.signals[rows, t].copy()
        if t == 30:
            signals[3] = bad
        risk, state = watch.update(signals, recorded.token_ids[rows, t], rows)
        assert risk[:3].tolist() == recorded.hazard[:3, t].tolist()
        unknown.append(bool(np.isnan(risk[3])))
        states.append(int(state[3]))
    assert unknown == [30 <= t < 39 for t in range(N_TOKENS)]  # delta_h is unknown for one token more
    assert len(set(states[29:39])) == 1


def test_a_model_of_a_feature_that_only_whole_traces_have_is_rejected(recorded):
    model = HazardModel(recorded.model.booster, ("entropy", "token_position_v1"), Platt(1.0, 0.0), 0.5)
    with pytest.raises(KvguardError, match="reads token_position_v1"):
        HazardTrigger(model, synthetic.MASK)


def test_the_entropy_trigger_is_the_share_of_the_largest_entropy():
    signals = np.zeros((4, len(SIGNALS)), dtype=np.float32)
    signals[:, 0] = [0, np.log(512) / 2, np.log(512) + 1e-5, np.nan]
    found = EntropyTrigger(512).update(signals, np.zeros(4, dtype=int), np.arange(4))
    np.testing.assert_allclose(found, [0, 0.5, 1, np.nan], rtol=1e-6)
    assert np.nanmax(found) <= 1


def test_the_clock_is_the_feature_token_position(recorded):
    trigger, place = ClockTrigger(), FEATURES.index("token_position")
    features = FeatureState(np.zeros(2), synthetic.MASK, 0)
    for row, limit in ((0, N_TOKENS), (1, 2 * N_TOKENS)):
        trigger.open(row, 0.5, limit)
        features.open(row, 0.5, limit)
    rows = np.arange(2)

    def step(t):
        told = recorded.signals[rows, t], recorded.token_ids[rows, t], rows
        assert trigger.update(*told).tolist() == features.update(*told)[:, place].tolist()

    for t in range(20):
        step(t)
    for watching in (trigger, features):
        watching.rewind(1, 7)
        watching.copy(1, 0)
    for t in range(20):
        step(t)


def test_the_loop_trigger_speaks_once_twenty_tokens_have_stood_before(recorded):
    trigger = opened(LoopTrigger())
    found = np.stack([recorded.step(trigger, range(4), [t] * 4) for t in range(N_TOKENS)], axis=1)
    seen = repeat_counts(recorded.token_ids.ravel(), recorded.lengths, 20).reshape(found.shape) > 0
    assert (found == seen).all()
    assert seen.argmax(axis=1).tolist() == [0, 32, 24, 20]


def by_hand(token_ids, window=20):
    """Where the second occurrence began of what the last tokens repeat, from the definition."""
    windows = [tuple(token_ids[max(0, t + 1 - window) : t + 1]) for t in range(len(token_ids))]
    known = [t + 1 >= window and windows[t] in windows[:t] for t in range(len(windows))]
    run = known[::-1].index(False) if False in known else len(known)
    return len(known) - run - (window - 1) if run else len(known)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 25), st.integers(0, 60)), min_size=1, max_size=4), st.booleans())
def test_a_repetition_is_accused_from_its_first_token_on(recorded, parts, hazard):
    """Texts of parts that repeat a few tokens for a while."""
    token_ids = np.concatenate([np.resize(np.arange(period), n) for period, n in parts])
    watch = recorded.watch() if hazard else opened(Watch(LoopTrigger(), PARAMS))
    watch.open(2, 0.5, 1000)
    for token in token_ids:
        watch.update(recorded.signals[0, :1], np.array([token]), np.array([2]))
    n, begun = len(token_ids), by_hand(token_ids.tolist())
    for risen in {n, n // 2, 0}:
        risks = np.where(np.arange(n) < risen, 0.0, 1.0)
        assert watch.accused(2, risks) == min(risen, begun)


def test_what_knows_no_other_token_accuses_those_since_the_risk_rose():
    watch = opened(Watch(EntropyTrigger(512), PARAMS))
    assert [watch.accused(1, np.array(risks)) for risks in ([], [0.5], [0, 0.1], [0.2, 0, np.nan, 0.9])] == [
        0,
        0,
        1,
        2,
    ]


def test_a_token_is_trusted_only_below_both_thresholds():
    watch = opened(Watch(EntropyTrigger(512), PARAMS))
    risks = np.array([0.01, PARAMS.tau_low * 0.9, PARAMS.tau_low, 0.9])
    assert [watch.accused(1, risks, below) for below in (1.0, PARAMS.tau_low / 2, 0.0)] == [2, 1, 0]
