"""Rows that stay in their table: the same tokens, and the same hazard model, as rows in memory."""

import tempfile

import numpy as np
import pytest
import xgboost as xgb

import synthetic
from kvguard.store import tables as traces_module
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.export import save_hazard
from kvguard.studies.catastrophes.train import fit as train_module
from kvguard.studies.catastrophes.train.fit import fit_hazard, train
from kvguard.studies.catastrophes.train.rows import Rows, StoredRows, load_rows, rows_to_fit

COLUMNS = ["h_alts", "entropy", "rep_count", "top1_prob"]
ALL = synthetic.TRAIN.model_copy(update={"max_tokens": None, "horizons": (32,)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A features table in many row groups, and its traces."""
    folder = tmp_path_factory.mktemp("stored")
    traces = synthetic.build(folder, n_prompts=24)
    path = folder / "features.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces_module, "ROW_GROUP", 500)
        write_table("features", read_table("features", path), path)
    return path, traces


@pytest.fixture(scope="module")
def both(dataset):
    """The rows of every third trace, in the table and in memory."""
    path, traces = dataset
    chosen, horizon = traces[::3], synthetic.TRAIN.horizon
    stored, loaded = rows_to_fit(path, COLUMNS, chosen, None), load_rows(path, COLUMNS, chosen)
    return stored.labelled(horizon), loaded.labelled(horizon)


def features(rows):
    return np.concatenate(list(rows.blocks()))


def test_stored_rows_are_those_in_memory(both):
    stored, loaded = both
    assert isinstance(stored, StoredRows)
    assert len(list(stored.blocks())) > 3
    assert (features(stored) == loaded.features).all()
    for name in ("label", "pre_onset", "onset", "trace_id", "t"):
        assert (getattr(stored, name) == getattr(loaded, name)).all()


def test_tokens_and_features_of_stored_rows_can_be_chosen(both):
    late = [rows.where(rows.t > 30).only(["entropy"]) for rows in both]
    assert (features(late[0]) == late[1].features).all()
    assert late[0].columns == late[1].columns == ("entropy",)
    lone = both[0].where(both[0].trace_id == both[0].trace_id[-1])  # not in the first row groups
    assert len(features(lone)) == len(lone.t) > 0


@pytest.mark.parametrize(("share", "n_on_disk"), [(1.0, 0), (0.0, 2)], ids=["in memory", "on disk"])
def test_the_model_is_the_same_wherever_its_bins_are(both, tmp_path, monkeypatch, share, n_on_disk):
    made, on_disk = {}, []
    matrix = xgb.ExtMemQuantileDMatrix
    monkeypatch.setattr(
        xgb, "ExtMemQuantileDMatrix", lambda *rest, **shape: on_disk.append(1) or matrix(*rest, **shape)
    )
    monkeypatch.setattr(train_module, "_BINS_SHARE", share)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for rows in both:
        save_hazard(fit_hazard(rows, rows, ALL, 17), tmp_path / "model")
        made[type(rows)] = [path.read_bytes() for path in sorted((tmp_path / "model").iterdir())]
    assert made[StoredRows] == made[Rows]
    assert len(on_disk) == n_on_disk
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "pages were left behind"


def test_without_a_bound_all_tokens_train_the_same_model(dataset):
    path, traces = dataset
    bounded = train(path, traces, ALL.model_copy(update={"max_tokens": 10**6}), 17)
    whole = train(path, traces, ALL, 17)
    assert whole.facts.frame.equals(bounded.facts.frame)
    assert set(whole.hazards) == set(bounded.hazards)
    for name, table in whole.hazards.items():
        assert table.equals(bounded.hazards[name])
