"""Severe ratios are generated only where milder ones may still be certified, and nothing is lost by it."""

import pandas as pd
import pytest
from made_traces import traces

from kvguard.studies.catastrophes.certify.recommend import Limits, recommend
from kvguard.studies.catastrophes.certify.rounds import in_rounds
from kvguard.sweep.settings import Preset

SAFE, BAD = (0.0, 0.0), (0.4, 0.0)
RATIOS = (0.25, 0.5, 0.625, 0.75, 0.875)


@pytest.mark.parametrize(
    ("first_bad", "asked"),
    [
        ({"a": 0, "b": 0}, [["a@0.25", "b@0.25"]]),
        ({"a": 1, "b": 0}, [["a@0.25", "b@0.25"], ["a@0.5", "a@0.625"]]),
        (
            {"a": 5, "b": 2},
            [["a@0.25", "b@0.25"], ["a@0.5", "a@0.625", "b@0.5", "b@0.625"], ["a@0.75", "a@0.875"]],
        ),
    ],
)
def test_rounds_ask_no_more_than_they_must_and_certify_the_same(tmp_path, first_bad, asked):
    rates = {
        (name, r): BAD if i >= bad else SAFE for name, bad in first_bad.items() for i, r in enumerate(RATIOS)
    }
    whole, rounds = traces(300, rates), []

    def make(preset, out):
        rounds.append([f"{name}@{ratio:g}" for name, ratio in preset.pairs()[1:]])
        assert out == tmp_path / f"round-{len(rounds)}"
        return whole[pd.MultiIndex.from_frame(whole[["compressor", "ratio"]]).isin(preset.pairs())]

    # Listed from severe to mild: the order is that of the ratios.
    found = in_rounds(Preset(compressors=("a", "b"), ratios=RATIOS[::-1]), Limits(), make, tmp_path)
    assert rounds == asked
    one, other = recommend(found, Limits()), recommend(whole, Limits())
    assert {r.setting for r in one.rows if r.certified} == {r.setting for r in other.rows if r.certified}
    assert one.best == other.best
