"""Fill the paper with the numbers of the last run, and compile it."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.params_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/paper",
    show_default=True,
    help="The folder to build in: it is emptied first.",
)
@stage.one_line_errors
def main(params_path: Path, out: Path) -> None:  # noqa: D103
    from kvguard.studies.catastrophes.chapter.build import load_pipeline
    from kvguard.studies.catastrophes.chapter.paper import TEXT, build_paper
    from kvguard.studies.catastrophes.params import load_params

    pdf = build_paper(load_pipeline(load_params(params_path)), Path(__file__).with_name(TEXT), out)
    click.echo(pdf)


if __name__ == "__main__":
    main()
