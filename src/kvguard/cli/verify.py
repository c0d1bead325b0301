"""Whether a data set is whole, and whether kvpress says the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvguard import stage
from kvguard.cli.asking import Asked, folder_of, model_options

if TYPE_CHECKING:
    from kvguard.studies.catastrophes.params import Params


@click.command()
@model_options
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
@click.option(
    "--features",
    is_flag=True,
    help="Compute the features of every trace again, token by token as the guard does, and compare them "
    "with the table of `dvc repro featurize`.",
)
@stage.one_line_errors
def verify(asked: Asked, data: Path | None, n: int | None, features: bool) -> None:
    """Check that every file of a data set is whole and that its tables agree."""
    if features and data:
        raise click.UsageError("--features needs the features table of the pipeline: leave out --data")
    from kvguard.store.tables import read_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes import verify as verification

    model, params, folder = folder_of(asked, data)
    verification.check_finished(folder)
    prompts = read_table("prompts", folder / "prompts.parquet" if data else layout.prompts(model))
    counts = verification.check_dataset(folder, prompts)
    click.echo(f"{folder}: whole: {counts.n_traces} traces, {counts.n_tokens} tokens, {counts.n_files} files")
    if n is not None:
        outcome = verification.compare_with_kvpress(params, model, folder, prompts, n)
        click.echo(outcome.text())
        outcome.require()
    if features:
        _verify_features(params, model)


def _verify_features(params: Params, model: str) -> None:
    from kvguard.guard.features import thinking_mask
    from kvguard.models.load import load_tokenizer
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.verify import check_features

    spec = params.spec(model)
    mask = thinking_mask(load_tokenizer(model, spec), params.featurize.thinking_words)
    table = layout.features(model)
    n_tokens = check_features(layout.generated(model), table, params.task(model).max_new_tokens, mask)
    click.echo(f"{table}: streamed features are the same float32 numbers for all {n_tokens} tokens")
