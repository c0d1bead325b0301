"""The server under load: throughput, time to first token, time between tokens, memory.

    python benchmarks/serve.py latency --model reference
    python benchmarks/serve.py guard --model reference
    python benchmarks/serve.py delay --model reference
    python benchmarks/serve.py memory --model reference
    python benchmarks/serve.py transformers --folder DIR
    python benchmarks/serve.py alone --folder DIR
    python benchmarks/serve.py waiting --beside 2
    python benchmarks/serve.py soak --minutes 10

Each starts its own servers on this machine: servers and clients share its cores. Clients are
closed loops that speak the protocol of ``vllm bench serve``: a stream, its usage, ``ignore_eos``. What is
compared is compared in one run, in turns.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import click
import numpy as np
import psutil

from kvguard.tasks import sample_prompts

KVGUARD = [sys.executable, "-c", "from kvguard.cli import main; main()", "serve"]
TRANSFORMERS = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
SNAPKV = ["--compressor", "snapkv", "--ratio", "0.75"]
_SILENT = aiohttp.ClientTimeout(total=120)
Body = Callable[[int], dict[str, Any]]


@dataclass
class Server:
    """A server under way."""

    base: str
    process: psutil.Process

    @property
    def mb(self) -> float:
        """Resident memory of the process."""
        return float(self.process.memory_info().rss) / 1e6


@dataclass
class Load:
    """What clients saw; times in seconds."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, over all clients."""
        return sum(self.tokens) / self.seconds

    def row(self) -> str:
        """Return throughput and percentiles as a line of a table."""
        times = [
            " / ".join(f"{1000 * q:.0f}" for q in np.percentile(values or [np.nan], [50, 95, 99]))
            for values in (self.first, self.between)
        ]
        return f"{self.rate:.0f} | {times[0]} | {times[1]} | {len(self.tokens)} | {len(self.errors)}"


@contextlib.contextmanager
def serving(
    command: Sequence[str], ready: str = "/health", env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server until the block ends, with these variables besides."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Path(os.devnull).open("w") as nowhere:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=nowhere, stderr=nowhere, env={**os.environ, **(env or {})}
        )
    base = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(_until_ready(base + ready, process))
        yield Server(base, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


async def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.poll() is not None:
                raise click.ClickException(f"the server ended with {process.returncode} before it listened")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise click.ClickException("the server does not listen after two minutes")


async def stream(session: aiohttp.ClientSession, base: str, body: dict[str, Any], load: Load) -> None:
    """Ask for one text as a stream, and add what was seen of it."""
    started = last = time.perf_counter()
    tokens, ended = 0, False
    try:
        async with session.post(f"{base}/v1/completions", json=body) as answer:
            if answer.status != 200:
                load.errors.append(f"{answer.status}: {(await answer.text())[:200]}")
                return
            async for line in answer.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    ended |= line.startswith(b"data: [DONE]")
                    continue
                told, now = json.loads(line[6:]), time.perf_counter()
                seen = told["usage"]["completion_tokens"] if told.get("usage") else tokens
                if seen > tokens:
                    if tokens:
                        load.between += [(now - last) / (seen - tokens)] * (seen - tokens)
                    else:
                        load.first.append(now - started)
                    tokens, last = seen, now
    except (aiohttp.ClientError, ValueError) as error:
        load.errors.append(repr(error))
        return
    if not ended or tokens != body["max_tokens"]:
        load.errors.append(f"{tokens} of {body['max_tokens']} tokens, ended: {ended}")
        return
    load.tokens.append(tokens)


async def whole(session: aiohttp.ClientSession, base: str, body: dict[str, Any], load: Load) -> None:
    """Ask for one chat as a whole; a server that says nothing for long is an error."""
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body, timeout=_SILENT) as answer:
            told = await answer.json()
    except (TimeoutError, aiohttp.ClientError) as error:  # a timeout: two minutes without an answer
        load.errors.append(repr(error))
        return
    if isinstance(told, str):  # transformers serve 5.2 puts its JSON into a JSON string
        told = json.loads(told)
    if "choices" in told:
        load.said.append(told["choices"][0]["message"]["content"])
    else:
        load.errors.append(str(told)[:200])


