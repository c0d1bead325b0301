"""From settings to a server that listens, and ends when it is told to."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from kvguard.errors import KvguardError
from kvguard.serve import logs
from kvguard.serve.punctual import Punctual

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from kvguard.serve.served import Served

KEY = "KVGUARD_API_KEY"


def api_keys(variable: str | None, file: Path | None) -> list[str]:
    """Read the keys that a client may show: from an environment variable, else from a file, one a line.

    Parameters
    ----------
    variable
        Its name; several keys in it are parted by commas. None: ``KVGUARD_API_KEY``, if it is set.

    Raises
    ------
    KvguardError
        There is no key where one was said to be, or one that no header can carry.
    """
    if file is not None:
        try:
            text, where = file.read_text(encoding="utf-8").replace("\n", ","), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise KvguardError(f"--api-key-file: {file} cannot be read ({error}): write keys in it") from None
    else:
        text, where = os.environ.get(variable or KEY, ""), variable or KEY
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if not keys and (file is not None or variable is not None):
        raise KvguardError(f"{where}: holds no API key: put one there, or leave the option out")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise KvguardError(
            f"{where}: an API key has spaces or characters beyond ASCII: use letters and digits"
        )
    return keys


def check_address(host: str, keys: Sequence[str]) -> None:
    """Reject an address that others can reach where no key is asked for.

    Raises
    ------
    KvguardError
        In that case.
    """
    try:
        private = ipaddress.ip_address(host).is_loopback
    except ValueError:
        private = host == "localhost"
    if not private and not keys:
        raise KvguardError(
            f"--host {host}: others can reach it, and no API key is asked for: set {KEY}, "
            "or give --api-key-file, or stay on 127.0.0.1"
        )


class _Server(uvicorn.Server):
    """A server that finishes what is under way at the first signal, and ends at once at the second."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        for bound in sockets or []:
            host, port = bound.getsockname()[:2]
            logs.say("listening", host=host, port=port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.should_exit:
            os._exit(128 + sig)
        logs.say("draining", signal=signal.Signals(sig).name)
        self.should_exit = True


def run(served: Served, host: str, port: int, keys: Sequence[str], log_text: bool = False) -> None:
    """Serve until a signal comes and all that was asked is answered.

    Parameters
    ----------
    log_text
        Prompts and answers go to the log.

    Raises
    ------
    KvguardError
        The address needs a key, or cannot be had.
    """
    from kvguard.serve.app import create_app

    check_address(host, keys)
    logs.begin()
    asyncio.run(serve_at(create_app(served, keys, log_text), host, port))


async def serve_at(
    app: Starlette, host: str, port: int, before: AbstractAsyncContextManager[None] | None = None
) -> None:
    """Serve an application at an address, in the main thread.

    Parameters
    ----------
    before
        Entered once the address is had, and before it listens.

    Raises
    ------
    KvguardError
        The address cannot be had.
    """
    config = _config(app, host=host, port=port)
    try:
        bound = config.bind_socket()
    except SystemExit:
        raise KvguardError(f"--port {port}: cannot listen on {host}:{port}: use another") from None
    with bound:
        async with before or nullcontext():
            await _Server(config).serve([bound])


def serve_behind(served: Served, socket: Path, keys: Sequence[str], log_text: bool) -> None:
    """Serve as one of several, at a socket that only the server before them reaches.

    That server counts what a key has under way, of all of them together.
    """
    from kvguard.serve.app import create_app

    alone = replace(served, limits=replace(served.limits, per_key=None))
    _Server(_config(create_app(alone, keys, log_text), uds=str(socket))).run()


def _config(app: Starlette, **where: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=Punctual,
        ws="none",
        server_header=False,
        timeout_keep_alive=30,
        **where,
    )
