"""What stands before every route: keys, the size of bodies, ids of requests, a line in the log for each."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from kvguard.serve import logs
from kvguard.serve.errors import Rejected
from kvguard.serve.limits import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/", "/health"})  # without a key
_GENERATING = frozenset({"/v1/completions", "/v1/chat/completions"})
_ID = "x-request-id"
_SLOW = 30.0  # seconds that a body may take to come


class Gate:
    """An ASGI application before another.

    Parameters
    ----------
    keys
        One of them is asked for; none: nobody is asked.
    limits
        Of them the bytes of a body, and the requests under way of one key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], limits: Limits) -> None:
        self._app, self._most, self._per_key = app, limits.body, limits.per_key
        self._keys = [key.encode() for key in keys]
        self._under_way = Counter[int]()  # by place of the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        number, begun, status = _request_id(headers.get(_ID)), time.monotonic(), 0
        scope.setdefault("state", {})["request_id"] = number

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (_ID.encode(), number.encode())]
            await send(message)

        try:
            with self._counted(scope["path"], self._key(scope["path"], headers.get("authorization", b""))):
                body = await self._whole_body(headers, receive)
                if body is not None:
                    await self._app(scope, body, tell)
        except Rejected as rejected:  # of the gate: what the routes raise is answered behind it
            answer = JSONResponse(
                rejected.body(), rejected.status, {**rejected.headers, "connection": "close"}
            )
            await answer(scope, receive, tell)
        finally:
            if (scope["path"], status) != ("/health", 200):  # asked every few seconds, by whoever watches
                told = {"request_id": number, "method": scope["method"], "path": scope["path"][:200]}
                logs.say("request", **told, status=status, seconds=round(time.monotonic() - begun, 3))

    def _key(self, path: str, given: bytes) -> int:
        """Return which key was given, or 0 where none is asked for.

        Raises
        ------
        Rejected
            None of them.
        """
        if not self._keys or path in OPEN:
            return 0
        scheme, _, key = given.partition(b" ")
        right = [hmac.compare_digest(key.strip(), one) for one in self._keys]  # all of them: equal time
        if scheme.lower() != b"bearer" or not any(right):
            raise Rejected(
                "no valid API key: send Authorization: Bearer KEY", status=401, code="invalid_api_key"
            )
        return right.index(True)

    @contextmanager
    def _counted(self, path: str, key: int) -> Iterator[None]:
        """Count a request as under way while it is answered.

        Raises
        ------
        Rejected
            Its key has as many under way as it may.
        """
        if self._per_key is None or path not in _GENERATING:
            yield
            return
        if self._under_way[key] >= self._per_key:
            message = f"{self._per_key} requests of this key are under way: wait for one of them"
            raise Rejected(message, status=429, code="rate_limit_exceeded", retry_after=1)
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1

    async def _whole_body(self, headers: dict[str, bytes], receive: Receive) -> Receive | None:
        """Return a ``receive`` that gives the whole body at once; None: the client has left.

        Raises
        ------
        Rejected
            The body is too long, or too slow.
        """
        length = headers.get("content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_long()
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(_SLOW):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._most:
                        raise self._too_long()
        except TimeoutError:
            raise Rejected(f"the body did not come within {_SLOW:g} seconds", status=408) from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _too_long(self) -> Rejected:
        return Rejected(f"the body is longer than {self._most} bytes", status=413, code="body_too_large")


def _request_id(given: bytes | None) -> str:
    text = (given or b"").decode("latin-1")
    return (
        text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else f"req-{uuid.uuid4().hex}"
    )
