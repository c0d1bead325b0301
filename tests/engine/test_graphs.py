"""The recorded decode step against the one that runs as it is.

There is no CUDA graph without a GPU; a tape of torch's operations stands in. It repeats the very same
operations on the very same memory, and no line of Python between them: what a step computes on the host and
bakes in, or leaves in a tensor of its own, shows as another text.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from kvpress import KnormPress, SnapKVPress, StreamingLLMPress
from test_cache import cache_of, kept
from test_sliding_window import gemma  # noqa: F401  (a fixture)
from test_sliding_window import rows as sliding_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma3ForConditionalGeneration, PreTrainedModel

from kvguard.engine import graphs as recorded
from kvguard.engine.batch import Batch
from kvguard.engine.budget import Budget
from kvguard.engine.graphs import RECORDERS, Unrecordable
from kvguard.engine.kept import KeptCache
from kvguard.engine.loop import Generated, assemble, decode_steps
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.sweep.settings import CompressorSpec
from tiny import build

EOS, NEW = list(range(0, 258, 16)), 30  # so many that rows end at all lengths
SPECS = {
    "knorm": CompressorSpec(press="KnormPress"),
    "per layer": CompressorSpec(press="PyramidKVPress", params={"window_size": 8}),
    "per head": CompressorSpec(press="AdaKVPress", params={"press": {"press": "KnormPress"}}),
}
Act = Callable[[Batch, Any], None]


class Tape(TorchDispatchMode):
    """Records the operations of a step, and repeats them into the tensors that the first run made.

    What makes a GPU wait for the host, or the host for a GPU, is rejected: values read, constants brought.
    """

    waits = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.n_repeats = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(self.waits):
            raise Unrecordable(str(func))
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def repeat(self) -> None:
        self.n_repeats += 1
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Let batches on the CPU record their steps; the tapes made are in the list."""
    made: list[Tape] = []

    def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        with Tape() as tape:
            step()
        made.append(tape)
        return tape.repeat

    monkeypatch.setattr(recorded, "_ROOM", 7)
    monkeypatch.setitem(RECORDERS, "cpu", record)
    yield made
    for tape in made:
        tape.operations.clear()


def rows_of(model: PreTrainedModel, *names: str) -> list[Row]:
    """Six rows of each compressor, of different lengths, under two ratios."""
    made = []
    for i, name in enumerate(names * 6):
        ids = torch.randint(2, 258, (50 + 29 * i % 70,), generator=torch.Generator().manual_seed(i))
        condition = Condition("press", (0.75, 0.3)[i % 2])
        press = build_press(SPECS[name], condition.ratio)
        done = prefill(model, ids, {condition: press}, "sdpa")
        made.append(Row(ids, done.logits, done.kept[condition]))
    return made


def run(
    model: PreTrainedModel,
    rows: list[Row],
    size: int,
    act: Act,
    eos: list[int] = EOS,
    restorable: bool = False,
) -> Generated:
    batch = assemble(model, rows, size, Decoding(NEW, eos, keep_cache=restorable))
    for step in decode_steps(batch):
        act(batch, step)
    assert batch.logits.isfinite().all(), "an idle row must stay harmless"
    return Generated.of(batch.collect())


def nothing(batch: Batch, step: Any) -> None:
    pass


def both(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, generate: Callable[[], Generated]
) -> tuple[Generated, Generated]:
    """Generate with recordings and without."""
    mine = generate()
    n_tapes = len(tapes)
    monkeypatch.delitem(RECORDERS, "cpu")
    plain = generate()
    assert len(tapes) == n_tapes
    return mine, plain


def assert_same(mine: Generated, plain: Generated) -> None:
    assert (mine.lengths == plain.lengths).all()
    assert (mine.token_ids == plain.token_ids).all()
    assert (mine.stopped == plain.stopped).all()
    np.testing.assert_allclose(mine.signals, plain.signals, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "names", [("knorm",), ("per layer",), ("per head",), ("knorm", "per layer", "per head")], ids="+".join
)
@pytest.mark.parametrize("size", [4, 18])
def test_repeated_steps_generate_what_plain_ones_do(
    model: PreTrainedModel,
    tapes: list[Tape],
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    size: int,
) -> None:
    rows = rows_of(model, *names)
    mine, plain = both(tapes, monkeypatch, lambda: run(model, rows, size, nothing))
    assert_same(mine, plain)
    assert sum(tape.n_repeats for tape in tapes) > 4
    assert len(set(mine.lengths)) > 1, "rows are to leave between the steps"


