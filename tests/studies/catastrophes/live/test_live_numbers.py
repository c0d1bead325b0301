"""The live numbers, on outcomes small enough to count by hand."""

import numpy as np
import pandas as pd
import pytest

from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.live.baselines import choose_setting, loop_setting
from kvguard.studies.catastrophes.live.gap import gap_values
from kvguard.studies.catastrophes.live.outcomes import arms_of, policy_values, sound
from kvguard.studies.catastrophes.live.switch import choose_cases
from recordings import planted

ONE = np.ones((1, 4))
FIRST = np.zeros(1, dtype=int)  # the fit that the sample draws
POINT = ControllerParams(tau_low=0.2, tau_high=0.6, k_escalate=3, j_deescalate=5)


def row(prompt: str, policy: str, failed: bool, **more: object) -> dict[str, object]:
    """A row of the live table: 10 prompt tokens, half of them kept, 4 generated; onset 2 if it fails."""
    compressor = "none" if policy == "uncompressed" else "x"
    held = (10.0 if compressor == "none" else 5.0) + np.arange(4, dtype=np.float32)
    saved = float((1 - held / (10 + np.arange(4))).mean())
    return {
        "regime": "prefill",
        "policy": policy,
        "fit": 1,
        "prompt_id": prompt,
        "compressor": compressor,
        "ratio": 0.0 if compressor == "none" else 0.5,
        "n_prompt_tokens": 10,
        "token_ids": np.array([1, 2, 3, 4]),
        "catastrophes": ["looping"] if failed else [],
        "onset": 2 if failed else pd.NA,
        "onset_by": "looping" if failed else None,
        "correct": not failed,
        "kv_saved": saved,
        "safe_at": -1,
        "n_steps": 4,
        "n_restores": 0,
        "n_rewinds": 0,
        "n_rewound": 0,
        "kv_tokens": held,
        "error": None,
        **more,
    }


def live_table(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).astype({"onset": "Int32", "correct": "float64"})
    return frame.assign(trace_id=np.arange(len(frame), dtype=np.int32))


@pytest.fixture
def table() -> pd.DataFrame:
    """Four prompts: a and b fail when compressed, b uncompressed too; rollback fixes a, and alarms at c."""
    static = [("a", True), ("b", True), ("c", False), ("d", False)]
    none = [("a", False), ("b", True), ("c", False), ("d", False)]
    acted = {"safe_at": 1, "n_restores": 1, "n_rewinds": 1, "n_rewound": 2, "n_steps": 6, "kv_saved": 0.1}
    return live_table(
        [
            *(row(prompt, "uncompressed", failed, kv_saved=0.0) for prompt, failed in none),
            *(row(prompt, "static", failed) for prompt, failed in static),
            row("a", "rollback", False, **acted),
            row("b", "rollback", True, **acted),
            row("c", "rollback", False, **acted),
            row("d", "rollback", False),
        ]
    )


SAVED = float((5 / (10 + np.arange(4))).mean())  # of a static trace


def test_rates_shares_and_differences_by_hand(table: pd.DataFrame) -> None:
    found = {
        policy: {name: float(value[0]) for name, value in values.items()}
        for policy, values in policy_values(arms_of(table, "prefill"), ONE, FIRST).items()
    }
    assert {name: found[name]["cbr"] for name in ("static", "uncompressed", "rollback")} == {
        "static": 0.5, "uncompressed": 0.25, "rollback": 0.25
    }  # fmt: skip
    rollback = found["rollback"]
    assert rollback["residual_cbr"] == 0
    assert rollback["residual_accuracy"] == 0
    assert found["static"]["residual_cbr"] == 1
    assert rollback["cbr_minus_static"] == -0.25
    assert rollback["accuracy_minus_static"] == 0.25
    assert rollback["safe_rate"] == 0.75
    assert rollback["false_alarm_rate"] == 0.5  # c, of c and d
    assert rollback["healthy_saving_kept"] == pytest.approx((0.1 + SAVED) / (2 * SAVED))
    assert rollback["saving_kept"] == pytest.approx((0.3 + SAVED) / (4 * SAVED))
    assert (rollback["n_restores"], rollback["n_rewound"]) == (0.75, 1.5)
    assert rollback["steps_ratio"] == (3 * 6 + 4) / 16
    assert rollback["unchanged"] == 1  # d, the only one that saw no SAFE
    assert found["static"]["cbr_minus_rollback"] == 0.25
    assert found["always_safe"]["kv_saved"] == 0
    assert found["always_safe"]["false_alarm_rate"] == 1


def test_what_is_compared_with_rollback_is_compared_over_prompts_and_fits(table: pd.DataFrame) -> None:
    again = table[table["policy"] == "rollback"].assign(fit=2)
    again["catastrophes"] = [["looping"]] * 4  # the other fit rescues nobody
    both = pd.concat([table, again], ignore_index=True)
    weights, drawn = np.ones((4, 4)), np.array([0, 0, 1, 1])
    found = policy_values(arms_of(both, "prefill"), weights, drawn)
    assert found["rollback"]["cbr"].tolist() == [0.25] * 4  # the guard that is exported
    assert found["rollback_fits"]["cbr"].tolist() == [0.625, 0.25, 1.0, 1.0]  # the mean, then what is drawn
    assert found["static"]["cbr_minus_rollback"].tolist() == [-0.125, 0.25, -0.5, -0.5]


