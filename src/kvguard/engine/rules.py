"""Rules above a press's scores: entries of a prompt that stay, or that are to be lost evenly.

The budget remains the press's own, layer by layer: what a rule keeps, other entries pay for. A rule is built
for one prompt, since positions are a prompt's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from kvpress import BasePress, PyramidKVPress, ScorerPress, StreamingLLMPress
from kvpress.utils import compute_n_kept
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvguard.engine.controls import KeepEndsPress
from kvguard.engine.layers import attention_modules, sliding_windows
from kvguard.engine.presses import only_scores
from kvguard.errors import KvguardError

# Presses that score every entry once and then choose by those scores, though not as plain scorers do:
# where in them the scorer is, and whether each of their heads keeps as many entries.
_CHOOSE_BY_SCORES = {
    "PyramidKVPress": ("", True),
    "KeyRerotationPress": ("press", True),
    "PerLayerCompressionPress": ("press", True),
    "AdaKVPress": ("press", False),
}


class Rule(Protocol):
    """Changes finite scores, so that what it keeps is among the best."""

    by_head: bool

    def needed(self, n_tokens: int) -> int:
        """Return the smallest budget, in entries, of a prompt of ``n_tokens`` that it can be held with."""

    def __call__(self, scores: Tensor, n_kept: int) -> Tensor:
        """Return changed scores, of which the best ``n_kept`` of a head are kept. [B, H, T] -> [B, H, T]"""


@dataclass(frozen=True)
class Protected:
    """Entries that are never evicted, in any layer or head.

    Parameters
    ----------
    positions : tuple of int
        Tokens of the prompt.
    """

    positions: tuple[int, ...]
    by_head = False

    def needed(self, n_tokens: int) -> int:
        """Return how many entries are protected."""
        return len(set(self.positions))

    def __call__(self, scores: Tensor, n_kept: int) -> Tensor:
        """Put the protected entries above all others."""
        scores[..., torch.tensor(self.positions, dtype=torch.long, device=scores.device)] = torch.inf
        return scores


@dataclass(frozen=True)
class Fair:
    """Groups of entries that are evicted in equal shares: each keeps its best ones, as many as its part.

    Shares are equal to within one entry. An entry of several groups belongs to the first of them.

    Parameters
    ----------
    groups : tuple of tuple of int
        The tokens of each instruction, say.
    """

    groups: tuple[tuple[int, ...], ...]
    by_head = True

    def needed(self, n_tokens: int) -> int:
        """Return 0: an equal share of any budget can be had."""
        return 0

    def __call__(self, scores: Tensor, n_kept: int) -> Tensor:
        """Put each group's part above all other entries, and the rest of it below."""
        seen = kept = 0
        taken: set[int] = set()
        for group in self.groups:
            own = sorted(set(group) - taken)
            taken |= set(own)
            seen += len(own)
            part = round(seen * n_kept / scores.shape[-1]) - kept  # what is rounded away goes to the next
            kept += part
            places = torch.tensor(own, dtype=torch.long, device=scores.device)
            best = scores[..., places].topk(part, dim=-1).indices
            scores[..., places] = torch.full_like(scores[..., places], -torch.inf).scatter(
                -1, best, torch.inf
            )
        return scores


class RuledPress(ScorerPress):
    """A plain scorer under a rule.

    Parameters
    ----------
    press : ScorerPress
    rule : Rule
    """

    def __init__(self, press: ScorerPress, rule: Rule) -> None:
        self.press, self.rule = press, rule

    @property
    def compression_ratio(self) -> float:
        """That of the press."""
        return float(self.press.compression_ratio)

    @compression_ratio.setter
    def compression_ratio(self, value: float) -> None:
        self.press.compression_ratio = value

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Let the press prepare itself."""
        self.press.post_init_from_model(model)

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return the press's scores as the rule changes them. [B, H, T]"""
        scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
        return _ruled(self.rule, scores, compute_n_kept(keys.shape[2], self.compression_ratio))


def ruled(press: BasePress, rule: Rule) -> BasePress:
    """Return a press that evicts as another one does, under a rule, and within the same budget.

    Raises
    ------
    KvguardError
        The press does not choose entries by scores of all of them, or not head by head where the rule
        needs that.
    """
    if only_scores(press):
        return RuledPress(_graded(press), rule)
    name = type(press).__name__
    if name not in _CHOOSE_BY_SCORES:
        raise KvguardError(
            f"press {name}: it does not choose entries by one score of each, so none can be protected: use a "
            f"press that scores, or one of {', '.join(sorted(_CHOOSE_BY_SCORES))}"
        )
    if rule.by_head and not _CHOOSE_BY_SCORES[name][1]:
        raise KvguardError(
            f"press {name}: its heads keep different numbers of entries, so there is no equal share of them: "
            "use a press whose heads keep as many, or protect entries"
        )
    copied = copy.deepcopy(press)
    scorer = _scorer_of(copied)
    score = scorer.score

    def score_ruled(module: nn.Module, hidden: Tensor, keys: Tensor, *others: Any) -> Tensor:
        found = score(module, hidden, keys, *others)
        return _ruled(rule, found, _budget(copied, scorer, module, keys.shape[2]))

    scorer.score = score_ruled
    return copied


def unmet(model: PreTrainedModel, press: BasePress, rule: Rule, n_tokens: int) -> str | None:
    """Say why a rule cannot be held on a prompt of ``n_tokens``, if so: some layer keeps too few entries.

    Layers with a sliding window count for nothing: no press evicts from them, and they do so by themselves.
    """
    scorer = _scorer_of(press)
    layers = zip(attention_modules(model), sliding_windows(model), strict=True)
    smallest = min(_budget(press, scorer, module, n_tokens) for module, window in layers if window is None)
    needed = rule.needed(n_tokens)
    return _too_many(needed, smallest) if needed > smallest else None


def _ruled(rule: Rule, scores: Tensor, n_kept: int) -> Tensor:
    needed = rule.needed(scores.shape[-1])
    if needed > n_kept:
        raise KvguardError(_too_many(needed, n_kept))
    finite = torch.finfo(scores.dtype)
    return rule(torch.nan_to_num(scores, nan=finite.min, posinf=finite.max, neginf=finite.min), n_kept)


def _too_many(needed: int, n_kept: int) -> str:
    return (
        f"{needed} protected entries exceed the {n_kept} that the press keeps: protect fewer, or lower "
        "the ratio"
    )


def _scorer_of(press: BasePress) -> ScorerPress:
    """Return what scores in a press: one inside it, or the press itself."""
    where, _ = _CHOOSE_BY_SCORES.get(type(press).__name__, ("", True))
    return getattr(press, where) if where else press


def _budget(press: BasePress, scorer: ScorerPress, module: nn.Module, n_tokens: int) -> int:
    """Return how many entries of a layer a press keeps, a mean over its heads."""
    if isinstance(press, PyramidKVPress):
        return int(press.get_layer_budget(module, n_tokens))
    ratios: Sequence[float] | None = getattr(press, "compression_ratios", None)
    ratio = ratios[int(module.layer_idx)] if ratios else scorer.compression_ratio  # type: ignore[arg-type]
    return int(compute_n_kept(n_tokens, ratio))


def _graded(press: ScorerPress) -> ScorerPress:
    """Return the press, or one that keeps the same and tells what to give up first.

    kvpress's StreamingLLM gives all that it keeps the same score.
    """
    if type(press) is StreamingLLMPress:
        return KeepEndsPress(press.compression_ratio, press.n_sink)
    return press
