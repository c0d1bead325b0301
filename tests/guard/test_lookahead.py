"""A feature that looks ahead is caught: it changes when the trace is cut short."""

import numpy as np
import pandas as pd
import pytest

import synthetic
from kvguard.guard.columns import FEATURES
from kvguard.store.schemas import V1_ONLY
from kvguard.studies.catastrophes.featurize import featurize_tokens

LENGTH, CUT = 60, 25


@pytest.fixture(scope="module")
def trace():
    rng = np.random.default_rng(4)
    tokens = synthetic.tokens_table(rng, [rng.integers(0, 3, LENGTH).astype(np.int32)])
    about = pd.DataFrame({"trace_id": [0], "ratio": [0.5]})
    return tokens, about


def features(tokens, about):
    return featurize_tokens(tokens, about, synthetic.MAX_NEW_TOKENS, synthetic.MASK)


def with_the_next_entropy(tokens, about):
    """The features with a planted leak."""
    return features(tokens, about).assign(rep_count=np.append(tokens["entropy"].to_numpy()[1:], 0))


def looking_ahead(featurizer, trace):
    """The features of the first tokens that differ once the later tokens are gone."""
    tokens, about = trace
    whole = featurizer(tokens, about).iloc[:CUT]
    short = featurizer(tokens.iloc[:CUT], about)
    return {name for name in (*FEATURES, *V1_ONLY) if not whole[name].equals(short[name])}


def test_of_all_features_only_protocol_v1_s_position_looks_ahead(trace):
    assert looking_ahead(features, trace) == {"token_position_v1"}


def test_a_planted_look_ahead_is_caught(trace):
    assert looking_ahead(with_the_next_entropy, trace) == {"token_position_v1", "rep_count"}
