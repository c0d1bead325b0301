"""Training: planted hazards are found, test prompts choose nothing, the same seed gives the same bytes."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import synthetic
from kvguard import tracking
from kvguard.errors import KvguardError
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.catastrophes import DETECTORS
from kvguard.store.files import write_json
from kvguard.store.results import Results
from kvguard.store.schemas import TABLES, conform
from kvguard.store.tables import write_table
from kvguard.studies.catastrophes.export import save_hazard
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.score.hazards import add_forecasts
from kvguard.studies.catastrophes.train.fit import Parts, fit_hazard, load_parts, selected_features, train
from kvguard.studies.catastrophes.train.hazards import of_horizon, read_all_hazards, write_hazards
from kvguard.studies.catastrophes.train.splits import part_of_traces, reject_leaks

FOLDS = {"snapkv", "knorm"}
run = partial(train, seed=17)
MAIN = of_horizon(32)
QUICK = synthetic.TRAIN.model_copy(update={"horizons": (32,)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return folder / "features.parquet", synthetic.build(folder, n_prompts=24)


@pytest.fixture(scope="module")
def training(dataset):
    return run(*dataset, synthetic.TRAIN)


@pytest.fixture(scope="module")
def found(dataset, training):
    return scored(training, dataset[1]).metrics(
        "predictor", "horizons", "cross_validation", "importance", "model"
    )


def scored(training, traces):
    """What the score stage says of a training."""
    results = Results("train", "", HEADLINE)
    results.add_frame(training.facts.frame)
    add_forecasts(results, training.hazards, traces, training.model.threshold, 32, 100, 17)
    return results


def hazard_of(training):
    return training.hazards[MAIN]["hazard"].to_numpy()


def saved(model, folder):
    """The files of a model."""
    save_hazard(model, folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def edited(path, folder, change):
    """A copy of a features table, changed past all checks."""
    frame = pd.read_parquet(path)
    frame = change(frame)
    schema = TABLES["features"].columns
    frame = frame[[name for name in schema if name in frame]]
    frame.to_parquet(folder / "features.parquet", index=False)
    return folder / "features.parquet"


def test_a_planted_hazard_is_forecast_before_the_onset(found):
    assert found["predictor"]["pre_onset"]["auroc"]["value"] > 0.99
    assert found["predictor"]["pre_onset"]["lead_time_median"]["value"] > 16
    low, high = (found["predictor"]["pre_onset"]["auprc"][end] for end in ("low", "high"))
    assert 0 < low <= found["predictor"]["pre_onset"]["auprc"]["value"] <= high <= 1


def test_a_known_hazard_gives_the_numbers_computed_by_hand(tmp_path):
    """Entropy is 1 at 20 of the 32 tokens before every onset and at 5 of 50 healthy tokens, else 0."""
    frames, traces = [], []
    for number in range(40):
        fails = number % 2 == 1
        t = np.arange(80 if fails else 50)
        onset = 60 if fails else -1
        frames.append(
            pd.DataFrame(
                {
                    "trace_id": number,
                    "t": t,
                    "entropy": (t >= 40) if fails else (t >= 25) & (t < 30),
                }
            )
        )
        name = "snapkv" if fails else "none"
        traces.append((number, f"p{number // 2:02d}", name, ["looping"] * fails, onset if fails else None))
    table = pd.concat(frames, ignore_index=True)
    table = table.reindex(columns=list(TABLES["features"].columns), fill_value=0)
    write_table("features", conform("features", table), tmp_path / "features.parquet")
    traces = pd.DataFrame(traces, columns=["trace_id", "prompt_id", "compressor", "catastrophes", "onset"])
    traces = traces.astype({"trace_id": np.int32, "onset": "Int32"})
    traces["onset_by"] = traces["onset"].map(lambda onset: None if pd.isna(onset) else "looping")
    training = run(tmp_path / "features.parquet", traces, QUICK)
    found = {
        name: value["value"]
        for name, value in scored(training, traces).metrics("predictor")["predictor"]["pre_onset"].items()
    }
    hits, alarms = 20 / 32, 5 / 78  # shares of the positives and of the negatives at entropy 1
    assert found["auroc"] == pytest.approx((1 + hits - alarms) / 2)
    assert found["recall_at_5pct_fpr"] == 0
    assert found["f1"] == pytest.approx(2 * 20 / (25 + 32))
    assert found["auprc"] == pytest.approx(hits * 20 / 25 + (1 - hits) * 32 / 110)
    assert (found["trace_detection_rate"], found["lead_time_median"]) == (1, 20)
    early = training.test.pre_onset
    high = training.test.features[:, training.test.columns.index("entropy")] == 1
    assert hazard_of(training)[early & high] == pytest.approx(20 / 25)
    assert hazard_of(training)[early & ~high] == pytest.approx(12 / 85)
    assert found["brier"] == pytest.approx((25 * 0.8 * 0.2 + 85 * 12 / 85 * 73 / 85) / 110)


def test_only_test_prompts_are_measured(dataset, training, found):
    _, traces = dataset
    part = part_of_traces(traces, training.split)
    reject_leaks(traces["prompt_id"], part)
    tested = set(traces["trace_id"][part == "test"])
    assert set(training.test.trace_id) == tested
    lengths = traces["token_ids"].map(len)
    assert found["model"]["hazard"]["n_train_tokens"]["value"] == lengths[part == "train"].sum()
    assert found["predictor"]["all"]["n_tokens"]["value"] == lengths[part == "test"].sum()


@pytest.mark.parametrize(("protocol", "same"), [("v3", True), ("v2", True), ("v1", False)])
def test_what_becomes_of_test_prompts_changes_the_model_in_protocol_v1_alone(
    dataset, tmp_path, protocol, same
):
    path, traces = dataset
    params = QUICK.model_copy(update={"exclude_features": ("compression_ratio",)})
    before = run(path, traces, params, protocol=protocol)
    tested = traces["trace_id"][part_of_traces(traces, before.split) == "test"]

    def plant(frame):
        inside = frame["trace_id"].isin(tested)
        return frame.assign(entropy=frame["entropy"].where(~inside, 3 - frame["entropy"]))

    after = run(edited(path, tmp_path, plant), traces, params, protocol=protocol)
    assert (hazard_of(after) != hazard_of(before)).any()
    assert (saved(before.model, tmp_path / "a") == saved(after.model, tmp_path / "b")) == same


def test_the_same_seed_gives_the_same_model_and_metrics(dataset, training, tmp_path):
    again = run(*dataset, synthetic.TRAIN)
    assert saved(again.model, tmp_path / "a") == saved(training.model, tmp_path / "b")
    for name, made in (("a", again), ("b", training)):
        results = scored(made, dataset[1])
        write_json(tmp_path / f"{name}.json", results.metrics("predictor", "horizons", "cross_validation"))
        results.write(tmp_path / f"{name}.parquet")
        write_hazards(made.hazards, tmp_path / name)
    assert len(training.hazards) == 6
    for name, table in read_all_hazards(tmp_path / "a").items():
        pd.testing.assert_frame_equal(table, training.hazards[name])
    for kind in ("json", "parquet"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_every_table_has_its_subjects_and_metrics(dataset, training):
    frame = scored(training, dataset[1]).frame
    assert set(frame["stage"]) == {"train"}
    assert set(frame["protocol"]) == {HEADLINE}
    ranking = {"auroc", "auprc", "recall_at_5pct_fpr"}
    counts = {"n_tokens", "n_positive"}
    lead = {"trace_detection_rate", "lead_time_median", "lead_time_q25", "lead_time_q75"}
    clocks = {"auroc_position_only", "auroc_best_clock", "matched_auroc_position_only"}
    matched = {"matched_auroc", "matched_auroc_by_positives"} | clocks
    expected = {
        ("predictor", "pre_onset"): ranking | counts | matched | lead | {"f1", "brier"},
        **{("predictor", f"pre_onset_{kind}"): ranking | counts | matched for kind in DETECTORS},
        ("predictor", "all"): ranking | counts | {"f1", "brier"},
        **{("horizons", h): ranking for h in ("16", "32", "64", "128")},
        **{("cross_validation", name): ranking | counts for name in FOLDS},
        **{("importance", name): {"gain", "mean_abs_shap"} for name in training.model.features},
        **{("reliability", str(number)): {"mean_hazard", "observed", "n_tokens"} for number in range(10)},
    }
    named = {key: set(rows["metric"]) for key, rows in frame.groupby(["table", "subject"])}
    assert {key: named[key] for key in expected} == expected
    assert {key for key in named if key not in expected} == {("model", "hazard")}


def test_the_planted_signal_is_the_most_important_feature(found):
    shap = {name: values["mean_abs_shap"]["value"] for name, values in found["importance"].items()}
    assert max(shap, key=shap.get).startswith("entropy")
    assert all((found["importance"][name]["gain"]["value"] == 0) == (shap[name] == 0) for name in shap)


def test_a_fold_is_fitted_without_the_compressor_that_it_measures(dataset, training):
    _, traces = dataset
    snapkv = traces["trace_id"][traces["compressor"] == "snapkv"].to_numpy()
    fold = Parts(training.test, training.test, training.test).leaving_out(snapkv)
    assert set(fold.test.trace_id) == set(snapkv) & set(training.test.trace_id)
    for rows in (fold.fitting, fold.tuning):
        assert set(rows.trace_id) == set(training.test.trace_id) - set(snapkv)


def test_what_has_one_class_only_is_undefined_and_said(dataset, caplog):
    path, traces = dataset
    lone = traces[traces["compressor"].isin(["none", "snapkv"])].reset_index(drop=True)
    with caplog.at_level(logging.WARNING):
        training = run(path, lone, QUICK)
    found = scored(training, lone).metrics("cross_validation", "horizons")
    assert set(found["cross_validation"]) == {"snapkv"}
    assert np.isnan(found["cross_validation"]["snapkv"]["auroc"]["value"])
    assert found["cross_validation"]["snapkv"]["n_positive"]["value"] > 0
    assert not np.isnan(found["horizons"]["32"]["auroc"]["value"])
    assert [line for line in caplog.messages if "without-snapkv: undefined: train: the labels" in line]


def test_a_saved_model_predicts_the_same(training, tmp_path):
    save_hazard(training.model, tmp_path / "model")
    loaded = HazardModel.load(tmp_path / "model")
    assert loaded.features == training.model.features
    assert loaded.threshold == training.model.threshold
    assert (loaded.predict(training.test.features) == hazard_of(training)).all()
    assert (loaded.predict(training.test.features[:64]) == hazard_of(training)[:64]).all()


def test_what_mlflow_keeps_loads_back_to_the_same_predictions(training, folder, tmp_path):
    import mlflow

    model, rows = training.model, training.test.features
    save_hazard(model, tmp_path / "hazard")
    example = pd.DataFrame(rows[:5], columns=list(model.features))
    with tracking.run("train", model="m", protocol="v2") as run:
        run.log_artifact(tmp_path / "hazard", "hazard")
        run.log_model(model.booster, example, "hazard-m-v2")
    registered = mlflow.xgboost.load_model("models:/hazard-m-v2/1")
    assert (registered.inplace_predict(rows) == model.booster.inplace_predict(rows)).all()
    kept = HazardModel.load(Path(mlflow.artifacts.download_artifacts(run_id=run.id, artifact_path="hazard")))
    assert (kept.predict(rows) == hazard_of(training)).all()


@pytest.mark.parametrize("broken", ["booster.json", "hazard.json"])
@pytest.mark.parametrize("text", ['{"half', "[]", "{}"])
def test_an_unreadable_model_is_one_clear_line(training, tmp_path, broken, text):
    save_hazard(training.model, tmp_path)
    (tmp_path / broken).write_text(text)
    with pytest.raises(KvguardError, match="no readable hazard model") as rejection:
        HazardModel.load(tmp_path)
    assert "\n" not in str(rejection.value)


def test_the_class_weight_moves_the_trees_and_calibration_takes_it_back(dataset, training):
    path, traces = dataset
    part = part_of_traces(traces, training.split)
    parts = load_parts(path, traces, part, training.model.features, synthetic.TRAIN)
    models = {
        weight: fit_hazard(
            parts.fitting, parts.tuning, QUICK.model_copy(update={"positive_weight": weight}), 17
        )
        for weight in (1.0, 30.0)
    }
    early = parts.tuning.pre_onset
    raw = {
        weight: model.booster.inplace_predict(parts.tuning.features)[early].mean()
        for weight, model in models.items()
    }
    assert raw[30.0] > raw[1.0] + 0.01
    for model in models.values():
        hazard = model.predict(parts.tuning.features)[early]
        assert hazard.mean() == pytest.approx(parts.tuning.label[early].mean(), abs=0.02)


def test_protocols_and_exclusions_choose_the_features():
    v1, v2 = PROTOCOLS["v1"], PROTOCOLS["v2"]
    assert len(selected_features(v1, [])) == 41
    assert "rep_count" not in selected_features(v2, ["rep_count"])
    with pytest.raises(KvguardError, match="rep_cout is no feature of protocol v2; did you mean rep_count"):
        selected_features(v2, ["rep_cout"])
    with pytest.raises(KvguardError, match="rank_of_chosen is no feature of protocol v2"):
        selected_features(v2, ["rank_of_chosen"])


def test_protocol_v1_trains_on_its_own_columns_and_its_first_50_prompts(dataset):
    path, traces = dataset
    params = QUICK.model_copy(update={"exclude_features": ("h_alts",)})
    training = run(path, traces, params, protocol="v1")
    assert training.model.features[-1] == "rank_of_chosen"
    assert "token_position_v1" in training.model.features
    found = training.facts.metrics("model")["model"]["hazard"]
    assert found["n_features"]["value"] == 40
    assert found["n_train_prompts"]["value"] + found["n_test_prompts"]["value"] > 24  # they leak


def test_labels_of_one_class_are_an_error(dataset):
    path, traces = dataset
    healthy = traces[traces["compressor"] == "none"].reset_index(drop=True)
    with pytest.raises(KvguardError, match="the labels of the train part are all False"):
        run(path, healthy, QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.assign(entropy=frame["entropy"].where(frame.index != 5)), ["entropy", "row 5"]),
        (
            lambda frame: frame.assign(h_alts=frame["h_alts"].where(frame.index != 7, np.inf)),
            ["h_alts", "row 7"],
        ),
        (lambda frame: frame.drop(columns="delta_h"), ["delta_h", "missing"]),
    ],
    ids=["nan", "inf", "missing"],
)
def test_a_features_table_that_is_not_whole_is_one_line_with_its_mend(dataset, tmp_path, change, words):
    path, traces = dataset
    with pytest.raises(KvguardError) as rejection:
        run(edited(path, tmp_path, change), traces, QUICK)
    assert "\n" not in str(rejection.value)
    for word in [*words, "features.parquet", "dvc repro featurize"]:
        assert word in str(rejection.value)
