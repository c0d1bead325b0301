"""One forward pass per prompt serves many conditions.

kvpress compresses a layer after that layer's attention output was computed with the full cache, so the
prefill's hidden states do not depend on the press: scorers share one pass, and every other press runs in
kvpress's own context manager. A pass may be cut into pieces; scorers see all tokens at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from kvguard.engine.presses import Condition, attention_for, only_scores, ratio_free
from kvguard.errors import foreign

if TYPE_CHECKING:
    from kvpress import BasePress


@dataclass(frozen=True)
class Prefill:
    """A prompt after its prefill: the last position's logits [V], and what every condition keeps."""

    logits: Tensor
    kept: dict[Condition, KeptCache]


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
    done = Prefilling(model, input_ids, presses, implementation).step()
    assert done is not None
    return done


def divisible(presses: Iterable[BasePress | None]) -> bool:
    """Tell whether a prompt may be prefilled in pieces: its presses score entries, and need no weights."""
    return all(press is None or (only_scores(press) and attention_for(press) == "sdpa") for press in presses)


class Prefilling:
    """The prefill of one prompt, piece by piece; between two steps the model is free for something else.

    Parameters
    ----------
    model, input_ids, presses, implementation
        See :func:`prefill`.
    piece : int, optional
        Tokens of a step. All at once by default, and where a press is not :func:`divisible`.

    Raises
    ------
    KvguardError
        If a press cannot serve the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        presses: Mapping[Condition, BasePress | None],
        implementation: str,
        piece: int | None = None,
    ) -> None:
        for condition, press in presses.items():
            if press is not None:
                introduce(model, press, str(condition))
        self._model, self._ids, self._presses = model, input_ids, presses
        self._implementation = implementation
        self._piece = piece if piece is not None and divisible(presses.values()) else len(input_ids)
        scoring = {c: p for c, p in presses.items() if p is not None and only_scores(p)}
        self._plain = {c for c, p in scoring.items() if p.compression_ratio == 0}
        self._plain |= {c for c, p in presses.items() if p is None}
        scorers = {c: p for c, p in scoring.items() if c not in self._plain}
        self._selections = [
            _Selection(scorers if window is None else {}, len(input_ids)) for window in sliding_windows(model)
        ]
        self._cache = DynamicCache(config=model.config)
        self._done = 0

    @torch.inference_mode()
    def step(self) -> Prefill | None:
        """Run the next piece; return the prefill once the prompt is at its end.

        Raises
        ------
        KvguardError
            If a press rejects the prompt.
        """
        piece = self._ids[self._done : self._done + self._piece]
        self._done += len(piece)
        with attention(self._model, self._implementation):
            with ExitStack() as hooks:
                for module, selection in zip(attention_modules(self._model), self._selections, strict=True):
                    hooks.callback(module.register_forward_hook(selection, with_kwargs=True).remove)
                logits = _forward(self._model, piece, self._cache)
            return self._kept(logits) if self._done == len(self._ids) else None

    def _kept(self, logits: Tensor) -> Prefill:
        keys, values = _layers(self._cache)
        kept: dict[Condition, KeptCache] = {}
        for condition, press in self._presses.items():
            if condition in self._plain:
                kept[condition] = KeptCache(keys, values)
            elif press is not None and only_scores(press):
                chosen = [
                    selection.kept[condition] if selection.kept else _every_entry(k)
                    for selection, k in zip(self._selections, keys, strict=True)
                ]
                kept[condition] = KeptCache(keys, values, chosen)
            else:
                assert press is not None
                kept[condition] = _through_kvpress(self._model, self._ids, condition, press)
        return Prefill(logits, smaller_form(kept))


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
    """Forward hook of one attention module: which entries each scorer keeps, once it has seen all tokens.

    Attributes
    ----------
    kept : dict of Condition to Tensor
        [H, n] each, best score first.
    """

    def __init__(self, scorers: Mapping[Condition, BasePress], n_tokens: int) -> None:
        self._scorers, self._left = scorers, n_tokens
        self._pieces: list[tuple[Tensor, ...]] = []  # what went into the layer: states, cosines, sines
        self.kept: dict[Condition, Tensor] = {}

    def __call__(
        self, module: nn.Module, _: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor | None]
    ) -> None:
        if not self._scorers:
            return
        hidden: Tensor = kwargs["hidden_states"]
        self._left -= hidden.shape[1]
        if self._left or self._pieces:
            self._pieces.append((hidden, *kwargs["position_embeddings"]))
        if self._left:
            return
        if self._pieces:
            hidden, *embeddings = (torch.cat(parts, dim=1) for parts in zip(*self._pieces, strict=True))
            kwargs = {**kwargs, "hidden_states": hidden, "position_embeddings": tuple(embeddings)}
            self._pieces.clear()
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        scores: dict[str, Tensor] = {}
        for condition, press in self._scorers.items():
            key = condition.compressor if ratio_free(press) else str(condition)
            if key not in scores:
                scores[key] = scores_of(
                    press, str(condition), module, hidden, layer.keys, layer.values, output[1], kwargs
                )[0]
            n_kept = compute_n_kept(layer.keys.shape[2], press.compression_ratio)
            self.kept[condition] = scores[key].topk(n_kept, dim=-1).indices.to(torch.int32)


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
