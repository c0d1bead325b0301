"""A sweep is compiled once: its presses are built once, and what travels to a worker is not them."""

import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from test_sweep import sweep_of

from kvguard.engine import presses as presses_module
from kvguard.engine.presses import NONE, Condition, Presses, attention_for, only_scores
from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.sweep.plan import Plan, Sweep, SweepPart, compile_sweep, cut_by_compressor
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import CompressorSpec
from kvguard.sweep.workers import units_of

SPECS = {
    "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 16}),
    "observed": CompressorSpec(press="ObservedAttentionPress"),
    "ada": CompressorSpec(press="AdaKVPress", params={"press": {"press": "KnormPress"}}),
}
CONDITIONS = [Condition(NONE, 0.0), *(Condition(name, ratio) for name in SPECS for ratio in (0.5, 0.75))]


@pytest.fixture
def sweep(model_folder: Path) -> Sweep:
    return replace(sweep_of(model_folder, n=3), conditions=CONDITIONS, compressors=SPECS)


@pytest.fixture
def loaded(sweep: Sweep) -> LoadedModel:
    return load_model(sweep.name, sweep.spec, "cpu")


def plan_of(sweep: Sweep, loaded: LoadedModel, out: Path) -> Plan[SweepPart]:
    return compile_sweep(sweep, loaded, out, cut_by_compressor)


def test_a_run_builds_every_press_once(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, float]] = []
    build = presses_module.build_press

    def count(spec: CompressorSpec, ratio: float) -> object:
        built.append((spec.press, ratio))
        return build(spec, ratio)

    monkeypatch.setattr(presses_module, "build_press", count)
    run_sweep(sweep, tmp_path, progress=False)
    assert sorted(built) == sorted((SPECS[c.compressor].press, c.ratio) for c in CONDITIONS[1:])


def test_a_plan_says_what_was_asked_of_each_press(sweep: Sweep, loaded: LoadedModel, tmp_path: Path) -> None:
    presses = plan_of(sweep, loaded, tmp_path).presses
    assert list(presses) == CONDITIONS
    for found in presses.values():
        assert found.attention == attention_for(found.press)
        assert found.shares_prefill == (found.press is None or only_scores(found.press))
    assert {c.compressor: found.attention for c, found in presses.items()} == {
        NONE: "sdpa", "snapkv": "sdpa", "observed": "eager", "ada": "sdpa"
    }  # fmt: skip
    assert {c.compressor for c, found in presses.items() if not found.shares_prefill} == {"ada"}
    assert presses[CONDITIONS[1]].shortest_prompt == 17


def test_a_worker_builds_presses_of_its_own_that_know_nothing_of_a_prompt(
    sweep: Sweep, loaded: LoadedModel, tmp_path: Path
) -> None:
    plan = plan_of(sweep, loaded, tmp_path)
    used = plan.presses[CONDITIONS[1]].press
    used.post_init_from_model(loaded.model)  # type: ignore[union-attr]
    used.learnt = lambda: loaded  # type: ignore[union-attr]  # what no process can be sent
    there = pickle.loads(pickle.dumps(plan))
    assert isinstance(there.presses, Presses)
    assert list(there.presses) == CONDITIONS
    its = there.presses[CONDITIONS[1]].press
    assert (its.compression_ratio, its.window_size) == (0.5, 16)
    assert not hasattr(its, "learnt")
    assert there.parts == plan.parts


def test_parts_of_a_unit_share_prompts_and_attention(
    sweep: Sweep, loaded: LoadedModel, tmp_path: Path
) -> None:
    plan = plan_of(sweep, loaded, tmp_path)
    assert [{part.name for part in unit} for unit in units_of(plan.parts)] == [
        {"0000-none", "0000-snapkv", "0000-ada"},
        {"0000-observed"},
        {"0001-none", "0001-snapkv", "0001-ada"},
        {"0001-observed"},
    ]
    ids = sorted(i for part in plan.parts for i in part.trace_ids)
    assert ids == list(range(len(sweep.prompts) * len(CONDITIONS)))


def test_a_plan_cannot_be_changed(sweep: Sweep, loaded: LoadedModel, tmp_path: Path) -> None:
    plan = plan_of(sweep, loaded, tmp_path)
    with pytest.raises(FrozenInstanceError):
        plan.batch_size = 1  # type: ignore[misc]


def test_a_press_that_cannot_be_built_is_rejected_before_anything_is_written(
    sweep: Sweep, tmp_path: Path
) -> None:
    specs = {**SPECS, "ada": CompressorSpec(press="AdaKVPress", params={"no_such": 1})}
    with pytest.raises(KvguardError, match=r"^press AdaKVPress: .*; fix its parameters"):
        run_sweep(replace(sweep, compressors=specs), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("question", None, r"prompts table\): column question, row 1"),
        ("question", "half \ud800", r"prompts table\).*surrogates not allowed"),
        ("prompt_id", "the same", r"prompts table\): column prompt_id, row 1: duplicate the same"),
        ("references", [1], r"prompts table\): "),
    ],
)
def test_a_prompts_table_that_cannot_be_stored_is_rejected_before_anything_is_made(
    sweep: Sweep, tmp_path: Path, column: str, value: object, message: str
) -> None:
    prompts = sweep.prompts.copy()
    if column == "prompt_id":
        prompts.at[prompts.index[0], column] = value
    prompts.at[prompts.index[1], column] = value
    out = tmp_path / "out"
    with pytest.raises(KvguardError, match=message) as error:
        run_sweep(replace(sweep, prompts=prompts), out, progress=False)
    assert "\n" not in str(error.value)
    assert not out.exists()
