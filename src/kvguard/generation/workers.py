"""Worker processes that make parts, and the progress bar above them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from tqdm import tqdm

from kvguard.compressors import attention_for
from kvguard.errors import KvguardError
from kvguard.generation.block import generate_parts
from kvguard.generation.parts import Part
from kvguard.generation.plan import Sweep, Tally
from kvguard.models.registry import LoadedModel, load_model


class Progress:
    """A bar of finished traces: traces/s, time left, running CBR and accuracy."""

    def __init__(self, name: str, total: int, kept: int, show: bool) -> None:
        self.tally = Tally()
        self.bar = tqdm(total=total, initial=kept, desc=name, unit="trace", smoothing=0.05, disable=not show)

    def __call__(self, tally: Tally) -> None:
        """Count finished traces."""
        self.tally += tally
        self.bar.set_postfix_str(
            f"CBR {self.tally.catastrophic / self.tally.n:.3f}"
            + (f", accuracy {self.tally.correct / self.tally.scored:.3f}" if self.tally.scored else ""),
            refresh=False,
        )
        self.bar.update(tally.n)


def make_parts(
    sweep: Sweep,
    loaded: LoadedModel,
    parts: Sequence[Part],
    out: Path,
    batch_size: int,
    workers: int,
    threads: int,
    progress: bool,
) -> None:
    """Make all ``parts``, in this process or in ``workers`` others.

    Raises
    ------
    KvguardError
        If a worker is killed, or a part fails for a reason the user can mend.
    """
    units = _units(sweep, parts)
    pending = sum(part.n_traces for part in parts)
    report = Progress(sweep.name, sweep.n_traces, sweep.n_traces - pending, progress and pending > 0)
    workers = min(workers, len(units))
    if workers <= 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for unit in units:
                generate_parts(sweep, loaded, unit, out, batch_size, report)
        finally:
            torch.set_num_threads(before)
    else:
        _in_processes(sweep, units, out, batch_size, workers, threads, report)
    report.bar.close()


def _units(sweep: Sweep, parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts that one prefill can serve; the largest groups first, so that workers end together."""
    groups: dict[tuple[int, str], list[Part]] = {}
    for part in parts:
        implementation = attention_for(sweep.press(part.conditions[0]))
        groups.setdefault((part.block, implementation), []).append(part)
    return sorted(groups.values(), key=lambda group: -sum(part.n_traces for part in group))


def _in_processes(
    sweep: Sweep,
    units: Sequence[list[Part]],
    out: Path,
    batch_size: int,
    workers: int,
    threads: int,
    report: Progress,
) -> None:
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Tally | None] = context.SimpleQueue()

    def listen() -> None:
        while (tally := queue.get()) is not None:
            report(tally)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (sweep, out, batch_size, threads, queue))
    try:
        for future in as_completed([pool.submit(_run_unit, unit) for unit in units]):
            future.result()
    except BrokenProcessPool:
        raise KvguardError(
            f"generate: a worker process of model {sweep.name} was killed (out of memory?); "
            "run it again to go on, or set a smaller generate.batch_size or generate.workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        queue.put(None)
        listener.join()


@dataclass
class _Worker:
    sweep: Sweep
    loaded: LoadedModel
    out: Path
    batch_size: int
    queue: SimpleQueue[Tally | None]


_worker: _Worker


def _start_worker(
    sweep: Sweep, out: Path, batch_size: int, threads: int, queue: SimpleQueue[Tally | None]
) -> None:
    global _worker
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    _worker = _Worker(sweep, loaded, out, batch_size, queue)


def _follow_parent() -> None:
    """End this process when its parent is killed, so that nobody writes behind a restarted run's back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_unit(parts: list[Part]) -> None:
    w = _worker
    generate_parts(w.sweep, w.loaded, parts, w.out, w.batch_size, w.queue.put)
