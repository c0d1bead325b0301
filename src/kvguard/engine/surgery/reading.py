"""Phase A: documents are read behind their prefixes, and what is kept of them moves to the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.presses import attention_for
from kvguard.engine.surgery.document_cache import DocumentCache, Piece
from kvguard.engine.surgery.feeding import Texts, in_batches
from kvguard.engine.surgery.pressing import pressing
from kvguard.engine.surgery.rope import Move, Rope
from kvguard.engine.surgery.sight import forward, masks
from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from kvpress import BasePress

Attention = Literal["causal", "bidirectional", "isolated"]


@dataclass(frozen=True)
class Reading:
    """A document to read, as token ids: ``[bos] + prefix + separator + document``.

    Parameters
    ----------
    document : sequence of int
        At least one token.
    prefix, separator : sequence of int
        Read before it, and then cut from the cache. Where the prefix is empty the separator is left out too.
    keep_prefix : bool
        Keep prefix and separator where they stand: nothing is cut or moved.
    """

    document: Sequence[int]
    prefix: Sequence[int] = ()
    separator: Sequence[int] = ()
    keep_prefix: bool = False

    @property
    def before(self) -> list[int]:
        """What is read before the document, without BOS."""
        return [*self.prefix, *self.separator] if self.prefix else []


@torch.inference_mode()
def read(
    model: PreTrainedModel,
    readings: Sequence[Reading],
    *,
    bos: int | None,
    press: BasePress | None = None,
    attention: Attention = "causal",
    batch_rows: int = 32,
) -> list[DocumentCache]:
    """Read documents behind their prefixes; keep BOS and the document's entries, moved to positions 1 to D.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM with rotary positions.
    readings : sequence of Reading
        Read in batches of like length; the result does not depend on their company.
    bos : int or None
        The token that opens every text, kept at position 0; None for models without one (the document then
        moves to 0 to D - 1).
    press : BasePress, optional
        Compresses what is kept: it sees the kept entries where they are moved to, and the hidden states that
        they were computed from, under the prefix. Without a prefix it keeps what kvpress keeps.
        Sliding-window layers are not compressed.
    attention : {"causal", "bidirectional", "isolated"}
        Who sees whom while reading: the tokens before; all of prefix and document (a prefix LM); or the
        tokens before, but none of the document what stands between BOS and it: the prefix then has length and
        no content.
    batch_rows : int
        Documents of one forward pass at most.

    Returns
    -------
    list of DocumentCache
        In the order of ``readings``. A sliding-window layer holds what it would hold had the document been
        read at the front: the last ``window - 1`` entries.

    Raises
    ------
    KvguardError
        The model's keys cannot be moved exactly, a document is empty or too long, or the press fails.
    """
    rope = Rope.of(model)
    opening = [] if bos is None else [bos]
    texts = [[*opening, *one.before, *one.document] for one in readings]
    for number, (one, text) in enumerate(zip(readings, texts, strict=True)):
        if not one.document:
            raise KvguardError(f"reading {number}: its document is empty; leave it out, or give it a text")
        rope.check(len(text), f"reading {number}")
    results: dict[int, DocumentCache] = {}
    for batch in in_batches([(len(text),) for text in texts], batch_rows):
        rows = [_Row.of(readings[i], len(opening)) for i in batch]
        caches = _read(model, rope, rows, [texts[i] for i in batch], press, attention)
        results.update(zip(batch, caches, strict=True))
    return [results[i] for i in range(len(readings))]


@dataclass(frozen=True)
class _Row:
    """What is cut from a text: entries ``gap`` to ``gap + n_cut``; those behind move forward into the gap.

    The document begins at ``first``; ``end`` entries are kept.
    """

    gap: int
    first: int
    n_cut: int
    end: int

    @classmethod
    def of(cls, reading: Reading, n_opening: int) -> _Row:
        n_before = len(reading.before)
        n_cut = 0 if reading.keep_prefix else n_before
        return cls(
            n_opening, n_opening + n_before, n_cut, n_opening + n_before + len(reading.document) - n_cut
        )

    @property
    def entries(self) -> Tensor:
        """Where in the text what is kept stood, in order. [end]"""
        return torch.cat([torch.arange(self.gap), torch.arange(self.gap + self.n_cut, self.end + self.n_cut)])

    def moved(self, positions: Tensor) -> Tensor:
        """Return the new positions of the tokens at ``positions`` [T]; cut ones stay."""
        return torch.where(positions >= self.gap + self.n_cut, positions - self.n_cut, positions)

    def hidden(self, positions: Tensor) -> Tensor:
        """Tell which tokens an isolated document does not see. [T, T]"""
        before = (positions >= self.gap) & (positions < self.first)
        return (positions >= self.first)[:, None] & before


def _read(
    model: PreTrainedModel,
    rope: Rope,
    rows: Sequence[_Row],
    texts: Sequence[Sequence[int]],
    press: BasePress | None,
    how: Attention,
) -> list[DocumentCache]:
    told = Texts.of(texts, [0] * len(texts), model.device)
    windows = sliding_windows(model)
    seen = masks(told.positions, [told.keys[:, None]] * len(windows), windows, block=how == "bidirectional")
    if how == "isolated":
        hidden = torch.stack([row.hidden(at) for row, at in zip(rows, told.positions, strict=True)])[:, None]
        seen = [mask & ~hidden for mask in seen]
    new = torch.stack([row.moved(at) for row, at in zip(rows, told.positions, strict=True)])
    none = told.ids.new_zeros(0)
    cache = DynamicCache()
    move = rope.move(told.positions, new, torch.empty(0, dtype=model.dtype, device=model.device))
    cutting = _Cutting(cache, move, rows, windows)
    if press is None:
        forward(model, told.ids, told.positions, cache, seen, (none, none))
        layers = [cutting.layer(index) for index in range(len(windows))]
    else:
        with pressing(model, rope, press, cutting.layer, [row.entries for row in rows]) as layers:
            forward(model, told.ids, told.positions, cache, seen, (none, none), attention_for(press))
    return [DocumentCache.of([layer[r] for layer in layers], row.end) for r, row in enumerate(rows)]


class _Cutting:
    """Cuts what is kept of every row out of a layer that was just computed."""

    def __init__(
        self, cache: DynamicCache, move: Move, rows: Sequence[_Row], windows: Sequence[int | None]
    ) -> None:
        self._cache, self._move, self._rows, self._windows = cache, move, rows, windows
        self._stand: dict[tuple[int, int], Tensor] = {}  # layers that hold the same entries share positions

    def layer(self, index: int) -> list[Piece]:
        """Return what is kept of every row."""
        full, window = self._cache.layers[index], self._windows[index]
        assert full.keys is not None
        assert full.values is not None
        moved = self._move(index, full.keys)
        kept = []
        for r, row in enumerate(self._rows):
            first = 0 if window is None else max(0, row.end - window + 1)
            if (r, first) not in self._stand:
                self._stand[r, first] = torch.arange(first, row.end, device=moved.device)[None]
            entries = row.entries[first:].to(moved.device)
            kept.append(Piece(moved[r][:, entries], full.values[r][:, entries], self._stand[r, first]))
        return kept
