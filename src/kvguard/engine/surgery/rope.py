"""Keys are moved to other positions: rotated by the difference of the model's own two rotations.

Which rotation a layer applies, if any, is found out and not assumed: the same tokens are run at two places,
and the rotation that takes every key from the one to the other is the layer's. A model where none does is
rejected by name. So partial rotations, interleaved ones, layers with a base of their own and layers without
any need no entry here.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.surgery.sight import forward, masks
from kvguard.errors import KvguardError

_N_PROBE, _SHIFT = 4, 61  # tokens of the probe, and how far it is shifted


@dataclass(frozen=True)
class Rotation:
    """One way in which a model rotates keys.

    Parameters
    ----------
    module : nn.Module
        Makes cosines and sines from positions.
    layer_type : str or None
        For modules that have several bases.
    apply : callable
        The model's own ``apply_rotary_pos_emb``: it knows which dimensions are pairs.
    partial : bool
        It is given only as many dimensions as there are cosines, the first ones; those behind know no
        position.
    """

    module: nn.Module
    layer_type: str | None
    apply: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    partial: bool

    def between(self, old: Tensor, new: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the angles from positions ``old`` to ``new`` [B, T]: [B, T, d] float32.

        From what the model multiplies with, in its dtype, so that its roundings are undone too; of length 1,
        so that a scale that the model puts on its cosines stays, and standing still is exactly standing
        still.
        """
        (cos_old, sin_old), (cos, sin) = (
            [part.double() for part in self.embeddings(at, like)] for at in (old, new)
        )
        along, across = cos * cos_old + sin * sin_old, sin * cos_old - cos * sin_old
        length = torch.hypot(along, across)
        return (along / length).float(), (across / length).float()

    def embeddings(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of positions [B, T] as the model multiplies with them, each [B, T, d]."""
        named = {} if self.layer_type is None else {"layer_type": self.layer_type}
        cos, sin = self.module(like, positions, **named)
        return cos, sin

    def turn(self, keys: Tensor, angle: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate keys [B, H, T, D] by an angle of :meth:`between`."""
        n = angle[0].shape[-1] if self.partial else keys.shape[-1]
        turned = self.apply(keys[..., :n].float(), keys[..., :n].float(), *angle)[1].to(keys.dtype)
        return torch.cat([turned, keys[..., n:]], dim=-1) if self.partial else turned

    @property
    def limit(self) -> int | None:
        """Tokens up to which its frequencies do not depend on the text's length; None: they never do."""
        kind = getattr(self.module, "rope_type", "default")
        kind = kind if isinstance(kind, str) else kind.get(self.layer_type, "default")
        if "dynamic" in kind:
            return int(self.module.original_max_seq_len)  # type: ignore[arg-type]
        if kind == "longrope":
            parameters = self.module.config.rope_parameters  # type: ignore[union-attr]
            parameters = parameters if self.layer_type is None else parameters[self.layer_type]  # type: ignore[index]
            return int(parameters["original_max_position_embeddings"])  # type: ignore[index]
        return None


class Move:
    """Keys of any layer from some positions to others.

    Parameters
    ----------
    rotations : sequence of (Rotation or None)
        One per layer.
    old, new : Tensor
        [B, T] positions.
    like : Tensor
        Of the keys' dtype and device.
    """

    def __init__(self, rotations: list[Rotation | None], old: Tensor, new: Tensor, like: Tensor) -> None:
        self._rotations = rotations
        self._angles = {r: r.between(old, new, like) for r in set(rotations) if r is not None}

    def __call__(self, layer: int, keys: Tensor) -> Tensor:
        """Return the keys [B, H, T, D] of a layer, moved."""
        rotation = self._rotations[layer]
        return keys if rotation is None else rotation.turn(keys, self._angles[rotation])


class Rope:
    """How each layer of a model rotates its keys.

    Attributes
    ----------
    rotations : list of (Rotation or None)
        One per layer; None for a layer whose keys know no position.
    longest : int
        The longest text, in tokens, in which keys can be moved exactly.

    Raises
    ------
    KvguardError
        If keys of a layer cannot be moved exactly.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.name = str(config.model_type)
        if "chunked_attention" in (getattr(config, "layer_types", None) or []):
            raise KvguardError(
                f"{self.name}: its layers attend within chunks of the text, which moving would cut "
                "elsewhere; use a model without chunked attention"
            )
        candidates = list(_candidates(model))
        made_for = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self.longest = min([made_for, *(c.limit for c in candidates if c.limit is not None)])
        self.rotations = _found_out(model, self.name, candidates, min(_SHIFT, self.longest - _N_PROBE))

    @classmethod
    def of(cls, model: PreTrainedModel) -> Rope:
        """Return that of a model, found out once."""
        if model not in _KNOWN:
            _KNOWN[model] = cls(model)
        return _KNOWN[model]

    def check(self, n_tokens: int, what: str) -> None:
        """Reject a text in which keys cannot be moved exactly, or that the model was not made for."""
        if n_tokens > self.longest:
            raise KvguardError(
                f"{what}: {n_tokens} tokens, and {self.name} rotates keys by fixed angles for the first "
                f"{self.longest} only; shorten the document or the prefix"
            )

    def move(self, old: Tensor, new: Tensor, like: Tensor) -> Move:
        """Return what moves keys from positions ``old`` to ``new``, see :class:`Move`."""
        return Move(self.rotations, old, new, like)


_KNOWN: weakref.WeakKeyDictionary[PreTrainedModel, Rope] = weakref.WeakKeyDictionary()


def _candidates(model: PreTrainedModel) -> Iterator[Rotation]:
    applies = {
        apply
        for module in model.modules()
        if hasattr(module, "layer_idx")
        and (apply := getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None))
    }
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if kind is not None:
            for layer_type in [None] if isinstance(kind, str) else sorted(kind):
                for apply, partial in itertools.product(applies, (False, True)):
                    yield Rotation(module, layer_type, apply, partial)


def _found_out(
    model: PreTrainedModel, name: str, candidates: list[Rotation], shift: int
) -> list[Rotation | None]:
    here, there = _keys_at(model, 0), _keys_at(model, shift)
    old = torch.arange(_N_PROBE, device=here[0].device)[None]
    found: list[Rotation | None] = []
    for layer, (before, after) in enumerate(zip(here, there, strict=True)):
        errors: dict[Rotation | None, float] = {None: _error(before, after)}
        for rotation in candidates:
            try:
                turned = rotation.turn(before, rotation.between(old, old + shift, before))
                errors[rotation] = _error(turned, after)
            except Exception:  # a module of another kind, that of images say, takes other positions
                continue
        best = min(errors, key=errors.__getitem__)
        if not errors[best] <= torch.finfo(after.dtype).eps ** 0.5:
            raise KvguardError(
                f"{name}: keys of layer {layer} cannot be moved exactly: no rotary embedding of the model "
                f"takes them from one position to another (error {errors[best]:.1e}); use a model with "
                "rotary positions"
            )
        found.append(best)
    return found


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _keys_at(model: PreTrainedModel, start: int) -> list[Tensor]:
    """Return the keys [1, H, T, D] of a few tokens at ``start``, layer by layer, as the model makes them."""
    ids = torch.arange(1, 1 + _N_PROBE, device=model.device)[None]
    positions = ids - 1 + start
    windows = sliding_windows(model)
    cache: Any = DynamicCache()
    none = ids.new_zeros(0)
    seen = masks(positions, [positions[:, None]] * len(windows), windows)
    forward(model, ids, positions, cache, seen, (none, none))
    return [layer.keys for layer in cache.layers]
