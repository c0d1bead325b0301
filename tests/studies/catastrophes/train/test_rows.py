"""Feature rows: those asked for, evenly thinned, labelled for any horizon."""

import numpy as np
import pytest

import synthetic
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.train.rows import load_rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    traces = synthetic.build(folder, n_prompts=20)
    return folder / "features.parquet", traces, read_table("features", folder / "features.parquet")


def test_rows_are_those_of_the_traces_asked_for(dataset):
    path, _, table = dataset
    rows = load_rows(path, ["h_alts", "entropy"], np.array([3, 70]))
    table = table[table["trace_id"].isin([3, 70])]
    assert (rows.features == table[["h_alts", "entropy"]]).all(axis=None)
    for name in ("t", "trace_id", "label", "pre_onset"):
        assert (getattr(rows, name) == table[name]).all()
    assert len(load_rows(path, ["entropy"], np.zeros(0, dtype=np.int32)).t) == 0


def test_above_a_limit_rows_are_kept_at_even_steps(dataset, monkeypatch):
    path, traces, table = dataset
    trace_id = traces["trace_id"].to_numpy()
    everything = load_rows(path, ["entropy"], trace_id)
    thinned = load_rows(path, ["entropy"], trace_id, max_rows=700)
    kept = np.flatnonzero(
        np.isin(everything.trace_id * 1000 + everything.t, thinned.trace_id * 1000 + thinned.t)
    )
    assert len(thinned.t) == len(kept) == 700
    step = len(table) / 700
    assert set(np.diff(kept)) <= {int(step), int(step) + 1}
    assert (thinned.features == everything.features[kept]).all()
    same = load_rows(path, ["entropy"], trace_id, max_rows=len(table))
    assert (same.features == everything.features).all()


def test_labels_of_another_horizon_come_from_the_onsets(dataset):
    path, traces, _ = dataset
    rows = load_rows(path, ["entropy"], traces["trace_id"].to_numpy())
    stored = rows.relabelled(traces, synthetic.FEATURIZE.horizon)
    assert (stored.label == rows.label).all()
    assert (stored.pre_onset == rows.pre_onset).all()
    onset = traces["onset"].fillna(-1).to_numpy(dtype=int)[rows.trace_id]  # trace ids are 0, 1, 2, ...
    wide = rows.relabelled(traces, 50)
    assert (wide.label == ((rows.t < onset) & (rows.t >= onset - 50))).all()
    assert (wide.label & ~rows.label).any()


def test_tokens_and_features_can_be_chosen(dataset):
    path, traces, _ = dataset
    rows = load_rows(path, ["entropy", "h_alts"], traces["trace_id"].to_numpy())
    assert rows.only(["h_alts"]).features[:, 0].tolist() == rows.features[:, 1].tolist()
    assert rows.only(["entropy", "h_alts"]) is rows
    late = rows.where(rows.t > 30)
    assert (late.t > 30).all()
    assert len(late.features) == (rows.t > 30).sum()
