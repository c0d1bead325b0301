"""The sweep against kvpress one prompt at a time: the same traces, in one run, as a ratio.

    python benchmarks/sweep.py --model reference --prompts 20 --sample 60

kvpress answers a random sample of the traces; both sides use all cores. Agreement is checked first.
"""

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import click
import numpy as np
import psutil
import torch

from kvguard.compressors import conditions
from kvguard.config import load_params
from kvguard.generation.oracle import kvpress_generate
from kvguard.generation.plan import Sweep
from kvguard.generation.sweep import run_sweep
from kvguard.models.registry import load_model
from kvguard.tasks import sample_prompts
from kvguard.traces import read_table


class PeakMemory:
    """Watches the resident memory of this process and its workers while a block runs; ``mb`` is the peak."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            process = psutil.Process()
            family = [process, *process.children(recursive=True)]
            self.mb = max(self.mb, sum(p.memory_info().rss for p in family) / 1e6)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@click.command(help=__doc__)
@click.option("--model", default="reference", show_default=True)
@click.option("--prompts", default=500, show_default=True, help="Prompts, each under every condition.")
@click.option("--sample", default=100, show_default=True, help="Traces that kvpress answers too.")
@click.option("--preset", default="default", show_default=True)
def main(model: str, prompts: int, sample: int, preset: str) -> None:
    params = load_params()
    spec = params.spec(model)
    sweep = Sweep(
        model,
        spec,
        sample_prompts(spec.task, prompts, params.seed + 1, spec.n_shots, spec.task_source),
        conditions(params.presets[preset]),
        params.compressors,
        params.generate,
        params.catastrophes,
        params.device,
    )
    loaded = load_model(model, spec, params.device)
    folder = Path(tempfile.mkdtemp())
    try:
        with PeakMemory() as memory:
            started = time.perf_counter()
            result = run_sweep(sweep, folder)
            ours = time.perf_counter() - started
        traces = read_table("traces", result.traces)
    finally:
        shutil.rmtree(folder)

    rows = np.random.default_rng(0).choice(len(traces), min(sample, len(traces)), replace=False)
    asked = sweep.prompts.set_index("prompt_id")["prompt"]
    agreeing = tokens = 0
    started = time.perf_counter()
    for trace in traces.iloc[rows].itertuples():
        condition = next(
            c for c in sweep.conditions if (c.compressor, c.ratio) == (trace.compressor, trace.ratio)
        )
        ids = torch.tensor(loaded.encode(asked[trace.prompt_id]), device=loaded.model.device)
        reference = kvpress_generate(
            loaded.model, ids, sweep.press(condition), spec.max_new_tokens, loaded.eos_ids
        )
        agreeing += reference.agrees(list(trace.token_ids))
        tokens += len(reference.token_ids)
    theirs = time.perf_counter() - started

    n_tokens = int(traces["token_ids"].map(len).sum())
    click.echo(
        f"\n{model}: {len(traces)} traces, {n_tokens} tokens; {agreeing} of {len(rows)} agree with kvpress"
    )
    click.echo(f"{'':24}{'traces/s':>12}{'tokens/s':>12}")
    click.echo(f"{'kvpress, one by one':24}{len(rows) / theirs:12.2f}{tokens / theirs:12.0f}")
    click.echo(f"{'kvguard':24}{len(traces) / ours:12.2f}{n_tokens / ours:12.0f}")
    click.echo(
        f"ratio (tokens/s): {n_tokens / ours / (tokens / theirs):.1f}x; peak memory {memory.mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
