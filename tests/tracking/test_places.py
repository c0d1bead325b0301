"""The store lies in its repository whatever the path, and its artifacts follow it wherever it goes."""

import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.file_utils import local_file_uri_to_path

from kvguard import tracking
from kvguard.errors import KvguardError
from kvguard.tracking.place import database_of, sqlite_uri

ODD = st.sampled_from(
    ["?", "%", "%20", "#", ";", ":", "&", "=", "+", "@", "\\", "\n", "'", "ü", "日", "\u2028"]
)
NAMES = st.lists(ODD | st.text(min_size=1, max_size=3), min_size=1, max_size=6).map("".join)


def usable(name: str) -> bool:
    """Whether Linux takes it as a folder's name."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name not in (".", "..") and b"/" not in raw and b"\0" not in raw and len(raw) <= 200


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@given(NAMES.filter(usable))
@settings(max_examples=60, deadline=None)
def test_the_uri_of_a_database_leads_to_it_and_nowhere_else(name) -> None:
    with tempfile.TemporaryDirectory() as parent:
        database = Path(parent, name, "mlflow.db")
        database.parent.mkdir()
        uri = sqlite_uri(database)
        assert database_of(uri) == database
        engine = sqlalchemy.create_engine(uri)
        with closing(engine.raw_connection()) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE t (x)")
            connection.commit()
        engine.dispose()
        assert files(Path(parent)) == {database}


@pytest.fixture
def repository(tmp_path, empty_store, monkeypatch):
    """Make a repository of any name inside the test's folder, and stand in it."""

    def make(name: str) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True)
        (root / "dvc.yaml").touch()
        shutil.copy(empty_store, root / "mlflow.db")
        stand_in(root, monkeypatch)
        return root

    return make


def stand_in(root: Path, monkeypatch) -> None:
    monkeypatch.delenv(
        "MLFLOW_TRACKING_URI", raising=False
    )  # MLflow sets it to the store that it opened last
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)


def logged(root: Path, name: str) -> Path:
    """Log a file of that name from the current folder, and return where it landed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(name)
        with tracking.run("sample", start=root) as run:
            run.log_artifact(Path(folder, name))
    [landed] = root.parent.rglob(f"{name}")
    return landed


@pytest.mark.parametrize("name", ["what?now", "p%20q", "a#b;c:d e", "%", "?uri=true", "ünï\n日"])
def test_a_store_of_any_path_keeps_everything_inside_the_repository(repository, tmp_path, name) -> None:
    root = repository(name)
    (root / "docs").mkdir()
    os.chdir(root / "docs")
    landed = logged(root, "x.txt")
    assert landed.is_relative_to(root / "mlruns")
    assert {path.parts[0] for path in (file.relative_to(tmp_path) for file in tmp_path.rglob("*"))} == {name}
    assert not list((root / "docs").iterdir())
    [found] = stored(root)
    assert Path(local_file_uri_to_path(found.info.artifact_uri), "x.txt") == landed


def stored(root: Path) -> list:
    client = mlflow.MlflowClient(sqlite_uri(root / "mlflow.db"))
    experiment = client.get_experiment_by_name("kvguard")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def test_a_path_that_mlflow_cannot_follow_is_one_line_and_writes_nothing(tmp_path, monkeypatch) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    (root / "dvc.yaml").touch()
    stand_in(root, monkeypatch)
    with pytest.raises(KvguardError) as caught, tracking.run("sample"):
        pytest.fail("the stage began")
    assert len(str(caught.value).splitlines()) == 1
    assert files(tmp_path) == {root / "dvc.yaml"}


def log_model() -> None:
    rows = pd.DataFrame(np.random.default_rng(0).random((20, 2)), columns=["a", "b"]).astype("float32")
    with tracking.run("train") as run:
        run.log_model(xgboost.train({}, xgboost.DMatrix(rows, rows["a"] > 0.5), 2), rows.head(2), "hazard")


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move], ids=["copied", "moved"])
def test_artifacts_old_and_new_follow_a_repository(repository, tmp_path, monkeypatch, how) -> None:
    old = repository("old %20?x")
    logged(old, "first.txt")
    log_model()
    before = files(old) if how is shutil.copytree else set()
    new = tmp_path / "elsewhere" / "new"
    new.parent.mkdir()
    how(old, new)
    stand_in(new, monkeypatch)
    assert logged(new, "second.txt").is_relative_to(new / "mlruns")
    assert (files(old) if old.exists() else set()) == before, "the original is left alone"
    for run, name in zip(stored(new), ("first.txt", None, "second.txt"), strict=True):
        assert Path(local_file_uri_to_path(run.info.artifact_uri)).is_relative_to(new)
        if name is not None:
            assert (
                Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{name}")).read_text()
                == name
            )
    shutil.rmtree(old, ignore_errors=True)
    assert mlflow.xgboost.load_model("models:/hazard/1").num_features() == 2


def test_artifacts_that_a_user_put_elsewhere_stay_there(repository, tmp_path) -> None:
    root, elsewhere = repository("root"), tmp_path / "disk" / "mlruns"
    elsewhere.mkdir(parents=True)
    client = mlflow.MlflowClient(sqlite_uri(root / "mlflow.db"))
    client.create_experiment("kvguard", elsewhere.as_uri())
    with tracking.run("sample") as run:
        run.log_artifact(root / "dvc.yaml")
    assert list(elsewhere.rglob("dvc.yaml"))


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///:memory:", "sqlite:////x/what?now/mlflow.db", "what://x"]
)
def test_a_store_that_cannot_be_named_so_is_one_line(repository, tmp_path, monkeypatch, uri) -> None:
    root = repository("root")
    before = files(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(KvguardError) as caught, tracking.run("sample", start=root):
        pytest.fail("the stage began")
    assert len(str(caught.value).splitlines()) == 1
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert files(tmp_path) == before


def test_the_experiment_is_one_of_machine_learning_to_mlflows_page(repository) -> None:
    root = repository("root")
    with tracking.run("sample"):
        pass
    tags = mlflow.MlflowClient(sqlite_uri(root / "mlflow.db")).get_experiment_by_name("kvguard").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
