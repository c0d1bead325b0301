"""What a sweep is, whether its prompts fit, and how its work is cut to the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kvguard.engine.memory import MOST_ROWS, entry_bytes, free_memory, graph_bytes, prefill_bytes, row_bytes
from kvguard.engine.presses import NONE, Condition, attention_for, build_press, only_scores, shortest_prompt
from kvguard.engine.signals import N_SIGNALS
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.load import LoadedModel
from kvguard.models.spec import ModelSpec
from kvguard.store.parts import blocks
from kvguard.sweep.settings import CompressorSpec, GenerateParams
from kvguard.tasks.base import Task

if TYPE_CHECKING:
    from kvpress import BasePress
    from transformers import PreTrainedModel

_TABLE_COPIES = 4  # of a part's signals, while its tables are made and written
_FIXED = 4 << 20  # bytes of a worker's tokenizer and of what writes its tables, measured
_RESERVE = 64 << 20  # bytes of freed blocks that glibc keeps at most: twice its largest mmap threshold


@dataclass(frozen=True)
class Sweep:
    """What is generated: a model, its prompts, the conditions and how they are decoded.

    Parameters
    ----------
    task : Task
        What the prompts ask, for how many tokens, and how the texts are scored.
    prompts : DataFrame
        The prompts table.
    compressors : mapping
        The press of every compressor that the conditions name.
    device : str
        ``auto``, ``cuda``, ``mps`` or ``cpu``.
    """

    name: str
    spec: ModelSpec
    task: Task
    prompts: pd.DataFrame
    conditions: Sequence[Condition]
    compressors: Mapping[str, CompressorSpec]
    settings: GenerateParams
    catastrophes: CatastropheParams
    device: str = "auto"

    @property
    def n_traces(self) -> int:
        """Traces in the whole sweep."""
        return len(self.prompts) * len(self.conditions)

    def press(self, condition: Condition) -> BasePress | None:
        """Build the condition's press; None for the baseline."""
        if condition.compressor == NONE:
            return None
        return build_press(self.compressors[condition.compressor], condition.ratio)


@dataclass(frozen=True)
class Tally:
    """Traces finished so far: how many, with a catastrophe, scored; and the sum of their headline scores."""

    n: int = 0
    catastrophic: int = 0
    scored: int = 0
    correct: float = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n + other.n,
            self.catastrophic + other.catastrophic,
            self.scored + other.scored,
            self.correct + other.correct,
        )


def check_prompts(sweep: Sweep, loaded: LoadedModel, lengths: Sequence[int]) -> None:
    """Refuse prompts of these lengths, in tokens, that the model's window or a press cannot take.

    Raises
    ------
    KvguardError
        Naming the prompt, the lengths and the mend.
    """
    longest, shortest = int(np.argmax(lengths)), int(np.argmin(lengths))
    name = sweep.prompts["prompt_id"].iloc
    if lengths[longest] + sweep.task.max_new_tokens > loaded.window:
        raise KvguardError(
            f"prompt {name[longest]}: {lengths[longest]} tokens and {sweep.task.max_new_tokens} new ones "
            f"exceed the window of {loaded.window} of model {sweep.name}; use fewer shots (n_shots) or a "
            "smaller max_new_tokens"
        )
    for condition in sweep.conditions:
        press = sweep.press(condition)
        needed = shortest_prompt(press) if press is not None else 1
        if lengths[shortest] < needed:
            raise KvguardError(
                f"prompt {name[shortest]}: {lengths[shortest]} tokens are too few for "
                f"{condition.compressor}, which needs {needed}; mend compressors.{condition.compressor} "
                "(a smaller window_size) or use longer prompts"
            )


def stop_strings(task: Task, loaded: LoadedModel) -> StopStrings | None:
    """Return what else ends a text: the task's stop strings, where no chat template ends the model's turn."""
    strings = task.stop_strings
    return StopStrings(loaded.tokenizer, strings) if strings and not loaded.has_chat else None


