"""One trace in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvguard import stage
from kvguard.cli.asking import Asked, folder_of, model_options

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


@click.command()
@model_options
@click.option("--id", "trace_id", type=int, help="The trace; by default the first that fits the rest.")
@click.option("--compressor", help="Only traces of this compressor.")
@click.option("--ratio", type=click.FloatRange(0, 1, max_open=True), help="Only traces at this ratio.")
@click.option("--prompt", "prompt_id", help="Only traces of this prompt_id.")
@click.option("--catastrophe", help="Only traces with this catastrophe, looping say.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of generate or of a sweep; data/generate/MODEL by default.",
)
@stage.one_line_errors
def trace(
    asked: Asked,
    trace_id: int | None,
    compressor: str | None,
    ratio: float | None,
    prompt_id: str | None,
    catastrophe: str | None,
    data: Path | None,
) -> None:
    """Print the tokens of one trace, its entropy curve and the onset of its catastrophe."""
    from kvguard.judging.judge import read_judged
    from kvguard.models.load import load_tokenizer
    from kvguard.store.tables import read_tokens

    model, params, folder = folder_of(asked, data)
    spec = params.spec(model)
    traces = read_judged(folder / "traces.parquet")
    wanted = {"trace_id": trace_id, "compressor": compressor, "ratio": ratio, "prompt_id": prompt_id}
    row = _first(traces, {key: value for key, value in wanted.items() if value is not None}, catastrophe)
    tokens = read_tokens(folder, ["token_id", "entropy"])
    tokenizer = load_tokenizer(model, spec)
    click.echo(render(tokenizer, row, tokens[tokens["trace_id"] == row["trace_id"]]))


def render(tokenizer: PreTrainedTokenizerBase, row: pd.Series, tokens: pd.DataFrame) -> str:
    """Return one trace as text, its tokens decoded by the model's tokenizer."""
    from kvguard.report.terminal import trace_text

    return trace_text(row, tokens, pieces(tokenizer, list(row["token_ids"])))


def pieces(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[str]:
    """Return what each token adds to the text: a character of several tokens appears at its last."""
    from kvguard.models.decoding import text_of

    ends = range(1, len(token_ids) + 1)
    texts = [text_of(tokenizer, token_ids[:end], special=True).rstrip("\ufffd") for end in ends]
    return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]


def _first(traces: pd.DataFrame, wanted: dict[str, object], catastrophe: str | None) -> pd.Series:
    from kvguard.errors import KvguardError

    found = traces
    for column, value in wanted.items():
        if not (found[column] == value).any():
            known = ", ".join(str(v) for v in found[column].unique()[:8])
            raise KvguardError(f"no trace has {column} {value} (others asked for it too): there are {known}")
        found = found[found[column] == value]
    if catastrophe is not None:
        found = found[found["catastrophes"].map(lambda kinds: catastrophe in kinds)]
        if found.empty:
            raise KvguardError(f"no such trace has the catastrophe {catastrophe!r}: try another compressor")
    return found.iloc[0]
