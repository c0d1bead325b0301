"""The plan of a batch: it grows with what is decoded, and stays within the free memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kvpress import KnormPress
from test_sweep import sweep_of

from kvguard.engine.loop import assemble, decode_steps
from kvguard.engine.memory import entry_bytes
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.requests import Decoding, Row
from kvguard.models.load import load_model
from kvguard.sweep import batch_size as batch_module
from kvguard.sweep.batch_size import BatchSize, _capacity, predicted_peak

LENGTHS = [300] * 6


def peak_of(sweep, loaded, lengths, batch_size: int) -> int:
    presses = Presses(sweep.conditions, sweep.compressors)
    return predicted_peak(sweep, presses, loaded.model, lengths, batch_size)


def plan_batch(sweep, loaded, lengths, workers: int, folder: Path) -> int:
    """Plan as a run in the folder would, and remember the plan."""
    presses = Presses(sweep.conditions, sweep.compressors)
    planned = BatchSize(sweep, presses, loaded, lengths, workers, folder)
    planned.remember()
    return planned.rows


@pytest.fixture
def sweep(model_folder: Path, monkeypatch):
    """Rows of a model so small that the tables of their signals would take more than their caches."""
    monkeypatch.setattr(batch_module, "_TABLE_COPIES", 0)
    sweep = sweep_of(model_folder, prompts_per_part=6)
    return replace(sweep, task=sweep.task.model_copy(update={"max_new_tokens": 512}))


@pytest.fixture
def loaded(sweep):
    return load_model(sweep.name, sweep.spec, sweep.device)


def test_a_batch_adds_its_rows_and_more_prompts_add_nothing(sweep, loaded) -> None:
    few, more, all_of_a_part, beyond = (peak_of(sweep, loaded, LENGTHS, size) for size in (4, 8, 12, 99))
    assert few < more < all_of_a_part == beyond
    assert peak_of(sweep, loaded, LENGTHS * 5, 8) == more


def test_the_caches_of_a_unit_are_counted(sweep, loaded) -> None:
    config = loaded.model.config
    entry = 2 * config.num_hidden_layers * config.hidden_size // config.num_attention_heads * 4
    wider = replace(sweep, settings=sweep.settings.model_copy(update={"prompts_per_part": 12}))
    more = peak_of(wider, loaded, LENGTHS * 2, 1) - peak_of(sweep, loaded, LENGTHS, 1)
    assert more >= sum(LENGTHS) * entry


def test_on_a_gpu_the_memory_of_a_recorded_step_is_counted(sweep, loaded, monkeypatch) -> None:
    model = loaded.model
    monkeypatch.setattr(type(model), "device", property(lambda model: torch.device("cuda")))
    with_graph = [peak_of(sweep, loaded, LENGTHS, size) for size in (4, 8)]
    monkeypatch.setattr(batch_module, "graph_bytes", lambda model, rows: 0)
    graph, larger = (
        more - peak_of(sweep, loaded, LENGTHS, n) for more, n in zip(with_graph, (4, 8), strict=True)
    )
    assert graph > 4 * model.config.vocab_size * 4
    assert larger - graph >= 4 * model.config.vocab_size * 4


def test_the_holes_that_growing_shelves_leave_are_counted_up_to_a_limit(sweep, loaded, monkeypatch) -> None:
    def peak(reserve: int) -> int:
        monkeypatch.setattr(batch_module, "_RESERVE", reserve)
        return peak_of(sweep, loaded, LENGTHS, 12)

    kept = LENGTHS[0] // np.array([2, 4])  # of the part that takes most: six rows at 0.5 and six at 0.75
    cache = int((6 * _capacity(kept, 512)).sum()) * entry_bytes(loaded.model)
    assert peak(1000) - peak(0) == 1000
    assert peak(1 << 40) - peak(0) == cache


def test_no_shelf_has_more_room_than_is_counted_nor_much_less(loaded) -> None:
    conditions, new, n = {Condition("knorm", ratio): KnormPress(ratio) for ratio in (0.5, 0.75)}, 100, 400
    rows = []
    for seed in range(4):
        ids = torch.randint(2, 200, (n,), generator=torch.Generator().manual_seed(seed))
        done = prefill(loaded.model, ids, conditions, "sdpa")
        rows += [Row(ids, done.logits, kept) for kept in done.kept.values()]
    batch = assemble(loaded.model, rows, len(rows), Decoding(new, []))
    taken = max(batch.cache.nbytes for _ in decode_steps(batch))
    kept = np.array([n // 2, n // 4])
    counted = int((4 * _capacity(kept, new)).sum()) * entry_bytes(loaded.model)
    assert taken <= counted <= 1.1 * taken


@pytest.mark.parametrize("workers", [1, 3])
def test_the_largest_batch_that_fits_is_planned(sweep, loaded, tmp_path, monkeypatch, workers) -> None:
    sweep = replace(sweep, settings=sweep.settings.model_copy(update={"batch_size": "auto"}))
    model = loaded.model
    weights = sum(weight.nbytes for weight in model.parameters()) if workers > 1 else 0
    free = 2 * workers * (weights + peak_of(sweep, loaded, LENGTHS, 8))
    for size, memory in ((8, free), (4, free - 2 * workers), (1, 1000)):
        monkeypatch.setattr(batch_module, "free_memory", lambda model, memory=memory: memory)
        folder = tmp_path / str(memory)
        folder.mkdir()
        assert plan_batch(sweep, loaded, LENGTHS, workers, folder) == size
        assert json.loads((folder / "batch.json").read_text())["batch_size"] == size
        monkeypatch.setattr(batch_module, "free_memory", lambda model: 10**15)
        assert plan_batch(sweep, loaded, LENGTHS, workers, folder) == size, "a resumed run keeps its plan"


def test_the_default_sweep_plans_512_rows_in_eleven_gib_for_each_of_two(tmp_path, monkeypatch) -> None:
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.sweep.plan import Sweep
    from kvguard.sweep.settings import conditions

    params = load_params(Path(__file__).parents[2] / "params.yaml")
    spec = params.spec("reference")
    sweep = Sweep(
        "reference",
        spec,
        params.task("reference"),
        None,  # type: ignore[arg-type]  # their lengths are all that is asked of the prompts
        conditions(params.presets["default"]),
        params.compressors,
        params.generate,
        params.catastrophes,
        "cpu",
    )
    loaded = load_model("reference", spec, "cpu")
    monkeypatch.setattr(batch_module, "free_memory", lambda model: 22 << 30)
    assert plan_batch(sweep, loaded, [340] * 500, 2, tmp_path) == 512
