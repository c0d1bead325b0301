"""One forward pass per prompt serves many conditions.

kvpress compresses a layer after that layer's attention output was computed with the full cache, so the
prefill's hidden states do not depend on the press: scorers share one pass, and every other press runs in
kvpress's own context manager.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from kvpress.utils import compute_n_kept
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.attention import attention
from kvguard.engine.kept import KeptCache, smaller_form
from kvguard.engine.layers import attention_modules, clear_head_masks, sliding_windows
from kvguard.engine.press_code import compressing, introduce, scores_of
from kvguard.engine.presses import Condition, only_scores, ratio_free
from kvguard.errors import foreign

if TYPE_CHECKING:
    from kvpress import BasePress


@dataclass(frozen=True)
class Prefill:
    """A prompt after its prefill: the last position's logits [V], and what every condition keeps."""

    logits: Tensor
    kept: dict[Condition, KeptCache]


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
        If a press cannot serve the model, or rejects the prompt.
    """
    for condition, press in presses.items():
        if press is not None:
            introduce(model, press, str(condition))
    scoring = {c: p for c, p in presses.items() if p is not None and only_scores(p)}
    scorers = {c: p for c, p in scoring.items() if p.compression_ratio > 0}
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
            elif press is None or condition in scoring:
                kept[condition] = KeptCache(keys, values)
            else:
                kept[condition] = _through_kvpress(model, input_ids, condition, press)
    return Prefill(output, smaller_form(kept))


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
                hidden = kwargs["hidden_states"]
                scores[key] = scores_of(
                    press, str(condition), module, hidden, layer.keys, layer.values, output[1], kwargs
                )[0]
            n_kept = compute_n_kept(layer.keys.shape[2], press.compression_ratio)
            selection[condition] = scores[key].topk(n_kept, dim=-1).indices.to(torch.int32)
        self.into.append(selection)


def _every_entry(keys: Tensor) -> Tensor:
    return torch.arange(keys.shape[1], dtype=torch.int32, device=keys.device).expand(keys.shape[:2])


def _through_kvpress(
    model: PreTrainedModel, input_ids: Tensor, condition: Condition, press: BasePress
) -> KeptCache:
    cache = DynamicCache(config=model.config)
    try:
        with compressing(model, press, str(condition)):
            _forward(model, input_ids, cache)
        keys, values = _layers(cache)
        masked = [getattr(module, "masked_key_indices", None) for module in attention_modules(model)]
    finally:
        clear_head_masks(model)
    with foreign(f"{condition}: the press left no compressed cache", "use other arguments of it"):
        dead = [_dead_entries(mask, k) for mask, k in zip(masked, keys, strict=True)]
        kept = KeptCache(keys, values, dead=dead if any(d is not None for d in dead) else None)
        _check_kept(kept, len(input_ids))
    return kept


def _check_kept(kept: KeptCache, n_tokens: int) -> None:
    for layer, (keys, values, live) in enumerate(zip(kept.keys, kept.values, kept.live, strict=True)):
        if keys.shape != values.shape or not 0 < live <= n_tokens:
            raise ValueError(
                f"layer {layer} holds {live:g} keys and {values.shape[1]} values of {n_tokens} tokens"
            )


def _dead_entries(masked: Sequence[Tensor] | None, keys: Tensor) -> Tensor | None:
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
