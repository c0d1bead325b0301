"""Training: planted hazards are found, test prompts choose nothing, the same seed gives the same bytes."""

import numpy as np
import pytest

import synthetic
from kvguard.errors import KvguardError
from kvguard.hazard.rows import load_rows
from kvguard.hazard.splits import part_of_traces
from kvguard.hazard.train import HazardModel, selected_features, train
from kvguard.traces import read_table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return folder / "features.parquet", synthetic.build(folder, n_prompts=24)


@pytest.fixture(scope="module")
def training(dataset):
    return train(*dataset, synthetic.TRAIN, seed=17)


def test_a_planted_hazard_is_forecast_before_the_onset(training):
    assert training.metrics["pre_onset"]["auroc"] > 0.99
    assert training.metrics["n_features"] == 40


def test_only_test_prompts_are_measured(dataset, training):
    _, traces = dataset
    part = part_of_traces(traces, training.split)
    tested = set(traces["trace_id"][part == "test"])
    assert set(training.test.trace_id) == tested
    assert training.metrics["n_train_tokens"] == traces["token_ids"].map(len)[part == "train"].sum()


def test_the_same_seed_gives_the_same_model_and_metrics(dataset, training, tmp_path):
    again = train(*dataset, synthetic.TRAIN, seed=17)
    assert again.metrics == training.metrics
    for name, model in (("a", training.model), ("b", again.model)):
        model.save(tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_a_saved_model_predicts_the_same(training, tmp_path):
    training.model.save(tmp_path / "model")
    loaded = HazardModel.load(tmp_path / "model")
    assert loaded.features == training.model.features
    assert loaded.threshold == training.model.threshold
    assert (loaded.predict(training.test.features) == training.test_hazard).all()


@pytest.mark.parametrize("broken", ["booster.json", "hazard.json"])
def test_an_unreadable_model_is_one_clear_line(training, tmp_path, broken):
    training.model.save(tmp_path)
    (tmp_path / broken).write_text('{"half')
    with pytest.raises(KvguardError, match="no readable hazard model") as refusal:
        HazardModel.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_protocols_and_exclusions_choose_the_features():
    assert len(selected_features("v1", [])) == 41
    assert "rep_count" not in selected_features("v2", ["rep_count"])
    with pytest.raises(KvguardError, match="rep_cout is no feature of protocol v2; did you mean rep_count"):
        selected_features("v2", ["rep_cout"])
    with pytest.raises(KvguardError, match="rank_of_chosen is no feature of protocol v2"):
        selected_features("v2", ["rank_of_chosen"])


def test_protocol_v1_trains_on_its_own_columns(dataset):
    found = train(*dataset, synthetic.TRAIN.model_copy(update={"exclude_features": ("h_alts",)}), 17, "v1")
    assert found.model.features[-1] == "rank_of_chosen"
    assert "token_position_v1" in found.model.features
    assert found.metrics["n_features"] == 40


def test_labels_of_one_class_are_an_error(dataset):
    path, traces = dataset
    healthy = traces[traces["compressor"] == "none"].reset_index(drop=True)
    with pytest.raises(KvguardError, match="the labels of the train prompts are all False"):
        train(path, healthy, synthetic.TRAIN, seed=17)


def test_rows_are_those_of_the_traces_asked_for(dataset):
    path, _ = dataset
    rows = load_rows(path, ["entropy"], np.array([3, 70]))
    table = read_table("features", path)
    table = table[table["trace_id"].isin([3, 70])]
    assert (rows.features[:, 0] == table["entropy"]).all()
    assert (rows.t == table["t"]).all()
    assert (rows.label == table["label"]).all()
