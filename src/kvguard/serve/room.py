"""How many cache entries a row may come to hold, as it is and once it is restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpress.utils import compute_n_kept

from kvguard.engine.layers import sliding_windows
from kvguard.engine.memory import entry_bytes
from kvguard.engine.presses import asked_ratio, only_scores
from kvguard.guard.settings import Action

if TYPE_CHECKING:
    from kvpress import BasePress
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Need:
    """Entries that a row may come to hold, all that it may generate among them.

    Attributes
    ----------
    compressed, restored
        On top of what its press keeps of the prompt; on top of the whole prompt if its guard may restore it.
    """

    compressed: float
    restored: float


NOTHING = Need(0.0, 0.0)


class Room:
    """The entries that rows may hold together, a mean over layers.

    Attributes
    ----------
    limit
        In entries; infinite without a bound.
    taken
        Entries counted for the rows that are let in.
    """

    def __init__(self, model: PreTrainedModel, kv_bytes: int | None, keeps_cache: bool) -> None:
        self._windows, self._keeps_cache = sliding_windows(model), keeps_cache
        self.bytes_per_entry = entry_bytes(model)
        self.limit = float("inf") if kv_bytes is None else kv_bytes / self.bytes_per_entry
        self.taken = 0.0

    @property
    def left(self) -> float:
        """Entries that nothing is counted for."""
        return self.limit - self.taken

    def need(self, n_prompt: int, max_new_tokens: int, press: BasePress | None, action: Action) -> Need:
        """Return what a row may hold; a press that may mask entries and not remove them saves nothing."""
        ratio = asked_ratio(press)
        kept = n_prompt
        if press is not None and ratio is not None and only_scores(press):
            kept = compute_n_kept(n_prompt, ratio)
        apart = kept if self._keeps_cache and action.restores else 0  # to compress a restored row again
        compressed = self._entries(n_prompt, kept + apart, max_new_tokens)
        begins = n_prompt if action.restores else kept
        return Need(compressed, self._entries(n_prompt, begins + apart, max_new_tokens))

    def _entries(self, n_prompt: int, begins: int, max_new_tokens: int) -> float:
        per_layer = [
            (begins if window is None else min(n_prompt, window - 1)) + max_new_tokens
            for window in self._windows
        ]
        return sum(per_layer) / len(per_layer)