def test_repeated_steps_keep_to_sliding_windows(
    gemma: Gemma3ForConditionalGeneration,  # noqa: F811
    tapes: list[Tape],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        gemma.config, "image_token_index", 257, raising=False
    )  # in the vocabulary, as in Gemma 3
    rows = sliding_rows(gemma, "knorm")
    assert_same(*both(tapes, monkeypatch, lambda: run(gemma, rows, 3, nothing)))
    assert sum(tape.n_repeats for tape in tapes) > 4


@pytest.mark.parametrize("name", ["knorm", "per head"])
def test_rows_may_be_restored_rewound_and_compressed_between_repeated_steps(
    model: PreTrainedModel, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows, rewound = rows_of(model, name)[:4], []

    def act(batch: Batch, step: Any) -> None:
        going = ~step.ended
        batch.restore(np.flatnonzero((step.t == 5) & going & (step.row == 0)))
        again = np.flatnonzero((step.t == 9) & (step.row == 1) & (batch.attempt[: batch.n] == 0))
        batch.restore(again, [3] * len(again))
        rewound.extend(again)
        batch.recompress(np.flatnonzero((step.t == 14) & going & (step.row == 0)))

    assert_same(*both(tapes, monkeypatch, lambda: run(model, rows, 3, act, [1], restorable=True)))
    assert len(rewound) == 2
    assert sum(tape.n_repeats for tape in tapes) > 4


@pytest.mark.parametrize(
    ("press", "repeats"),
    [(KnormPress(0.5), True), (StreamingLLMPress(0.5), True), (SnapKVPress(0.5, window_size=4), False)],
    ids=["knorm", "streaming_llm", "snapkv, whose hooks must see every step"],
)
def test_a_budget_may_evict_between_repeated_steps(
    model: PreTrainedModel, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, press: Any, repeats: bool
) -> None:
    condition = Condition("press", 0.5)
    rows = []
    for n in (40, 61, 75):
        ids = torch.randint(2, 258, (n,), generator=torch.Generator().manual_seed(n))
        done = prefill(model, ids, {condition: press}, "sdpa")
        rows.append(Row(ids, done.logits, done.kept[condition]))

    def generate() -> Generated:
        with Budget(model, [press] * 3, 8) as budget:
            return run(model, rows, 2, lambda batch, step: budget.enforce(batch, np.arange(batch.n)))

    assert_same(*both(tapes, monkeypatch, generate))
    assert (sum(tape.n_repeats for tape in tapes) > 5) == repeats


def test_a_model_whose_step_reads_values_on_the_host_runs_as_it_is(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = build("llama", rope_parameters=rope)  # type: ignore[arg-type]
    rows = rows_of(model, "knorm")
    assert_same(*both(tapes, monkeypatch, lambda: run(model, rows, 2, nothing)))
    assert tapes == []


def test_a_repeated_step_reads_nothing_that_the_host_keeps(model: PreTrainedModel, tapes: list[Tape]) -> None:
    batch = assemble(model, rows_of(model, "per layer"), 4, Decoding(NEW, EOS))
    for _ in decode_steps(batch):
        pass
    assert batch._recorded is not None
    read = {
        tensor.untyped_storage().data_ptr()
        for tape in tapes
        for tensor in tree_leaves([operation[1:3] for operation in tape.operations])
        if isinstance(tensor, torch.Tensor)
    }
    assert batch._recorded._tokens.untyped_storage().data_ptr() in read
    assert batch.cache.lengths.untyped_storage().data_ptr() not in read


def test_a_hook_sees_every_step(tapes: list[Tape]) -> None:
    model, seen, n_steps = build("qwen2"), [], 0
    hook = model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    batch = assemble(model, rows_of(model, "knorm"), 2, Decoding(NEW, EOS))
    seen.clear()
    for _ in decode_steps(batch):
        n_steps += 1
    assert len(seen) == n_steps - 1  # the last draw feeds nobody
    assert tapes == []
    hook.remove()


def test_a_model_may_be_kept_from_recording(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2")
    model.cuda_graphs = False  # type: ignore[assignment]
    run(model, rows_of(model, "knorm"), 2, nothing)
    assert tapes == []


def test_a_batch_that_is_done_with_leaves_no_cycle_that_keeps_its_cache(
    model: PreTrainedModel, tapes: list[Tape]
) -> None:
    import gc
    import weakref

    batch = assemble(model, rows_of(model, "knorm"), 2, Decoding(NEW, EOS))
    for _ in decode_steps(batch):
        pass
    cache = weakref.ref(batch.cache)
    gc.disable()
    try:
        del batch
        assert cache() is None
    finally:
        gc.enable()


def test_a_layout_serves_until_a_row_outgrows_it() -> None:
    cache = cache_of(kept(3, 5), kept(7, 2))
    layout = cache.layout(room=3)
    for _ in range(3):
        assert cache.fits(layout)
        cache.advance()
    assert not cache.fits(layout)


def test_a_layout_serves_fewer_rows_but_no_more() -> None:
    cache = cache_of(kept(3, 5), kept(7, 2), kept(1, 1), kept(2, 2), kept(2, 2))
    layout = cache.layout(room=3)
    cache.drop([1])
    cache.order()
    assert cache.fits(layout)
    assert sorted(cache.rows_of(layout)) == [0, 1, 2, 3]
    cache.add([kept(4, 4)])
    assert cache.fits(layout)  # in the free place
    cache.add([kept(4, 4)])
    assert not cache.fits(layout)


def test_layers_that_share_a_mask_must_stay_alike() -> None:
    cache = cache_of(kept(5, 5), kept(4, 4))
    layout = cache.layout(room=3)
    assert layout.like == (0, 0)
    cache.evict(np.array([0]), 1, torch.tensor([[[0, 2, 4]]]), np.array([3]))
    assert not cache.fits(layout)
    assert cache.layout().like == (0, 1)


def test_a_layout_ends_when_heads_become_masked() -> None:
    cache = cache_of(kept(5, 5), kept(4, 4))
    layout = cache.layout(room=3)
    row = kept(4, 4)
    cache.load(1, KeptCache(row.keys, row.values, dead=[torch.ones(2, 4, dtype=torch.bool), None]))
    assert not cache.fits(layout)


def test_an_idle_row_attends_to_the_entry_it_writes_whatever_was_masked_there() -> None:
    row = kept(4, 4)
    masked = KeptCache(row.keys, row.values, dead=[torch.ones(2, 4, dtype=torch.bool), None])
    cache = cache_of(kept(5, 5), masked)
    cache.lay_out(cache.layout(), torch.tensor([[5, 0], [5, 0]]))
    (segment,) = cache.layers[0].segments
    assert (segment.mask[1] == 0).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_a_layout_ends_when_its_shelf_is_allocated_anew() -> None:
    cache = cache_of(kept(3, 5), kept(7, 2))
    layout = cache.layout(room=3)
    cache.placement.reserve(500)
    assert not cache.fits(layout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECS)
def test_a_cuda_graph_generates_what_plain_steps_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2").to("cuda")  # type: ignore[arg-type]
    rows = [
        Row(row.prompt_ids.cuda(), row.logits.cuda(), on_cuda(row.cache))
        for row in rows_of(build("qwen2"), name)
    ]
    captured: list[object] = []

    def counting(step: Any, device: Any, record: Any) -> Any:
        captured.append(device)
        return record(step, device)

    monkeypatch.setitem(RECORDERS, "cuda", partial(counting, record=RECORDERS["cuda"]))
    mine = run(model, rows, 2, nothing)
    assert captured
    assert getattr(model, "cuda_graphs", True), "a step of this model waits for nothing"
    monkeypatch.delitem(RECORDERS, "cuda")
    assert_same(mine, run(model, rows, 2, nothing))


def on_cuda(cache: KeptCache) -> KeptCache:
    def moved(tensors: list[Any] | None) -> list[Any] | None:
        return tensors and [tensor if tensor is None else tensor.cuda() for tensor in tensors]

    return KeptCache(
        moved(cache.keys) or [], moved(cache.values) or [], moved(cache.indices), moved(cache.dead)
    )
