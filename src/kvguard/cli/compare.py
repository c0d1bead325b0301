"""Protocols side by side."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.cli.asking import open_settings, params_option
from kvguard.studies.catastrophes.protocols import PROTOCOLS

_HELP = "\n\n".join(
    [
        f"Print what protocols make of the same traces: `kvguard compare {' '.join(PROTOCOLS)}`.",
        " ".join(protocol.about for protocol in PROTOCOLS.values()),
        "The numbers are those of the last finished MLflow runs of `score`; `dvc repro` makes them.",
    ]
)


@click.command(help=_HELP)
@click.argument("protocols", nargs=-1, required=True, type=click.Choice(list(PROTOCOLS)))
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A name from models in the settings, again for another; by default its model and transfer_to.",
)
@params_option
@stage.one_line_errors
def compare(protocols: tuple[str, ...], models: tuple[str, ...], params_path: Path | None) -> None:  # noqa: D103
    named = list(dict.fromkeys(protocols))
    if len(named) < 2:
        raise click.UsageError(f"nothing to compare {named[0]} with: name two of {', '.join(PROTOCOLS)}")

    from kvguard import tracking
    from kvguard.studies.catastrophes.chapter.comparison import comparison_text

    params = open_settings(params_path)
    chosen = models or (params.model, params.transfer_to)
    for model in chosen:
        params.spec(model)
    click.echo(comparison_text(chosen, named, tracking.latest_metrics))
