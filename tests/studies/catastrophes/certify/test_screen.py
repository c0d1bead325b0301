"""One screen and one certificate say the same."""

from pathlib import Path

import numpy as np
import pandas as pd
from made_traces import traces

from kvguard.guard.certificate import Certificate, GuardOf
from kvguard.studies.catastrophes.certify.losses import losses_of, outcomes_of
from kvguard.studies.catastrophes.certify.make import Guarded, Price, calibration_prompts
from kvguard.studies.catastrophes.certify.recommend import Limits, recommend_of
from kvguard.studies.catastrophes.certify.screen import About, certificate, screen
from kvguard.studies.catastrophes.params import load_params
from kvguard.sweep.settings import CompressorSpec

ROOT = Path(__file__).parents[4]
SPECS = {
    "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 16}),
    "knorm": CompressorSpec(press="KnormPress"),
}
GUARD = GuardOf(digest="d", point="balanced", max_rewinds=2, resume=False, rewind_below=0.05)


def about(**changes):
    known = {"model": "made", "weights": "w", "source": "path:some dir", "task": "arithmetic"}
    return About(**{**known, "max_new_tokens": 64, "compressors": SPECS, **changes})


def found(rates, limits=None, guarded=False):
    outcomes = outcomes_of(traces(400, rates))
    if guarded:  # the guard makes all of it well
        made = outcomes[outcomes["compressor"] != "none"]
        cured = made.assign(action="rollback", failed=False, correct=1.0, acted=0.5, n_rewound=3.0)
        outcomes = pd.concat([outcomes.assign(score=0.25), cured], ignore_index=True)
    return recommend_of(losses_of(outcomes), limits or Limits())


def test_the_guarded_setting_that_saves_most_is_put_to_use_in_both_lines():
    result = found({("snapkv", 0.5): (0.5, 0.0), ("knorm", 0.25): (0.0, 0.0)}, guarded=True)
    bundle = Guarded(Path("models/made"), "rollback", "balanced")
    told = about(guard=bundle, guard_of=GUARD, price=Price(0.05, 12.0))
    text = screen(result, told, Path("here/certificate.json"))
    assert "best (*): snapkv@0.5 under rollback" in text
    assert "press=SnapKVPress(compression_ratio=0.5, window_size=16)" in text
    assert "policy='here/certificate.json'" in text
    assert "kvguard serve --model 'path:some dir' --compressor snapkv --ratio 0.5" in text
    assert "--guard models/made --action rollback --point balanced --policy here/certificate.json" in text
    assert "price of the guard, snapkv@0.5 under rollback: acts on 50% of texts" in text
    assert "+5% time a token, 12 ms a restore" in text
    prose = [line for line in text.splitlines() if "kvguard serve" not in line and "Guard.load" not in line]
    assert max(map(len, prose)) <= 130, max(prose, key=len)
    written = certificate(result, told)
    assert Certificate.model_validate(written.model_dump(mode="json")) == written
    assert written.guard == GUARD
    assert str(written.certified[written.recommended]) == "snapkv@0.5 under rollback"
    assert set(written.certified[written.recommended].scores) == {0.25}
    assert {str(one) for one in written.certified} == {
        "snapkv@0.5 under rollback", "knorm@0.25", "knorm@0.25 under rollback"
    }  # fmt: skip


def test_where_nothing_is_certified_there_is_nothing_to_use():
    result = found({("snapkv", 0.5): (0.5, 0.0)})
    text = screen(result, about(), Path("certificate.json"))
    assert "nothing is certified" in text
    assert "kvguard serve" not in text
    written = certificate(result, about())
    assert (written.certified, written.recommended, written.guard) == ((), None, None)


def test_without_a_limit_on_answers_none_is_spoken_of():
    result = found({("snapkv", 0.5): (0.0, 0.9)}, Limits(max_lost_answers=None))
    text = screen(result, about(), Path("certificate.json"))
    assert "snapkv@0.5" in text
    assert "lost answers" not in text
    assert "right answer" not in certificate(result, about()).promise


def test_calibration_prompts_are_none_that_a_guard_was_trained_on():
    params = load_params(ROOT / "params.yaml")
    prompts = calibration_prompts(params, "reference", 40)
    trained = params.task("reference").prompts(params.sample.n, params.seed)
    live = params.task("reference").prompts(400, params.live_validate.seed)
    assert len(prompts) == 40 == prompts["prompt_id"].nunique()
    assert not set(prompts["question"]) & set(trained["question"])
    assert len(set(prompts["question"]) & set(live["question"])) < 5
    assert np.all(prompts["task"] == "arithmetic")
