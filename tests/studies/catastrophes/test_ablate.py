import numpy as np
import pytest

import synthetic
from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.ablate import FEATURE_SETS, ablate
from kvguard.studies.catastrophes.intervals.variants import Bench, ablation_results
from kvguard.studies.catastrophes.params import AblateParams, EvaluateParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.fit import train
from kvguard.studies.catastrophes.train.hazards import of_horizon
from kvguard.studies.catastrophes.variants import read_variants, write_variants

POINT = ControllerParams(tau_low=0.1, tau_high=0.3, k_escalate=2, j_deescalate=8)
GRID = AblateParams(hysteresis=(1, 16), thresholds=(0.1, 0.3, 0.9), n_random=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    traces = synthetic.build(folder)
    trained = train(folder / "features.parquet", traces, synthetic.TRAIN, seed=0)

    def run():
        variants = ablate(
            folder / "features.parquet",
            traces,
            trained.split,
            trained.model,
            POINT,
            synthetic.TRAIN,
            EvaluateParams(),
            GRID.thresholds,
            model="toy",
            seed=0,
        )
        write_variants(variants, folder)
        bench = Bench(traces, trained.split, horizon=32, n_resamples=100, seed=0)
        hazards = trained.hazards[of_horizon(32)]
        return ablation_results("toy", bench, read_variants(folder), hazards, POINT, GRID).frame

    return run


@pytest.fixture(scope="module")
def found(run):
    frame = run()
    return frame.set_index(["table", "subject", "metric"]).sort_index()


def test_every_table_has_its_subjects(found):
    subjects = {table: set(rows.index.get_level_values(1)) for table, rows in found.groupby(level=0)}
    assert subjects == {
        "features": set(FEATURE_SETS),
        "controllers": {"hazard", "always_safe", "random", "risk_score"},
        "hysteresis": {"1", "16"},
        "thresholds": {"0.1", "0.3", "0.9"},
    }


def test_a_variant_differs_from_itself_by_nothing(found):
    for subject, name in (("full", "full"), ("hazard", "hazard")):
        rows = found.xs(subject, level=1).filter(regex=f"_minus_{name}", axis=0)
        rows = rows[rows.index.get_level_values("metric").str.endswith(f"_minus_{name}")].dropna()
        assert len(rows)
        assert (rows[["value", "low", "high"]].to_numpy(dtype=float) == 0).all()


def test_a_clock_knows_less_than_the_signals_where_onsets_come_at_any_time(found):
    clock = found.loc[("features", "position_only", "auroc_minus_full")]
    assert clock["high"] < 0


def test_always_safe_fires_in_every_trace_and_saves_nothing_where_it_helps(found):
    safe = found.loc[("controllers", "always_safe")]["value"]
    assert safe["false_positive_rate"] == 1.0
    assert safe["reduction"] >= found.loc[("controllers", "hazard", "reduction")]["value"]
    assert safe["kv_saved"] < found.loc[("controllers", "hazard", "kv_saved")]["value"]


def test_firing_at_random_traces_prevents_less_than_the_hazard_does(found):
    assert found.loc[("controllers", "random", "reduction_minus_hazard")]["high"] < 0


def test_a_higher_threshold_and_a_longer_hysteresis_never_fire_more_often(found):
    for table, order in (("thresholds", ["0.1", "0.3", "0.9"]), ("hysteresis", ["1", "16"])):
        rates = [found.loc[(table, subject, "false_positive_rate")]["value"] for subject in order]
        assert rates == sorted(rates, reverse=True)


def test_the_same_seed_gives_the_same_numbers(run, found):
    again = run().set_index(["table", "subject", "metric"]).sort_index()
    np.testing.assert_array_equal(
        again[["value", "low", "high"]].to_numpy(dtype=float),
        found[["value", "low", "high"]].to_numpy(dtype=float),
    )


def test_feature_sets_take_away_what_their_names_say():
    left = {
        name: [feature for feature in PROTOCOLS[HEADLINE].features if keeps(feature)]
        for name, keeps in FEATURE_SETS.items()
    }
    assert left["full"] == list(PROTOCOLS[HEADLINE].features)
    assert set(left["full"]) - set(left["no_rep"]) == {"rep_count", "rep_count_sum_8"}
    assert set(left["no_rep"]) - set(left["logit_only"]) == {"compression_ratio"}
    assert left["position_only"] == ["token_position"]