def test_the_mixture_saves_what_rollback_saves_and_fails_in_proportion(table: pd.DataFrame) -> None:
    found = policy_values(arms_of(table, "prefill"), ONE, FIRST)
    compressed = found["rollback"]["kv_saved"][0] / SAVED
    assert found["mixed"]["kv_saved"] == pytest.approx(found["rollback"]["kv_saved"])
    assert found["mixed"]["cbr"][0] == pytest.approx(0.25 + compressed * 0.25)
    assert found["mixed"]["cbr_minus_rollback"][0] == pytest.approx(compressed * 0.25)


def test_the_oracle_restores_the_failing_traces_at_their_onset_and_no_others(table: pd.DataFrame) -> None:
    oracle = policy_values(arms_of(table, "prefill"), ONE, FIRST)["oracle"]
    cut = float((5 / (10 + np.arange(2))).sum()) / 4
    assert oracle["cbr"][0] == 0.25
    assert oracle["kv_saved"][0] == pytest.approx((2 * cut + 2 * SAVED) / 4)
    assert (oracle["n_restores"][0], oracle["false_alarm_rate"][0]) == (0.5, 0)


def test_an_oracles_full_cache_holds_what_the_uncompressed_model_holds(table: pd.DataFrame) -> None:
    """One whose sliding windows have let go of four entries."""
    narrow = table.assign(kv_tokens=[held - 4 for held in table["kv_tokens"]])
    oracle = policy_values(arms_of(narrow, "prefill"), ONE, FIRST)["oracle"]
    saved = 5 / (6 + np.arange(4))
    assert oracle["kv_saved"][0] == pytest.approx((2 * saved[:2].sum() / 4 + 2 * saved.mean()) / 4)


def test_a_prompt_with_a_broken_generation_leaves_every_policy(table: pd.DataFrame) -> None:
    table.loc[table.index[-1], "error"] = "the logits of token 0 are NaN"
    kept = sound(table)
    assert set(kept["prompt_id"]) == {"a", "b", "c"}
    found = policy_values(arms_of(kept, "prefill"), np.ones((1, 3)), FIRST)
    assert found["static"]["cbr"][0] == pytest.approx(2 / 3)


def test_the_gap_by_hand() -> None:
    """Six of eight fail: two are prevented in both, one only as foretold, one only live, two in neither."""
    failed = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    simulated = np.array([0, 0, 0, 1, 1, 1, 0, 0], dtype=bool)
    live = np.array([0, 0, 1, 0, 1, 1, 1, 0], dtype=bool)
    found = gap_values(ONE, np.array([0, 0, 1, 1, 2, 2, 3, 3]), failed, simulated, live)
    numbers = {name: float(value[0]) for name, value in found.items()}
    assert numbers == {
        "n_failed": 6,
        "predicted": 3 / 6,
        "prevented": 3 / 6,
        "both": 2 / 6,
        "predicted_only": 1 / 6,
        "prevented_only": 1 / 6,
        "neither": 2 / 6,
        "precision": pytest.approx(2 / 3),
        "cbr_simulated": 3 / 8,
        "cbr_live": 4 / 8,
        "gap": 1 / 8,
    }


def test_a_prompt_drawn_twice_counts_twice_in_the_gap() -> None:
    cluster = np.array([0, 1])
    failed = np.array([True, True])
    weights = np.array([[1.0, 1.0], [2.0, 0.0]])
    found = gap_values(weights, cluster, failed, np.array([False, True]), np.array([True, True]))
    assert found["predicted_only"].tolist() == [0.5, 1.0]
    assert found["gap"].tolist() == [0.5, 1.0]


def test_cases_are_failing_traces_spread_evenly() -> None:
    rows = [row(f"p{i}", "static", failed=i % 2 == 0) for i in range(20)]
    chosen = choose_cases(live_table(rows), 4)
    assert chosen["prompt_id"].tolist() == ["p0", "p6", "p12", "p18"]
    assert len(choose_cases(live_table(rows), 50)) == 10
    assert choose_cases(live_table(rows[1:2]), 4).empty


def test_a_matched_setting_saves_next_to_the_target_and_no_more() -> None:
    tune = planted(foreseen=1.0, alarmed=0.5)[0].compressed
    quiet = tune.run(POINT.model_copy(update={"tau_high": 1.0}))["kv_saved_controlled"].mean()
    target = tune.run(POINT)["kv_saved_controlled"].mean()
    assert target < quiet
    chosen = choose_setting("entropy", tune, target, POINT)
    done = tune.run(chosen)
    assert done["kv_saved_controlled"].mean() <= target
    assert done["failed_controlled"].mean() == 0
    assert chosen.tau_low == chosen.tau_high


def test_the_loop_detector_acts_at_the_first_repetition() -> None:
    setting = loop_setting(POINT)
    assert (setting.tau_low, setting.tau_high, setting.k_escalate) == (0.5, 0.5, 1)
    assert setting.j_deescalate == POINT.j_deescalate
