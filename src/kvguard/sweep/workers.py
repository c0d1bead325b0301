"""Workers that make parts: this process, others, or those of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Generic

import torch

from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.store.parts import P, Part, keep_made
from kvguard.store.tables import remove_temporaries
from kvguard.sweep.plan import Plan
from kvguard.sweep.progress import Progress, Report, Tally


@dataclass(frozen=True)
class Work(Generic[P]):
    """A plan, and how its parts are made; it travels to the workers.

    Parameters
    ----------
    stage : str
        The stage that asks, for errors.
    make : callable
        ``make(plan, loaded, parts, out, report)`` makes and stores a unit of parts; a module's function, or
        a partial of one, so that it can travel.
    out : Path
        Where the parts are stored.
    """

    stage: str
    plan: Plan[P]
    make: Callable[[Plan[P], LoadedModel, Sequence[P], Path, Report], None]
    out: Path


def make_missing(work: Work[P], loaded: LoadedModel, progress: bool) -> int:
    """Make the plan's missing parts, in this process, in others or on a Ray cluster; return their number.

    The largest units start first, so that workers end together.

    Raises
    ------
    KvguardError
        If a worker is killed, or a part fails for a reason the user can fix.
    KeyboardInterrupt
        With a line that says what is kept.
    """
    plan = work.plan
    missing = keep_made(work.out, plan.parts)
    units = sorted(units_of(missing), key=lambda unit: -sum(part.n_traces for part in unit))
    pending = sum(part.n_traces for part in missing)
    report = Progress(plan.sweep.name, plan.n_traces, plan.n_traces - pending, progress and pending > 0)
    try:
        _make(work, loaded, units, report)
    except KeyboardInterrupt:
        made = sum(part.is_made(work.out) for part in plan.parts)
        raise KeyboardInterrupt(
            f"{work.stage}: interrupted: {made} of {len(plan.parts)} parts are kept in {work.out}: "
            "run it again to go on"
        ) from None
    finally:
        report.bar.close()
    return len(missing)


def _make(work: Work[P], loaded: LoadedModel, units: Sequence[Sequence[P]], report: Progress) -> None:
    plan, workers = work.plan, min(work.plan.workers, len(units))
    if plan.sweep.settings.engine == "ray" and units:
        from kvguard.sweep.ray_cluster import make_on_ray

        make_on_ray(work, loaded, units, report)
    elif workers <= 1:
        with cpu_threads(plan.threads):
            for unit in units:
                work.make(plan, loaded, unit, work.out, report)
    else:
        _in_processes(work, units, workers, report)


def units_of(parts: Sequence[P]) -> list[list[P]]:
    """Group the parts that are made together."""
    units: dict[str, list[P]] = {}
    for part in parts:
        units.setdefault(part.unit, []).append(part)
    return list(units.values())


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Run the body on ``n`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(work: Work[P], units: Sequence[Sequence[P]], workers: int, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Tally | None] = context.SimpleQueue()

    def listen() -> None:
        while (tally := queue.get()) is not None:
            report(tally)

    threading.Thread(target=listen, daemon=True).start()
    others = set(multiprocessing.active_children())
    with tempfile.NamedTemporaryFile() as file:  # starting a process would wait until it has read a long plan
        pickle.dump(work, file)
        file.flush()
        pool = ProcessPoolExecutor(workers, context, _start_worker, (file.name, queue))
        try:
            with _deaf_children():
                futures = [pool.submit(_run_unit, unit) for unit in units]
            for future in as_completed(futures):
                future.result()
            queue.put(None)  # not where workers end badly: one may have taken the queue's lock with it
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            if isinstance(error, BrokenProcessPool):
                raise KvguardError(
                    f"{work.stage}: a worker of model {work.plan.sweep.name} was killed (out of memory?): "
                    "run it again to go on, or set a smaller generate.batch_size or generate.workers"
                ) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            remove_temporaries(work.out)  # of workers that ended in the middle of a write


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that the body starts never hear of Ctrl-C, which a terminal sends to all: we end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    work: Work[Any]
    loaded: LoadedModel
    queue: SimpleQueue[Tally | None]


_worker: _Worker


def _start_worker(path: str, queue: SimpleQueue[Tally | None]) -> None:
    global _worker
    threading.Thread(target=_follow_parent, daemon=True).start()
    with Path(path).open("rb") as file:
        work: Work[Any] = pickle.load(file)
    torch.set_num_threads(work.plan.threads)
    sweep = work.plan.sweep
    _worker = _Worker(work, load_model(sweep.name, sweep.spec, sweep.device), queue)


def _follow_parent() -> None:
    """End this process when its parent is killed, so that nobody writes behind a restarted run's back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_unit(parts: Sequence[Part]) -> None:
    work = _worker.work
    work.make(work.plan, _worker.loaded, parts, work.out, _worker.queue.put)
