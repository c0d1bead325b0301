"""What is planted is found, as computed by hand; what is not there is not."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_nll import ORDER, PARAMS, PROTOCOL, Synthetic, table

from kvguard.studies.directed.analysis.analyse import analyse
from kvguard.studies.directed.params import AnalysisParams, Protocol


def found(results, name: str, subject: str, metric: str) -> float:
    frame = results.frame
    [value] = frame[(frame["table"] == name) & (frame["subject"] == subject) & (frame["metric"] == metric)][
        "value"
    ]
    return float(value)


PLANTED = {"noise": -0.2, "far": -0.22, "near": -0.24, "oracle": -0.3}


@pytest.fixture(scope="module")
def planted():
    wide = Synthetic(PLANTED, seed=3).nll(200)
    return wide, analyse(table(wide), "m", "x", PROTOCOL, PARAMS, seed=0)


@pytest.mark.parametrize("condition", ORDER)
def test_effects_are_those_computed_by_hand(planted, condition):
    wide, results = planted
    better = wide["bare"] - wide[condition]
    name = "effects made all none nll"
    assert found(results, name, condition, "d") == pytest.approx(better.mean() / better.std(ddof=1))
    assert found(results, name, condition, "benefit") == pytest.approx(better.mean())
    assert found(results, name, condition, "win_rate") == pytest.approx((better > 0).mean())
    assert found(results, name, condition, "p") == pytest.approx(stats.wilcoxon(better).pvalue)
    assert found(results, name, condition, "p_holm") < 1e-6
    delta = wide["noise"] - wide[condition]
    if condition != "noise":
        semantic = found(results, "semantic made all none nll", condition, "benefit")
        assert semantic == pytest.approx(delta.mean())


def test_what_has_no_effect_is_not_significant(planted):
    _, results = planted
    assert found(results, "effects made all none nll", "flat", "p_holm") > 0.05
    assert abs(found(results, "effects made all none nll", "flat", "d")) < 0.2


def test_the_structural_fraction_is_noise_over_oracle(planted):
    wide, results = planted
    bare, noise, oracle = (wide[name].mean() for name in ("bare", "noise", "oracle"))
    name = "structure made all none nll"
    by_hand = (bare - noise) / (bare - oracle)
    assert found(results, name, "oracle", "structural_fraction") == pytest.approx(by_hand)
    assert found(results, name, "oracle", "semantic_fraction") == pytest.approx(1 - by_hand)
    assert found(results, name, "oracle", "structural_fraction") == pytest.approx(2 / 3, abs=0.1)


def test_a_fraction_of_no_benefit_is_undefined():
    results = analyse(table(Synthetic({}).nll(60)), "m", "x", PROTOCOL, PARAMS, seed=0)
    assert np.isnan(found(results, "structure made all none nll", "oracle", "structural_fraction"))
    assert abs(found(results, "structure made all none nll", "oracle", "oracle_benefit")) < 0.05


def test_the_gradient_is_spearmans_along_the_semantic_order(planted):
    wide, results = planted
    name = "gradient made all none nll"
    assert found(results, name, "order", "rho") == pytest.approx(1)
    one_by_one = [stats.spearmanr(range(4), -row).statistic for row in wide[list(ORDER)].to_numpy()]
    assert found(results, name, "order", "within") == pytest.approx(np.mean(one_by_one))
    assert found(results, name, "order", "p_within") == pytest.approx(1 / 200)


def test_hard_examples_are_the_highest_baseline_values_and_quantiles_split_them(planted):
    wide, results = planted
    hard = wide.nlargest(80, "bare")
    better = hard["bare"] - hard["oracle"]
    assert found(results, "effects made hard none nll", "oracle", "d") == pytest.approx(
        better.mean() / better.std(ddof=1)
    )
    top = wide.nlargest(40, "bare")
    assert found(results, "quantiles made all none nll", "far 5", "benefit") == pytest.approx(
        (top["bare"] - top["far"]).mean()
    )
    assert found(results, "levels made all none nll", "oracle", "mean") == pytest.approx(
        wide["oracle"].mean()
    )
    ranks = stats.rankdata(wide.to_numpy(), axis=1).mean(axis=0)
    assert found(results, "levels made all none nll", "oracle", "rank") == pytest.approx(ranks[4])


def test_shuffled_labels_are_significant_in_at_most_one_comparison_of_twenty():
    rng = np.random.default_rng(0)
    called, compared = 0, 0
    for seed in range(40):
        wide = Synthetic(PLANTED, seed=seed).nll(60)
        shuffled = pd.DataFrame(rng.permuted(wide.to_numpy(), axis=1), columns=wide.columns)
        few = AnalysisParams(n_resamples=100, n_permutations=99)
        frame = analyse(table(shuffled), "m", "x", PROTOCOL, few, seed=0).frame
        p = frame[frame["table"].str.startswith("effects") & (frame["metric"] == "p_holm")]["value"]
        called, compared = called + int((p < 0.05).sum()), compared + len(p)
    assert compared == 40 * 2 * 5
    assert called / compared <= 0.05


def test_examples_of_one_document_widen_intervals():
    wide = Synthetic(PLANTED).nll(40)
    fourfold = pd.concat([wide] * 4, ignore_index=True)
    apart = analyse(table(fourfold), "m", "x", PROTOCOL, PARAMS, seed=0)
    documents = [f"d{row % 40}" for row in range(160)]
    together = analyse(table(fourfold, documents=documents), "m", "x", PROTOCOL, PARAMS, seed=0)

    def width(results):
        frame = results.frame.set_index(["table", "subject", "metric"])
        row = frame.loc[("effects made all none nll", "oracle", "benefit")]
        return row["high"] - row["low"]

    assert width(together) / width(apart) == pytest.approx(2, rel=0.25)


def test_pooling_says_whether_the_sign_is_the_same_everywhere():
    tables = [
        table(Synthetic({"oracle": -0.3, "far": sign * 0.3}, seed=seed).nll(80), f"set{seed}")
        for seed, sign in enumerate((1, -1, 1))
    ]
    results = analyse(pd.concat(tables), "m", "x", PROTOCOL, PARAMS, seed=0)
    assert found(results, "pooled all none nll", "oracle", "consistent") == 1
    assert found(results, "pooled all none nll", "oracle", "benefit") == pytest.approx(0.3, abs=0.03)
    assert found(results, "pooled all none nll", "far", "consistent") == 0
    assert found(results, "pooled all none nll", "far", "positive") == 1
    assert found(results, "pooled all none nll", "far", "benefit_tau") > 0.2


def test_interactions_of_a_grid_and_of_settings_are_differences_of_differences():
    plain = Synthetic({"oracle": -0.1}, seed=1).nll(100, ("bare", "oracle"))
    pressed = Synthetic({"bare": 0.5, "oracle": 0.1}, seed=2).nll(100, ("bare", "oracle"))
    protocol = Protocol(
        track="synthetic",
        title="t",
        about="a",
        conditions=("bare", "oracle"),
        settings=("none", "press@0.5"),
        grids={
            "press": {
                "rows": ["none", "press@0.5"],
                "columns": ["bare", "oracle"],
                "cells": [["bare", "oracle"], ["bare|press@0.5", "oracle|press@0.5"]],
            }
        },
    )
    both = pd.concat([table(plain), table(pressed, setting="press@0.5")])
    results = analyse(both, "m", "x", protocol, PARAMS, seed=0)
    by_hand = ((pressed["bare"] - pressed["oracle"]) - (plain["bare"] - plain["oracle"])).mean()
    assert found(results, "survival made all press@0.5 nll", "oracle", "benefit") == pytest.approx(by_hand)
    crossed = found(results, "grid made all press nll", "press: press@0.5 x oracle", "benefit")
    assert crossed == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.3, abs=0.05)


def test_an_example_without_a_value_is_left_out_of_that_comparison_alone():
    wide = Synthetic(PLANTED).nll(30)
    wide.loc[:9, "far"] = np.nan
    results = analyse(table(wide), "m", "x", PROTOCOL, PARAMS, seed=0)
    assert found(results, "effects made all none nll", "far", "n") == 20
    assert found(results, "effects made all none nll", "near", "n") == 30
    assert found(results, "gradient made all none nll", "order", "n") == 20
