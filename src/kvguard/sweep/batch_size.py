"""How many rows are decoded together: as many as the memory that a worker is predicted to take allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.memory import MOST_ROWS, entry_bytes, free_memory, graph_bytes, prefill_bytes, row_bytes
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.shelves import LEAST, apart
from kvguard.engine.signals import N_SIGNALS
from kvguard.models.load import LoadedModel
from kvguard.store.files import write_json
from kvguard.store.parts import slices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvguard.sweep.plan import Sweep

Ints = NDArray[np.int64]

_TABLE_COPIES = 4  # of a part's signals, while its tables are made and written
_FIXED = 4 << 20  # bytes of a worker's tokenizer and of what writes its tables, measured
_RESERVE = 64 << 20  # bytes of freed blocks that glibc keeps at most: twice its largest mmap threshold


@dataclass(frozen=True)
class _Unit:
    """The units of a sweep, each a slice of its prompts, and the bytes that they take as they are made."""

    n_prompts: Ints
    total: Ints  # tokens of all prompts
    longest: Ints
    new: int
    model: PreTrainedModel
    whole: set[Condition]  # of these rows are counted with their whole prompt

    def held(self, conditions: Sequence[Condition], scored: Sequence[Condition], shared: bool) -> Any:
        """Return what the prefill keeps for conditions that have not started."""
        config, entry = self.model.config.get_text_config(), entry_bytes(self.model)
        index = 4 * config.num_hidden_layers * config.num_key_value_heads
        ours = [c for c in conditions if c in scored]
        chosen = sum(1 - c.ratio for c in ours if c.ratio > 0)  # entries kept, in those of a full cache
        entries = len(conditions) - len(ours) + ((1 if ours else 0) if shared else chosen)
        logits = self.n_prompts * config.vocab_size * self.model.dtype.itemsize * bool(conditions)
        return self.total * (entry * entries + index * chosen) + logits

    def started(self, own: Sequence[Condition], batch_size: int) -> Any:
        """Return what the rows of a batch take before they have generated anything."""
        return sum(n * row_bytes(self.model, kept + LEAST) for n, kept in self._rows(own, batch_size))

    def decoding(self, own: Sequence[Condition], batch_size: int) -> Any:
        """Return what the rows of a batch take once they have generated all that they may."""
        model, config, rows = self.model, self.model.config.get_text_config(), self._rows(own, batch_size)
        slots = np.minimum(self.n_prompts * len(own), batch_size)
        taken = sum(n * row_bytes(model, _capacity(kept, self.new)) for n, kept in rows)
        taken += self._recorded(self.n_prompts * len(own) - slots, self.new)
        taken += self._recorded(slots, 1 << (self.new - 1).bit_length())
        # A shelf grows by a layer's keys or values at a time, which then stand twice.
        layer = entry_bytes(model) // (2 * config.num_hidden_layers)
        moved = np.max([n * _capacity(kept, self.new) * layer for n, kept in rows], axis=0)
        if model.device.type == "cpu":  # shelves that grow leave holes where they stood
            cache = sum(n * _capacity(kept, self.new) for n, kept in rows) * entry_bytes(model)
            return taken + moved + np.minimum(cache, _RESERVE)
        return taken + moved + (graph_bytes(model, slots) if model.device.type == "cuda" else 0)

    def tables(self, own: Sequence[Condition]) -> Any:
        """Return what a part's tables take while they are made, on the host."""
        if self.model.device.type != "cpu":
            return 0
        return _TABLE_COPIES * self._recorded(self.n_prompts * len(own), self.new)

    def _rows(self, own: Sequence[Condition], batch_size: int) -> list[tuple[Ints, Ints]]:
        """Return how many rows of each condition are in a batch and what they keep, the longest first."""
        kept = [self.longest if c in self.whole else (self.longest * (1 - c.ratio)).astype(int) for c in own]
        kept.sort(key=lambda n: -int(n.max()))
        before = [nth * self.n_prompts for nth in range(len(own))]
        return [
            (np.clip(batch_size - start, 0, self.n_prompts), n) for start, n in zip(before, kept, strict=True)
        ]

    def _recorded(self, rows: Any, tokens: int) -> Any:
        return rows * tokens * 4 * (N_SIGNALS + 1)


def _capacity(kept: Ints, new: int) -> Ints:
    """Return the entries that a shelf has room for once its rows have generated ``new`` tokens."""
    capacity = kept + LEAST
    while (capacity < kept + new).any():
        grown = capacity + 1 + apart(capacity + 1)
        capacity = np.where(capacity < kept + new, grown, capacity)
    return capacity


