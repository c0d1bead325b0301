"""A press compresses what is kept of each text, and not the text: to it the kept entries are the prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from kvpress.utils import compute_n_kept
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvguard.engine.layers import attention_modules, clear_head_masks, sliding_windows
from kvguard.engine.press_code import hooked, introduce, scores_of
from kvguard.engine.presses import only_scores, presses_in
from kvguard.engine.surgery.document_cache import UNKNOWN, Piece
from kvguard.engine.surgery.rope import Rope
from kvguard.engine.surgery.sight import NOWHERE
from kvguard.errors import KvguardError, foreign

if TYPE_CHECKING:
    from kvpress import BasePress, ScorerPress

Output = tuple[Tensor, Tensor | None]


@contextmanager
def pressing(
    model: PreTrainedModel,
    rope: Rope,
    press: BasePress,
    cut: Callable[[int], list[Piece]],
    entries: Sequence[Tensor],
) -> Iterator[list[list[Piece]]]:
    """Compress, layer by layer, what is cut from the texts of the pass within.

    Parameters
    ----------
    cut : callable
        Returns what is kept of every row in a layer that was just computed.
    entries : sequence of Tensor
        For each row where in its text the kept entries stood: their hidden states are those of the pass.

    Yields
    ------
    list
        For every layer, once the pass is over, what every row keeps.

    Raises
    ------
    KvguardError
        If the press cannot serve the model, works outside of its layers, or fails.
    """
    from kvpress import BasePress as Base

    who = f"press {type(press).__name__}"
    own = next((inner for inner in presses_in(press) if type(inner).__call__ is not Base.__call__), None)
    if own is not None:
        raise KvguardError(
            f"{who}: {type(own).__name__} compresses a whole prompt at once, and here only the document's "
            "entries are kept; use a press that goes layer by layer"
        )
    introduce(model, press, who)
    with foreign(f"{who}: the layers of {model.config.model_type} cannot be found", "use no press with it"):
        modules = attention_modules(model)
    layers: list[list[Piece]] = []
    hook = _Hook(
        rope, [copy.deepcopy(press) for _ in entries], who, sliding_windows(model), cut, entries, layers
    )
    with ExitStack() as hooks:
        hooks.callback(clear_head_masks, model)
        for module in modules:
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield layers


class _Hook:
    """Runs after each attention module; every row has a press of its own, since some keep state."""

    def __init__(
        self,
        rope: Rope,
        presses: Sequence[BasePress],
        who: str,
        windows: Sequence[int | None],
        cut: Callable[[int], list[Piece]],
        entries: Sequence[Tensor],
        layers: list[list[Piece]],
    ) -> None:
        self._rope, self._presses, self._who, self._windows = rope, presses, who, windows
        self._cut, self._entries, self._layers = cut, entries, layers

    def __call__(self, module: nn.Module, _: Any, kwargs: dict[str, Any], output: Output) -> None:
        index = int(module.layer_idx)  # type: ignore[arg-type]
        pieces = self._cut(index)
        if self._windows[index] is None:
            pieces = [self._pressed(r, piece, module, kwargs, output) for r, piece in enumerate(pieces)]
        self._layers.append(pieces)

    def _pressed(
        self, r: int, piece: Piece, module: nn.Module, kwargs: dict[str, Any], output: Output
    ) -> Piece:
        press, entries = self._presses[r], self._entries[r].to(piece.keys.device)
        weights = None if output[1] is None else output[1][r : r + 1, :, entries][..., entries]
        hidden = kwargs["hidden_states"][r : r + 1, entries]
        told = self._told(int(module.layer_idx), piece, hidden)  # type: ignore[arg-type]
        if only_scores(press):
            return _best(cast("ScorerPress", press), self._who, module, piece, hidden, weights, told)
        cache = DynamicCache()
        cache.layers = [DynamicLayer() for _ in self._windows]
        layer = cache.layers[int(module.layer_idx)]  # type: ignore[arg-type]
        layer.update(piece.keys[None], piece.values[None])
        module.masked_key_indices = None  # type: ignore[assignment]
        everything = {**kwargs, **told, "hidden_states": hidden, "past_key_values": cache}
        hooked(press, self._who, module, everything, (output[0][r : r + 1, entries], weights))
        assert layer.keys is not None
        assert layer.values is not None
        return _left(piece, layer.keys[0], layer.values[0], module.masked_key_indices)  # type: ignore[arg-type]

    def _told(self, index: int, piece: Piece, like: Tensor) -> dict[str, Any]:
        """Return what a press is told of positions: those to which the entries are moved."""
        told: dict[str, Any] = {"position_ids": piece.positions, "cache_position": piece.positions[0]}
        rotation = self._rope.rotations[index]
        if rotation is not None:
            told["position_embeddings"] = rotation.embeddings(piece.positions, like)
        return told


def _best(
    press: ScorerPress,
    who: str,
    module: nn.Module,
    piece: Piece,
    hidden: Tensor,
    weights: Tensor | None,
    told: dict[str, Any],
) -> Piece:
    """Keep the best entries of each head, in order."""
    n = piece.keys.shape[1]
    if press.compression_ratio == 0:
        return piece
    scores = scores_of(press, who, module, hidden, piece.keys[None], piece.values[None], weights, told)[0]
    best = scores.topk(compute_n_kept(n, press.compression_ratio), dim=-1).indices.sort(dim=-1).values
    picked = best[..., None].expand(-1, -1, piece.keys.shape[-1])
    positions = piece.positions.expand(len(best), -1).gather(1, best)
    return Piece(piece.keys.gather(1, picked), piece.values.gather(1, picked), positions)


def _left(before: Piece, keys: Tensor, values: Tensor, masked: Sequence[Tensor] | None) -> Piece:
    """Return what a press left of a layer; which entries they are is known where it removed none."""
    if keys.shape == before.keys.shape:
        positions = before.positions
    else:
        positions = torch.full((1, keys.shape[1]), UNKNOWN, device=keys.device)
    if masked is not None:
        positions = positions.expand(len(keys), -1).clone()
        positions[masked[1], masked[2]] = NOWHERE
    return Piece(keys, values, positions)
