"""Processes that each serve a copy of the model, on sockets that only this server reaches, kept alive."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from kvguard.errors import KvguardError
from kvguard.serve import logs
from kvguard.serve.start import serve_behind

if TYPE_CHECKING:
    from kvguard.serve.served import Served

_SPAWN = multiprocessing.get_context("spawn")
_STARTING = 0.2  # seconds between two looks at a replica that does not answer yet
_RUNNING = 2.0  # and at one that does
_SILENT = 60.0  # seconds after which one that says nothing is ended
_GRACE = 30.0  # seconds that one may take to end, once nothing is under way
_SHORTEST, _LONGEST = 0.5, 60.0  # seconds before the next start: twice as long each time,
_STEADY = 60.0  # but for one that lived so long
_POOL = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=5)


@dataclass(frozen=True)
class Recipe:
    """What every replica is made of.

    Attributes
    ----------
    load
        Makes what is served, in the replica's process; can be pickled.
    n
        How many there are; each has this part of the CPU threads.
    """

    load: Callable[[], Served]
    n: int
    keys: Sequence[str]
    log_text: bool

    def serve(self, number: int, socket: Path, said: Connection) -> None:
        """Load and serve, in a process of its own, until SIGTERM or the end of the one that started it."""
        import torch

        os.setsid()  # Ctrl-C is told to the one that started it
        threading.Thread(target=_end_with_parent, args=(socket.parent,), daemon=True).start()
        torch.set_num_threads(max(1, torch.get_num_threads() // self.n))
        try:
            served = self.load()
        except KvguardError as error:
            said.send(str(error))
            raise SystemExit(1) from None
        logs.begin(replica=number)
        serve_behind(served, socket, self.keys, self.log_text)


def _end_with_parent(folder: Path) -> None:
    """End at once when the server has ended, however that came; it may not have removed its folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


class Replica:
    """One of the processes, as the server sees it.

    Attributes
    ----------
    up
        It answers.
    under_way
        Requests that it was given and has not answered to the end.
    starts
        How often its process was started.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.socket = number, folder / f"{number}"
        self.up, self.under_way, self.starts = False, 0, 0
        self._transport = httpx.AsyncHTTPTransport(uds=str(self.socket), limits=_POOL)

    async def ask(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer as soon as that begins; it is to be closed.

        Raises
        ------
        httpx.TransportError
            The replica is gone, or does not listen.
        """
        try:
            return await self._transport.handle_async_request(request)
        except httpx.ConnectError:
            self.up = False  # until it is seen to answer again
            raise

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request as under way."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def look(self) -> bool:
        """See whether it answers; return False where it is up and yet will never answer again.

        One that does not listen may be starting, or finishing what it has before it ends: it is let be.
        """
        try:
            async with asyncio.timeout(_SILENT):
                answer = await self.ask(httpx.Request("GET", "http://replica/health"))
                await answer.aread()
        except httpx.TransportError:
            return True
        except TimeoutError:
            return False
        self.up = answer.is_success
        return self.up

    async def close(self) -> None:
        """Close the connections to it."""
        await self._transport.aclose()


class Fleet:
    """The replicas of a server; one that ends is started again.

    Attributes
    ----------
    replicas
        All of them, in order, whether they are up or not.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._ready = asyncio.Event()
        self.replicas: list[Replica] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have all replicas up at the beginning of the body, and ended after it.

        Raises
        ------
        KvguardError
            One of them cannot be started.
        """
        with tempfile.TemporaryDirectory(prefix="kvguard-") as folder:
            self.replicas = [Replica(number, Path(folder)) for number in range(self._recipe.n)]
            keepers = [asyncio.create_task(self._keep(replica)) for replica in self.replicas]
            ready = asyncio.create_task(self._ready.wait())
            try:
                done, _ = await asyncio.wait({*keepers, ready}, return_when=asyncio.FIRST_COMPLETED)
                for failed in done - {ready}:
                    failed.result()
                yield
            finally:
                for task in (*keepers, ready):
                    task.cancel()
                await asyncio.gather(*keepers, ready, return_exceptions=True)
                for replica in self.replicas:
                    await replica.close()

    async def _keep(self, replica: Replica) -> None:
        """Start a replica, and start it again whenever it has ended.

        Raises
        ------
        KvguardError
            It ended before all of them were up for the first time: it never will be.
        """
        wait = _SHORTEST
        while True:
            begun = time.monotonic()
            try:
                why = await self._live(replica)
            except Exception as error:  # of whatever kind: the others go on, and this is tried again
                why = f"replica {replica.number} cannot be started: {type(error).__name__}: {error}"
            if not self._ready.is_set():
                raise KvguardError(why)
            wait = _SHORTEST if time.monotonic() - begun > _STEADY else min(2 * wait, _LONGEST)
            logs.say("replica ended", replica=replica.number, why=why, next_start_seconds=wait)
            await asyncio.sleep(wait)

    async def _live(self, replica: Replica) -> str:
        """Run a replica's process from its start to its end; return why it ended."""
        loop, dead = asyncio.get_running_loop(), asyncio.Event()
        hears, says = _SPAWN.Pipe(duplex=False)
        arguments = (replica.number, replica.socket, says)
        process = _SPAWN.Process(target=self._recipe.serve, args=arguments, daemon=True)
        process.start()
        says.close()
        replica.starts += 1
        loop.add_reader(process.sentinel, dead.set)
        try:
            await self._watch(replica, dead)
            if not dead.is_set():
                process.kill()
                await dead.wait()
        finally:
            replica.up = False
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await dead.wait()
            loop.remove_reader(process.sentinel)
            process.kill()
            process.join()
        with hears:
            if hears.poll():
                with suppress(EOFError):
                    return str(hears.recv())
        return f"replica {replica.number} ended with exit code {process.exitcode}; the log above says why"

    async def _watch(self, replica: Replica, dead: asyncio.Event) -> None:
        """Look at a replica until its process is dead, or answers no more."""
        while not dead.is_set():
            if not await replica.look():
                return
            if all(each.up for each in self.replicas):
                self._ready.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_RUNNING if replica.up else _STARTING):
                    await dead.wait()
