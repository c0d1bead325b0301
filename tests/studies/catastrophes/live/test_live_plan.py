"""What is asked live: prompts that nobody saw, conditions, and settings that make sense."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml
from live_setup import live_of
from pydantic import ValidationError

from kvguard.engine.presses import Condition, Presses
from kvguard.errors import KvguardError
from kvguard.models.load import load_model
from kvguard.studies.catastrophes.live.plan import (
    Live,
    chosen_conditions,
    cut_by_policy,
    decoding_conditions,
    fresh_prompts,
    worst_condition,
)
from kvguard.studies.catastrophes.params import LiveValidateParams, load_params
from kvguard.sweep.plan import compile_sweep
from kvguard.sweep.workers import units_of
from kvguard.tasks import make_task

TASK = make_task("arithmetic", n_shots=0)


def settings_of(**changes: object) -> LiveValidateParams:
    return LiveValidateParams.model_validate({"n": 20, "seed": 5, "conditions": ["worst"], **changes})


def swept(*rows: tuple[str, float, bool]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["compressor", "ratio", "failed"])
    return frame.assign(catastrophes=[["looping"] if failed else [] for failed in frame["failed"]])


def test_no_fresh_prompt_was_asked_in_the_sweep() -> None:
    settings = settings_of(decoding_n=10)
    sampled = TASK.prompts(30, settings.seed)  # the worst case: the same seed
    fresh = fresh_prompts(TASK, settings, sampled)
    assert len(fresh) == 20
    assert not set(fresh["question"]) & set(sampled["question"])
    assert not set(fresh["prompt_id"]) & set(sampled["prompt_id"])
    assert fresh["prompt_id"].is_unique
    assert fresh.equals(fresh_prompts(TASK, settings, sampled))
    fewer = fresh_prompts(TASK, settings_of(n=7, decoding_n=7), sampled)
    assert fewer.equals(fresh.iloc[:7])


def test_the_worst_condition_fails_most_and_ties_go_to_the_lower_ratio_then_the_name() -> None:
    half = [("a", 0.25, True), ("a", 0.25, False)]
    tied = [("b", 0.75, True), ("c", 0.5, True), ("d", 0.5, True)]
    none = [("none", 0.0, True)]
    assert worst_condition(swept(*none, *half)) == Condition("a", 0.25)
    assert worst_condition(swept(*none, *half, *tied)) == Condition("c", 0.5)
    with pytest.raises(KvguardError, match="`worst` needs a sweep with compressed traces"):
        worst_condition(swept(*none))
    with pytest.raises(KvguardError, match="no compressed trace of the sweep fails; name a condition"):
        worst_condition(swept(*none, ("a", 0.5, False), ("b", 0.5, False)))


def test_a_condition_that_is_also_the_worst_stands_once() -> None:
    settings = settings_of(conditions=["b@0.75", "worst", "a@0.5"], decoding_n=0, actions=["restore"])
    found = chosen_conditions(settings, swept(("b", 0.75, True), ("a", 0.5, False)))
    assert found == [Condition("none", 0.0), Condition("b", 0.75), Condition("a", 0.5)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoding_n": 0}, "hold acts only under a budget while decoding"),
        ({"n": 10, "decoding_n": 11}, "decoding_n 11 is more than n 10"),
        ({"conditions": ["snapkv"], "decoding_n": 1}, "'snapkv' has no ratio above 0"),
        ({"conditions": ["snapkv@1.5"], "decoding_n": 1}, "must lie in"),
        ({"actions": ["freeze"], "decoding_n": 1}, "actions"),
        ({"actions": [], "decoding_n": 1}, "at least 1 item"),
    ],
)
def test_settings_without_sense_are_rejected(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings_of(**changes)


def test_an_unknown_compressor_is_one_line_with_the_nearest_name(tmp_path: Path) -> None:
    data = yaml.safe_load((Path(__file__).parents[4] / "params.yaml").read_text())
    data["live_validate"]["conditions"] = ["snapkw@0.5"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(KvguardError, match=r"live_validate.conditions: .*'snapkw'; did you mean 'snapkv'"):
        load_params(tmp_path / "params.yaml")


def test_missing_stages_are_named_in_one_line(workspace: Path) -> None:
    with pytest.raises(KvguardError, match=r"^data/generate/tiny/traces.parquet does not exist; .*generate"):
        Live.load(load_params(), "tiny")


def test_a_press_that_cannot_compress_while_decoding_is_rejected_by_name_and_left_out_as_the_worst(
    tiny_models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    named = live_of(tiny_models["tiny"], conditions=("knorm@0.5", "observed_attention@0.5"))
    loaded = load_model("tiny", named.spec, "cpu")
    presses = Presses(named.sweep.conditions, named.sweep.compressors)
    with pytest.raises(KvguardError, match=r"observed_attention@0.5: .*cannot compress while decoding"):
        decoding_conditions(named, presses, loaded)
    as_worst = named.settings.model_copy(update={"conditions": ("knorm@0.5", "worst")})
    worst = replace(named, settings=as_worst)
    assert decoding_conditions(worst, presses, loaded) == [Condition("knorm", 0.5)]
    assert "observed_attention@0.5" in caplog.text


def test_parts_of_one_prefill_are_made_together(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    live = live_of(tiny_models["tiny"], conditions=("knorm@0.5", "observed_attention@0.5"), decoding_n=0,
                   actions=("restore",), baselines=())  # fmt: skip
    loaded = load_model("tiny", live.spec, "cpu")
    parts = compile_sweep(live.sweep, loaded, tmp_path, partial(cut_by_policy, live, loaded)).parts
    assert [i for part in parts for i in part.trace_ids] == list(range(4 + 4 * 2))
    assert len({part.fingerprint for part in parts}) == len(parts)
    grouped = [{part.name for part in unit} for unit in units_of(parts)]
    assert {"prefill-0000-sdpa-uncompressed", "prefill-0000-sdpa-static"} in grouped
    assert {"prefill-0001-eager-static"} in grouped
