"""The hazard label at its edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvguard.studies.catastrophes.train.labels import all_token_target, before_onset, hazard_labels


def test_labels_around_an_onset():
    t = np.arange(10)
    onset = np.full(10, 6)
    label, pre_onset = hazard_labels(t, onset, horizon=3), before_onset(t, onset)
    assert t[label].tolist() == [3, 4, 5]
    assert t[pre_onset].tolist() == [0, 1, 2, 3, 4, 5]
    assert t[all_token_target(label, pre_onset)].tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_an_onset_at_the_first_token_leaves_nothing_before_it():
    t, onset = np.arange(3), np.zeros(3)
    label, pre_onset = hazard_labels(t, onset, horizon=5), before_onset(t, onset)
    assert not label.any()
    assert not pre_onset.any()


@given(st.integers(0, 300), st.integers(-1, 300), st.integers(1, 64))
def test_every_token_is_of_exactly_one_kind(t, onset, horizon):
    tokens, onsets = np.array([t]), np.array([onset])
    label, pre_onset = hazard_labels(tokens, onsets, horizon), before_onset(tokens, onsets)
    assert label[0] == (onset >= 0 and 0 < onset - t <= horizon)
    assert pre_onset[0] == (onset < 0 or t < onset)
    assert not (label & ~pre_onset).any()
