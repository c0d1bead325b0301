"""Memory of a sweep: what its caches take by ratio, what the plan predicts of its peak, and what it takes.

    python benchmarks/memory.py
    python benchmarks/memory.py --model qwen7b --prompts 100 --batch 64 --batch 256
    python benchmarks/memory.py --only-ratios

Each sweep runs in a process of its own, as one worker, and is measured over what that process holds once
libraries and model are loaded: on a CPU by the kernel's peak of resident memory, on an accelerator by
the allocator's.
"""

import gc
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import click
import torch
from kvpress import SnapKVPress
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from kvguard.engine.batch import Batch
from kvguard.engine.loop import assemble, decode_steps
from kvguard.engine.memory import entry_bytes, release_unused
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.requests import Decoding, Row
from kvguard.models.load import load_model
from kvguard.studies.catastrophes.params import Params, load_params
from kvguard.sweep.batch_size import predicted_peak
from kvguard.sweep.plan import Sweep
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import conditions


class Resident:
    """The bytes of all keys and values that stand in memory, of rows under way and of rows that wait."""

    def __init__(self) -> None:
        self.most = 0

    def look(self, batch: Batch) -> int:
        """Count what a batch holds now."""
        waiting = [request.cache for request in batch.requests.values() if request.cache is not None]
        stores = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for kept in waiting
            for tensors in (kept.keys, kept.values, kept.indices or [])
            for tensor in tensors
        }
        now = sum(stores.values()) + batch.cache.nbytes
        self.most = max(self.most, now)
        return now


def of_ratio(
    model: PreTrainedModel, ratio: float, prompts: int, n_tokens: int, new: int, size: int
) -> Resident:
    """Sweep prompts of ``n_tokens`` random tokens under SnapKV at one ratio, and look at every step."""
    condition, press = Condition("snapkv", ratio), SnapKVPress(ratio) if ratio else None
    rows = []
    for n in range(prompts):
        ids = torch.randint(0, 1000, (n_tokens,), generator=torch.Generator().manual_seed(n))
        done = prefill(model, ids, {condition: press}, "sdpa")
        rows.append(Row(ids, done.logits, done.kept[condition]))
    batch = assemble(model, rows, size, Decoding(new, []))
    del rows, done
    resident = Resident()
    for _ in decode_steps(batch):
        resident.look(batch)
    return resident


def restored(model: PreTrainedModel, n_tokens: int) -> tuple[int, int]:
    """Return the bytes that restoring one of eight rows at 0.875 adds, and those of its full cache."""
    condition, press, rows = Condition("snapkv", 0.875), SnapKVPress(0.875), []
    for n in range(8):
        ids = torch.randint(0, 1000, (n_tokens,), generator=torch.Generator().manual_seed(n))
        done = prefill(model, ids, {condition: press}, "sdpa")
        rows.append(Row(ids, done.logits, done.kept[condition]))
    batch, added = assemble(model, rows, 8, Decoding(4, [])), 0
    for step in decode_steps(batch):
        if step.t[0] == 1:
            before = batch.cache.nbytes
            batch.restore([0])
            added = batch.cache.nbytes - before
    return added, n_tokens * entry_bytes(model)


def by_ratio(prompts: int, n_tokens: int, new: int, size: int) -> None:
    """Print what caches take at each ratio, on the shape of a small Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    click.echo(f"{prompts} prompts of {n_tokens} tokens, {new} new ones, {size} rows together")
    full = of_ratio(model, 0.0, prompts, n_tokens, new, size).most
    for ratio in (0.0, 0.25, 0.5, 0.75, 0.875):
        most = full if ratio == 0 else of_ratio(model, ratio, prompts, n_tokens, new, size).most
        click.echo(
            f"ratio {ratio:<6} resident keys and values {most / 1e6:8.1f} MB{most / full:7.3f} of those at 0"
        )
    added, whole = restored(model, n_tokens)
    click.echo(f"a restored row adds {added / whole:.2f} of its full cache")


def resident(peak: bool = False) -> int:
    """Return the bytes that this process holds, or the most that it has held since :func:`reset`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def reset(on_cuda: bool) -> None:
    """Forget the peak so far."""
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure(sweep: Sweep) -> tuple[int, int]:
    """Return the predicted and the measured peak of a sweep, in bytes; for a fresh process."""
    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    lengths = [len(loaded.encode(prompt)) for prompt in sweep.prompts["prompt"]]
    presses = Presses(sweep.conditions, sweep.compressors)
    predicted = predicted_peak(sweep, presses, loaded.model, lengths, int(sweep.settings.batch_size))
    again = sum(weight.nbytes for weight in loaded.model.parameters())  # the sweep loads them a second time
    on_cuda = loaded.model.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        few = replace(sweep, prompts=sweep.prompts[:2])
        run_sweep(
            few, Path(folder) / "few", progress=False
        )  # imports and buffers that come with the first use
        gc.collect()
        release_unused()  # else the sweep grows into what the first one left in reserve, unseen
        before = torch.cuda.memory_allocated() if on_cuda else resident()
        reset(on_cuda)
        run_sweep(sweep, Path(folder) / "all", progress=False)
        peak = torch.cuda.max_memory_allocated() if on_cuda else resident(peak=True)
    return predicted, peak - before - again


def fresh(sweep: Sweep) -> tuple[int, int]:
    """Measure a sweep in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, sweep).result()


def sweep_of(params: Params, model: str, preset: str, prompts: int, batch: int, new: int | None) -> Sweep:
    """Return a sweep of that many prompts, decoded in batches of that many rows."""
    task = params.task(model)
    if new is not None:
        task = task.model_copy(update={"max_new_tokens": new})
    settings = params.generate.model_copy(update={"batch_size": batch, "workers": 1})
    return Sweep(
        model,
        params.spec(model),
        task,
        task.prompts(prompts, params.seed),
        conditions(params.presets[preset]),
        params.compressors,
        settings,
        params.catastrophes,
        params.device,
    )


@click.command(help=__doc__)
@click.option("--model", default="reference", show_default=True)
@click.option("--preset", default="default", show_default=True)
@click.option("--batch", "batches", multiple=True, default=(32, 128, 512), show_default=True, help="Rows.")
@click.option("--prompts", default=100, show_default=True, help="For the batches.")
@click.option("--new", type=int, help="Tokens generated at most; the model's own by default.")
@click.option("--growth", multiple=True, default=(100, 200, 400), show_default=True, help="Prompts.")
@click.option("--growth-preset", default="experiment-001", show_default=True)
@click.option("--only-ratios", is_flag=True, help="Only what caches take by ratio.")
def main(
    model: str,
    preset: str,
    batches: tuple[int, ...],
    prompts: int,
    new: int | None,
    growth: tuple[int, ...],
    growth_preset: str,
    only_ratios: bool,
) -> None:
    by_ratio(prompts=96, n_tokens=2000, new=128, size=64)
    if only_ratios:
        return
    params = load_params()
    click.echo(f"{'preset':16}{'prompts':>8}{'rows':>6}{'predicted':>12}{'measured':>12}{'error':>8}")
    runs = [(preset, prompts, batch, new) for batch in batches]
    runs += [(growth_preset, n, min(batches), 32) for n in growth]
    for name, n, batch, tokens in runs:
        predicted, measured = fresh(sweep_of(params, model, name, n, batch, tokens))
        click.echo(
            f"{name:16}{n:8}{batch:6}{predicted / 1e6:9.1f} MB{measured / 1e6:9.1f} MB"
            f"{predicted / measured - 1:+8.1%}"
        )


if __name__ == "__main__":
    main()
