"""A compressed, guarded model behind the OpenAI API."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvguard import stage
from kvguard.cli.asking import Asked, serving_options
from kvguard.cli.serve_config import config_option, variable

if TYPE_CHECKING:
    from kvguard.serve.limits import Limits
    from kvguard.serve.served import Served

EXAMPLES = """\b
The commonest uses, as they are typed:
  kvguard serve --model reference --compressor snapkv --ratio 0.75 --guard models/reference
  kvguard serve --model path:DIR --kv-memory 2GiB --port 8080
  KVGUARD_API_KEY=... kvguard serve --model Qwen/Qwen2.5-0.5B-Instruct --host 0.0.0.0
  kvguard serve --config serve.yaml
\b
And then, from anywhere that the address reaches:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "reference", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}'
\b
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any, or yours")
  answer = client.chat.completions.create(model="reference", messages=[...])
  answer.kvguard   # what was held, saved, alarmed at, restored
\b
With --allow-kv a request may choose for itself:
  extra_body={"kv": {"compressor": "knorm", "ratio": 0.5, "action": "rollback", "point": "aggressive"}}
\b
docs/server.md says what is answered, what is rejected, and how memory is counted.
"""
# How long torch's threads look for work before they sleep; GNU's OpenMP reads it once. By default so long
# that they starve the server where clients share its cores; asleep at once, they wake too late for the
# next product of a small model.
_SPINS = "2000"
_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Bytes(click.ParamType[int]):
    """A number of bytes, with a unit or without."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]i?B)?", str(value).strip(), re.IGNORECASE)
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no size: write 2GiB or 500MB, say", param, ctx)
        return int(float(found[1]) * _UNITS[(found[2] or "").upper()])


@click.command(epilog=EXAMPLES)
@config_option
@serving_options
@click.option("--served-name", help="The name that clients ask for; that of --model by default.")
@click.option(
    "--compressor", help="A name from compressors in the settings; nothing is compressed by default."
)
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1, max_open=True),
    help="The share of KV pairs that the compressor removes.",
)
@click.option(
    "--guard",
    "bundle",
    type=click.Path(path_type=Path, file_okay=False),
    help="Watch with the guard in this folder, as stage export writes it: models/reference, say.",
)
@click.option(
    "--action",
    type=click.Choice(["none", "restore", "rollback", "restart"]),
    help="What the guard does when it alarms; restore by default.",
)
@click.option(
    "--point",
    type=click.Choice(["conservative", "balanced", "aggressive"]),
    help="When it alarms: the operating point; balanced by default.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A certificate of kvguard recommend: what it does not cover is rejected, and texts that no longer "
    "look like its calibration are told.",
)
@click.option(
    "--hold-back",
    type=click.IntRange(min=0),
    help="Tokens of a stream that are sent late, so that rollback and restart never take back what was sent; "
    "by default as many as the guard needs to be sure of an alarm.",
)
@click.option(
    "--allow-kv/--no-allow-kv",
    default=False,
    help="Let requests choose compressor, ratio, guard, action and point; the page at / needs it to compare.",
)
@click.option(
    "--kv-memory",
    type=Bytes(),
    help="The most that cache entries may take, 2GiB say; requests wait for room. No bound else.",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(min=2),
    help="Tokens of a prompt and its text at most; the model's window by default.",
)
@click.option(
    "--max-rows", type=click.IntRange(min=1), default=32, show_default=True, help="Generated together."
)
@click.option(
    "--max-queue", type=click.IntRange(min=1), default=256, show_default=True, help="That may wait."
)
@click.option(
    "--prefill-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Of prompts, between two steps of the texts under way.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds, waiting included.",
)
@click.option(
    "--max-requests-per-key", type=click.IntRange(min=1), help="Under way, of one API key; no bound else."
)
@click.option("--max-body", type=Bytes(), default="4MiB", show_default=True, help="Of a request.")
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes behind the one address, each with a copy of the model and its share of the cores; "
    "--kv-memory, --max-rows and --max-queue are for each.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address needs a key.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
