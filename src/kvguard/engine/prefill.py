"""One forward pass per prompt serves many conditions.

kvpress compresses a layer after that layer's attention output was computed with the full cache, so the
prefill's hidden states do not depend on the press: scorers share one pass, and every other press runs in
kvpress's own context manager.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from kvpress.utils import compute_n_kept
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.attention import attention
from kvguard.engine.kept import KeptCache, smaller_form
from kvguard.engine.presses import Condition, only_scores, ratio_free
from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from kvpress import BasePress


@dataclass(frozen=True)
class Prefill:
    """A prompt after its prefill: the last position's logits [V], and what every condition keeps."""

    logits: Tensor
    kept: dict[Condition, KeptCache]


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


def clear_head_masks(model: PreTrainedModel) -> None:
    """Remove what a head-wise press leaves on the modules: it would mask the next generation."""
    for module in model.modules():
        if getattr(module, "masked_key_indices", None) is not None:
            module.masked_key_indices = None  # type: ignore[assignment]


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    input_ids: Tensor,
    presses: Mapping[Condition, BasePress | None],
    implementation: str,
) -> Prefill:
    """Run a prompt once and compress its cache for every condition.

    Parameters
    ----------
    model : PreTrainedModel
        Any causal LM that kvpress supports.
    input_ids : Tensor
        [T], the prompt's token ids on the model's device.
    presses : mapping of Condition to press
        None stands for no compression.
    implementation : str
        Attention implementation of the pass: ``sdpa`` or ``eager``.

    Raises
    ------
    KvguardError
        If a press refuses the prompt.
    """
    for condition, press in presses.items():
        if press is not None:
            _introduce(model, condition, press)
    scorers = {
        c: p for c, p in presses.items() if p is not None and only_scores(p) and p.compression_ratio > 0
    }
    with attention(model, implementation), ExitStack() as hooks:
        selections: list[dict[Condition, Tensor]] = []
        for module, window in zip(attention_modules(model), sliding_windows(model), strict=True):
            hook = _Selection(scorers if window is None else {}, selections)
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        cache = DynamicCache(config=model.config)
        output = _forward(model, input_ids, cache)
        hooks.close()
        keys, values = _layers(cache)
        kept: dict[Condition, KeptCache] = {}
        for condition, press in presses.items():
            if condition in scorers:
                chosen = [
                    layer[condition] if layer else _every_entry(k)
                    for layer, k in zip(selections, keys, strict=True)
                ]
                kept[condition] = KeptCache(keys, values, chosen)
            elif press is None or _keeps_all(press):
                kept[condition] = KeptCache(keys, values)
            else:
                kept[condition] = _through_kvpress(model, input_ids, condition, press)
    return Prefill(output, smaller_form(kept))


def _introduce(model: PreTrainedModel, condition: Condition, press: BasePress) -> None:
    """Let a press prepare itself for the model: some load what was trained for it."""
    try:
        press.post_init_from_model(model)
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise KvguardError(f"{condition}: the press cannot serve this model: {_line(error)}") from None


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]


def _keeps_all(press: BasePress) -> bool:
    try:
        return bool(press.compression_ratio == 0)
    except (AttributeError, AssertionError, ValueError):  # known only after a pass: DMSPress, SimLayerKVPress
        return False


@torch.inference_mode()
def full_pass(model: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, KeptCache]:
    """Return the last logits [V] and the uncompressed cache of token ids [T], computed in one pass."""
    cache = DynamicCache(config=model.config)
    with attention(model, "sdpa"):
        logits = _forward(model, input_ids, cache)
    return logits, KeptCache(*_layers(cache))


def full_cache(model: PreTrainedModel, input_ids: Tensor) -> KeptCache:
    """Return the uncompressed cache of token ids [T], computed in one pass."""
    return full_pass(model, input_ids)[1]


class _Selection:
    """Forward hook of one attention module: which entries each scorer keeps."""

    def __init__(self, scorers: Mapping[Condition, BasePress], into: list[dict[Condition, Tensor]]) -> None:
        self.scorers, self.into = scorers, into

    def __call__(
        self, module: nn.Module, _: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor | None]
    ) -> None:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        scores: dict[str, Tensor] = {}
        selection: dict[Condition, Tensor] = {}
        for condition, press in self.scorers.items():
            key = condition.compressor if ratio_free(press) else str(condition)
            if key not in scores:
                try:
                    scores[key] = press.score(
                        module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs
                    )[0]
                except (AssertionError, NotImplementedError) as error:
                    raise KvguardError(
                        f"{condition}: the press refuses this prompt: {_line(error)}"
                    ) from None
            n_kept = compute_n_kept(layer.keys.shape[2], press.compression_ratio)
            selection[condition] = scores[key].topk(n_kept, dim=-1).indices.to(torch.int32)
        self.into.append(selection)


def _every_entry(keys: Tensor) -> Tensor:
    return torch.arange(keys.shape[1], dtype=torch.int32, device=keys.device).expand(keys.shape[:2])


def _through_kvpress(
    model: PreTrainedModel, input_ids: Tensor, condition: Condition, press: BasePress
) -> KeptCache:
    cache = DynamicCache(config=model.config)
    modules = attention_modules(model)
    try:
        with press(model):
            _forward(model, input_ids, cache)
        keys, values = _layers(cache)
        dead = [_dead_entries(module, k) for module, k in zip(modules, keys, strict=True)]
    except (AssertionError, KeyError, NotImplementedError, OSError, ValueError) as error:
        raise KvguardError(f"{condition}: the press refuses this prompt: {_line(error)}") from None
    finally:
        clear_head_masks(model)
    return KeptCache(keys, values, dead=dead if any(d is not None for d in dead) else None)


def _dead_entries(module: nn.Module, keys: Tensor) -> Tensor | None:
    masked = getattr(module, "masked_key_indices", None)
    if masked is None:
        return None
    dead = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
    dead[masked[1], masked[2]] = True
    return dead


def _forward(model: PreTrainedModel, input_ids: Tensor, cache: DynamicCache) -> Tensor:
    output = model(input_ids=input_ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = output.logits
    return logits[0, -1]


def _layers(cache: DynamicCache) -> tuple[list[Tensor], list[Tensor]]:
    filled = [(layer.keys, layer.values) for layer in cache.layers]
    return [keys[0] for keys, _ in filled if keys is not None], [v[0] for _, v in filled if v is not None]
