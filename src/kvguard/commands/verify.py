"""Whether a data set is whole, and whether kvpress says the same."""

from pathlib import Path

import click

from kvguard.commands import edge


@click.command()
@edge.model_option
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of a sweep; data/generate/MODEL by default.",
)
@click.option(
    "--against-kvpress",
    "n",
    type=click.IntRange(min=1),
    help="Generate this many traces again through kvpress, one by one, and compare their tokens.",
)
@edge.params_option
@edge.one_line_errors
def verify(model: str, data: Path | None, n: int | None, params_path: Path) -> None:
    """Check that every file of a data set is whole and that its tables agree."""
    from kvguard import layout, verification
    from kvguard.config import load_params
    from kvguard.traces import read_table

    params = load_params(params_path)
    folder = data or layout.generated(model)
    prompts = read_table("prompts", folder / "prompts.parquet" if data else layout.prompts(model))
    counts = verification.check_dataset(folder, prompts)
    click.echo(f"{folder}: whole: {counts.n_traces} traces, {counts.n_tokens} tokens, {counts.n_files} files")
    if n is not None:
        outcome = verification.compare_with_kvpress(params, model, folder, prompts, n)
        click.echo(outcome.text())
        outcome.require()
