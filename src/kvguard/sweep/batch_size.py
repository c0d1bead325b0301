"""How many rows are decoded together: as many as the memory that a worker is predicted to take allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvguard.engine.memory import MOST_ROWS, entry_bytes, free_memory, graph_bytes, prefill_bytes, row_bytes
from kvguard.engine.presses import Presses
from kvguard.engine.signals import N_SIGNALS
from kvguard.models.load import LoadedModel
from kvguard.store.files import write_json
from kvguard.store.parts import slices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvguard.sweep.plan import Sweep

_TABLE_COPIES = 4  # of a part's signals, while its tables are made and written
_FIXED = 4 << 20  # bytes of a worker's tokenizer and of what writes its tables, measured
_RESERVE = 64 << 20  # bytes of freed blocks that glibc keeps at most: twice its largest mmap threshold


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

    The prefill of a unit keeps every prompt's cache, with what each condition keeps of it, until the unit's
    last part is decoded. On top of that comes a prompt's prefill, or the decoding of a part, or, on the
    host, its tables: whichever takes most.

    Parameters
    ----------
    lengths, restorable
        As for :class:`BatchSize`.
    """
    config, new = model.config.get_text_config(), sweep.task.max_new_tokens
    bounds = np.array(slices(len(lengths), sweep.settings.prompts_per_part))
    total = np.add.reduceat(lengths, bounds[:, 0])  # tokens of each unit's prompts
    longest = np.maximum.reduceat(lengths, bounds[:, 0])
    n_prompts = bounds[:, 1] - bounds[:, 0]
    entry = entry_bytes(model)
    index = 4 * config.num_hidden_layers * config.num_key_value_heads
    logits = n_prompts * config.vocab_size * model.dtype.itemsize

    peak = 0
    for implementation, together in presses.by_attention(sweep.conditions).items():
        scored = [c for c in together if presses[c].shares_prefill]
        chosen = sum(1 - c.ratio for c in scored if c.ratio > 0)  # entries kept, in those of a full cache
        held = total * (entry * (1 + len(together) - len(scored)) + index * chosen) + logits
        working = prefill_bytes(model, longest, implementation)
        for compressor in {c.compressor for c in together}:
            own = [c for c in together if c.compressor == compressor]
            whole = restorable or not set(own) <= set(scored)
            kept = longest if whole else (longest * (1 - min(c.ratio for c in own))).astype(int)
            n_rows = n_prompts * len(own)
            recorded = n_rows * new * 4 * (N_SIGNALS + 1)
            slots = np.minimum(n_rows, batch_size)
            decoding = slots * row_bytes(model, kept + new) + recorded
            if len(own) > 1:  # rows of several lengths change places, the keys or values of a layer at a time
                moved = slots * (kept + new) * entry // (2 * config.num_hidden_layers)
                decoding += moved
                if model.device.type == "cpu":  # the copies of smaller moves stay in reserve
                    decoding += np.minimum(moved, _RESERVE)
            if model.device.type == "cuda":
                decoding += graph_bytes(model, slots)
            working = np.maximum(working, decoding)
            if model.device.type == "cpu":
                working = np.maximum(working, _TABLE_COPIES * recorded)
        peak = max(peak, int((held + working).max()))
    return peak + _FIXED * (model.device.type == "cpu")
