"""How many cache entries a row may come to hold, counted before it is let in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvpress.utils import compute_n_kept

from kvguard.engine.layers import sliding_windows
from kvguard.engine.memory import entry_bytes
from kvguard.engine.presses import asked_ratio, only_scores
from kvguard.guard.settings import Action

if TYPE_CHECKING:
    from kvpress import BasePress
    from transformers import PreTrainedModel


class Room:
    """The entries that rows may hold together, a mean over layers.

    A row is counted at its most: all that it may generate, on top of what its press keeps; on top of its
    whole prompt if its guard may restore it, or if its press may mask entries in place of removing them. So a
    restore always finds room.

    Attributes
    ----------
    limit
        In entries; infinite without a bound.
    """

    def __init__(self, model: PreTrainedModel, kv_bytes: int | None, keeps_cache: bool) -> None:
        self._windows, self._keeps_cache = sliding_windows(model), keeps_cache
        self.bytes_per_entry = entry_bytes(model)
        self.limit = float("inf") if kv_bytes is None else kv_bytes / self.bytes_per_entry
        self.taken = 0.0

    def entries(self, n_prompt: int, max_new_tokens: int, press: BasePress | None, action: Action) -> float:
        """Return the most entries that a row may hold."""
        ratio = asked_ratio(press)
        kept = n_prompt
        if press is not None and ratio is not None and only_scores(press):
            kept = compute_n_kept(n_prompt, ratio)
        begins = n_prompt if action.restores else kept
        apart = kept if self._keeps_cache else 0  # to compress a restored row again
        per_layer = [
            (begins + apart if window is None else min(n_prompt, window - 1)) + max_new_tokens
            for window in self._windows
        ]
        return sum(per_layer) / len(per_layer)
