"""The Ray engine: actors on the machines of a cluster make units of parts, one actor per GPU.

Parts, batch size and threads are planned by the machine that asks, as for the local engine, so the bytes are
the same. The machines share the folder that it runs in, at one path, and have the same kvguard.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel, load_model
from kvguard.store.parts import Part, fingerprint

if TYPE_CHECKING:
    from kvguard.sweep.progress import Progress, Tally
    from kvguard.sweep.workers import Work

_MOST_LOSSES = 3  # of workers by one unit


def make_on_ray(
    work: Work[Any], loaded: LoadedModel, units: Sequence[Sequence[Part]], progress: Progress
) -> None:
    """Make all ``units`` of parts on the cluster at ``RAY_ADDRESS``, on this machine's, or on one of its own.

    A unit whose worker is lost goes to another worker, which makes the parts that are still missing.

    Raises
    ------
    KvguardError
        If a worker finds no room, or another folder, model or kvguard; if a unit loses its workers again and
        again, or a part fails for a reason the user can fix.
    """
    with _cluster(work.stage), _set_aside(loaded):
        crew = _Crew(work, loaded, units, progress)
        try:
            crew.run()
        finally:
            crew.dismiss()


@contextmanager
def _cluster(stage: str) -> Iterator[None]:
    """Connect to Ray for the body, unless the caller already has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _knock()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare ones here
        raise KvguardError(
            f"{stage}: no Ray cluster can be had ({_one_line(error)}); try again, or fix "
            "RAY_ADDRESS: host:port of a cluster that this machine is part of, or unset"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock() -> None:
    """Fail at once where nobody answers: Ray itself tries for minutes."""
    host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _set_aside(loaded: LoadedModel) -> Iterator[None]:
    """Take this process's copy of the model off its GPU, where a worker needs the memory."""
    model: torch.nn.Module = loaded.model
    device = loaded.model.device
    if device.type != "cuda":
        yield
        return
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.to(device)


@dataclass
class _Shift:
    """What a worker is at: a unit, and how many of its traces it has reported."""

    worker: Any
    unit: Sequence[Part]
    n_reported: int = 0


class _Crew:
    """The workers, and which unit each of them is at."""

    def __init__(
        self,
        work: Work[Any],
        loaded: LoadedModel,
        units: Sequence[Sequence[Part]],
        progress: Progress,
    ) -> None:
        self.work = work
        self.device = loaded.model.device.type
        self.made_with = _fingerprint(loaded)
        self.progress = progress
        self.waiting = deque(units)
        self.losses: Counter[str] = Counter()
        self.idle: list[Any] = []
        self.shifts: dict[Any, _Shift] = {}  # by the stream of tallies that tells of it

    def run(self) -> None:
        """Hire workers and keep them busy until every part is made."""
        import ray

        for _ in range(min(self._room(), len(self.waiting))):
            self._hire()
        while self.waiting or any(shift.unit for shift in self.shifts.values()):
            while self.waiting and self.idle:
                self._give(self.idle.pop(), self.waiting.popleft())
            (stream,), _ = ray.wait(list(self.shifts), num_returns=1)
            self._listen(stream)

    def dismiss(self) -> None:
        """End all workers."""
        import ray

        for worker in [*self.idle, *(shift.worker for shift in self.shifts.values())]:
            ray.kill(worker)

    def _room(self) -> int:
        """Return how many workers to hire: one per GPU, or as many as were asked for and the cores hold."""
        import ray

        kind, each = ("GPU", 1) if self.device == "cuda" else ("CPU", self.work.plan.threads)
        machines = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
        room = sum(int(amount // each) for amount in machines)
        if not room:
            raise self._error(
                f"no machine of the Ray cluster has {each} {kind} for a worker; "
                "start Ray with more, or raise generate.workers"
            )
        asked = self.work.plan.sweep.settings.workers
        return room if kind == "GPU" or asked == "auto" else min(room, asked)

    def _hire(self) -> None:
        import ray

        # A worker on a GPU is not to wait for cores: its threads have next to nothing to do.
        needs = (
            {"num_cpus": self.work.plan.threads} if self.device != "cuda" else {"num_cpus": 0, "num_gpus": 1}
        )
        worker = (
            ray.remote(_Worker).options(**needs).remote(self.work, self.device, self.made_with, Path.cwd())
        )
        self._give(worker, ())  # answered once the cluster has room for it

    def _give(self, worker: Any, unit: Sequence[Part]) -> None:
        self.shifts[worker.make.remote(unit)] = _Shift(worker, unit)

    def _listen(self, stream: Any) -> None:
        """Hear of a worker: a tally, that its unit is done, that it failed, or that it is lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        shift = self.shifts[stream]
        try:
            tally = ray.get(next(stream))
        except StopIteration:
            del self.shifts[stream]
            self.idle.append(shift.worker)
            if self._missing(shift.unit):
                raise self._error(
                    f"a worker made part {shift.unit[0].name}, but it is not in {self.work.out}; "
                    "run in a folder that all machines of the Ray cluster share"
                ) from None
        except RayTaskError as error:
            if isinstance(error.cause, KvguardError):
                raise error.cause from None
            raise
        except RayError as error:
            ray.kill(shift.worker)  # it may only be out of reach
            del self.shifts[stream]
            self._replace(shift, error)
        else:
            shift.n_reported += tally.n
            self.progress(tally)

    def _replace(self, lost: _Shift, error: Exception) -> None:
        """Hire another worker and put back what is left of the unit of a lost one."""
        if not lost.unit:
            raise self._error(
                f"a worker cannot start ({_one_line(error)}); install the same kvguard and Ray on all "
                "machines"
            ) from None
        missing = self._missing(lost.unit)
        if missing:
            name = missing[0].name
            self.losses[name] += 1
            if self.losses[name] == _MOST_LOSSES:
                raise self._error(
                    f"part {name} of model {self.work.plan.sweep.name} lost its worker {_MOST_LOSSES} times "
                    "(out of memory?); run it again to go on, or set a smaller generate.batch_size or "
                    "generate.workers"
                ) from None
            self.waiting.appendleft(missing)
            n_stored = sum(part.n_traces for part in lost.unit) - sum(part.n_traces for part in missing)
            self.progress.expect(lost.n_reported - n_stored)
        self._hire()

    def _missing(self, unit: Sequence[Part]) -> list[Part]:
        return [part for part in unit if not part.is_made(self.work.out)]

    def _error(self, message: str) -> KvguardError:
        return KvguardError(f"{self.work.stage}: {message}")


class _Worker:
    """An actor: it loads the model once and makes units of parts."""

    def __init__(self, work: Work[Any], device: str, made_with: str, folder: Path) -> None:
        self.work = work
        self.device = device
        self.made_with = made_with
        self.folder = folder
        self.loaded: LoadedModel | None = None

    def make(self, unit: Sequence[Part]) -> Iterator[Tally]:
        """Make a unit of parts and tell of each finished trace; an empty one says that a worker is there."""
        if not unit:
            return
        self.loaded = self.loaded or self._load()
        tallies: SimpleQueue[Tally | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(self._make, self.loaded, unit, tallies)
            done.add_done_callback(lambda _: tallies.put(None))
            while (tally := tallies.get()) is not None:
                yield tally
            done.result()

    def _make(self, loaded: LoadedModel, unit: Sequence[Part], tallies: SimpleQueue[Tally | None]) -> None:
        from kvguard.sweep.workers import cpu_threads

        work = self.work
        with cpu_threads(work.plan.threads):
            work.make(work.plan, loaded, unit, work.out, tallies.put)

    def _load(self) -> LoadedModel:
        """Go to the folder of the one who asks, and load the model that it has."""
        work, where = self.work, f"{self.work.stage}: machine {os.uname().nodename} of the Ray cluster"
        try:
            os.chdir(self.folder)
        except OSError:
            raise KvguardError(f"{where} has no folder {self.folder}; share it with all machines") from None
        sweep = work.plan.sweep
        loaded = load_model(sweep.name, sweep.spec, self.device)
        if _fingerprint(loaded) != self.made_with:
            raise KvguardError(
                f"{where} has another model {sweep.name}, kvguard, torch or transformers than the "
                "one that asks; install the same on all machines"
            )
        return loaded


def _fingerprint(loaded: LoadedModel) -> str:
    """Return what the parts of all workers must have in common: weights, libraries, code."""
    return fingerprint({"weights": loaded.fingerprint})


def _one_line(error: Exception) -> str:
    """Return the last line of what Ray says: before it come the actor's name and its traceback."""
    return str(error).strip().rpartition("\n")[2][:200]
