"""The state machine: its table of transitions, and many rows at once against one row in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.guard.controller import Controller, ControllerParams, State
from kvguard.guard.controller import states_of as states_of_traces

LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9
params_strategy = st.builds(
    lambda taus, k, j: ControllerParams(tau_low=min(taus), tau_high=max(taus), k_escalate=k, j_deescalate=j),
    st.tuples(st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([0.2, 0.5, 0.8])),
    st.integers(1, 4),
    st.integers(1, 5),
)
hazard_values = [LOW, 0.2, MIDDLE, 0.8, HIGH, float("nan")]
hazards = st.lists(st.sampled_from(hazard_values), min_size=1, max_size=40)
cleared_hazards = st.lists(st.sampled_from([*hazard_values, None]), max_size=40)


def states_of(hazard, params):
    controller = Controller(1, params)
    states = []
    for value in hazard:
        if value is None:
            controller.clear(0)
        else:
            states.append(State(int(controller.update(np.array([value]))[0])))
    return states


def scalar_states(hazard, params):
    """One row, by the table of the module's docstring; None clears its runs."""
    state, low, high, calm, states = State.NORMAL, 0, 0, 0, []
    for value in hazard:
        if value is None:
            low = high = calm = 0
            continue
        low = low + 1 if value >= params.tau_low else 0
        high = high + 1 if value >= params.tau_high else 0
        calm = calm + 1 if value < params.tau_low else 0
        if state is not State.SAFE and high >= params.k_escalate:
            state = State.SAFE
        elif state is State.NORMAL and low >= params.k_escalate:
            state = State.ALERT
        elif state is not State.NORMAL and calm >= params.j_deescalate:
            state = State.NORMAL
        states.append(state)
    return states


@pytest.mark.parametrize(
    ("hazard", "states"),
    [
        ([LOW] * 4, "NNNN"),
        ([MIDDLE] * 4, "NAAA"),
        ([HIGH] * 3, "NSS"),
        ([MIDDLE, HIGH, HIGH], "NAS"),
        ([HIGH, LOW, HIGH, LOW], "NNNN"),
        ([MIDDLE, MIDDLE, LOW, LOW, LOW, LOW], "NAAANN"),
        ([HIGH, HIGH, LOW, LOW, MIDDLE, LOW, LOW, LOW], "NSSSSSSN"),
        ([HIGH, HIGH, MIDDLE, MIDDLE, MIDDLE], "NSSSS"),
        ([HIGH, float("nan"), HIGH, HIGH], "NNNS"),
        ([HIGH, HIGH, LOW, LOW, float("nan"), LOW, LOW, LOW], "NSSSSSSN"),
        ([MIDDLE, None, MIDDLE, MIDDLE], "NNA"),
        ([HIGH, HIGH, LOW, LOW, None, LOW, LOW, LOW], "NSSSSSN"),
    ],
)
def test_the_table_of_transitions(hazard, states):
    params = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=2, j_deescalate=3)
    assert "".join(state.name[0] for state in states_of(hazard, params)) == states


@given(params_strategy, cleared_hazards)
def test_many_rows_at_once_agree_with_one_row_in_plain_python(params, hazard):
    assert states_of(hazard, params) == scalar_states(hazard, params)


@given(params_strategy, st.lists(hazards, min_size=1, max_size=6))
def test_rows_do_not_touch_each_other_whatever_their_clocks(params, rows):
    controller = Controller(len(rows), params)
    found = [[] for _ in rows]
    for t in range(max(map(len, rows))):
        running = np.array([row for row, hazard in enumerate(rows) if len(hazard) > t])
        states = controller.update(np.array([rows[row][t] for row in running]), running)
        for row, state in zip(running, states, strict=True):
            found[row].append(State(int(state)))
    assert found == [scalar_states(hazard, params) for hazard in rows]


@given(params_strategy, cleared_hazards)
def test_no_oscillation_is_faster_than_the_hysteresis_allows(params, hazard):
    states = [State.NORMAL, *states_of(hazard, params)]
    escalations = [t for t in range(1, len(states)) if states[t] > states[t - 1]]
    returns = [t for t in range(1, len(states)) if states[t] == State.NORMAL < states[t - 1]]
    for risen in escalations:
        assert all(done - risen >= params.j_deescalate for done in returns if done > risen)
    for done in returns:
        assert all(risen - done >= params.k_escalate for risen in escalations if risen > done)


@given(params_strategy, st.lists(hazards, min_size=1, max_size=6))
def test_whole_traces_go_through_the_states_of_one_token_at_a_time(params, rows):
    found = states_of_traces(np.concatenate(rows), np.array([len(row) for row in rows]), params)
    assert found.tolist() == [state for hazard in rows for state in scalar_states(hazard, params)]


def test_clearing_a_row_leaves_its_state_and_the_other_rows_alone():
    controller = Controller(2, ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=2, j_deescalate=2))
    for value in (HIGH, HIGH, LOW):
        controller.update(np.array([value, value]))
    controller.clear(0)
    assert controller.states.tolist() == [State.SAFE, State.SAFE]
    assert controller.update(np.array([LOW, LOW])).tolist() == [State.SAFE, State.NORMAL]


@given(params_strategy, cleared_hazards)
def test_a_row_has_escalated_when_its_newest_hazards_lead_to_safe_from_any_state(params, hazard):
    controller = Controller(1, params)
    high = 0
    for value in hazard:
        if value is None:
            controller.clear(0)
            high = 0
        else:
            controller.update(np.array([value]))
            high = high + 1 if value >= params.tau_high else 0
        assert controller.escalated(np.array([0])).tolist() == [high >= params.k_escalate]


@given(st.lists(st.tuples(params_strategy, hazards), min_size=1, max_size=6))
def test_rows_follow_operating_points_of_their_own(rows):
    controller = Controller(0, ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=1, j_deescalate=1))
    for number, (params, _) in enumerate(rows):
        controller.open(number)
        controller.set_point(number, params)
        assert controller.tau_low(number) == params.tau_low
    controller.open(len(rows))
    controller.copy(len(rows) - 1, len(rows))
    rows = [*rows, rows[-1]]
    found = [[] for _ in rows]
    for t in range(max(len(hazard) for _, hazard in rows)):
        running = np.array([row for row, (_, hazard) in enumerate(rows) if len(hazard) > t])
        states = controller.update(np.array([rows[row][1][t] for row in running], np.float32), running)
        for row, state in zip(running, states, strict=True):
            found[row].append(State(int(state)))
    assert found == [scalar_states(hazard, params) for params, hazard in rows]


def test_a_row_that_is_opened_again_is_at_the_controllers_own_point():
    own, other = (
        ControllerParams(tau_low=tau, tau_high=tau, k_escalate=1, j_deescalate=1) for tau in (0.3, 0.8)
    )
    controller = Controller(0, own)
    controller.open(0)
    controller.set_point(0, other)
    assert controller.update(np.array([MIDDLE]), np.array([0])).tolist() == [State.NORMAL]
    controller.open(0)
    assert controller.update(np.array([MIDDLE]), np.array([0])).tolist() == [State.SAFE]
