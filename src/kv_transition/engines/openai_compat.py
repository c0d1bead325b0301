"""Any server that speaks OpenAI's API, over httpx: streamed, so that the first token can be timed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from kv_transition.engines.base import Ask, Passing, Rejected, Reply, TimedOut, Unreachable
from kv_transition.settings import Engine as EngineSettings
from kvguard.errors import KvguardError

_PASSING = {408, 425, 429}
_OPTIONAL = ("stream_options", "seed")  # left out where a server says that it does not know them
_STOPS = ("\n\n", "\nQuestion:")  # a text that is completed has no end of its own
_TOLD = ("kvguard", "timings")  # telemetry beyond OpenAI's fields: kvguard's, llama.cpp's


def client_of(settings: EngineSettings) -> httpx.Client:
    """Return an HTTP client with the key of the settings, if they name one.

    Raises
    ------
    KvguardError
        The variable that should hold the key is empty.
    """
    headers = {}
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise KvguardError(f"engine.api_key_env: {settings.api_key_env} is not set: put the key there")
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=settings.concurrency + 4)
    return httpx.Client(headers=headers, limits=limits, timeout=httpx.Timeout(30.0))


@dataclass
class _Heard:
    """What has come of an answer."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    ttft_s: float | None = None
    ended: bool = False


class OpenAICompatible:
    """One model of one server.

    Parameters
    ----------
    client
        Whose headers hold the key.
    base_url
        With ``/v1``, as clients of OpenAI take it.
    model
        As the server calls it.
    extra
        Fields that go with each request.
    """

    def __init__(
        self,
        client: httpx.Client,
        base_url: str,
        model: str,
        settings: EngineSettings,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._client, self._settings, self._extra = client, settings, dict(extra or {})
        self._chat = settings.api == "chat"
        self._url = f"{base_url.rstrip('/')}/{'chat/completions' if self._chat else 'completions'}"
        self._model = model
        self._unknown: set[str] = set()

    def ask(self, ask: Ask, on_first: Callable[[], None] = lambda: None) -> Reply:
        """Answer one request once, see :class:`kv_transition.engines.base.Engine`."""
        while True:
            body = self._body(ask)
            try:
                return self._ask(body, on_first)
            except Rejected as trouble:
                named = {name for name in _OPTIONAL if name in str(trouble) and name in body}
                if trouble.status not in (400, 422) or not named:
                    raise
                self._unknown |= named

    def _ask(self, body: dict[str, Any], on_first: Callable[[], None]) -> Reply:
        heard, start = _Heard(), time.monotonic()
        deadline = start + self._settings.request.timeout_s
        try:
            with self._client.stream(
                "POST", self._url, json=body, timeout=httpx.Timeout(self._settings.request.timeout_s)
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    _raise(answer)
                for chunk in _chunks(answer, deadline, heard):
                    self._hear(chunk, heard)
                    if heard.text and heard.ttft_s is None:
                        heard.ttft_s = time.monotonic() - start
                        on_first()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"no connection ({_said(error)})") from None
        except httpx.TimeoutException:
            raise TimedOut(
                f"no whole answer in {self._settings.request.timeout_s:g} s", text=heard.text
            ) from None
        except httpx.HTTPError as error:
            raise Passing(f"the stream broke ({_said(error)})", text=heard.text) from None
        if not heard.ended and heard.finish_reason is None:
            raise Passing("the stream ended before the answer did", 200, heard.text)
        return Reply(
            heard.text,
            heard.finish_reason,
            _whole(heard.usage.get("prompt_tokens")),
            _whole(heard.usage.get("completion_tokens")),
            heard.ttft_s,
            time.monotonic() - start,
            heard.told,
        )

    def _body(self, ask: Ask) -> dict[str, Any]:
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": ask.prompt}]} if self._chat else {"prompt": ask.prompt}
        )
        asked |= {
            "model": self._model,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if self._chat else {"stop": list(_STOPS)}),
            **self._extra,
        }
        return {name: value for name, value in asked.items() if name not in self._unknown}

    def _hear(self, chunk: Any, heard: _Heard) -> None:
        """Take in one chunk of a stream, or a whole answer of a server that does not stream."""
        try:
            if chunk.get("error"):
                raise Passing(f"the server broke off: {json.dumps(chunk['error'])[:300]}", 200, heard.text)
            for choice in chunk.get("choices") or []:
                said = choice.get("delta") or choice.get("message") or {} if self._chat else choice
                heard.text += said.get("content" if self._chat else "text") or ""
                heard.finish_reason = choice.get("finish_reason") or heard.finish_reason
            heard.usage = chunk.get("usage") or heard.usage
            heard.told.update({name: chunk[name] for name in _TOLD if chunk.get(name)})
        except (AttributeError, TypeError):
            raise Passing(f"garbage in the stream: {str(chunk)[:200]}", 200, heard.text) from None


def _chunks(answer: httpx.Response, deadline: float, heard: _Heard) -> Iterator[Any]:
    """Yield what a server sends, as JSON; whole answers too.

    Raises
    ------
    Passing
        It sends no JSON.
    httpx.ReadTimeout
        The deadline is over, even if something comes all the time.
    """
    events = "text/event-stream" in answer.headers.get("content-type", "")
    whole = ""
    for line in answer.iter_lines():
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("deadline")
        if not events:
            whole += line
            continue
        if not line.startswith("data:"):
            if line and not line.startswith((":", "event:", "id:", "retry:")):
                raise Passing(f"garbage in the stream: {line[:200]}", 200, heard.text)
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            heard.ended = True
            return
        yield _parsed(data, heard)
    if not events:
        yield _parsed(whole, heard)
        heard.ended = True


def _parsed(data: str, heard: _Heard) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Passing(f"garbage in place of JSON: {data[:200]!r}", 200, heard.text) from None


def _raise(answer: httpx.Response) -> NoReturn:
    status = answer.status_code
    said = f"status {status}: {' '.join(answer.text.split())[:300]}"
    if status in _PASSING or status >= 500:
        raise Passing(said, status, retry_after=_retry_after(answer))
    raise Rejected(said, status)


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that a server asks to wait: it says them, or a date."""
    told = answer.headers.get("retry-after", "").strip()
    if not told:
        return None
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
