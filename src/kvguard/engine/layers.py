"""A model's attention layers: where a press finds them, and which of them attend to a window only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache, PreTrainedModel


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """List the self-attention modules layer by layer, ready for a press (it wants ``rotary_emb``)."""
    decoder = getattr(model.model, "language_model", model.model)
    modules = [layer.self_attn for layer in decoder.layers]
    for module in modules:
        module.rotary_emb = decoder.rotary_emb
    return modules


def sliding_windows(model: PreTrainedModel) -> list[int | None]:
    """Return the window of each layer that attends to the last tokens only; None where attention is full.

    Such a layer holds at most window - 1 entries, and no press compresses it.
    """
    layers = DynamicCache(config=model.config).layers
    return [getattr(layer, "sliding_window", None) for layer in layers]


def full_entries(windows: Sequence[int | None], n_tokens: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the entries that the uncompressed cache of texts holds, a mean over layers. [n]

    Parameters
    ----------
    windows
        See :func:`sliding_windows`.
    n_tokens
        Of each text. [n]
    """
    held = [
        n_layers * (n_tokens if window is None else np.minimum(n_tokens, window - 1))
        for window, n_layers in Counter(windows).items()
    ]
    found: NDArray[np.float64] = np.sum(held, axis=0) / len(windows)
    return found


def clear_head_masks(model: PreTrainedModel) -> None:
    """Remove what a head-wise press leaves on the modules: it would mask the next generation."""
    for module in model.modules():
        if getattr(module, "masked_key_indices", None) is not None:
            module.masked_key_indices = None  # type: ignore[assignment]
