"""Texts are fed behind caches, many at once: the one place where a pass over cut caches is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.surgery.document_cache import DocumentCache, Piece
from kvguard.engine.surgery.rope import Rope
from kvguard.engine.surgery.sight import NOWHERE, forward, masks


@dataclass(frozen=True)
class Texts:
    """Texts of different lengths side by side, padded on the right.

    Parameters
    ----------
    ids, positions, keys : Tensor
        [B, T]: token ids; the positions they are fed at (padding at that of the last token); and where their
        keys are seen from (padding nowhere).
    """

    ids: Tensor
    positions: Tensor
    keys: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device) -> Texts:
        """Lay out texts that begin at these positions."""
        lengths = np.array([len(text) for text in texts])
        column = np.arange(lengths.max())
        real = column < lengths[:, None]
        ids = np.zeros(real.shape, dtype=np.int64)
        ids[real] = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
        positions = np.minimum(column, lengths[:, None] - 1) + np.asarray(starts)[:, None]
        keys = np.where(real, positions, NOWHERE)
        return cls(*(torch.from_numpy(array).to(device) for array in (ids, positions, keys)))


@dataclass(frozen=True)
class Fed:
    """What texts left: the logits after each [B, V], and every row's cache with its text appended."""

    logits: Tensor
    caches: list[DocumentCache]


@torch.inference_mode()
def feed(
    model: PreTrainedModel,
    kept: Sequence[DocumentCache],
    texts: Sequence[Sequence[int]],
    last: Sequence[int],
) -> Tensor:
    """Feed texts behind caches and return what is predicted from the last tokens of each.

    Parameters
    ----------
    last : sequence of int
        How many of each text's tokens, from its end, logits are computed for.

    Returns
    -------
    Tensor
        [sum of last, V], row by row.
    """
    return _feed(model, kept, texts, last)[0]


@torch.inference_mode()
def append(model: PreTrainedModel, kept: Sequence[DocumentCache], texts: Sequence[Sequence[int]]) -> Fed:
    """Feed texts behind caches; return the logits after each [B, V], and the caches with the texts in them.

    Sliding-window layers let go what no later token sees.
    """
    logits, cache, told = _feed(model, kept, texts, [1] * len(texts))
    grown = []
    for row, (old, text) in enumerate(zip(kept, texts, strict=True)):
        end = old.end + len(text)
        layers = []
        for layer, window, position, n in zip(
            cache.layers, sliding_windows(model), old.positions, old.lengths, strict=True
        ):
            assert layer.keys is not None
            assert layer.values is not None
            width = layer.keys.shape[2] - told.ids.shape[1]
            at = torch.cat([torch.arange(n), width + torch.arange(len(text))]).to(position.device)
            new = torch.cat([position, told.positions[row, : len(text)].expand(len(position), -1)], dim=1)
            keys, values = layer.keys[row][:, at], layer.values[row][:, at]
            stays = slice(None) if window is None else (new[0] > end - window).nonzero()[:, 0]
            layers.append(Piece(keys[:, stays], values[:, stays], new[:, stays]))
        grown.append(DocumentCache.of(layers, end))
    return Fed(logits, grown)


def _feed(
    model: PreTrainedModel,
    kept: Sequence[DocumentCache],
    texts: Sequence[Sequence[int]],
    last: Sequence[int],
) -> tuple[Tensor, DynamicCache, Texts]:
    rope = Rope.of(model)
    for old, text in zip(kept, texts, strict=True):
        rope.check(old.end + len(text), "question")
    told = Texts.of(texts, [old.end for old in kept], model.device)
    cache, positions = _side_by_side(kept)
    shared: dict[int, Tensor] = {}  # layers whose entries stand alike share positions, and so their mask
    for p in positions:
        if id(p) not in shared:
            fresh = told.keys[:, None].expand(-1, p.shape[1], -1)
            shared[id(p)] = torch.cat([p, fresh], dim=2)
    seen = masks(told.positions, [shared[id(p)] for p in positions], sliding_windows(model))
    rows = [row for row, n in enumerate(last) for _ in range(n)]
    columns = [c for text, n in zip(texts, last, strict=True) for c in range(len(text) - n, len(text))]
    wanted = torch.tensor(rows, device=model.device), torch.tensor(columns, device=model.device)
    return forward(model, told.ids, told.positions, cache, seen, wanted), cache, told


def _side_by_side(kept: Sequence[DocumentCache]) -> tuple[DynamicCache, list[Tensor]]:
    """Return a cache of all rows, padded on the right, and its positions per layer [B, H, N]."""
    pairs, positions = [], []
    shared: dict[tuple[int, ...], Tensor] = {}
    for layer in range(len(kept[0].keys)):
        stores = []
        for parts in ([cache.keys[layer] for cache in kept], [cache.values[layer] for cache in kept]):
            width = max(part.shape[1] for part in parts)
            store = parts[0].new_zeros((len(parts), parts[0].shape[0], width, parts[0].shape[2]))
            for row, part in zip(store, parts, strict=True):
                row[:, : part.shape[1]] = part
            stores.append(store)
        pairs.append((stores[0], stores[1]))
        each = [cache.positions[layer] for cache in kept]
        key = tuple(id(p) for p in each)
        if key not in shared:
            heads, width = max(len(p) for p in each), stores[0].shape[2]
            shared[key] = each[0].new_full((len(each), heads, width), NOWHERE)
            for row, p in zip(shared[key], each, strict=True):
                row[:, : p.shape[1]] = p
        positions.append(shared[key])
    return DynamicCache(pairs), positions


def in_batches(sizes: Sequence[tuple[int, ...]], rows: int) -> Iterator[list[int]]:
    """Yield the indices of what is run together: neighbours in size, so that little is padded."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    for first in range(0, len(order), rows):
        yield order[first : first + rows]
