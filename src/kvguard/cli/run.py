"""What happens to a model under a compressor, in one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvguard import stage
from kvguard.cli.asking import Asked, asking_options, check_model, n_prompts

if TYPE_CHECKING:
    import pandas as pd

    from kvguard.studies.catastrophes.params import Params
    from kvguard.sweep.settings import Preset

EXAMPLES = """\b
The three commonest uses, as they are typed:
  kvguard run --model reference --compressor snapkv --ratio 0.75
  kvguard run --model Qwen/Qwen2.5-0.5B-Instruct --preset experiment-001 -n 24
  kvguard run --model path:DIR --prompts my.jsonl --compressor snapkv --ratio 0.5 --show
"""


@click.command(epilog=EXAMPLES)
@asking_options
@click.option("--compressor", help="A name from compressors in the settings; asked beside the baseline.")
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, max_open=True),
    help="The share of KV pairs that the compressor removes.",
)
@click.option("--preset", help="A name from presets in the settings, experiment-001 say, in their place.")
@click.option("-n", "n", type=click.IntRange(min=1), help="Prompts; 10 by default, of --prompts all.")
@click.option("--show", is_flag=True, help="Print one trace of each condition too.")
@click.option("--guard", "guarded", is_flag=True, help="Ask under guard too, and print both side by side.")
@click.option(
    "--action",
    type=click.Choice(["hold", "restore", "rollback", "restart", "stop"]),
    help="What the guard does when it alarms; rollback by default.",
)
@click.option(
    "--point",
    type=click.Choice(["conservative", "balanced", "aggressive"]),
    help="When it alarms: the operating point; balanced by default.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, file_okay=False),
    help="The guard's folder, as stage export writes it; models/MODEL by default.",
)
@click.option(
    "--interval",
    type=click.IntRange(min=1),
    help="Under guard, compress while decoding too, every so many tokens; hold needs it.",
)
@stage.one_line_errors
def run(
    asked: Asked,
    compressor: str | None,
    ratio: float | None,
    preset: str | None,
    n: int | None,
    show: bool,
    guarded: bool,
    action: str | None,
    point: str | None,
    bundle: Path | None,
    interval: int | None,
) -> None:
    """Ask a model N prompts with and without compression, and print how they ended."""
    if (preset is None) == (compressor is None) or (compressor is None) != (ratio is None):
        raise click.UsageError("give --compressor with --ratio, or --preset")
    if not guarded and (action or point or bundle or interval):
        raise click.UsageError("--action, --point, --bundle and --interval go with --guard")
    if action == "hold" and interval is None:
        raise click.UsageError("--action hold stops evicting while decoding: give --interval too")
    import tempfile

    from kvguard.judging.judge import read_judged
    from kvguard.store.tables import read_tokens
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.generate import draw_prompts, plan_sweep
    from kvguard.sweep.run import run_sweep

    model, params = asked.settings()
    if guarded and bundle is None and model == params.spec(model).source:
        raise click.UsageError("--bundle: name the folder of the guard, none is this model's own")
    chosen = _preset(params, preset, compressor, ratio)
    check_model(params, model)
    prompts = draw_prompts(params, model, n_prompts(params, model, n, 10))
    if guarded:
        act, where = action or "rollback", bundle or layout.exported(model)
        _guarded(params, model, prompts, chosen, act, point or "balanced", where, interval, show)
        return
    with tempfile.TemporaryDirectory(prefix="kvguard-") as folder:
        result = run_sweep(plan_sweep(params, model, prompts, chosen), Path(folder))
        traces = read_judged(result.traces)
        tokens = read_tokens(Path(folder), ["token_id", "entropy", "top1_prob"])
    click.echo(_screen(params, model, len(prompts), traces, tokens))
    if show:
        _show(params, model, traces, tokens)


def _preset(params: Params, name: str | None, compressor: str | None, ratio: float | None) -> Preset:
    from kvguard.config import check_known
    from kvguard.sweep.settings import Preset

    if name is not None:
        check_known("--preset", name, params.presets)
        return params.presets[name]
    assert compressor is not None
    assert ratio is not None
    check_known("--compressor", compressor, params.compressors)
    return Preset(compressors=(compressor,), ratios=(ratio,))


def _guarded(
    params: Params,
    model: str,
    prompts: pd.DataFrame,
    preset: Preset,
    action: str,
    point: str,
    bundle: Path,
    interval: int | None,
    show: bool,
) -> None:
    """Ask the prompts without and with a guard, under each of the preset's conditions."""
    from functools import partial

    from tqdm import tqdm

    from kvguard.cli.trace import pieces
    from kvguard.cli.trial import run_trial, summary, trace_text
    from kvguard.engine.presses import NONE, build_press
    from kvguard.engine.scorers import scorer_for
    from kvguard.guard.session import Guard
    from kvguard.models.load import load_model
    from kvguard.sweep.settings import conditions

    guard, task = Guard.load(bundle, point, params.guard), params.task(model)
    presses = {
        c: None if c.compressor == NONE else build_press(params.compressors[c.compressor], c.ratio)
        for c in conditions(preset)
    }
    loaded = load_model(model, params.spec(model), params.device)
    for press in presses.values():
        if press is not None and interval is not None:
            scorer_for(loaded.model, press, interval)  # reject the last one too before the first has run
    total = len(prompts) * sum(1 if press is None else 2 for press in presses.values())
    with tqdm(total=total, desc=model, unit="trace") as bar:

        def finished(_: int) -> None:
            bar.update()

        trials = [
            run_trial(
                guard,
                loaded,
                prompts,
                task,
                condition,
                press,
                params.catastrophes,
                action=action,
                compression_interval=interval,
                on_finish=finished,
            )
            for condition, press in presses.items()
        ]
    how = f"compressed every {interval} tokens" if interval else "compressed once"
    title = (
        f"{model}: {len(prompts)} {task.name} prompts, {task.max_new_tokens} new tokens, {how}\n"
        f"guard {bundle}: {point} operating point, {action}"
    )
    click.echo(f"{title}\n\n{summary(trials)}")
    if show:
        for trial in trials:
            if trial.guarded is not None:
                click.echo("\n" + trace_text(trial, partial(pieces, loaded.tokenizer)))


def _screen(params: Params, model: str, n: int, traces: pd.DataFrame, tokens: pd.DataFrame) -> str:
    from kvguard.report.terminal import condition_table
    from kvguard.studies.catastrophes.measure.outcomes import outcomes
    from kvguard.studies.catastrophes.measure.signals import signal_ranges

    task = params.task(model)
    title = (
        f"{model}: {n} {task.name} prompts, {task.n_shots} demonstrations, {task.max_new_tokens} new tokens"
    )
    note = "CBR: looping or non-termination. CFR: either, or a wrong answer. Ratio: the share of KV removed."
    tables = condition_table(outcomes(traces)), condition_table(signal_ranges(traces, tokens))
    return "\n\n".join([title, *tables, note])


def _show(params: Params, model: str, traces: pd.DataFrame, tokens: pd.DataFrame) -> None:
    from kvguard.cli.trace import render
    from kvguard.models.load import load_tokenizer

    tokenizer = load_tokenizer(model, params.spec(model))
    first = traces.sort_values("catastrophes", key=lambda found: -found.map(len), kind="stable")
    for trace_id in first.groupby(["compressor", "ratio"], sort=False)["trace_id"].first():
        row = traces[traces["trace_id"] == trace_id].iloc[0]
        click.echo("\n" + render(tokenizer, row, tokens[tokens["trace_id"] == trace_id]))
