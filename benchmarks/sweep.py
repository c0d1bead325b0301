"""A sweep against kvpress one prompt at a time, and against transformers' batches without compression.

    python benchmarks/sweep.py --model reference --prompts 20 --sample 60
    python benchmarks/sweep.py --random-weights qwen7b --prompts 50 --sample 20

All in one run: kvguard makes the whole sweep; kvpress and transformers answer a random sample of its traces.
Every side uses all cores, or the accelerator. Agreement with kvpress is checked before any speed is shown.
Weights that are random cost as much as real ones; their texts mean nothing.
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import click
import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from kvguard.engine.attention import attention
from kvguard.engine.cache import RaggedCache
from kvguard.engine.graphs import RECORDERS, Action
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.presses import Condition, Presses
from kvguard.models.availability import pick_device
from kvguard.models.load import LoadedModel, load_model, load_tokenizer
from kvguard.models.spec import ModelSpec
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.params import load_params
from kvguard.sweep.plan import Sweep
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import conditions
from kvguard.tasks import make_task

T = TypeVar("T")

SHAPES: dict[str, dict[str, Any]] = {
    "qwen7b": {  # Qwen/Qwen2.5-7B
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    },
    "tiny": {  # tries the command itself
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}


def save_random(shape: str, layers: int | None, like: ModelSpec, folder: Path, device: str) -> ModelSpec:
    """Write a model of random weights, with the tokenizer of ``like``, and return how to load it."""
    dtype = "float32" if shape == "tiny" else "bfloat16"
    config = Qwen2Config(**SHAPES[shape], dtype=dtype, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config.num_hidden_layers = layers or config.num_hidden_layers
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with pick_device(device):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    load_tokenizer("reference", like).save_pretrained(folder)
    return like.model_copy(update={"source": f"path:{folder}", "dtype": dtype})


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


class CountedGraphs:
    """Captures CUDA graphs as before, and counts them; ``n`` is how many this process has captured."""

    def __init__(self) -> None:
        self.n = 0
        self._capture, RECORDERS["cuda"] = RECORDERS["cuda"], self

    def __call__(self, step: Action, device: torch.device) -> Action:
        """Capture a step."""
        replay = self._capture(step, device)
        self.n += 1
        return replay


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain copy reads and writes, the best of ten."""
    source = torch.ones((1 << 32 if device.type == "cuda" else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device)[1] for _ in range(10)]
    return 2 * source.nbytes / min(seconds)


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a function returns, and the seconds it took."""
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


@torch.inference_mode()
def transformers_generate(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new: int, batch_size: int
) -> int:
    """Generate greedily in padded batches of uncompressed prompts; return the tokens up to each row's end."""
    total, eos = 0, torch.tensor(loaded.eos_ids)
    with attention(loaded.model, "sdpa"):
        for first in range(0, len(prompts), batch_size):
            rows = prompts[first : first + batch_size]
            width = max(map(len, rows))
            ids = torch.tensor([[loaded.eos_ids[0]] * (width - len(row)) + list(row) for row in rows])
            seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            out: Tensor = loaded.model.generate(  # type: ignore[operator]
                input_ids=ids.to(loaded.model.device),
                attention_mask=seen.to(loaded.model.device),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=loaded.eos_ids,
                pad_token_id=loaded.eos_ids[0],
            )
            ended = torch.isin(out[:, width:].cpu(), eos)
            total += int((ended.cumsum(1) - ended.long() == 0).sum())
    return total


def decode_bytes(loaded: LoadedModel, traces: pd.DataFrame, batch_size: int) -> float:
    """What decoding must at least read: each row's own entries at every token, the weights once a step."""
    config = loaded.model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    entry = RaggedCache.bytes_per_row(
        config.num_hidden_layers, 1, config.num_key_value_heads, head_dim, loaded.model.dtype
    )
    steps = traces["token_ids"].map(len).to_numpy() - 1  # the first token comes from the prefill
    entries = (steps * traces["n_kept_tokens"].to_numpy() + steps * (steps + 1) / 2).sum()
    weights = sum(p.nbytes for p in loaded.model.parameters())
    return float(entries * entry + steps.sum() / batch_size * weights)


