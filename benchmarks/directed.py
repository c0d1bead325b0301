"""Documents read behind prefixes and asked: many at once, against one at a time.

    python benchmarks/directed.py --model reference --examples 128

Both sides use all cores, or the accelerator, and must say the same NLLs to 1e-5 before any speed is shown.
Texts are random token ids: they cost as much as real ones.
"""

import os
import time

import click
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.surgery import Asked, Reading, answer_nll, read
from kvguard.models.load import load_model
from kvguard.studies.catastrophes.params import load_params


@click.command()
@click.option("--model", default="reference", show_default=True, help="A name of params.yaml.")
@click.option(
    "--examples", default=128, show_default=True, help="Documents, each with a prefix and a question."
)
@click.option("--alone", default=32, show_default=True, help="Of these, how many are also run one at a time.")
@click.option("--tokens", default=100, show_default=True, help="Length of a document, give or take a third.")
@click.option("--rows", default=32, show_default=True, help="Rows of a forward pass.")
@click.option("--repeats", default=3, show_default=True, help="The best of so many runs counts.")
def main(model: str, examples: int, alone: int, tokens: int, rows: int, repeats: int) -> None:
    """Score answers under directed caches, batched and one at a time."""
    loaded = load_model(model, load_params().spec(model)).model
    readings, asked = texts(loaded, examples, tokens)
    bos = loaded.config.bos_token_id
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
    error = max(float((both[0][i] - one).abs().max()) for i, one in zip(some, both[1], strict=True))
    if error > 1e-5:
        raise SystemExit(f"batched and single NLLs differ by {error:.1e}")
    per = [1000 * seconds for seconds in best]
    click.echo(
        f"{model}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}: {per[0]:.2f} ms an "
        f"example in batches of {rows}, {per[1]:.2f} ms one at a time: {per[1] / per[0]:.1f} times; NLLs "
        f"agree to {error:.1e}"
    )


def texts(model: PreTrainedModel, n: int, tokens: int) -> tuple[list[Reading], list[Asked]]:
    """Return documents of different lengths, with prefixes of 12 tokens, questions of 14 and answers of 3."""
    random = np.random.default_rng(0)
    size = model.config.get_text_config().vocab_size

    def ids(length: int) -> list[int]:
        found: list[int] = random.integers(3, size, length).tolist()
        return found

    lengths = random.integers(tokens * 2 // 3, tokens * 4 // 3, n)
    readings = [Reading(ids(length), ids(12), ids(1)) for length in lengths]
    return readings, [Asked(ids(14), ids(3)) for _ in range(n)]


def alone_nll(model: PreTrainedModel, reading: Reading, asked: Asked, bos: int | None) -> Tensor:
    """Read and ask one example."""
    return answer_nll(model, read(model, [reading], bos=bos), [asked])[0]


if __name__ == "__main__":
    main()
