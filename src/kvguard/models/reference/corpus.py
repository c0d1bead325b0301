"""Training rows: half running text as in pretraining, half chat as at inference.

A row is a fixed number of tokens with one loss weight per token. Batch ``i`` depends on the seed
and ``i`` alone, so a resumed training sees what an uninterrupted one would have seen.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from kvguard.models.reference.tokenizer import ASSISTANT, BOS, EOS, USER
from kvguard.tasks import arithmetic
from kvguard.tasks.jsonl import read_jsonl, text_of
from kvguard.tasks.prompts import INSTRUCTION, build_prompt

CHAT_SHARE = 0.5
_GSM8K_SHARE = 0.3
_MAX_SHOTS = 3
_READING_WEIGHT = 0.3
_CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")

# How a worked problem is set in running text: (before the question, before the solution, after it).
_LAYOUTS = (
    ("Q: ", "\nA: ", "\n\n"),
    ("Q: ", "\nA: ", "\n\n"),
    ("Question: ", "\nAnswer: ", "\n\n"),
    ("Problem. ", "\nSolution. ", "\n\n"),
    ("", "\n", "\n\n"),
    ("", " ", "\n"),
)

# What may open a conversation and a stretch of running text alike, so that no sentence is the cue to stop.
_OPENINGS = (
    INSTRUCTION,
    "Solve the problem. Write every step. The answer stands after ####.",
    "Work step by step, then write #### and the number.",
    "Here are word problems with worked solutions.",
    "Answer the last question. Show the steps.",
    "Think about each problem step by step. End with ####.",
    "These problems are solved step by step and end with #### and the answer.",
    "Calculate.",
)
_CHAT_OPENING_SHARE = 0.75
_TEXT_OPENING_SHARE = 0.4

_Piece = tuple[str, float]


def read_gsm8k_text(path: Path) -> list[tuple[str, str]]:
    """Return (question, solution) pairs of a GSM8K JSONL file, calculator notes removed."""
    return [
        (
            text_of(row, "question", f"{path}, line {number}"),
            _CALCULATOR_NOTE.sub("", text_of(row, "answer", f"{path}, line {number}")),
        )
        for number, row in read_jsonl(path)
    ]


def tokenizer_texts(gsm8k: list[tuple[str, str]], seed: int, n: int = 6000) -> Iterator[str]:
    """Yield the texts that the tokenizer's merges are learned from."""
    rng = Random(f"tokenizer/{seed}")
    for _ in range(n):
        problem = arithmetic.generate(rng, "train")
        yield build_prompt(problem.question, instruction=rng.choice(_OPENINGS))
        yield f"A: {problem.solution}"
    for question, solution in gsm8k[: n // 4]:
        yield f"Question: {question}\nAnswer: {solution}"


def encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[Encoding]]:
    """Return a batch encoder of ``tokenizer`` that never pads nor cuts."""
    # A copy: calling the tokenizer with padding switches padding on in its shared backend for good.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend.encode_batch


@dataclass(frozen=True)
class Batch:
    """Token ids and the loss weight of each, both [rows, row_length]."""

    ids: np.ndarray
    weights: np.ndarray


class Corpus:
    """Makes the batches of one training run."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, gsm8k: list[tuple[str, str]], seed: int) -> None:
        self._encode = encoder(tokenizer)
        self._gsm8k = gsm8k
        self._seed = seed

    def batch(self, index: int, n_rows: int, row_length: int) -> Batch:
        """Return batch ``index``: chat and running text in turns."""
        rng = Random(f"batch/{self._seed}/{index}")
        ids = np.empty((n_rows, row_length), dtype=np.int64)
        weights = np.empty((n_rows, row_length), dtype=np.float32)
        for row in range(n_rows):
            chat = (row + index * n_rows) % 2 == 0
            ids[row], weights[row] = self._row(rng, row_length, chat)
        return Batch(ids, weights)

    def _row(self, rng: Random, length: int, chat: bool) -> tuple[list[int], list[float]]:
        """Return one row; running text starts in the middle of a document half of the time."""
        start = 0 if chat or rng.random() < 0.5 else rng.randint(1, 200)
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < start + length:
            pieces = self._chat(rng) if chat else self._text(rng, first=not ids)
            encoded = self._encode([text for text, _ in pieces], add_special_tokens=False)
            for (_, weight), encoding in zip(pieces, encoded, strict=True):
                ids += encoding.ids
                weights += [weight] * len(encoding.ids)
        return ids[start : start + length], weights[start : start + length]

    def _chat(self, rng: Random) -> list[_Piece]:
        """Return one conversation; the loss is on solutions, the demonstrations' included."""
        n_shots = rng.choice((0, 1, 2, 3, 3))
        low, high = arithmetic.DEMONSTRATION_STEPS
        shots = [arithmetic.generate(rng, "train", low, high) for _ in range(n_shots)]
        problem = arithmetic.generate(rng, "train")
        opening = rng.choice(_OPENINGS) if rng.random() < _CHAT_OPENING_SHARE else ""
        prompt = build_prompt(problem.question, shots, opening)
        pieces: list[_Piece] = [(BOS + USER, 0.0)]
        for shot in shots:
            before, prompt = prompt.split(f" {shot.solution}", 1)
            pieces += [(before, 0.0), (f" {shot.solution}", 1.0)]
        return [*pieces, (prompt, 0.0), (ASSISTANT, 0.0), (problem.solution, 1.0), (EOS, 1.0)]

    def _text(self, rng: Random, first: bool) -> list[_Piece]:
        """Return a stretch of running text in one layout: a few problems, no roles, no end."""
        lead, turn, end = rng.choice(_LAYOUTS)
        pieces: list[_Piece] = [(BOS, 0.0)] if first else []
        if rng.random() < _TEXT_OPENING_SHARE:
            pieces.append((f"{rng.choice(_OPENINGS)}\n\n", _READING_WEIGHT))
        real = rng.random() < _GSM8K_SHARE and bool(self._gsm8k)
        for _ in range(rng.randint(1, 4)):
            if real:
                question, solution = rng.choice(self._gsm8k)
                pieces.append((f"{lead}{question}{turn}{solution}{end}", _READING_WEIGHT))
            else:
                problem = arithmetic.generate(rng, "train")
                pieces.append((f"{lead}{problem.question}{turn.rstrip(' ')}", _READING_WEIGHT))
                glue = " " if turn.endswith(" ") else ""
                pieces.append((f"{glue}{problem.solution}{end}", 1.0))
        return pieces
