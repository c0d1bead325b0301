"""The hazard of one step: the same bits as for whole tables, however few rows there are."""

import numpy as np
import pytest
import xgboost as xgb

from kvguard.guard.calibration import Isotonic, Platt
from kvguard.guard.hazard_model import HazardModel, LiveHazard
from kvguard.studies.catastrophes.export import save_hazard

CURVES = [Isotonic((-1.0, 0.5, 2.0), (0.1, 0.4, 0.9)), Platt(1.5, -0.5)]


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)


def trained(rows, curve=CURVES[1], n_trees=20, **settings):
    target = rows[:, 0] * rows[:, 1] > 0.2
    settings = {"objective": "binary:logistic", "max_depth": 5, "base_score": 0.5, "nthread": 1, **settings}
    booster = xgb.train(settings, xgb.DMatrix(rows, target), n_trees)
    return HazardModel(booster, tuple("abcdef"), curve, 0.5)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 64, 400])
@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.method)
def test_it_has_the_bits_of_the_model(rows, curve, n_rows):
    model = trained(rows, curve)
    found = LiveHazard(model).predict(rows[:n_rows])
    assert found.dtype == np.float32
    assert found.tobytes() == model.predict(rows[:n_rows]).tobytes()


@pytest.mark.parametrize(
    ("n_trees", "settings"),
    [
        (20, {"max_depth": 1}),
        (20, {"max_depth": 9, "min_child_weight": 0.01}),
        (20, {"gamma": 3.0}),  # trees of many depths
        (3, {"gamma": 1e6}),  # trees of one leaf
        (0, {}),
    ],
)
def test_trees_of_any_shape_are_followed(rows, n_trees, settings):
    model = trained(rows, n_trees=n_trees, **settings)
    assert LiveHazard(model).predict(rows).tolist() == model.predict(rows).tolist()


def test_a_value_on_a_threshold_goes_where_it_went_in_training(rows):
    rows = np.round(rows)
    model = trained(rows)
    assert LiveHazard(model).predict(rows).tolist() == model.predict(rows).tolist()


def test_a_saved_model_has_its_own_base_rate(rows, tmp_path):
    save_hazard(trained(rows, base_score=0.123456), tmp_path)
    model = HazardModel.load(tmp_path)
    np.testing.assert_allclose(LiveHazard(model).predict(rows), model.predict(rows), atol=1e-6)


def test_columns_chosen_from_a_wider_table_are_read_as_they_stand(rows):
    model = trained(rows)
    wide = np.concatenate([rows, rows[:, ::-1]], axis=1)
    assert (LiveHazard(model).predict(wide[::2, :6]) == model.predict(rows[::2])).all()
