"""Runs land in one store at the repository root, whatever folder they start in."""

import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost

from kvguard import tracking
from kvguard.errors import KvguardError


def stored(root, order=("attributes.start_time",)):
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kvguard")
    return client, client.search_runs([experiment.experiment_id], order_by=list(order))


@pytest.fixture
def table(folder):
    path = folder / "t.parquet"
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_parquet(path)
    return path


def test_a_run_keeps_params_metrics_tags_artifacts_and_tables(folder, table):
    with tracking.run("train", model="m", protocol="v2", params={"a": {"b": 1}, "c": [1, 2]}) as run:
        run.log_metrics({"pre": {"auroc": 0.5, "none": None}, "n": np.int64(3), "x@0.5": np.float32(1)})
        run.log_table("traces-m", table)
        run.log_artifact(table)
        run.log_outputs([table])
    client, [found] = stored(folder)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a.b": "1", "c": "[1, 2]"}
    assert found.data.metrics == {"pre.auroc": 0.5, "n": 3.0, "x_0.5": 1.0}
    assert {key: found.data.tags[key] for key in ("stage", "model", "protocol")} == {
        "stage": "train",
        "model": "m",
        "protocol": "v2",
    }
    assert found.data.tags["output.t.parquet"] == tracking.digest(table)
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["traces-m"]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["t.parquet"]
    assert list((folder / "mlruns").rglob("t.parquet"))


def test_trials_are_finished_children_that_carry_what_their_search_is_about(folder):
    trials = [
        (f"trial-{n}", {"tau_low": n / 40, "k_escalate": n}, {"reduction": n / 20, "kv_saved": np.nan})
        for n in range(20)
    ]
    with tracking.run("evaluate", model="m", protocol="v1", params={"n_trials": 20}) as run:
        run.log_trials(trials)
    _, found = stored(folder)
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in found if run is not parent}
    assert list(children) == [name for name, _, _ in trials]
    for name, params, metrics in trials:
        child = children[name]
        assert child.info.status == "FINISHED"
        assert child.data.params == {key: str(value) for key, value in params.items()}
        assert child.data.metrics == {"reduction": metrics["reduction"]}
        assert child.data.tags.items() >= {"stage": "evaluate", "model": "m", "protocol": "v1"}.items()
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_model_is_registered_with_signature_and_example(folder):
    rows = pd.DataFrame(np.random.default_rng(0).random((20, 2)), columns=["a", "b"]).astype("float32")
    booster = xgboost.train({}, xgboost.DMatrix(rows, rows["a"] > 0.5), 2)
    with tracking.run("train") as run:
        run.log_model(booster, rows.head(2), "hazard-m-v2")
    info = mlflow.models.get_model_info("models:/hazard-m-v2/1")
    assert info.signature.inputs.input_names() == ["a", "b"]
    assert info.saved_input_example_info is not None


def test_a_failed_stage_marks_its_run_failed(folder):
    with pytest.raises(KvguardError), tracking.run("sample"):
        raise KvguardError("no")
    assert stored(folder)[1][0].info.status == "FAILED"


def test_dvc_root_wins_over_the_folder_of_an_experiment(folder, monkeypatch):
    copy = folder / ".dvc" / "tmp" / "exps" / "copy"
    copy.mkdir(parents=True)
    (copy / "dvc.yaml").touch()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("DVC_STAGE", "sample@m")
    monkeypatch.setenv("DVC_EXP_NAME", "bold-idea")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    with tracking.run("sample"):
        pass
    tags = stored(folder)[1][0].data.tags
    assert (tags["dvc.stage"], tags["dvc.exp_name"], tags["dvc.exp_baseline_rev"]) == (
        "sample@m",
        "bold-idea",
        "abc",
    )
    assert not (copy / "mlflow.db").exists()


def test_the_root_is_found_from_a_folder_inside_the_repository(folder, monkeypatch):
    (folder / "docs").mkdir()
    monkeypatch.chdir(folder / "docs")
    assert tracking.repository_root() == folder


def test_outside_a_repository_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvguardError, match=r"no dvc\.yaml"), tracking.run("sample"):
        pass


def test_another_store_can_be_named(folder, monkeypatch, tmp_path_factory):
    (folder / "mlflow.db").unlink()
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")
    with tracking.run("sample"):
        pass
    assert stored(other)[1][0].info.artifact_uri.startswith((other / "mlruns").as_uri())
    assert not (folder / "mlflow.db").exists()


def test_inputs_carry_the_hashes_that_dvc_recorded(folder):
    (folder / "dvc.lock").write_text(
        "stages:\n  generate@m:\n    outs:\n    - path: data/generate/m\n      md5: abc.dir\n"
    )
    with tracking.run("featurize", inputs=[folder / "data/generate/m/traces.parquet"]):
        pass
    assert stored(folder)[1][0].data.tags["input.data/generate/m"] == "abc.dir"


@pytest.mark.parametrize("name", ["mlruns", "mlflow.db"])
def test_a_store_that_takes_no_writes_fails_before_any_work(folder, name):
    if name == "mlruns":
        (folder / name).write_text("a file where the folder should be")
    else:
        (folder / name).unlink()
        (folder / name).mkdir()
    with pytest.raises(KvguardError) as caught, tracking.run("sample"):
        pytest.fail("the stage began")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)


def test_two_processes_may_begin_on_an_empty_store(folder):
    code = "from kvguard import tracking\nwith tracking.run('sample') as run: run.log_metrics({'n': 1})"
    (folder / "mlflow.db").unlink()
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=folder) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert [run.info.status for run in stored(folder)[1]] == ["FINISHED", "FINISHED"]


def test_a_digest_knows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    before = tracking.digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = tracking.digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, tracking.digest(tmp_path)}) == 3
