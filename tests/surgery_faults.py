"""Six faults of cutting, moving and asking caches, planted one at a time; and the historic one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.surgery import Asked, DocumentCache, feeding, reading, sight
from kvguard.engine.surgery.rope import Move

SURGERY = "kvguard.engine.surgery"


@contextmanager
def look_ahead() -> Iterator[None]:
    """Every token sees the next one."""
    right = sight.visible
    with patch.object(sight, "visible", lambda query, *rest: right(query + 1, *rest)):
        yield


@contextmanager
def bos_dropped() -> Iterator[None]:
    """The first entry is cut with the prefix."""
    right = reading._Cutting.layer

    def cut(self: Any, index: int) -> list[Any]:
        pieces = right(self, index)
        return [type(p)(p.keys[:, 1:], p.values[:, 1:], p.positions[:, 1:]) for p in pieces]

    with patch.object(reading._Cutting, "layer", cut):
        yield


@contextmanager
def positions_off_by_one() -> Iterator[None]:
    """What is asked begins one position late."""
    right = feeding.Texts.of

    def late(texts: Any, starts: Sequence[int], device: torch.device) -> feeding.Texts:
        return right(texts, [start + (start > 0) for start in starts], device)

    with patch.object(feeding.Texts, "of", late):
        yield


@contextmanager
def wrong_base() -> Iterator[None]:
    """Keys are rotated by the angles of another base."""
    right = Move.__init__

    def wrong(self: Move, rotations: list[Any], *rest: Any) -> None:
        right(self, rotations, *rest)
        found = {}
        for rotation in self._angles:
            module = copy.deepcopy(rotation.module)
            for name, frequencies in module.named_buffers():
                setattr(module, name, frequencies**1.1)
            other = type(rotation)(module, rotation.layer_type, rotation.apply, rotation.partial)
            found[rotation] = other.between(*rest)
        self._angles = found

    with patch.object(Move, "__init__", wrong):
        yield


@contextmanager
def window_off_by_one() -> Iterator[None]:
    """A window is one token wider while reading and asking."""

    def wider(model: PreTrainedModel) -> list[int | None]:
        return [None if window is None else window + 1 for window in sliding_windows(model)]

    with patch.object(reading, "sliding_windows", wider), patch.object(feeding, "sliding_windows", wider):
        yield


@contextmanager
def prefix_leak() -> Iterator[None]:
    """The last token before the document is kept with it."""
    right = reading._Row.of

    def leaking(one: reading.Reading, n_opening: int) -> reading._Row:
        row = right(one, n_opening)
        leaks = int(row.n_cut > 0)
        return reading._Row(row.gap, row.first, row.n_cut - leaks, row.end + leaks)

    with patch.object(reading._Row, "of", leaking):
        yield


FAULTS = {
    fault.__name__: fault
    for fault in (look_ahead, bos_dropped, positions_off_by_one, wrong_base, window_off_by_one, prefix_leak)
}


@torch.inference_mode()
def historic_answer_nll(
    model: PreTrainedModel, kept: Sequence[DocumentCache], asked: Sequence[Asked]
) -> list[Tensor]:
    """Ask as the earlier study did: BOS cut, and ``cache_position`` passed as if it were there."""
    results = []
    for document, one in zip(kept, asked, strict=True):
        pairs = [
            (k[None, :, 1:], v[None, :, 1:]) for k, v in zip(document.keys, document.values, strict=True)
        ]
        text = torch.tensor([[*one.context, *one.answer]])
        position = torch.arange(document.end, document.end + text.shape[1])
        logits = model(
            input_ids=text,
            past_key_values=DynamicCache(pairs),
            cache_position=position,
            position_ids=position[None],
            attention_mask=torch.ones(1, document.end + text.shape[1]),
        ).logits[0]
        n = len(one.answer)
        results.append(-logits[-n - 1 : -1].log_softmax(-1).gather(1, text[0, -n:, None])[:, 0])
    return results
