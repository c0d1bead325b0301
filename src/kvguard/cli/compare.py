"""Two protocols side by side."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.cli.asking import open_settings, params_option

PROTOCOL = click.Choice(["v1", "v2"])


@click.command()
@click.argument("first", type=PROTOCOL)
@click.argument("second", type=PROTOCOL)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A name from models in the settings, again for another; by default its model and transfer_to.",
)
@params_option
@stage.one_line_errors
def compare(first: str, second: str, models: tuple[str, ...], params_path: Path | None) -> None:
    """Print what two protocols make of the same traces: `kvguard compare v1 v2`.

    v1 keeps the mistakes of earlier work: a prompt in train and test, a feature that looks ahead, thresholds
    picked on the traces that are measured, 50 prompts, wrong answers counted as catastrophes. v2 is the
    honest one. What v1 claims and v2 does not find is the mistakes' doing.

    The numbers are those of the last finished MLflow runs of `score`; `dvc repro` makes them.
    """
    from kvguard import tracking
    from kvguard.studies.catastrophes.chapter.comparison import comparison_text

    params = open_settings(params_path)
    chosen = models or (params.model, params.transfer_to)
    for model in chosen:
        params.spec(model)
    click.echo(comparison_text(chosen, [first, second], tracking.latest_metrics))
