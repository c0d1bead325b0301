"""Attention in which positions alone decide who sees whom, over any cache of any Hugging Face model.

A token sees the entries at its own position and before it, in a sliding-window layer those at a distance
below the window. Padding, and what a press masks, stands :data:`NOWHERE`: nobody sees it. So the mask needs
neither the order of entries nor how many a layer holds, and ``cache_position`` has no say in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import kvpress  # noqa: F401  (wraps every attention function registered so far: ours must come after)
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvguard.engine.attention import attention
from kvguard.errors import KvguardError, foreign

NAME = "kvguard_positional"
NOWHERE = 1 << 40  # the position of what nobody sees


def visible(query: Tensor, key: Tensor, window: int | None, block: bool = False) -> Tensor:
    """Tell which keys each query sees.

    Parameters
    ----------
    query : Tensor
        [B, T] positions.
    key : Tensor
        [B, H, N] positions, H being 1 where all heads hold the same entries.
    window : int or None
        Tokens that are seen, the query's own included; None sees all.
    block : bool
        See what comes later too: the bidirectional part of a prefix LM.

    Returns
    -------
    Tensor
        [B, H, T, N] bool.
    """
    ahead = key[:, :, None, :] - query[:, None, :, None]
    seen = ahead < NOWHERE // 2 if block else ahead <= 0
    if window is not None:
        seen &= ahead.abs() < window
    return seen


def masks(
    query: Tensor, keys: Sequence[Tensor], windows: Sequence[int | None], block: bool = False
) -> list[Tensor]:
    """Return the mask of every layer, see :func:`visible`; layers with the same keys and window share one."""
    made: dict[tuple[int, int | None], Tensor] = {}
    for key, window in zip(keys, windows, strict=True):
        if (id(key), window) not in made:
            made[id(key), window] = visible(query, key, window, block)
    return [made[id(key), window] for key, window in zip(keys, windows, strict=True)]


class Sight:
    """Who sees whom in one forward pass.

    Parameters
    ----------
    masks : sequence of Tensor
        One per layer, [B, H, T, N] bool as :func:`visible` makes them; layers may share one.
    implementation : str
        ``sdpa`` or ``eager``: what computes the attention.
    dtype : torch.dtype
        Of the additive masks.
    """

    def __init__(self, masks: Sequence[Tensor], implementation: str, dtype: torch.dtype) -> None:
        made: dict[int, Tensor] = {}
        for mask in masks:
            if id(mask) not in made:
                hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
                made[id(mask)] = hidden.masked_fill_(~mask, float("-inf"))
        self._masks = [made[id(mask)] for mask in masks]
        self._implementation = implementation
        self.asked: set[int] = set()  # the layers that attended by it

    def mask(self, layer: int, n_heads: int) -> Tensor:
        """Return the additive mask of a layer for its query heads, [B, 1 or n_heads, T, N]."""
        self.asked.add(layer)
        mask = self._masks[layer]
        groups = n_heads // mask.shape[1]
        return mask if mask.shape[1] == 1 or groups == 1 else mask.repeat_interleave(groups, dim=1)

    def attend(self, module: nn.Module) -> Callable[..., Any]:
        """Return the attention function of a module's own implementation."""
        if self._implementation == "eager":
            function: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
            return function
        return ALL_ATTENTION_FUNCTIONS["sdpa"]


def _positional_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model's own implementation does, with the mask of the pass; shapes are its own."""
    sight = _under_way.get()
    mask = sight.mask(int(module.layer_idx), query.shape[1])  # type: ignore[arg-type]
    result: tuple[Tensor, Tensor | None] = sight.attend(module)(module, query, key, value, mask, **kwargs)
    return result


_under_way: ContextVar[Sight] = ContextVar("sight")  # some models pass no arguments on to their attention
AttentionInterface.register(NAME, _positional_attention)


@torch.inference_mode()
def forward(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    cache: Cache,
    masks: Sequence[Tensor],
    wanted: tuple[Tensor, Tensor],
    implementation: str | None = None,
) -> Tensor:
    """Feed tokens; return the logits at some of them. The cache takes their keys and values.

    Parameters
    ----------
    ids, positions : Tensor
        [B, T].
    masks : sequence of Tensor
        See :class:`Sight`.
    wanted : tuple of Tensor
        Rows and columns, [N] each, whose logits are computed: the head runs on no other.
    implementation : str, optional
        ``sdpa`` or ``eager``; that of the model by default.

    Returns
    -------
    Tensor
        [N, V].

    Raises
    ------
    KvguardError
        If layers of the model do not attend through transformers' interface, so that masks would not reach
        them.
    """
    usual = str(getattr(model, "usual_attention", model.config._attn_implementation))
    sight = Sight(masks, implementation or ("eager" if usual == "eager" else "sdpa"), model.dtype)
    head = model.get_output_embeddings()
    token = _under_way.set(sight)
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][wanted][None], *inputs[1:]))
    name = model.config.model_type
    try:
        with (
            attention(model, NAME),
            foreign(f"{name}: the model cannot be fed a cache and positions", "use another model"),
        ):
            logits: Tensor = model(
                input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
    finally:
        hook.remove()
        _under_way.reset(token)
    if len(sight.asked) < len(masks):
        raise KvguardError(
            f"{name}: {len(masks) - len(sight.asked)} of {len(masks)} layers do not attend through "
            "transformers' attention interface, so that a cut cache would be read wrongly; use another model"
        )
    return logits[0]
