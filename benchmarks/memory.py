"""Peak memory of a sweep: what the plan predicts of it, what it takes, and whether more prompts take more.

    python benchmarks/memory.py
    python benchmarks/memory.py --model qwen7b --prompts 100 --batch 64 --batch 256

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

from kvguard.engine.memory import release_unused
from kvguard.engine.presses import Presses
from kvguard.models.load import load_model
from kvguard.studies.catastrophes.params import Params, load_params
from kvguard.sweep.batch_size import predicted_peak
from kvguard.sweep.plan import Sweep
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import conditions


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
def main(
    model: str,
    preset: str,
    batches: tuple[int, ...],
    prompts: int,
    new: int | None,
    growth: tuple[int, ...],
    growth_preset: str,
) -> None:
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
