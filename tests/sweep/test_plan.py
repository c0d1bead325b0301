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
from kvguard.store.tables import read_table
from kvguard.sweep.plan import (
    Plan,
    Sweep,
    SweepPart,
    compile_sweep,
    cut_by_compressor,
    plan_workers,
    spread,
)
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
    with pytest.raises(KvguardError, match=r"^press AdaKVPress: .*: fix its parameters"):
        run_sweep(replace(sweep, compressors=specs), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def wide(sweep: Sweep, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of seven prompts in one part, on a machine of four cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    settings = sweep.settings.model_copy(update={"prompts_per_part": 100, "workers": "auto"})
    return replace(sweep, prompts=sweep.task.prompts(7, 3), settings=settings)


def test_a_small_sweep_has_work_for_every_worker(
    wide: Sweep, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spread(wide, loaded) == wide, "it ends before a worker has started"
    monkeypatch.setattr("kvguard.sweep.plan._WORTH_A_WORKER", 0)
    assert spread(wide, loaded).settings.prompts_per_part == 2
    assert plan_workers(wide.settings, loaded, 7) == (4, 1)
    few = wide.settings.model_copy(update={"prompts_per_part": 1})
    assert spread(replace(wide, settings=few), loaded).settings.prompts_per_part == 1, "never larger parts"


def test_every_core_works_on_less_prompts_than_cores(wide: Sweep, loaded: LoadedModel) -> None:
    assert plan_workers(wide.settings, loaded, 2) == (2, 2)
    assert plan_workers(wide.settings, loaded, 1) == (1, 4)


def test_there_are_no_more_workers_than_the_memory_has_room_for(
    wide: Sweep, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(weight.nbytes for weight in loaded.model.parameters())

    class Memory:
        total = 4 * weights

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert plan_workers(wide.settings, loaded, 7) == (2, 2)
    Memory.total = weights
    assert plan_workers(wide.settings, loaded, 7) == (1, 4)


def test_how_the_prompts_are_cut_changes_no_token(
    sweep: Sweep, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = sweep.settings.model_copy(update={"prompts_per_part": 100, "workers": 1})
    run_sweep(replace(sweep, settings=settings), whole, progress=False)
    monkeypatch.setattr("kvguard.sweep.plan._WORTH_A_WORKER", 0)
    settings = settings.model_copy(update={"workers": 3})
    monkeypatch.setattr("kvguard.sweep.plan.plan_workers", lambda *_: (3, 1))
    monkeypatch.setattr("kvguard.sweep.workers._in_processes", in_this_process)
    run_sweep(replace(sweep, settings=settings), cut, progress=False)
    assert len(list(cut.glob("part-*"))) == 3 * len(list(whole.glob("part-*")))
    one, three = (read_table("traces", folder / "traces.parquet") for folder in (whole, cut))
    assert one["token_ids"].map(list).tolist() == three["token_ids"].map(list).tolist()


def in_this_process(work, units, workers, report):
    assert workers == 3
    loaded = load_model("tiny", work.plan.sweep.spec, "cpu")
    for unit in units:
        work.make(work.plan, loaded, unit, work.out, report)


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