class BatchSize:
    """The rows of a batch, planned once per folder: a resumed run keeps to its first plan.

    Parameters
    ----------
    lengths
        Tokens of every prompt.
    workers
        Processes that share this machine's memory.
    out
        Where the parts are stored; the plan lies beside them, in ``batch.json``.
    restorable
        Rows may get their full cache back.
    """

    def __init__(
        self,
        sweep: Sweep,
        presses: Presses,
        loaded: LoadedModel,
        lengths: Sequence[int],
        workers: int,
        out: Path,
        restorable: bool = False,
    ) -> None:
        self._path = out / "batch.json"
        self._key = [
            loaded.fingerprint,
            row_bytes(loaded.model, max(lengths) + sweep.task.max_new_tokens),
            workers,
        ]
        self._planned = sweep.settings.batch_size == "auto"
        if sweep.settings.batch_size != "auto":
            self.rows = sweep.settings.batch_size
        else:
            self.rows = self._stored() or largest_batch(sweep, presses, loaded, lengths, workers, restorable)

    def remember(self) -> None:
        """Store the plan for a run that goes on here; a size that the settings name needs no storing."""
        if self._planned:
            write_json(self._path, {"key": self._key, "batch_size": self.rows})

    def _stored(self) -> int | None:
        try:
            stored = json.loads(self._path.read_text())
            return int(stored["batch_size"]) if stored["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def largest_batch(
    sweep: Sweep,
    presses: Presses,
    loaded: LoadedModel,
    lengths: Sequence[int],
    workers: int,
    restorable: bool = False,
) -> int:
    """Return the largest batch with which every process stays within its share of half the free memory.

    What a process takes is predicted by :func:`predicted_peak`; parameters as for :class:`BatchSize`.
    """
    model = loaded.model
    share = free_memory(model) / 2 / workers
    if workers > 1:  # each loads weights of its own
        share -= sum(weight.nbytes for weight in model.parameters())
    batch_size = MOST_ROWS
    while batch_size > 1 and predicted_peak(sweep, presses, model, lengths, batch_size, restorable) > share:
        batch_size //= 2
    return batch_size


def predicted_peak(
    sweep: Sweep,
    presses: Presses,
    model: PreTrainedModel,
    lengths: Sequence[int],
    batch_size: int,
    restorable: bool = False,
) -> int:
    """Predict the most memory, in bytes, that a process takes besides the weights while it makes parts.

    The prefill of a unit keeps for every prompt what its conditions keep, until their rows start: the
    full cache with indices where one of them keeps all, else copies. On top of that comes a prompt's
    prefill, or the decoding of a part, or, on the host, its tables: whichever takes most. A row is counted
    with what its press keeps and all the tokens that it may generate; of a press that runs through kvpress,
    which may mask entries and keep them, with its whole prompt.

    Parameters
    ----------
    lengths, restorable
        As for :class:`BatchSize`.
    """
    bounds = np.array(slices(len(lengths), sweep.settings.prompts_per_part))
    unit = _Unit(
        n_prompts=bounds[:, 1] - bounds[:, 0],
        total=np.add.reduceat(lengths, bounds[:, 0]),
        longest=np.maximum.reduceat(lengths, bounds[:, 0]),
        new=sweep.task.max_new_tokens,
        model=model,
        whole={c for c in sweep.conditions if restorable or not presses[c].shares_prefill},
    )
    peak = 0
    for implementation, together in presses.by_attention(sweep.conditions).items():
        scored = [c for c in together if presses[c].shares_prefill]
        names = dict.fromkeys(c.compressor for c in together)
        parts = [[c for c in together if c.compressor == name] for name in names]
        shared = any(c.ratio == 0 for c in scored) or sum(1 - c.ratio for c in scored) >= 1
        least = unit.held(together, scored, shared) + prefill_bytes(model, unit.longest, implementation)
        peak = max(peak, int(least.max()))
        for nth, own in enumerate(parts):
            later = [c for part in parts[nth + 1 :] for c in part]
            waiting = np.where(unit.n_prompts * len(own) > batch_size, 1, 0)
            # Rows hold what they keep twice as they start, and their own alone once they are under way.
            full, rest = unit.held([*own, *later], scored, shared), unit.held(later, scored, shared)
            begins = full + unit.started(own, batch_size)
            goes_on = np.where(waiting, full, rest) + unit.decoding(own, batch_size)
            peak = max(peak, int(begins.max()), int(goes_on.max()), int((rest + unit.tables(own)).max()))
    return peak + _FIXED * (model.device.type == "cpu")
