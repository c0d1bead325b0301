"""Which presses can score while decoding, and how they are asked to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kvpress import StreamingLLMPress
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvguard.engine.cache import RaggedCache
from kvguard.engine.layers import attention_modules, sliding_windows
from kvguard.engine.press_code import introduce, scores_of
from kvguard.engine.presses import asked_ratio, attention_for, only_scores
from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from kvpress import BasePress, ScorerPress

Ints = NDArray[np.int64]

BUFFER = 257  # hidden states: kvpress trims to 256 after a token, and compresses before it trims
# Presses held against kvpress in tests/engine/test_budget.py. Others run too if `scorer_for` lets them.
READS_ENTRIES = frozenset({"KeyDiffPress", "KnormPress", "LagKVPress", "RandomPress", "StreamingLLMPress"})
_READS_QUERIES = frozenset({"ExpectedAttentionPress", "SnapKVPress", "TOVAPress"})
TOGETHER = (READS_ENTRIES | _READS_QUERIES) - {"RandomPress"}  # a row's scores do not depend on other rows


def scorer_for(model: PreTrainedModel, press: BasePress, interval: int) -> ScorerPress:
    """Return a copy of a press, ready to score while decoding.

    Raises
    ------
    KvguardError
        If it cannot: it does more than score, or its scores need what decoding does not have; or if the
        model has sliding-window layers.
    """
    if any(window is not None for window in sliding_windows(model)):
        raise KvguardError(
            "a budget while decoding: the model's sliding-window layers evict by themselves; set no interval"
        )
    reason = _unfit(press, min(interval, BUFFER))
    if reason is None:
        scorer = copy.deepcopy(press)
        introduce(model, scorer, type(press).__name__)
        n_hidden = min(interval, BUFFER)
        reason = _fails(scorer, attention_modules(model)[0], n_hidden, n_hidden + 64)
    if reason is not None:
        known = ", ".join(sorted(READS_ENTRIES | _READS_QUERIES))
        raise KvguardError(
            f"{type(press).__name__}: cannot compress while decoding, every {interval} tokens: {reason} "
            f"(presses that can: {known})"
        )
    return scorer


def too_small(model: PreTrainedModel, press: BasePress, interval: int, n_prompt: int) -> str | None:
    """Say why a press cannot hold the budget of a prompt this short, if so.

    A budget of one entry is enforced after every token: the press has one hidden state, and two entries.
    """
    ratio = np.array([asked_ratio(press) or 0.0])
    single = budgets(np.array([n_prompt + 1]), ratio)[0] == 1
    if not single or isinstance(press, StreamingLLMPress):  # which does not score
        return None
    return _fails(scorer_for(model, press, interval), attention_modules(model)[0], n_hidden=1, n=2)


def _unfit(press: BasePress, n_hidden: int) -> str | None:
    if not only_scores(press):
        return "it is not a plain scorer; name one, or set no interval"
    if attention_for(press) == "eager":
        return "it reads attention weights, which are not kept; name another press, or set no interval"
    window = getattr(press, "window_size", 0)
    if window >= n_hidden:
        return (
            f"its window_size {window} must be below the {n_hidden} hidden states between two times; "
            "lower window_size or raise the interval"
        )
    return None


def _fails(scorer: ScorerPress, module: Any, n_hidden: int, n: int) -> str | None:
    """Score ``n`` made-up entries; say what went wrong."""
    heads, dim, weight = module.config.num_key_value_heads, module.head_dim, next(module.parameters())
    entries = torch.linspace(-1, 1, n).expand(1, heads, dim, n).mT.to(weight)
    hidden = torch.linspace(-1, 1, n_hidden).expand(1, module.config.hidden_size, n_hidden).mT.to(weight)
    scorer.compression_ratio = 0.5
    try:
        with torch.inference_mode():
            kwargs = forwarded(module, weight, torch.tensor([[n]], device=weight.device))
            scores = scorer.score(module, hidden, entries, entries, None, kwargs)
    except Exception as error:  # a press may fail in any way: that it fails is the answer
        return f"it fails on {n_hidden} hidden states and {n} entries ({' '.join(str(error).split())})"
    if scores.shape != entries.shape[:3] or not scores.isfinite().all():
        return f"{n_hidden} hidden states are too few for it; raise the interval"
    return None


@dataclass(frozen=True)
class Call:
    """Rows that are scored together."""

    press: ScorerPress
    row: int  # the first of them
    length: int
    n_kept: int
    kwargs: dict[str, Any]
    slots: Ints  # [g]
    members: Tensor  # [g], among the rows evicted from
    place: Tensor  # [g, 1]
    ring: Tensor  # [g, m], where their hidden states are

    def scores(self, index: int, module: nn.Module, cache: RaggedCache, hidden: Tensor | None) -> Tensor:
        """Score the entries of the rows in one layer. [g, H, L]"""
        keys, values = cache.gather(index, self.slots, self.length)
        collected = keys[:, 0, :0] if hidden is None else hidden[index, self.place, self.ring]
        self.press.compression_ratio = 1 - self.n_kept / self.length
        who = f"row {self.row}: {type(self.press).__name__} is to keep {self.n_kept} of {self.length} entries"
        return scores_of(self.press, who, module, collected, keys, values, None, self.kwargs)


def budgets(seen: Ints, ratio: NDArray[np.float64]) -> Ints:
    """Return the budgets, in entries, of rows that have seen so many tokens."""
    return np.maximum(1, (seen * (1 - ratio)).astype(np.int64))


def forwarded(module: Any, like: Tensor, newest: Tensor) -> dict[str, Any]:
    """Return what kvpress's hook passes on to a press: of the newest token alone, at its position [g, 1]."""
    cos_sin = module.rotary_emb(like, newest)
    return {"position_ids": newest, "cache_position": newest[:1, 0], "position_embeddings": cos_sin}
