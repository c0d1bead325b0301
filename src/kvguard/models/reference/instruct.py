"""Training rows of instructions: chats about short texts, some with further questions about the same text.

Texts grow over the training. Batch ``i`` depends on the seed and ``i`` alone, as in
:mod:`kvguard.models.reference.corpus`.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerFast

from kvguard.models.reference.corpus import Batch, encoder
from kvguard.models.reference.tokenizer import ASSISTANT, BOS, EOS, USER
from kvguard.tasks import instructions

SHORTEST, LONGEST = 5, 48  # sentences of a text
_FIRST = 12  # the longest text of the first rows
_GROWTH = (0.1, 0.6)  # shares of the training between which texts grow
_TOLD = (0, 1, 1, 1, 1, 1, 1, 2, 2, 2)  # instructions of a question
_TURNS = (1, 2, 4, 8)  # questions about one text
_OFTEN = 10  # repetitions of the tokenizer's texts
_SYSTEM = 0.4  # share of instructions before the text that are a message of their own

_Piece = tuple[str, float]


def tokenizer_texts() -> Iterator[str]:
    """Yield the texts that the tokenizer's merges are learned from."""
    for _ in range(_OFTEN):
        for sentence in instructions.sentences():
            yield from (sentence, f" {sentence}")
        for thing in instructions.THINGS:
            yield from (thing, f"{thing} {thing}", thing.upper(), f"{thing.upper()} {thing.upper()}")


class Instructions:
    """Makes the batches of a training on instructions."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
        self._encode = encoder(tokenizer)
        self._seed = seed
        self._steps = steps

    def batch(self, index: int, n_rows: int, row_length: int) -> Batch:
        """Return batch ``index``: chats one after another, the last of a row cut."""
        rng = Random(f"instruct/{self._seed}/{index}")
        first, last = _GROWTH
        grown = min(1.0, max(0.0, (index / self._steps - first) / (last - first)))
        longest = round(_FIRST * (LONGEST / _FIRST) ** grown)
        rows = [self._row(rng, row_length, longest) for _ in range(n_rows)]
        ids, weights = zip(*rows, strict=True)
        return Batch(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32))

    def _row(self, rng: Random, length: int, longest: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            pieces = list(_chat(rng, rng.randint(SHORTEST, longest)))
            encoded = self._encode([text for text, _ in pieces], add_special_tokens=False)
            for (_, weight), encoding in zip(pieces, encoded, strict=True):
                ids += encoding.ids
                weights += [weight] * len(encoding.ids)
        return ids[:length], weights[:length]


def _chat(rng: Random, n_sentences: int) -> Iterator[_Piece]:
    """Yield a chat: a question as it is asked of the finished model, and some more about the same text."""
    made = instructions.sample(rng, n_sentences, rng.choice(_TOLD), "train")
    if made.told and made.position == "start" and rng.random() < _SYSTEM:
        yield f"{BOS}{USER}{made.instruction}{USER}{made.bare}{ASSISTANT}", 0.0
    else:
        yield f"{BOS}{USER}{made.prompt}{ASSISTANT}", 0.0
    yield f"{made.answer}{EOS}", 1.0
    for _ in range(rng.choice(_TURNS) - 1):
        more = instructions.ask(rng, made.sentences, made.person, made.things, rng.choice((1, 1, 2)), "train")
        if more is not None:
            yield f"{USER}{more.instruction} {more.question}{ASSISTANT}", 0.0
            yield f"{more.answer}{EOS}", 1.0