async def run(
    base: str,
    body: Body,
    clients: int,
    n: int | None = None,
    seconds: float = 0.0,
    ask: Callable[..., Awaitable[None]] = stream,
    each: Callable[[float], None] | None = None,
) -> Load:
    """Let clients ask one request after another: ``n`` together, or as many as ``seconds`` allow."""
    load, numbers, started = Load(), iter(range(n or 1 << 62)), time.perf_counter()
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def client() -> None:
            for number in numbers:
                silent = ask is whole and load.errors  # as it would be for all the others
                if silent or (seconds and time.perf_counter() - started > seconds):
                    return
                await ask(session, base, body(number), load)

        async with _watched(each, started):
            await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


@contextlib.asynccontextmanager
async def _watched(each: Callable[[float], None] | None, started: float) -> AsyncIterator[None]:
    """Call ``each`` every second."""

    async def watch() -> None:
        while each is not None:
            each(time.perf_counter() - started)
            await asyncio.sleep(1)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def texts(n_shots: int = 3) -> list[str]:
    """Return prompts of the arithmetic task."""
    return [
        forms["messages"][0]["content"]
        for forms in sample_prompts("arithmetic", 64, 7, n_shots=n_shots)["prompt"]
    ]


def asking(model: str, new: int, prompts: Sequence[Any]) -> Body:
    """Return the bodies of streams that have exactly ``new`` tokens."""

    def body(number: int) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": prompts[number % len(prompts)],
            "max_tokens": new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }

    return body


def warmed(server: Server, body: Body) -> Server:
    """Let a server answer a few requests that do not count."""
    asyncio.run(run(server.base, body, 4, 8))
    return server


def command(model: str, *options: str) -> list[str]:
    """Return the command line of a server of ours."""
    return [*KVGUARD, "--model", model, "--served-name", "m", *options]


@click.group(help=__doc__)
def main() -> None:
    """Measure the server."""


MODEL = click.option("--model", default="reference", show_default=True, help="As kvguard serve takes it.")
NEW = click.option("--new", default=128, show_default=True, help="Tokens of each text.")
BUNDLE = click.option("--guard", "bundle", default="models/reference", show_default=True)


