"""Training rows of long texts: a text, then questions about it, as turns of one chat.

Most rows ask for all facts, in another order than they stand in: one token in four have to be found in the
text, where an answer about two persons has two such tokens in seventy. That is what teaches a small model
to look.

Rows grow over the training, from :data:`SHORTEST` tokens to the whole window. Batch ``i`` depends on the
seed and ``i`` alone, as in :mod:`kvguard.models.reference.corpus`.
"""

import re
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerFast

from kvguard.models.reference.corpus import Batch, encoder
from kvguard.models.reference.tokenizer import ASSISTANT, BOS, EOS, USER
from kvguard.tasks import longarith

SHORTEST = 192
_TOKENS_PER_SENTENCE = 9.3  # 9.0 on average: a text of 2,048 tokens never lacks its first answer
_TURN_TOKENS = 70  # one question with its answer
_RECITALS = 0.6  # share of rows
_PLAIN = 0.2  # weight of what is no number: it says little
_GROWTH = (0.25, 0.6)  # shares of the training between which rows grow


class LongTexts:
    """Makes the batches that continue a training on long texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
        self._encode = encoder(tokenizer)
        self._pad = tokenizer.pad_token_id
        self._seed = seed
        self._steps = steps

    def batch(self, index: int, n_tokens: int, longest: int) -> Batch:
        """Return batch ``index``: rows of one length, ``n_tokens`` in all."""
        rng = Random(f"long/{self._seed}/{index}")
        length = self._length(rng, index, longest)
        rows = [self._row(rng, length) for _ in range(max(1, n_tokens // length))]
        ids, weights = zip(*rows, strict=True)
        return Batch(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32))

    def _length(self, rng: Random, index: int, longest: int) -> int:
        """Return a row length: half of the batches have the longest of their time, others any below."""
        first, last = _GROWTH
        grown = min(1.0, max(0.0, (index / self._steps - first) / (last - first)))
        bound = round(SHORTEST * (longest / SHORTEST) ** grown)
        return bound if rng.random() < 0.5 else rng.randint(SHORTEST, bound)

    def _row(self, rng: Random, length: int) -> tuple[list[int], list[float]]:
        """Return one chat cut to ``length``: about pairs as they are asked, or naming every fact."""
        recital = rng.random() < _RECITALS
        room = rng.choice((length / 3, length / 2, length)) - _TURN_TOKENS
        sentences = max(longarith.MIN_SENTENCES, int(room / _TOKENS_PER_SENTENCE))
        made = longarith.document(rng, sentences, rng.choice((longarith.FACT_SHARE, 0.5, 1.0)))
        pieces = [(f"{BOS}{USER}{made.text}\n\n", 0.0)]
        while sum(len(text) for text, _ in pieces) < 4 * length:
            pieces += self._recital(rng, made) if recital else self._pair(rng, made, cue=len(pieces) == 1)
            pieces.append((USER, 0.0))
        ids: list[int] = []
        weights: list[float] = []
        encoded = self._encode([text for text, _ in pieces], add_special_tokens=False)
        for (_, weight), encoding in zip(pieces, encoded, strict=True):
            ids += encoding.ids
            weights += [weight] * len(encoding.ids)
        missing = max(0, length - len(ids))
        return (ids + [self._pad] * missing)[:length], (weights + [0.0] * missing)[:length]

    def _pair(self, rng: Random, made: longarith.Document, cue: bool) -> list[tuple[str, float]]:
        """Return one question about two persons with its answer."""
        pair = next(made.askable("train", rng, far=1.0), None)
        if pair is None:
            return self._recital(rng, made)
        pieces = re.split(r"( \d+)", made.solution(*pair))
        asked = (f"{longarith.question(*pair, cue=cue)}{ASSISTANT}", 0.0)
        return [
            asked,
            *((piece, 1.0 if piece.strip().isdigit() else _PLAIN) for piece in pieces),
            (EOS, _PLAIN),
        ]

    def _recital(self, rng: Random, made: longarith.Document) -> list[tuple[str, float]]:
        """Return every fact in another order; what has to be found is learned from, and nothing else."""
        people = rng.sample(list(made.holdings), len(made.holdings))
        pieces = [(f"What does each of them have?{ASSISTANT}So", 0.0)]
        for person in people:
            pieces += [(f" {person} has", 0.0), (f" {made.holdings[person]}", 1.0), (" and", 0.0)]
        return pieces
