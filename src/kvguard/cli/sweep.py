"""A sweep outside the pipeline, into a folder of one's choice."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.cli.asking import Asked, asking_options, check_model, n_prompts, remember


@click.command()
@asking_options
@click.option("--preset", help="A name from presets in the settings; that of generate by default.")
@click.option(
    "-n",
    "n",
    type=click.IntRange(min=1),
    help="Prompts; by default sample.n of the settings, of --prompts all.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder.")
@stage.one_line_errors
def sweep(asked: Asked, preset: str | None, n: int | None, out: Path) -> None:
    """Generate the traces of a preset; started again, it keeps what is finished."""
    from kvguard.config import check_known
    from kvguard.judging.judge import read_judged
    from kvguard.report.terminal import condition_table
    from kvguard.store.tables import write_table
    from kvguard.studies.catastrophes.generate import draw_prompts, plan_sweep
    from kvguard.studies.catastrophes.measure.outcomes import outcomes
    from kvguard.sweep.run import run_sweep

    model, params = asked.settings()
    if preset is not None:
        check_known("--preset", preset, params.presets)
    chosen = params.presets[preset or params.generate.preset]
    check_model(params, model)
    prompts = draw_prompts(params, model, n_prompts(params, model, n, None))
    plan = plan_sweep(params, model, prompts, chosen)
    result = run_sweep(plan, out)
    write_table("prompts", prompts, out / "prompts.parquet")
    remember(out, params, model)
    click.echo(condition_table(outcomes(read_judged(result.traces))))
    click.echo(f"\n{out}: {result.n_made} parts made, {result.n_kept} kept")
