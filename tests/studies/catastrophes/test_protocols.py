"""A protocol is one entry: each has its own onsets, and a new one is trained, searched and scored."""

from dataclasses import replace

import pandas as pd
import pytest

import synthetic
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.evaluate.evaluation import evaluate
from kvguard.studies.catastrophes.evaluate.operating_points import save_operating_points
from kvguard.studies.catastrophes.evaluate.simulate import recorded
from kvguard.studies.catastrophes.export import save_hazard
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.protocols import BEFORE, HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.score.stage import score
from kvguard.studies.catastrophes.train.fit import train
from kvguard.studies.catastrophes.train.hazards import write_hazards
from kvguard.studies.catastrophes.train.splits import write_split

QUICK = synthetic.TRAIN.model_copy(update={"horizons": (32,)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocols")
    return folder / "features.parquet", synthetic.build(folder, n_prompts=24)


def test_the_headline_and_what_it_is_held_against_are_protocols():
    assert {HEADLINE, BEFORE} <= set(PROTOCOLS)
    assert HEADLINE != BEFORE
    assert all(name == rules.name for name, rules in PROTOCOLS.items())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_selects_its_own_onsets_however_often(dataset, name):
    _, traces = dataset
    rules = PROTOCOLS[name]
    column = {"v1": "proxy_onset", "v2": "proxy_onset", "v3": "onset"}[name]
    chosen = rules.select(traces.sample(frac=1, random_state=0))
    its = traces.set_index("trace_id").loc[chosen["trace_id"]]
    assert chosen["onset"].tolist() == its[column].tolist()
    assert chosen["onset_by"].tolist() == its[f"{column}_by"].tolist()
    pd.testing.assert_frame_equal(rules.select(chosen), chosen)
    assert recorded(chosen, rules)["onset"].equals(chosen["onset"].astype("float64"))


def test_the_onsets_of_the_protocols_differ(dataset):
    _, traces = dataset
    v1, v2, v3 = (PROTOCOLS[name].select(traces)["onset"].fillna(-1) for name in ("v1", "v2", "v3"))
    assert v1.equals(v2)
    assert (v3 <= v2).all()
    assert (v3 < v2).any()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_only_the_headline_repeats_its_fits(dataset, name):
    training = train(*dataset, QUICK.model_copy(update={"fits": 3}), 17, name)
    assert len(training.repeats) == (2 if name == HEADLINE else 0)
    alone = train(*dataset, QUICK, 17, name)
    rows = training.test.features
    assert (alone.model.predict(rows) == training.model.predict(rows)).all()


def test_labels_are_of_the_protocols_onsets(dataset):
    _, traces = dataset
    for name in (BEFORE, HEADLINE):
        test = train(*dataset, QUICK, 17, name).test
        onset = PROTOCOLS[name].select(traces)["onset"].fillna(-1).to_numpy(dtype=int)[test.trace_id]
        assert (test.onset == onset).all()
        assert (test.label == ((test.t < onset) & (test.t >= onset - QUICK.horizon))).all()


def test_a_fourth_protocol_is_one_entry(dataset, tmp_path, monkeypatch):
    """Its split, features, onsets and grace are its own, from the first fit to the last score."""
    path, traces = dataset
    features = ("entropy", "h_alts", "entropy_max")
    late = traces["onset"] + 3
    traces = traces.assign(late=late, late_by=traces["onset_by"])
    mine = replace(PROTOCOLS[HEADLINE], name="v4", features=features, onset="late", n_prompts=20, grace=2)
    monkeypatch.setitem(PROTOCOLS, "v4", mine)
    monkeypatch.chdir(tmp_path)

    training = train(path, traces, QUICK, 17, "v4", model="toy")
    assert training.model.features == features
    assert training.repeats == []
    assert training.split["prompt_id"].nunique() == 20
    trained = layout.trained("toy", "v4")
    save_hazard(training.model, trained)
    write_split(training.split, mine, trained)
    write_hazards(training.hazards, trained)
    training.facts.write(layout.facts("train", "toy", "v4"))

    search = EvaluateParams(n_trials=8)
    found = evaluate(path, traces, training.split, training.model, mine, search, model="toy", seed=17)
    save_operating_points(found.points, layout.evaluated("toy", "v4"))
    found.facts.write(layout.facts("evaluate", "toy", "v4"))
    assert len(found.pareto) == 8

    scores = score("toy", "v4", traces, QUICK.horizon, 100, 17)
    assert {scores.forecasts.frame["protocol"].iloc[0], scores.controllers.frame["protocol"].iloc[0]} == {
        "v4"
    }
    predictor = scores.forecasts.metrics("predictor")["predictor"]
    assert predictor["pre_onset"]["auroc"]["value"] > 0.8
    assert predictor["pre_onset"]["n_tokens"]["value"] == training.test.pre_onset.sum()
    failing = traces[traces["late"].notna()].set_index("trace_id")
    tested = failing.loc[failing.index.isin(training.test.trace_id), "late"]
    at = dict(zip(training.test.trace_id, training.test.onset, strict=True))
    assert {trace: at[trace] for trace in tested.index} == tested.astype(int).to_dict()
