"""Baselines at rollback's memory: a share of the traces is never compressed."""

import numpy as np
import pandas as pd
import pytest

from kvguard.studies.catastrophes.live.outcomes import Arms, policy_values

N = 40


def arm(cbr: float, kv_saved: float) -> dict[str, np.ndarray]:
    failed = np.arange(N) < cbr * N
    same = dict.fromkeys(("failed", "looping", "non_termination", "safe"), failed)
    counts = {name: np.ones(N) for name in ("n_tokens", "n_steps", "n_restores", "n_rewinds", "n_rewound")}
    scores = dict.fromkeys(("correct", "correct_last"), 1.0 - failed)
    return {**same, **counts, **scores, "same": np.ones(N), "kv_saved": np.full(N, kv_saved)}


@pytest.fixture(scope="module")
def values() -> dict[str, dict[str, np.ndarray]]:
    cases = pd.DataFrame({"trace_id": range(N), "prompt_id": range(N), "compressor": "knorm", "ratio": 0.8})
    by_policy = {
        "static": arm(0.5, 0.8),
        "rollback": arm(0.1, 0.4),
        "loop": arm(0.2, 0.6),
        "entropy": arm(0.3, 0.3),
        "uncompressed": arm(0.0, 0.0),
    }
    return policy_values(Arms(cases, np.arange(N), N, by_policy, []), np.ones((1, N)), np.zeros(1, dtype=int))


def test_a_baseline_that_saves_more_is_mixed_down_to_rollbacks_memory(values):
    for name, cbr in (("mixed", 0.25), ("mixed_loop", 0.2 * 0.4 / 0.6)):
        assert values[name]["kv_saved"] == pytest.approx(0.4)
        assert values[name]["cbr"] == pytest.approx(cbr)
        assert values[name]["cbr_minus_rollback"] == pytest.approx(cbr - 0.1)


def test_a_baseline_that_saves_less_stays_as_it_is(values):
    assert values["mixed_entropy"]["kv_saved"] == pytest.approx(0.3)
    assert values["mixed_entropy"]["cbr"] == pytest.approx(0.3)
