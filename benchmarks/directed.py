"""Documents read behind prefixes and asked: many at once, against one at a time.

    python benchmarks/directed.py --model reference --examples 128

Both sides use all cores, or the accelerator, and must say the same NLL of every answer (the mean of its
tokens) to 1e-5 before any speed is shown.
Texts are those of the embedded reading task.
"""

import os
import time

import click
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.surgery import Asked, Reading, answer_nll, read
from kvguard.models.load import LoadedModel, load_model
from kvguard.studies.catastrophes.params import load_params
from kvguard.studies.directed.params import DatasetParams
from kvguard.studies.directed.sources import open_dataset
from kvguard.studies.directed.tokens import Tokens


@click.command()
@click.option("--model", default="reference", show_default=True, help="A name of params.yaml.")
@click.option(
    "--examples", default=128, show_default=True, help="Documents, each with a prefix and a question."
)
@click.option("--alone", default=32, show_default=True, help="Of these, how many are also run one at a time.")
@click.option("--sentences", default=12, show_default=True, help="Length of a document.")
@click.option("--rows", default=32, show_default=True, help="Rows of a forward pass.")
@click.option("--repeats", default=3, show_default=True, help="The best of so many runs counts.")
def main(model: str, examples: int, alone: int, sentences: int, rows: int, repeats: int) -> None:
    """Score answers under directed caches, batched and one at a time."""
    everything = load_model(model, load_params().spec(model))
    loaded, bos = everything.model, Tokens.of(everything).bos
    readings, asked = texts(everything, examples, sentences)
    some = range(0, examples, max(1, examples // alone))
    both: list[list[Tensor]] = [[], []]
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for side, (places, width) in enumerate(((range(examples), rows), (some, 1))):
            start = time.perf_counter()
            if side == 0:
                kept = read(loaded, readings, bos=bos, batch_rows=width)
                both[side] = answer_nll(loaded, kept, asked, batch_rows=width)
            else:
                both[side] = [alone_nll(loaded, readings[i], asked[i], bos) for i in places]
            best[side] = min(best[side], (time.perf_counter() - start) / len(places))
    error = max(abs(float(both[0][i].mean() - one.mean())) for i, one in zip(some, both[1], strict=True))
    if error > 1e-5:
        raise SystemExit(f"batched and single NLLs differ by {error:.1e}")
    per = [1000 * seconds for seconds in best]
    click.echo(
        f"{model}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}: {per[0]:.2f} ms an "
        f"example in batches of {rows}, {per[1]:.2f} ms one at a time: {per[1] / per[0]:.1f} times; NLLs "
        f"agree to {error:.1e}"
    )


def texts(loaded: LoadedModel, n: int, sentences: int) -> tuple[list[Reading], list[Asked]]:
    """Return made documents, read behind their questions and asked them, see ``embedded:reading``."""
    tokens, params = Tokens.of(loaded), DatasetParams(source="embedded:reading", sentences=sentences)
    examples = open_dataset("reading", params, 0).examples[:n]
    line = tokens.ids("\n")
    readings = [Reading(tokens.ids(one.context), tokens.ids(one.question), line) for one in examples]
    asked = [Asked([*line, *tokens.ids(one.question), *line], tokens.ids(one.target)[:8]) for one in examples]
    return readings, asked


def alone_nll(model: PreTrainedModel, reading: Reading, asked: Asked, bos: int | None) -> Tensor:
    """Read and ask one example."""
    return answer_nll(model, read(model, [reading], bos=bos), [asked])[0]


if __name__ == "__main__":
    main()
