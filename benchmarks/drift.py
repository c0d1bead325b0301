"""How soon a drift is told of traffic that changed, and how often of traffic that did not.

    python benchmarks/drift.py --other gsm8k=../shared/data/gsm8k/test.jsonl
    python benchmarks/drift.py --model smollm135m_gsm8k --params my.yaml --other spanish=gsm8k-es.jsonl

Calibration prompts and live ones are asked under guard: live ones of the same task, of that with more
demonstrations (longer prompts), of other problems, in GSM8K's form, and of the same task at a severer ratio.
Every kind is streamed in many random orders.
"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from kvguard.engine.presses import build_press
from kvguard.guard.drift import Drift
from kvguard.guard.session import Guard
from kvguard.models.load import LoadedModel, load_model
from kvguard.stage import one_line_errors
from kvguard.stats.binomial import rate
from kvguard.studies.catastrophes.params import load_params
from kvguard.sweep.plan import stop_strings
from kvguard.tasks import make_task
from kvguard.tasks.base import Task
from kvguard.tasks.gsm8k import Gsm8k

Scores = NDArray[np.float64]


def scores_of(guard: Guard, loaded: LoadedModel, task: Task, n: int, seed: int, ratio: float) -> Scores:
    """Ask prompts under guard, and return what it thought of each that fits. [n]"""
    spec = load_params().compressors["snapkv"]
    stops = stop_strings(task, loaded)
    outputs = guard.generate(
        loaded.model,
        loaded.tokenizer,
        [loaded.encode(prompt) for prompt in task.prompts(n, seed)["prompt"]],
        press=build_press(spec, ratio),
        max_new_tokens=256,
        stop=stops.strings if stops is not None else (),
        answered=task.answered,
    )
    return np.array([output.score for output in outputs if output.error is None])


def delays(calibration: Scores, live: Scores, orders: int, seed: int) -> list[int | None]:
    """Return how many live texts it took in each of many random orders; None: it was not told."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(orders):
        drift = Drift(rng.permutation(calibration), seed=number)
        for value in rng.permutation(live):
            if drift.observe(float(value)):
                break
        found.append(drift.since)
    return found


@click.command(help=__doc__)
@click.option("--model", default="reference", show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="models/MODEL by default.")
@click.option(
    "--params", "params_path", type=click.Path(path_type=Path), default="params.yaml", show_default=True
)
@click.option("--ratio", default=0.5, show_default=True, help="Of SnapKV.")
@click.option("--severe", default=0.75, show_default=True, help="The ratio that it shifts to.")
@click.option("--calibration", default=200, show_default=True)
@click.option("-n", "n", default=200, show_default=True, help="Live prompts of each kind.")
@click.option("--orders", default=200, show_default=True)
@click.option(
    "--other", "others", multiple=True, help="NAME=FILE: other problems, in GSM8K's form; again for more."
)
@one_line_errors
def main(
    model: str,
    bundle: Path | None,
    params_path: Path,
    ratio: float,
    severe: float,
    calibration: int,
    n: int,
    orders: int,
    others: tuple[str, ...],
) -> None:
    """Measure, and print a line for each kind of traffic."""
    sources = [entry.partition("=") for entry in others]
    if unnamed := [name for name, _, source in sources if not source]:
        raise click.UsageError(f"--other {unnamed[0]}: give NAME=FILE")
    params = load_params(params_path)
    guard = Guard.load(bundle or Path("models") / model)
    loaded = load_model(model, params.spec(model), "cpu")
    task = params.task(model)
    pool = scores_of(guard, loaded, task, calibration + n, 6006, ratio)
    kinds = {
        "longer prompts": (task.model_copy(update={"n_shots": 2 * task.n_shots or 3}), ratio),
        f"snapkv@{severe:g}": (task, severe),
    }
    alike = task.name if isinstance(task, Gsm8k) else "gsm8k"
    for name, _, source in sources:
        kinds[name] = (make_task(alike, source=source, n_shots=task.n_shots and 1), ratio)
    rng = np.random.default_rng(7)
    same: list[int | None] = []
    for number in range(orders):
        mixed = rng.permutation(pool)
        same += delays(mixed[:calibration], mixed[calibration:], 1, number)
    told = sum(one is not None for one in same)
    found = rate(told, len(same))
    click.echo(f"the same: told in {told} of {len(same)} orders ({found.low:.3f} to {found.high:.3f})")
    for name, (other, at) in kinds.items():
        live = scores_of(guard, loaded, other, n, 7007, at)
        after = delays(pool[:calibration], live, orders, 1)
        known = sorted(one for one in after if one is not None)
        middle = f"after {int(np.median(known))} texts (median)" if known else "never"
        click.echo(
            f"{name}: told in {len(known)} of {len(after)} orders, {middle}; mean score {live.mean():.3f}, "
            f"{pool.mean():.3f} before; alarms {np.mean(live == 1):.3f}, {np.mean(pool == 1):.3f} before"
        )


if __name__ == "__main__":
    main()
