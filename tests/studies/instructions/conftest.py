"""A tiny byte model, and studies of it."""

from functools import partial

import pytest
import small_suite


@pytest.fixture(scope="session")
def loaded(model_folder):
    return small_suite.load(model_folder)


@pytest.fixture
def make_study(loaded):
    return partial(small_suite.study, loaded)
