"""Where each budget is served: at an address that is given, or by a server that is started for it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from kv_transition.settings import FULL, Settings
from kvguard.errors import KvguardError

_START_S = 600.0  # a shared machine is slow to load a model


@dataclass(frozen=True)
class Endpoint:
    """A server for one budget: its address, and what goes with each request."""

    base_url: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def serving(settings: Settings, budget: float, logs: Path) -> Iterator[Endpoint]:
    """Yield the endpoint of a budget; a server that is started for it ends with the body."""
    engine = settings.engine
    if engine.spawn:
        with _spawned(settings, budget, logs) as url:
            yield Endpoint(url)
    elif engine.base_url:
        chosen = {"compressor": settings.kv.policy, "ratio": _ratio(budget)} if budget < FULL else {}
        yield Endpoint(engine.base_url, {"kv": chosen or {"compressor": "none"}} if engine.choose_kv else {})
    else:
        yield Endpoint(engine.endpoints[budget])


def describe(client: httpx.Client, base_url: str, wanted: str | None) -> dict[str, Any]:
    """Ask a server what it is: its model, and its version where it tells.

    Raises
    ------
    KvguardError
        Nothing answers, a key is missing, or it does not serve the model.
    """
    url = f"{base_url.rstrip('/')}/models"
    try:
        answer = client.get(url)
    except httpx.HTTPError as error:
        raise KvguardError(
            f"engine: nothing answers at {url} ({type(error).__name__}): start the server, or fix the address"
        ) from None
    if answer.status_code in (401, 403):
        raise KvguardError(
            f"engine: {url} asks for a key: name the variable that holds it in engine.api_key_env"
        )
    try:
        listed = [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        if wanted is not None:  # some servers and proxies list none
            return {"base_url": base_url, "model": wanted, "server": answer.headers.get("server")}
        raise KvguardError(
            f"engine: {url} lists no models (status {answer.status_code}): give model.name"
        ) from None
    if not listed or (wanted is not None and wanted not in listed):
        raise KvguardError(
            f"model.name: {url} serves {', '.join(listed) or 'none'}, not {wanted!r}: name one of these"
        )
    return {"base_url": base_url, "model": wanted or listed[0], "server": answer.headers.get("server")}


def _ratio(budget: float) -> float:
    """Return the share that is removed where ``budget`` is kept."""
    return round(1 - budget, 10)


@contextlib.contextmanager
def _spawned(settings: Settings, budget: float, logs: Path) -> Iterator[str]:
    """Run one `kvguard serve` and yield its address."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"serve-{budget:g}.log"
    compression = (
        ["--compressor", settings.kv.policy, "--ratio", str(_ratio(budget))] if budget < FULL else []
    )
    program = "from kvguard.cli import main; main(prog_name='kvguard')"
    command = [sys.executable, "-c", program, "serve", "--model", str(settings.engine.spawn_model)]
    command += ["--port", "0", *compression, *settings.engine.spawn_options]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=_end_with_parent)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a server says where it listens."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        said = log.read_text(encoding="utf-8", errors="replace")
        if (port := _listening(said)) is not None:
            return f"http://127.0.0.1:{port}/v1"
        if process.poll() is not None:
            last = next(reversed([line for line in said.splitlines() if line.strip()]), "it said nothing")
            raise KvguardError(
                f"engine.spawn: kvguard serve ended ({last.removeprefix('Error: ')}): see {log}"
            )
        time.sleep(0.1)
    raise KvguardError(f"engine.spawn: kvguard serve does not listen after {_START_S:g} s: see {log}")


def _listening(log: str) -> int | None:
    """Return the port that a server's log says it listens at: whole lines of it are JSON, or warnings."""
    for line in log.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            told = json.loads(line) if line.endswith("\n") else None
            if isinstance(told, dict) and told.get("event") == "listening":
                return int(told["port"])
    return None


def _end_with_parent() -> None:
    """Let the kernel end this server when the harness dies, however that happens (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
