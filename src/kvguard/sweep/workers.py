"""Worker processes that make parts, and the progress bar above them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.models.spec import ModelSpec
from kvguard.store.parts import P, Part
from kvguard.sweep.plan import Tally
from kvguard.sweep.settings import GenerateParams

Report = Callable[[Tally], None]


class Job(Protocol):
    """What parts are made of; it travels to the workers, which load its model."""

    @property
    def name(self) -> str:
        """The model's name in the params."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""

    @property
    def device(self) -> str:
        """``auto``, ``cuda``, ``mps`` or ``cpu``."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Work(Generic[J, P]):
    """How the parts of a job are made.

    Parameters
    ----------
    stage : str
        The stage that asks, for errors.
    make : callable
        ``make(job, loaded, parts, out, batch_size, report)`` makes and stores a unit of parts; a module's
        function, so that it can travel.
    workers, threads : int
        Processes on this machine, and the CPU threads of each.
    settings : GenerateParams
        Which engine makes the parts, and how many workers it was asked for.
    """

    stage: str
    job: J
    make: Callable[[J, LoadedModel, Sequence[P], Path, int, Report], None]
    out: Path
    batch_size: int
    workers: int
    threads: int
    settings: GenerateParams


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

    def expect(self, n: int) -> None:
        """Extend the bar by ``n`` traces that are generated again."""
        self.bar.total += n


def make_units(
    work: Work[J, P], loaded: LoadedModel, units: Sequence[Sequence[P]], total: int, progress: bool
) -> None:
    """Make all ``units`` of parts, in this process, in others or on a Ray cluster.

    Parameters
    ----------
    units
        Parts that are made together; the largest start first, so that workers end together.
    total
        Traces of the whole job, those of kept parts among them.

    Raises
    ------
    KvguardError
        If a worker is killed, or a part fails for a reason the user can mend.
    """
    units = sorted(units, key=lambda unit: -sum(part.n_traces for part in unit))
    pending = sum(part.n_traces for unit in units for part in unit)
    report = Progress(work.job.name, total, total - pending, progress and pending > 0)
    workers = min(work.workers, len(units))
    if work.settings.engine == "ray" and units:
        from kvguard.sweep.ray_cluster import make_on_ray

        make_on_ray(work, loaded, units, report)
    elif workers <= 1:
        with cpu_threads(work.threads):
            for unit in units:
                work.make(work.job, loaded, unit, work.out, work.batch_size, report)
    else:
        _in_processes(work, units, workers, report)
    report.bar.close()


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Run the body on ``n`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(work: Work[J, P], units: Sequence[Sequence[P]], workers: int, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Tally | None] = context.SimpleQueue()

    def listen() -> None:
        while (tally := queue.get()) is not None:
            report(tally)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work, queue))
    try:
        for future in as_completed([pool.submit(_run_unit, unit) for unit in units]):
            future.result()
    except BrokenProcessPool:
        raise KvguardError(
            f"{work.stage}: a worker process of model {work.job.name} was killed (out of memory?); "
            "run it again to go on, or set a smaller generate.batch_size or generate.workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        queue.put(None)
        listener.join()


@dataclass
class _Worker:
    work: Work[Any, Any]
    loaded: LoadedModel
    queue: SimpleQueue[Tally | None]


_worker: _Worker


def _start_worker(work: Work[Any, Any], queue: SimpleQueue[Tally | None]) -> None:
    global _worker
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(work.threads)
    loaded = load_model(work.job.name, work.job.spec, work.job.device)
    _worker = _Worker(work, loaded, queue)


def _follow_parent() -> None:
    """End this process when its parent is killed, so that nobody writes behind a restarted run's back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_unit(parts: Sequence[Part]) -> None:
    work = _worker.work
    work.make(work.job, _worker.loaded, parts, work.out, work.batch_size, _worker.queue.put)
