"""What stands before every route: keys, the size of bodies, ids of requests, a line in the log for each."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from kvguard.serve.errors import Rejected

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("kvguard.serve")
_OPEN = frozenset({"/", "/health"})
_ID = "x-request-id"
_SLOW = 30.0  # seconds that a body may take to come


class Gate:
    """An ASGI application before another.

    Parameters
    ----------
    keys
        One of them is asked for; none: nobody is asked.
    most
        Bytes of a body.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], most: int) -> None:
        self._app, self._most = app, most
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        number, begun, status = _request_id(headers.get(_ID)), time.monotonic(), 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (_ID.encode(), number.encode())]
            await send(message)

        try:
            try:
                self._check_key(scope["path"], headers.get("authorization", b""))
                body = await self._whole_body(headers, receive)
            except Rejected as rejected:
                answer = JSONResponse(
                    rejected.body(), rejected.status, {**rejected.headers, "connection": "close"}
                )
                await answer(scope, receive, tell)
                return
            if body is not None:
                await self._app(scope, body, tell)
        finally:
            told = {"request_id": number, "method": scope["method"], "path": scope["path"][:200]}
            told |= {"status": status, "seconds": round(time.monotonic() - begun, 3)}
            _log.info(json.dumps(told))

    def _check_key(self, path: str, given: bytes) -> None:
        if not self._keys or path in _OPEN:
            return
        scheme, _, key = given.partition(b" ")
        right = [hmac.compare_digest(key.strip(), one) for one in self._keys]  # all of them: equal time
        if scheme.lower() != b"bearer" or not any(right):
            raise Rejected(
                "no valid API key: send Authorization: Bearer KEY", status=401, code="invalid_api_key"
            )

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
