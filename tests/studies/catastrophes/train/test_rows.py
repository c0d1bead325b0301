"""Feature rows: those asked for, evenly thinned, labelled for any horizon."""

import numpy as np
import pandas as pd
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
    path, traces, table = dataset
    rows = load_rows(path, ["h_alts", "entropy"], traces[traces["trace_id"].isin([70, 3])])
    table = table[table["trace_id"].isin([3, 70])]
    assert (rows.features == table[["h_alts", "entropy"]]).all(axis=None)
    for name in ("t", "trace_id"):
        assert (getattr(rows, name) == table[name]).all()
    assert len(load_rows(path, ["entropy"], traces[:0]).t) == 0


def test_above_a_limit_rows_are_kept_at_even_steps(dataset, monkeypatch):
    path, traces, table = dataset
    everything = load_rows(path, ["entropy"], traces)
    thinned = load_rows(path, ["entropy"], traces, max_rows=700)
    kept = np.flatnonzero(
        np.isin(everything.trace_id * 1000 + everything.t, thinned.trace_id * 1000 + thinned.t)
    )
    assert len(thinned.t) == len(kept) == 700
    step = len(table) / 700
    assert set(np.diff(kept)) <= {int(step), int(step) + 1}
    assert (thinned.features == everything.features[kept]).all()
    same = load_rows(path, ["entropy"], traces, max_rows=len(table))
    assert (same.features == everything.features).all()


@pytest.mark.parametrize("column", ["onset", "proxy_onset"])
def test_labels_come_from_the_onsets_that_are_asked_for(dataset, column):
    path, traces, _ = dataset
    asked = traces.assign(onset=traces[column]).sample(frac=1, random_state=0)
    rows = load_rows(path, ["entropy"], asked)
    onset = traces[column].fillna(-1).to_numpy(dtype=int)[rows.trace_id]  # trace ids are 0, 1, 2, ...
    assert (rows.onset == onset).all()
    assert (rows.pre_onset == ((onset < 0) | (rows.t < onset))).all()
    for horizon in (synthetic.TRAIN.horizon, 50):
        label = rows.labelled(horizon).label
        assert (label == ((rows.t < onset) & (rows.t >= onset - horizon))).all()
        assert label.any()


def test_the_features_are_the_same_whatever_the_onsets_are(dataset):
    path, traces, _ = dataset
    true, proxy, none = (
        load_rows(path, ["entropy", "h_alts"], traces.assign(onset=onset))
        for onset in (traces["onset"], traces["proxy_onset"], pd.NA)
    )
    assert (true.onset != proxy.onset).any()
    assert not (none.onset >= 0).any()
    assert true.features.tobytes() == proxy.features.tobytes() == none.features.tobytes()


def test_tokens_and_features_can_be_chosen(dataset):
    path, traces, _ = dataset
    rows = load_rows(path, ["entropy", "h_alts"], traces)
    assert rows.only(["h_alts"]).features[:, 0].tolist() == rows.features[:, 1].tolist()
    assert rows.only(["entropy", "h_alts"]) is rows
    late = rows.where(rows.t > 30)
    assert (late.t > 30).all()
    assert len(late.features) == (rows.t > 30).sum()
