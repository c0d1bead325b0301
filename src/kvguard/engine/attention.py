"""Grouped attention for one-token steps over a ragged cache, registered with transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kvpress  # noqa: F401  (wraps every attention function registered so far: ours must come after)
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from kvguard.engine.cache import RaggedCache

NAME = "kvguard_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    ragged: RaggedCache,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend with one query token per row, the query heads of a group sharing their KV head.

    A group's heads stand where a kernel expects query positions, so keys and values are never repeated.

    Parameters
    ----------
    query : Tensor
        [B, Hq, 1, D].
    key, value : Tensor
        [B, Hkv, 1, D], of the newest token, which the cache has taken.
    ragged : RaggedCache
        The cache of the step; its layers say which rows attend together, and to which entries.

    Returns
    -------
    tuple
        Attention output [B, 1, Hq, D], and None for the weights.
    """
    batch, q_heads, dim = query.shape[0], query.shape[1], query.shape[3]
    grouped = query.view(batch, key.shape[1], q_heads // key.shape[1], dim)  # [B, Hkv, G, D]
    outputs = [
        F.scaled_dot_product_attention(
            grouped[first:last],
            keys[: last - first, :, :width],
            values[: last - first, :, :width],
            attn_mask=mask,
            scale=scaling,
        )
        for first, last, width, mask, _, keys, values in ragged.layers[module.layer_idx].segments  # type: ignore[index]
    ]
    return torch.cat(outputs).view(batch, 1, q_heads, dim), None


AttentionInterface.register(NAME, grouped_attention)


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run a model under another attention implementation, and put the old one back.

    ``sdpa`` is the usual one: a model loaded for another in its place (``usual_attention``) runs under that.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(getattr(model, "usual_attention", name) if name == "sdpa" else name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
