"""Endpoints that speak as Anthropic's or OpenAI's, through their official SDKs."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge.asking import Asker, Failure, Reply

Dialect = Literal["anthropic", "openai"]

TIMEOUT = 60.0  # seconds
_RETRIES = 2  # by the SDK, which waits as the endpoint says
_KEYS: dict[Dialect, str] = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_PRICES = {"claude-haiku-4-5": (1.0, 5.0), "claude-sonnet-4-5": (3.0, 15.0)}  # dollars a million tokens
_LOCAL = {"localhost", "127.0.0.1", "::1"}


def endpoint(url: str, model: str, max_tokens: int, timeout: float = TIMEOUT) -> Asker:
    """Return what asks ``model`` behind ``url``, see :func:`kvguard.studies.instructions.judge.make_judge`.

    Raises
    ------
    KvguardError
        The address is none, the SDK is not installed, or the key is missing.
    """
    dialect, base = _address(url)
    try:
        sdk = import_module(dialect)
    except ImportError:
        raise KvguardError(
            f"the SDK of {url} is not installed ({dialect}): pip install 'kvguard[judge]'"
        ) from None
    key = os.environ.get(_KEYS[dialect])
    if not key and base is not None and urlsplit(base).hostname in _LOCAL:
        key = "none"
    if not key:
        raise KvguardError(
            f"no key for {url}: set {_KEYS[dialect]} in the environment, or leave the judge out"
        )
    known = next((price for name, price in _PRICES.items() if model.startswith(name)), None)
    kind = _Anthropic if dialect == "anthropic" else _OpenAI
    return kind(sdk, base, key, model, max_tokens, timeout, known)


def _address(url: str) -> tuple[Dialect, str | None]:
    for dialect in _KEYS:
        if url == dialect:
            return dialect, None
        if url.startswith(f"{dialect}:"):
            return dialect, _checked(url.removeprefix(f"{dialect}:"))
    host = urlsplit(_checked(url)).hostname or ""
    return ("anthropic" if host.endswith("anthropic.com") else "openai"), url


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise KvguardError(
            f"{url!r} is no endpoint: give anthropic, openai, or an address like http://localhost:8000/v1"
        )
    return url


class _Endpoint:
    """What both have in common: a client, and how its exceptions are told apart."""

    _client_class: ClassVar[str]  # its name in the SDK

    def __init__(
        self,
        sdk: Any,
        base: str | None,
        key: str,
        model: str,
        max_tokens: int,
        timeout: float,
        price: tuple[float, float] | None,
    ) -> None:
        self._sdk = sdk
        self._model = model
        self._max_tokens = max_tokens
        self.name = f"{sdk.__name__} {base or ''} {model} {max_tokens}"
        self.price = price
        connect = getattr(sdk, self._client_class)
        self._client = connect(api_key=key, base_url=base, timeout=timeout, max_retries=_RETRIES)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Return what is sent; what the user can fix is one line, the rest a failure that is counted."""
        sdk = self._sdk
        try:
            return call()
        except (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError) as error:
            raise KvguardError(
                f"the endpoint {self._client.base_url} rejects {self._model} ({error.status_code}): "
                "correct the key, the address or the model"
            ) from None
        except sdk.APITimeoutError as error:
            raise Failure("timeout", str(error)) from None
        except sdk.RateLimitError as error:
            raise Failure("rate_limited", str(error)) from None
        except (sdk.APIError, ValueError) as error:
            raise Failure("failed", str(error)) from None


class _Anthropic(_Endpoint):
    _client_class = "Anthropic"

    def ask(self, system: str, question: str) -> Reply:
        sent = self._guarded(
            lambda: self._client.messages.create(
                model=self._model,
                max_tokens=self._max_tokens,
                system=system,
                messages=[{"role": "user", "content": question}],
            )
        )
        try:
            text = "".join(part.text for part in sent.content if part.type == "text")
            return Reply(
                text, sent.stop_reason == "refusal", (sent.usage.input_tokens, sent.usage.output_tokens)
            )
        except (AttributeError, TypeError) as error:
            raise Failure("failed", f"no message: {error}") from None


class _OpenAI(_Endpoint):
    _client_class = "OpenAI"

    def ask(self, system: str, question: str) -> Reply:
        sent = self._guarded(
            lambda: self._client.chat.completions.create(
                model=self._model,
                max_tokens=self._max_tokens,
                temperature=0.0,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
            )
        )
        try:
            choice, usage = sent.choices[0], sent.usage
            refused = (
                bool(getattr(choice.message, "refusal", None)) or choice.finish_reason == "content_filter"
            )
            tokens = None if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            return Reply(choice.message.content or "", refused, tokens)
        except (AttributeError, TypeError, IndexError) as error:
            raise Failure("failed", f"no completion: {error}") from None
