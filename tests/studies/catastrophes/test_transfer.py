import pytest

import synthetic
from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.intervals.variants import Bench, transfer_results
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.train.fit import train
from kvguard.studies.catastrophes.transfer import Side, transfer

POINT = ControllerParams(tau_low=0.1, tau_high=0.3, k_escalate=2, j_deescalate=8)
GRID = (0.1, 0.3, 0.5)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two models asked the same prompts, with different traces and different splits."""
    made = {}
    for seed, model in enumerate(("a", "b")):
        folder = tmp_path_factory.mktemp(model)
        traces = synthetic.build(folder, n_prompts=60, seed=seed)
        trained = train(folder / "features.parquet", traces, synthetic.TRAIN, seed=seed)
        made[model] = Side(model, folder / "features.parquet", traces, trained.split, trained.model)
    return made


def run(source, target):
    variants = transfer(source, target, POINT, synthetic.TRAIN, EvaluateParams(), GRID, seed=0)
    bench = Bench(target.traces, target.split, horizon=32, n_resamples=100, seed=0)
    results = transfer_results(source.model, target.model, bench, variants)
    return results.frame.set_index(["subject", "metric"])


def test_a_model_of_like_failures_transfers(sides):
    found = run(sides["a"], sides["b"])
    assert set(found.index.get_level_values(0)) == {"b->b", "a->b"}
    assert found.loc[("a->b", "auroc")]["value"] > 0.8
    difference = found.loc[("a->b", "auroc_minus_in_domain")]
    assert difference["value"] == pytest.approx(
        found.loc[("a->b", "auroc")]["value"] - found.loc[("b->b", "auroc")]["value"]
    )
    assert difference["low"] <= difference["value"] <= difference["high"]


def test_no_prompt_that_tests_the_target_trains_the_source(sides):
    tested = frozenset(sides["b"].part("test")["prompt_id"])
    shared = tested & set(sides["a"].part("train")["prompt_id"])
    assert shared  # else this would test nothing
    assert not tested & set(sides["a"].part("train", without=tested)["prompt_id"])


def test_a_source_left_without_prompts_is_one_clear_line(sides):
    everything = sides["b"].split.assign(part="test")
    target = Side("b", sides["b"].features_path, sides["b"].traces, everything, sides["b"].hazard_model)
    with pytest.raises(KvguardError, match=r"every train or tune prompt of a tests b.*sample\.n"):
        run(sides["a"], target)
