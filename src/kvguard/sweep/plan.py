"""A sweep, and the plan that it is compiled into, once: everything that is decided before the first token."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from kvguard.engine.press_code import introduce
from kvguard.engine.presses import NONE, Condition, Presses
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.load import LoadedModel
from kvguard.models.spec import ModelSpec
from kvguard.store.parts import P, Part, fingerprint, slices
from kvguard.store.tables import as_stored
from kvguard.sweep.batch_size import BatchSize
from kvguard.sweep.settings import CompressorSpec, GenerateParams
from kvguard.tasks.base import Task

if TYPE_CHECKING:
    Ids = NDArray[np.int32]

Q = TypeVar("Q", bound=Part)

_WORTH_A_WORKER = 1e11  # multiplications that take a core about as long as a process takes to start


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


@dataclass(frozen=True)
class SweepPart(Part):
    """A slice of the prompts x one compressor's conditions.

    Parameters
    ----------
    start, stop : int
        The part's prompts, as positions in the prompts table.
    """

    start: int
    stop: int
    compressor: str
    conditions: tuple[Condition, ...]

    kinds: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "parts": "part"}


@dataclass(frozen=True, eq=False)
class Plan(Generic[P]):
    """A compiled sweep. It travels to the workers, where its presses are built anew.

    Attributes
    ----------
    presses : Presses
        The press of every condition, built once.
    prompt_ids : tuple of ndarray
        The token ids of every prompt [T], in the order of the prompts table.
    prompt_texts : tuple of str
        What the tokenizer makes of those ids.
    batch_size : int
        Rows decoded together, unless memory runs out.
    workers, threads : int
        Processes on this machine, and the CPU threads of each.
    depends_on : mapping
        What every part's bytes depend on, whatever its prompts and conditions.
    parts : tuple of Part
        All parts, made and missing.
    """

    sweep: Sweep
    presses: Presses
    prompt_ids: tuple[Ids, ...]
    prompt_texts: tuple[str, ...]
    batch_size: int
    workers: int
    threads: int
    depends_on: Mapping[str, Any]
    parts: tuple[P, ...] = ()

    @property
    def n_traces(self) -> int:
        """Traces in all parts."""
        return sum(part.n_traces for part in self.parts)

    def with_parts(self, parts: Iterable[Q]) -> Plan[Q]:
        """Return this plan with other parts."""
        whatever: Plan[Any] = self
        return replace(whatever, parts=tuple(parts))

    def made_of(self, prompts: Sequence[int], conditions: Sequence[Condition]) -> dict[str, Any]:
        """Return what a part of these prompts, by position, and conditions depends on."""
        compressors = {c.compressor for c in conditions} - {NONE}
        return {
            **self.depends_on,
            "prompts": [
                (self.sweep.prompts["prompt_id"].iloc[i], self.prompt_ids[i].tolist(), self.prompt_texts[i])
                for i in prompts
            ],
            "conditions": [(c.compressor, c.ratio) for c in conditions],
            "presses": {name: self.sweep.compressors[name].model_dump() for name in compressors},
        }


def compile_sweep(
    sweep: Sweep,
    loaded: LoadedModel,
    out: Path,
    cut: Callable[[Plan[Any]], Sequence[P]],
    restorable: bool = False,
) -> Plan[P]:
    """Decide everything, check it, and only then touch ``out``.

    Parameters
    ----------
    out
        The folder of the parts: a batch size that was planned there before is kept.
    cut
        Cuts a plan into parts, by :meth:`Plan.made_of`.
    restorable
        Rows may get their full cache back.

    Raises
    ------
    KvguardError
        If the engine is not installed, the prompts table breaks its schema, a press does not take its
        parameters, or a prompt does not fit the model or a press.
    """
    check_engine(sweep.settings)
    as_stored("prompts", sweep.prompts, out / "prompts.parquet")
    presses = Presses(sweep.conditions, sweep.compressors)
    loaded.warn_of_doubts()
    encoded = encode_prompts(sweep.prompts, loaded)
    lengths = [len(ids) for ids in encoded]
    check_prompts(sweep, presses, loaded, lengths)
    workers, threads = plan_workers(sweep.settings, loaded, len(sweep.prompts))
    batch_size = BatchSize(sweep, presses, loaded, lengths, workers, out, restorable)
    stops = stop_strings(sweep.task, loaded)
    depends_on = {
        "weights": loaded.fingerprint,
        "dtype": sweep.spec.dtype_on(loaded.model.device.type),
        "quantised_by": version("bitsandbytes") if sweep.spec.quantisation == "nf4" else None,
        "device": loaded.model.device.type,
        "max_new_tokens": sweep.task.max_new_tokens,
        "eos_ids": loaded.eos_ids,
        "stop_strings": stops.strings if stops is not None else (),
        "batch_size": batch_size.rows,
        "threads": threads,
    }
    plan: Plan[Any] = Plan(
        sweep=sweep,
        presses=presses,
        prompt_ids=tuple(np.array(ids, dtype=np.int32) for ids in encoded),
        prompt_texts=tuple(loaded.decode(ids) for ids in encoded),
        batch_size=batch_size.rows,
        workers=workers,
        threads=threads,
        depends_on=depends_on,
    )
    whole = plan.with_parts(cut(plan))
    out.mkdir(parents=True, exist_ok=True)
    batch_size.remember()
    return whole


def encode_prompts(prompts: pd.DataFrame, loaded: LoadedModel) -> list[list[int]]:
    """Return the token ids of a prompts table, in its order.

    Raises
    ------
    KvguardError
        Naming the prompt that cannot be encoded.
    """
    encoded = []
    for prompt_id, prompt in zip(prompts["prompt_id"], prompts["prompt"], strict=True):
        try:
            encoded.append(loaded.encode(prompt))
        except KvguardError as error:
            raise KvguardError(f"prompt {prompt_id}: {error}") from None
    return encoded


def cut_by_compressor(plan: Plan[Any]) -> list[SweepPart]:
    """Cut a sweep into slices of prompts x one compressor; a slice's parts of one attention are a unit."""
    sweep = plan.sweep
    by_compressor: dict[str, list[Condition]] = {}
    for condition in sweep.conditions:
        by_compressor.setdefault(condition.compressor, []).append(condition)
    nth = {condition: i for i, condition in enumerate(sweep.conditions)}
    parts = []
    for number, (start, stop) in enumerate(slices(len(sweep.prompts), sweep.settings.prompts_per_part)):
        for compressor, own in by_compressor.items():
            parts.append(
                SweepPart(
                    name=f"{number:04d}-{compressor}",
                    trace_ids=tuple(i * len(nth) + nth[c] for i in range(start, stop) for c in own),
                    unit=f"{number:04d}-{plan.presses[own[0]].attention}",
                    fingerprint=fingerprint(plan.made_of(range(start, stop), own)),
                    start=start,
                    stop=stop,
                    compressor=compressor,
                    conditions=tuple(own),
                )
            )
    return parts


