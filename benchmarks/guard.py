"""What guarding costs while nothing fires: decoding with it and without, in one run, step against step.

    python benchmarks/guard.py --model reference --batch 64

Two batches of the same rows take turns: one is decoded without even reading its signals, the other is watched
by the hazard model and the controller. No row ends, so that every step has the whole batch.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
from tqdm import tqdm

from kvguard.engine import batch as decode
from kvguard.engine.loop import assemble, decode_steps
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.signals import N_SIGNALS
from kvguard.errors import KvguardError
from kvguard.guard.actions import Action, GuardedRun, GuardParams
from kvguard.guard.controller import Controller, ControllerParams
from kvguard.guard.features import FeatureState, thinking_mask
from kvguard.guard.hazard_model import HazardModel, LiveHazard
from kvguard.guard.watch import HazardTrigger, Watch
from kvguard.models.load import LoadedModel, load_model
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.params import load_params
from kvguard.studies.catastrophes.protocols import HEADLINE

CONDITION = Condition("snapkv", 0.5)
POINT = ControllerParams(tau_low=0.1, tau_high=0.3, k_escalate=3, j_deescalate=8)
PARTS = {
    "signals": (decode, "signals"),
    "features": (FeatureState, "update"),
    "hazard": (LiveHazard, "predict"),
    "controller": (Controller, "update"),
}
N_WARMUP = 4  # steps that are not counted


class Stopwatch:
    """Times every call of the functions that it stands in for; ``seconds`` are those of each part."""

    def __init__(self, rows: np.ndarray) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.features = rows  # the hazard model's newest

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            value = function(*arguments, **options)
            self.seconds[part].append(time.perf_counter() - started)
            if part == "hazard":
                self.features = arguments[1]
            return value

        return timed


def take(steps: Iterator[Any], seconds: list[float]) -> None:
    started = time.perf_counter()
    next(steps)
    seconds.append(time.perf_counter() - started)


def make_rows(loaded: LoadedModel, prompts: list[str], press: Any) -> list[Row]:
    rows = []
    for prompt in prompts:
        ids = torch.tensor(loaded.encode(prompt), device=loaded.model.device)
        prefilled = prefill(loaded.model, ids, {CONDITION: press}, attention_for(press))
        rows.append(Row(ids, prefilled.logits, prefilled.kept[CONDITION]))
    return rows


def milliseconds(seconds: list[float]) -> float:
    """Return the median, after the warm-up."""
    return float(np.median(seconds[N_WARMUP:])) * 1e3


@click.command(help=__doc__)
@click.option("--model", default="reference", show_default=True)
@click.option("--batch", default=64, show_default=True, help="Rows decoded together.")
@click.option("--tokens", default=256, show_default=True, help="Tokens of each row.")
@click.option("--threads", default=2, show_default=True, help="Of torch.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--hazard", type=click.Path(path_type=Path), help="Folder of the hazard model.")
def main(model: str, batch: int, tokens: int, threads: int, device: str, hazard: Path | None) -> None:
    torch.set_num_threads(threads)
    params = load_params()
    spec = params.spec(model)
    loaded = load_model(model, spec, device)
    try:
        hazard_model = HazardModel.load(hazard or layout.trained(model, HEADLINE))
    except KvguardError as error:
        raise click.ClickException(str(error)) from None
    prompts = params.task(model).prompts(batch, params.seed + 1)
    press = build_press(params.compressors[CONDITION.compressor], CONDITION.ratio)
    rows = make_rows(loaded, list(prompts["prompt"]), press)
    mask = thinking_mask(loaded.tokenizer, params.featurize.thinking_words)
    watch = Watch(HazardTrigger(hazard_model, mask), POINT)
    batches = [assemble(loaded.model, rows, batch, Decoding(tokens, [])) for _ in range(2)]
    ratios = [CONDITION.ratio] * batch
    no_signals = torch.zeros(batch, N_SIGNALS, device=loaded.model.device)

    stopwatch = Stopwatch(np.zeros((batch, len(hazard_model.features)), dtype=np.float32))
    hazard_model.booster.set_param({"nthread": 1})
    inplace_predict = stopwatch.around("inplace", hazard_model.booster.inplace_predict)
    timed = {name: stopwatch.around(name, getattr(*where)) for name, where in PARTS.items()}
    plain: list[float] = []
    guarded: list[float] = []
    unwatched = decode_steps(batches[0])
    watched = GuardedRun(batches[1], watch, Action.NONE, GuardParams(), ratios).steps()
    with ExitStack() as patches:
        for name, (owner, function) in PARTS.items():
            patches.enter_context(patch.object(owner, function, timed[name]))
        for _ in tqdm(range(tokens), unit="step"):
            with patch.object(decode, "signals", lambda logits, chosen: no_signals):
                take(unwatched, plain)
            inplace_predict(
                stopwatch.features, predict_type="margin"
            )  # in place of the hazard, caches as cold
            take(watched, guarded)

    base, whole = milliseconds(plain), milliseconds(guarded)
    parts = {name: milliseconds(stopwatch.seconds[name]) for name in PARTS}
    difference = milliseconds([more - less for more, less in zip(guarded, plain, strict=True)])
    click.echo(f"{model}: {batch} rows, {tokens} tokens, {threads} threads; medians over steps, in ms")
    click.echo(f"{'without guarding':28}{base:8.3f}")
    click.echo(f"{'with':28}{whole:8.3f}")
    for name, value in parts.items():
        click.echo(f"  {name:26}{value:8.3f}{value / base:8.1%}")
    click.echo(f"{'sum of the parts':28}{sum(parts.values()):8.3f}{sum(parts.values()) / base:8.1%}")
    click.echo(f"{'paired difference':28}{difference:8.3f}{difference / base:8.1%}")
    click.echo(f"{'hazard by inplace_predict':28}{milliseconds(stopwatch.seconds['inplace']):8.3f}")


if __name__ == "__main__":
    main()