@click.command(help=__doc__)
@click.option("--model", default="reference", show_default=True)
@click.option("--random-weights", type=click.Choice(sorted(SHAPES)), help="A shape, instead of a model.")
@click.option(
    "--layers", type=int, help="Layers of the random model; fewer than its shape has is a trimmed one."
)
@click.option("--prompts", default=500, show_default=True, help="Prompts, each under every condition.")
@click.option("--shots", type=int, help="Worked examples before each question; the task's own by default.")
@click.option("--new", type=int, help="Tokens generated at most; the task's own by default.")
@click.option("--sample", default=100, show_default=True, help="Traces that the others answer too.")
@click.option("--preset", default="default", show_default=True)
def main(
    model: str,
    random_weights: str | None,
    layers: int | None,
    prompts: int,
    shots: int | None,
    new: int | None,
    sample: int,
    preset: str,
) -> None:
    params = load_params()
    folder = Path(tempfile.mkdtemp())
    try:
        if random_weights is None:
            spec = params.spec(model)
        else:
            spec = save_random(
                random_weights, layers, params.spec("reference"), folder / "model", params.device
            )
            model = f"{random_weights} (random weights{f', {layers} layers' if layers else ''})"
        changes = {"n_shots": shots, "max_new_tokens": new}
        settings = params.value("tasks")[spec.task] | {k: v for k, v in changes.items() if v is not None}
        task = make_task(spec.task, **settings)
        sweep = Sweep(
            model,
            spec,
            task,
            task.prompts(prompts, params.seed + 1),
            conditions(params.presets[preset]),
            params.compressors,
            params.generate,
            params.catastrophes,
            params.device,
        )
        compare(sweep, folder / "sweep", sample)
    finally:
        shutil.rmtree(folder)


def compare(sweep: Sweep, folder: Path, sample: int) -> None:
    """Run all three sides, check that they agree, and print what each took."""
    device, new = pick_device(sweep.device), sweep.task.max_new_tokens
    graphs = CountedGraphs()
    with PeakMemory() as memory:
        result, ours = timed(lambda: run_sweep(sweep, folder), device)
    traces = read_table("traces", result.traces)
    planned = folder / "batch.json"
    batch_size = json.loads(planned.read_text())["batch_size"] if planned.exists() else None
    batch_size = int(batch_size or sweep.settings.batch_size)

    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    sampled = traces.iloc[
        np.random.default_rng(0).choice(len(traces), min(sample, len(traces)), replace=False)
    ]
    asked = sweep.prompts.set_index("prompt_id")["prompt"].map(loaded.encode)
    presses = Presses(sweep.conditions, sweep.compressors)
    agreeing = tokens = 0
    theirs = 0.0
    for trace in sampled.itertuples():
        ids = torch.tensor(asked[trace.prompt_id], device=device)
        press = presses[Condition(trace.compressor, trace.ratio)].press
        reference, seconds = timed(
            lambda ids=ids, press=press: kvpress_generate(loaded.model, ids, press, new, loaded.eos_ids),
            device,
        )
        theirs += seconds
        agreeing += reference.agrees(list(trace.token_ids))
        tokens += len(reference.token_ids)
    click.echo(f"\n{sweep.name}: {agreeing} of {len(sampled)} traces agree with kvpress")
    if agreeing < len(sampled) and loaded.model.dtype == torch.float32:
        raise click.ClickException("in float32 every trace must agree; no speed is shown for other texts")

    prompts = sorted((asked[p] for p in sampled["prompt_id"]), key=len)
    batched, plain = timed(lambda: transformers_generate(loaded, prompts, new, batch_size), device)
    n_tokens = int(traces["token_ids"].map(len).sum())
    click.echo(f"{len(traces)} traces of {n_tokens} tokens, {batch_size} rows to a batch")
    click.echo(f"{'':44}{'traces/s':>12}{'tokens/s':>12}{'ratio':>8}")
    for name, n, n_new, seconds in (
        ("kvpress, one by one", len(sampled), tokens, theirs),
        ("transformers, batched and uncompressed", len(sampled), batched, plain),
        ("kvguard", len(traces), n_tokens, ours),
    ):
        ratio = n_new / seconds / (tokens / theirs)
        click.echo(f"{name:44}{n / seconds:12.2f}{n_new / seconds:12.0f}{ratio:7.1f}x")
    copied = bandwidth(device)
    share = decode_bytes(loaded, traces, batch_size) / ours / copied
    click.echo(f"peak memory {memory.mb:.0f} MB of the host" + cuda_peak(device))
    if device.type == "cuda":
        click.echo(
            f"{graphs.n} CUDA graphs captured" if graphs.n else "no CUDA graphs: steps ran as they are"
        )
    click.echo(f"{share:.1%} of the copy bandwidth ({copied / 1e9:.1f} GB/s), over the sweep's whole time")


def cuda_peak(device: torch.device) -> str:
    """Peak memory of the accelerator, in words."""
    return (
        f", {torch.cuda.max_memory_allocated() / 1e6:.0f} MB of the device" if device.type == "cuda" else ""
    )


if __name__ == "__main__":
    main()