def stop_strings(task: Task, loaded: LoadedModel) -> StopStrings | None:
    """Return what else ends a text: the task's stop strings, where no chat template ends the model's turn.

    Those that a user names (``stop_in_chat``) end it there too.
    """
    strings = task.stop_strings if task.stop_in_chat or not loaded.has_chat else ()
    return StopStrings(loaded.tokenizer, strings) if strings else None


def check_engine(settings: GenerateParams) -> None:
    """Reject an engine that is not installed.

    Raises
    ------
    KvguardError
        Naming the extra that brings it.
    """
    if settings.engine == "ray" and find_spec("ray") is None:
        raise KvguardError(
            "generate.engine: ray is not installed: pip install 'kvguard[ray]', or set it to local"
        )


def check_prompts(sweep: Sweep, presses: Presses, loaded: LoadedModel, lengths: Sequence[int]) -> None:
    """Reject prompts of these lengths, in tokens, that the model's window or a press cannot take.

    Raises
    ------
    KvguardError
        Naming the prompt, the lengths and the fix; or the press that cannot serve the model.
    """
    longest, shortest = int(np.argmax(lengths)), int(np.argmin(lengths))
    name = sweep.prompts["prompt_id"].iloc
    if lengths[longest] + sweep.task.max_new_tokens > loaded.window:
        raise KvguardError(
            f"prompt {name[longest]}: {lengths[longest]} tokens and {sweep.task.max_new_tokens} new ones "
            f"exceed the window of {loaded.window} of model {sweep.name}; use fewer shots (n_shots) or a "
            "smaller max_new_tokens"
        )
    for condition, built in presses.items():
        if built.press is not None:
            introduce(loaded.model, built.press, str(condition))
        if lengths[shortest] < built.shortest_prompt:
            raise KvguardError(
                f"prompt {name[shortest]}: {lengths[shortest]} tokens are too few for "
                f"{condition.compressor}, which needs {built.shortest_prompt}; "
                f"fix compressors.{condition.compressor} (a smaller window_size) or use longer prompts"
            )


def spread(sweep: Sweep, loaded: LoadedModel) -> Sweep:
    """Return a sweep with parts of so few prompts that each worker of this machine gets some.

    One that ends before a second worker has started is left whole.
    A part's rows are decoded together, so the signals of a small sweep may differ between machines in their
    last bits, as they may with other numbers of threads. The fingerprint of a part names its prompts.
    """
    n_traces = len(sweep.prompts) * len(sweep.conditions)
    weights = sum(weight.numel() for weight in loaded.model.parameters())
    if weights * n_traces * sweep.task.max_new_tokens < _WORTH_A_WORKER:
        return sweep
    workers, _ = plan_workers(sweep.settings, loaded, len(sweep.prompts))
    size = min(sweep.settings.prompts_per_part, -(-len(sweep.prompts) // workers))
    return replace(sweep, settings=sweep.settings.model_copy(update={"prompts_per_part": size}))


def plan_workers(settings: GenerateParams, loaded: LoadedModel, n_prompts: int) -> tuple[int, int]:
    """Return (processes on this machine, CPU threads of each); on an accelerator one process drives it.

    On a CPU the steps of a small model are too short to split: a process per core beats a thread per core.
    Each holds weights of its own, so of a large model there are as many as fit into half of the memory; and
    none without a prompt.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if loaded.model.device.type != "cpu":
        return 1, cores
    if settings.workers == "auto":
        weights = sum(weight.nbytes for weight in loaded.model.parameters())
        workers = max(1, min(cores, n_prompts, psutil.virtual_memory().total // 2 // weights))
    else:
        workers = settings.workers
    return workers, max(1, cores // workers)