def check_engine(settings: GenerateParams) -> None:
    """Refuse an engine that is not installed.

    Raises
    ------
    KvguardError
        Naming the extra that brings it.
    """
    if settings.engine == "ray" and find_spec("ray") is None:
        raise KvguardError(
            "generate.engine: ray is not installed: pip install 'kvguard[ray]', or set it to local"
        )


def plan_workers(settings: GenerateParams, loaded: LoadedModel) -> tuple[int, int]:
    """Return (processes on this machine, CPU threads of each); on an accelerator one process drives it.

    On a CPU the steps of a small model are too short to split: a process per core beats a thread per core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if loaded.model.device.type != "cpu":
        return 1, cores
    workers = cores if settings.workers == "auto" else settings.workers
    return workers, max(1, cores // workers)


def plan_batch(
    sweep: Sweep,
    loaded: LoadedModel,
    lengths: Sequence[int],
    workers: int,
    out: Path,
    restorable: bool = False,
) -> int:
    """Plan the rows of a batch, once per folder: a resumed run keeps to its first plan.

    Every process is to stay within its share of half the memory that is free, by :func:`predicted_peak`.

    Parameters
    ----------
    lengths
        Tokens of every prompt.
    restorable
        Rows may get their full cache back.
    """
    if sweep.settings.batch_size != "auto":
        return sweep.settings.batch_size
    model = loaded.model
    path = out / "batch.json"
    key = [loaded.fingerprint, row_bytes(model, max(lengths) + sweep.task.max_new_tokens), workers]
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return int(stored["batch_size"])
    except (OSError, ValueError, KeyError):
        pass
    share = free_memory(model) / 2 / workers
    if workers > 1:  # each loads weights of its own
        share -= sum(weight.nbytes for weight in model.parameters())
    batch_size = MOST_ROWS
    while batch_size > 1 and predicted_peak(sweep, model, lengths, batch_size, restorable) > share:
        batch_size //= 2
    path.write_text(json.dumps({"key": key, "batch_size": batch_size}))
    return batch_size


def predicted_peak(
    sweep: Sweep, model: PreTrainedModel, lengths: Sequence[int], batch_size: int, restorable: bool = False
) -> int:
    """Predict the most memory, in bytes, that a process takes besides the weights while it makes parts.

    A block's prefill keeps every prompt's cache, with what each condition keeps of it, until the block's last
    part is decoded. On top of that comes a prompt's prefill, or the decoding of a part, or, on the
    host, its tables: whichever takes most.

    Parameters
    ----------
    lengths, restorable
        As for :func:`plan_batch`.
    """
    config, new = model.config.get_text_config(), sweep.task.max_new_tokens
    n_blocks = np.array(blocks(len(lengths), sweep.settings.prompts_per_part))
    total = np.add.reduceat(lengths, n_blocks[:, 0])  # tokens of each block's prompts
    longest = np.maximum.reduceat(lengths, n_blocks[:, 0])
    n_prompts = n_blocks[:, 1] - n_blocks[:, 0]
    entry = entry_bytes(model)
    index = 4 * config.num_hidden_layers * config.num_key_value_heads
    logits = n_prompts * config.vocab_size * model.dtype.itemsize

    presses = {condition: sweep.press(condition) for condition in sweep.conditions}
    peak = 0
    for implementation in {attention_for(press) for press in presses.values()}:
        together = {c: p for c, p in presses.items() if attention_for(p) == implementation}
        scored = [c for c, press in together.items() if press is None or only_scores(press)]
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


def made_with(sweep: Sweep, loaded: LoadedModel, batch_size: int, threads: int) -> dict[str, Any]:
    """Return what every part's bytes depend on, whatever its prompts and conditions."""
    stops = stop_strings(sweep.task, loaded)
    return {
        "weights": loaded.fingerprint,
        "dtype": sweep.spec.dtype,
        "device": loaded.model.device.type,
        "max_new_tokens": sweep.task.max_new_tokens,
        "stop_strings": stops.strings if stops is not None else (),
        "batch_size": batch_size,
        "threads": threads,
    }