@main.command()
@MODEL
@NEW
@click.option("--clients", default="1,4,16,32,64", show_default=True)
@click.option("--requests", default=4, show_default=True, help="Of each client.")
@click.option("--option", "options", multiple=True, help="Of kvguard serve; SnapKV 0.75 by default.")
def latency(model: str, new: int, clients: str, requests: int, options: tuple[str, ...]) -> None:
    """Throughput and latency by number of clients."""
    body = asking("m", new, texts())
    click.echo("| clients | tokens/s | TTFT p50 / p95 / p99, ms | between tokens, ms | texts | errors |")
    click.echo("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with serving(command(model, *(options or SNAPKV), "--max-rows", "64")) as server:
        warmed(server, body)
        for n in map(int, clients.split(",")):
            load = asyncio.run(run(server.base, body, n, n * requests))
            click.echo(f"| {n} | {load.row()} |")
            for error in dict.fromkeys(load.errors):
                click.echo(error, err=True)


@main.command()
@MODEL
@NEW
@BUNDLE
@click.option("--clients", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def guard(model: str, new: int, bundle: str, clients: int, rounds: int) -> None:
    """What watching costs while nothing acts: a server with a guard and one without, in turns."""
    body, ratios = asking("m", new, texts()), []
    with (
        serving(command(model, *SNAPKV)) as plain,
        serving(command(model, *SNAPKV, "--guard", bundle, "--action", "none")) as watched,
    ):
        for server in (plain, watched):
            warmed(server, body)
        for _ in range(rounds):
            rates = [asyncio.run(run(s.base, body, clients, 4 * clients)).rate for s in (plain, watched)]
            ratios.append(rates[1] / rates[0])
            click.echo(f"without {rates[0]:.0f}, with {rates[1]:.0f} tokens/s: {1 - ratios[-1]:.1%} less")
    click.echo(f"median of {rounds}: {1 - median(ratios):.1%} less throughput with a guard that does not act")


@main.command()
@MODEL
@NEW
@BUNDLE
@click.option("--clients", default=16, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def delay(model: str, new: int, bundle: str, clients: int, rounds: int) -> None:
    """What holding tokens back delays: `rollback`, which holds some, and `restore`, which none, in turns."""
    body, later = asking("m", new, texts()), []
    how = [command(model, *SNAPKV, "--guard", bundle, "--action", name) for name in ("restore", "rollback")]
    with serving(how[0]) as at_once, serving(how[1]) as held:
        for server in (at_once, held):
            warmed(server, body)
        for _ in range(rounds):
            loads = [asyncio.run(run(s.base, body, clients, 4 * clients)) for s in (at_once, held)]
            first = [1000 * median(load.first) for load in loads]
            later.append(first[1] - first[0])
            click.echo(
                f"first token after {first[0]:.0f} and {first[1]:.0f} ms, then one in "
                f"{1000 * median(loads[0].between):.0f} and {1000 * median(loads[1].between):.0f} ms"
            )
    click.echo(f"median of {rounds}: the first token {median(later):.0f} ms later where tokens are held back")


@main.command()
@MODEL
@click.option("--prompt-tokens", default=900, show_default=True)
@click.option("--new", default=100, show_default=True)
@click.option("--clients", default=64, show_default=True)
@click.option("--guard", "bundle", help="Also with this guard, which may restore.")
def memory(model: str, prompt_tokens: int, new: int, clients: int, bundle: str | None) -> None:
    """How many are under way, and how fast, in the memory of eight whole requests."""
    from kvguard.engine.memory import entry_bytes
    from kvguard.models.load import load_model
    from kvguard.studies.catastrophes.params import load_params

    params = load_params()
    spec = params.spec(model) if model in params.value("models") else None
    if spec is None:
        spec = params.spec("reference").model_copy(update={"source": model, "dtype": "auto"})
    loaded = load_model(model, spec, "cpu")
    limit = int(8 * (prompt_tokens + new) * entry_bytes(loaded.model))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(20, 250, prompt_tokens).tolist() for _ in range(clients)]
    body = asking("m", new, prompts)
    click.echo(f"--kv-memory {limit} bytes: 8 requests of {prompt_tokens} + {new} tokens, uncompressed")
    sides = {"uncompressed": [], "snapkv 0.75": SNAPKV}
    if bundle:
        sides["snapkv 0.75, guarded"] = [*SNAPKV, "--guard", bundle, "--action", "restore"]
    for name, options in sides.items():
        how = command(model, *options, "--kv-memory", str(limit), "--max-rows", "64")
        with serving(how) as server:
            counted = Counted(server.base)
            load = asyncio.run(run(server.base, body, clients, 2 * clients, each=counted.see))
        click.echo(
            f"{name}: at most {counted.most:.0f} under way, {load.rate:.0f} tokens/s, "
            f"{len(load.errors)} errors"
        )


@dataclass
class Counted:
    """The most texts that a server had under way at once, by its metrics."""

    base: str
    most: float = 0.0

    def see(self, _: float) -> None:
        """Look."""
        with urllib.request.urlopen(f"{self.base}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("kvguard:num_requests_running"):
                    self.most = max(self.most, float(line.rpartition(" ")[2]))


@main.command()
@click.option("--folder", required=True, type=click.Path(exists=True), help="A model's folder.")
@NEW
@click.option("--clients", default=16, show_default=True)
@click.option("--chats", default=6, show_default=True, help="Of each client.")
@click.option("--rounds", default=2, show_default=True)
@click.option(
    "--option", "options", multiple=True, help="Of kvguard serve: --option=--replicas --option=2, say."
)
def transformers(
    folder: str, new: int, clients: int, chats: int, rounds: int, options: tuple[str, ...]
) -> None:
    """Against `transformers serve` with its continuous batching, both uncompressed, whole chats."""
    from transformers import AutoTokenizer

    tokenizer, prompts, ratios = AutoTokenizer.from_pretrained(folder), texts(1), []

    def body(name: str) -> Body:
        return lambda number: {
            "model": name,
            "messages": [{"role": "user", "content": prompts[number % len(prompts)]}],
            "max_tokens": new,
            "temperature": 0,
        }

    def rate(server: Server, name: str) -> float:
        load = asyncio.run(run(server.base, body(name), clients, chats * clients, ask=whole))
        if load.errors:
            click.echo(f"{name}: {load.errors[0]}: this round does not count", err=True)
            return float("nan")
        return sum(len(tokenizer(text)["input_ids"]) for text in load.said) / load.seconds

    theirs = [*TRANSFORMERS, "--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    for _ in range(rounds):
        found = []
        for how, name in ((command(f"path:{folder}", "--dtype", "float32", *options), "m"), (theirs, folder)):
            with serving(how) as server:
                asyncio.run(run(server.base, body(name), 2, 4, ask=whole))
                found.append(rate(server, name))
        ratios.append(found[0] / found[1])
        click.echo(f"kvguard {found[0]:.0f}, transformers serve {found[1]:.0f} tokens/s: {ratios[-1]:.1f}x")
    counted = [ratio for ratio in ratios if ratio == ratio]
    click.echo(f"median of {len(counted)}: {median(counted or [float('nan')]):.1f}x")


@main.command()
@click.option("--folder", required=True, type=click.Path(exists=True), help="A model's folder.")
@NEW
@click.option("--clients", default=16, show_default=True)
@click.option("--steps", default=40, show_default=True, help="Decoding steps that are timed.")
def alone(folder: str, new: int, clients: int, steps: int) -> None:
    """What forward passes alone allow of those chats: prompts one by one, then steps of all clients."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": text}] for text in texts(1)[:clients]]
    written = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    prompts = [
        torch.tensor([tokenizer.encode(text, add_special_tokens=False)], dtype=torch.long) for text in written
    ]

    def seconds(what: Callable[[], object], times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            what()
        return (time.perf_counter() - started) / times

    cache, shortest = DynamicCache(config=model.config), min(ids.shape[1] for ids in prompts)
    token = torch.ones(clients, 1, dtype=torch.long)
    with torch.inference_mode():
        model(torch.cat([ids[:, :shortest] for ids in prompts]), past_key_values=cache)
        prefill = seconds(lambda: [model(ids, logits_to_keep=1) for ids in prompts], 1)
        step = seconds(lambda: model(token, past_key_values=cache), steps)
    rate = clients * new / (prefill + new * step)
    click.echo(
        f"prefill {1000 * prefill / clients:.0f} ms each, a step {1000 * step:.0f} ms: {rate:.0f} tokens/s"
    )


@main.command()
@MODEL
@click.option("--new", default=64, show_default=True, help="Tokens of each text.")
@click.option("--clients", default=16, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--beside", default=0, show_default=True, help="Processes that keep a core busy meanwhile.")
def waiting(model: str, new: int, clients: int, rounds: int, beside: int) -> None:
    """How torch's threads wait: as `kvguard serve` lets them, asleep at once, or as by default, in turns."""
    body = asking("m", new, texts())
    ways = {"as it is": {}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "default": {"GOMP_SPINCOUNT": "300000"}}
    with contextlib.ExitStack() as open_:
        for _ in range(beside):
            busy = open_.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            open_.callback(busy.kill)
        servers = {way: open_.enter_context(serving(command(model), env=env)) for way, env in ways.items()}
        for server in servers.values():
            warmed(server, body)
        for _ in range(rounds):
            loads = {w: asyncio.run(run(s.base, body, clients, 3 * clients)) for w, s in servers.items()}
            click.echo(", ".join(f"{way} {load.rate:.0f}" for way, load in loads.items()) + " tokens/s")


@main.command()
@MODEL
@NEW
@click.option("--clients", default=32, show_default=True)
@click.option("--minutes", default=10.0, show_default=True)
def soak(model: str, new: int, clients: int, minutes: float) -> None:
    """Load for minutes: nothing lost or wrong, memory flat."""
    body = asking("m", new, texts())
    held: list[tuple[float, float]] = []
    with serving(command(model, *SNAPKV)) as server:
        watch = lambda at: held.append((at / 60, server.mb))  # noqa: E731
        load = asyncio.run(run(server.base, body, clients, seconds=60 * minutes, each=watch))
    third = median(mb for at, mb in held if 2 <= at < 3)
    last = median(mb for at, mb in held if at >= minutes - 1)
    click.echo(f"{load.row()} (tokens/s, TTFT, between tokens, texts, errors)")
    click.echo(f"memory: third minute {third:.0f} MB, last {last:.0f} MB ({last / third - 1:+.1%})")


if __name__ == "__main__":
    main()