@click.option(
    "--api-key-env",
    metavar="NAME",
    callback=variable,
    help="Where keys are, parted by commas; KVGUARD_API_KEY by default.",
)
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line, in place of that."
)
@click.option("--log-text/--no-log-text", default=False, help="Write prompts and answers to the log too.")
@stage.one_line_errors
def serve(
    asked: Asked,
    replicas: int,
    host: str,
    port: int,
    api_key_env: str | None,
    api_key_file: Path | None,
    log_text: bool,
    **how: Any,
) -> None:
    """Serve a model behind the OpenAI API: compressed, guarded, with the memory really freed."""
    _check(how)
    _need("fastapi", "httpx", "uvicorn", "prometheus_client")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    from kvguard.serve import front
    from kvguard.serve.start import KEY, api_keys, check_address, run

    keys = api_keys(api_key_env, api_key_file)
    check_address(host, keys)
    if how["max_requests_per_key"] is not None and not keys:
        raise click.UsageError(f"--max-requests-per-key needs API keys: set {KEY}, or give --api-key-file")
    if replicas == 1:
        run(_served(asked, how), host, port, keys, log_text)
    else:
        front.run(partial(_served, asked, how), replicas, _limits(how), host, port, keys, log_text)


def _check(how: dict[str, Any]) -> None:
    if (how["compressor"] is None) != (how["ratio"] is None):
        raise click.UsageError("give --compressor with --ratio")
    if how["bundle"] is None and (how["action"] or how["point"] or how["hold_back"] is not None):
        raise click.UsageError("--action, --point and --hold-back go with --guard")


def _need(*modules: str) -> None:
    """Say what to install where the server's own libraries are not there."""
    from importlib.util import find_spec

    from kvguard.errors import KvguardError

    for module in modules:
        if find_spec(module) is None:
            raise KvguardError(f"{module} is not installed: pip install 'kvguard[pipeline,serve]'")


def _limits(how: dict[str, Any]) -> Limits:
    from kvguard.serve.limits import Limits

    return Limits(
        kv_bytes=how["kv_memory"],
        rows=how["max_rows"],
        queue=how["max_queue"],
        timeout=how["request_timeout"],
        body=how["max_body"],
        piece=how["prefill_tokens"],
        per_key=how["max_requests_per_key"],
        hold_back=how["hold_back"],
        choosing=how["allow_kv"],
    )


def _served(asked: Asked, how: dict[str, Any]) -> Served:
    """Load what is served."""
    from kvguard.cli.asking import check_model
    from kvguard.config import check_known
    from kvguard.engine.presses import NONE, Condition, build_press
    from kvguard.errors import KvguardError
    from kvguard.guard.bundle import load_operating_points
    from kvguard.guard.certificate import Certificate
    from kvguard.guard.session import Guard
    from kvguard.guard.settings import Action
    from kvguard.models.load import load_model
    from kvguard.serve.served import Served

    model, params = asked.settings()
    presses = params.compressors

    def build(name: str, ratio: float) -> Any:
        check_known("compressor", name, presses)
        return build_press(presses[name], ratio)

    condition = Condition(how["compressor"] or NONE, how["ratio"] or 0.0)
    if condition.compressor != NONE:
        build(condition.compressor, condition.ratio)
    bundle, point = how["bundle"], how["point"] or "balanced"
    guard = Guard.load(bundle, point, params.guard) if bundle is not None else None
    check_model(params, model)
    loaded = load_model(model, params.spec(model), params.device)
    window = how["max_model_len"] or loaded.window
    if window > loaded.window:
        raise KvguardError(
            f"--max-model-len: {window} is more than the {loaded.window} tokens of model {model}: use fewer"
        )
    served = Served(
        name=how["served_name"] or model,
        loaded=loaded,
        condition=condition,
        build=build,
        guard=guard,
        action=Action(how["action"] or ("restore" if guard is not None else "none")),
        limits=_limits(how),
        window=window,
        point=point,
        points=load_operating_points(bundle) if bundle is not None else {},
        compressors=tuple(presses),
        policy=Certificate.load(how["policy"]) if how["policy"] is not None else None,
    )
    served.check()
    return served
