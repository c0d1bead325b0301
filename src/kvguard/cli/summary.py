"""What the last pipeline run found."""

from pathlib import Path

import click

from kvguard import stage


@click.command()
@click.option(
    "--metrics",
    type=click.Path(path_type=Path, file_okay=False),
    default="metrics",
    show_default=True,
    help="The folder of the stages' metrics.",
)
@stage.one_line_errors
def summary(metrics: Path) -> None:
    """Print the results of the last `dvc repro`, and where to look next."""
    from kvguard.studies.catastrophes.chapter.summary import summary_text

    click.echo(summary_text(metrics))
