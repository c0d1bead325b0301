"""What happens to a model under a compressor, in one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvguard.commands import edge

if TYPE_CHECKING:
    import pandas as pd

    from kvguard.config import Params, Preset


@click.command()
@edge.model_option
@click.option("--compressor", help="A name from compressors in the settings; asked beside the baseline.")
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, max_open=True),
    help="The share of KV pairs that the compressor removes.",
)
@click.option("--preset", help="A name from presets in the settings, experiment-001 say, in their place.")
@click.option("-n", "n", type=click.IntRange(min=1), default=10, show_default=True, help="Prompts.")
@click.option("--show", is_flag=True, help="Print one trace of each condition too.")
@edge.params_option
@edge.one_line_errors
def run(
    model: str,
    compressor: str | None,
    ratio: float | None,
    preset: str | None,
    n: int,
    show: bool,
    params_path: Path,
) -> None:
    """Ask a model N prompts with and without compression, and print how they ended."""
    if (preset is None) == (compressor is None) or (compressor is None) != (ratio is None):
        raise click.UsageError("give --compressor with --ratio, or --preset")
    import tempfile

    from kvguard.commands.plan import draw_prompts, plan_sweep
    from kvguard.config import load_params
    from kvguard.generation.sweep import run_sweep
    from kvguard.traces import read_table, read_tokens

    params = load_params(params_path)
    chosen = _preset(params, preset, compressor, ratio)
    prompts = draw_prompts(params, model, n)
    with tempfile.TemporaryDirectory(prefix="kvguard-") as folder:
        result = run_sweep(plan_sweep(params, model, prompts, chosen), Path(folder))
        traces = read_table("traces", result.traces)
        tokens = read_tokens(Path(folder), ["token_id", "entropy", "top1_prob"])
    click.echo(_screen(params, model, n, traces, tokens))
    if show:
        _show(params, model, traces, tokens)


def _preset(params: Params, name: str | None, compressor: str | None, ratio: float | None) -> Preset:
    from kvguard.config import Preset, check_known

    if name is not None:
        check_known("--preset", name, params.presets)
        return params.presets[name]
    assert compressor is not None
    assert ratio is not None
    check_known("--compressor", compressor, params.compressors)
    return Preset(compressors=(compressor,), ratios=(ratio,))


def _screen(params: Params, model: str, n: int, traces: pd.DataFrame, tokens: pd.DataFrame) -> str:
    from kvguard.measure.outcomes import outcomes
    from kvguard.measure.signals import signal_ranges
    from kvguard.report.terminal import condition_table

    spec = params.spec(model)
    title = (
        f"{model}: {n} {spec.task} prompts, {spec.n_shots} demonstrations, {spec.max_new_tokens} new tokens"
    )
    note = "CBR: looping or non-termination. CFR: either, or a wrong answer. Ratio: the share of KV removed."
    tables = condition_table(outcomes(traces)), condition_table(signal_ranges(traces, tokens))
    return "\n\n".join([title, *tables, note])


def _show(params: Params, model: str, traces: pd.DataFrame, tokens: pd.DataFrame) -> None:
    from kvguard.commands.trace import render
    from kvguard.models.registry import load_tokenizer

    tokenizer = load_tokenizer(model, params.spec(model))
    first = traces.sort_values("catastrophes", key=lambda found: -found.map(len), kind="stable")
    for trace_id in first.groupby(["compressor", "ratio"], sort=False)["trace_id"].first():
        row = traces[traces["trace_id"] == trace_id].iloc[0]
        click.echo("\n" + render(tokenizer, row, tokens[tokens["trace_id"] == trace_id]))
