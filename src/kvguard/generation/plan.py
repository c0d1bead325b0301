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
import torch

from kvguard.compressors import NONE, Condition, build_press, shortest_prompt
from kvguard.config import CatastropheParams, CompressorSpec, GenerateParams, ModelSpec
from kvguard.errors import KvguardError
from kvguard.generation.cache import RaggedCache
from kvguard.models.registry import LoadedModel

if TYPE_CHECKING:
    from kvpress import BasePress
    from transformers import PreTrainedModel

_MOST_ROWS = 512  # of a batch: more bring no more tokens/s


@dataclass(frozen=True)
class Sweep:
    """What is generated: a model, its prompts, the conditions and how they are decoded.

    Parameters
    ----------
    prompts : DataFrame
        The prompts table.
    compressors : mapping
        The press of every compressor that the conditions name.
    device : str
        ``auto``, ``cuda``, ``mps`` or ``cpu``.
    """

    name: str
    spec: ModelSpec
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
    """Traces finished so far: how many, how many with a catastrophe, scored and right."""

    n: int = 0
    catastrophic: int = 0
    scored: int = 0
    correct: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[int, int, int, int]:
        return self.n, self.catastrophic, self.scored, self.correct


def check_prompts(sweep: Sweep, loaded: LoadedModel, encoded: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that the model's window or a press cannot take.

    Raises
    ------
    KvguardError
        Naming the prompt, the lengths and the mend.
    """
    lengths = [len(ids) for ids in encoded]
    longest, shortest = int(np.argmax(lengths)), int(np.argmin(lengths))
    name = sweep.prompts["prompt_id"].iloc
    if lengths[longest] + sweep.spec.max_new_tokens > loaded.window:
        raise KvguardError(
            f"prompt {name[longest]}: {lengths[longest]} tokens and {sweep.spec.max_new_tokens} new ones "
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


def plan_batch(sweep: Sweep, loaded: LoadedModel, longest: int, workers: int, out: Path) -> int:
    """Plan the rows of a batch from free memory, once per folder: a resumed run keeps to its first plan."""
    if sweep.settings.batch_size != "auto":
        return sweep.settings.batch_size
    n_tokens = longest + sweep.spec.max_new_tokens
    row = _row_bytes(loaded.model, n_tokens)
    path = out / "batch.json"
    key = [loaded.fingerprint, row, workers]
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return int(stored["batch_size"])
    except (OSError, ValueError, KeyError):
        pass
    batch_size = batch_of(rows_in_memory(loaded.model, n_tokens, workers))
    path.write_text(json.dumps({"key": key, "batch_size": batch_size}))
    return batch_size


def made_with(sweep: Sweep, loaded: LoadedModel, batch_size: int, threads: int) -> dict[str, Any]:
    """Return what every part's bytes depend on, whatever its prompts and conditions."""
    return {
        "weights": loaded.fingerprint,
        "dtype": sweep.spec.dtype,
        "device": loaded.model.device.type,
        "max_new_tokens": sweep.spec.max_new_tokens,
        "batch_size": batch_size,
        "threads": threads,
    }


def rows_in_memory(model: PreTrainedModel, n_tokens: int, processes: int = 1) -> int:
    """Return how many rows of ``n_tokens`` fit into half of what memory is free, in each of ``processes``."""
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_memory()
    return int(free / 2 / processes / _row_bytes(model, n_tokens))


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory; on a CPU only the error's text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)


def batch_of(rows: int) -> int:
    """Return the rows to decode together where ``rows`` fit: a power of two, and no more than pays."""
    return min(1 << max(0, rows.bit_length() - 1), _MOST_ROWS)


def _row_bytes(model: PreTrainedModel, n_tokens: int) -> int:
    """Return the memory of one row: its cache, its logits and what the signals make of them."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = RaggedCache.bytes_per_row(
        config.num_hidden_layers, n_tokens, config.num_key_value_heads, head_dim, model.dtype
    )
    return cache + 8 * config.vocab_size * 4


def _free_host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
