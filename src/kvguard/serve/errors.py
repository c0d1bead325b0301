"""What a request is told when it cannot be served, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Rejected(Exception):
    """A request is not served; what its client is told.

    Parameters
    ----------
    status
        Of HTTP.
    param
        The field of the request that is to blame.
    retry_after
        Seconds after which it may be tried again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def kind(self) -> str:
        """The ``type`` of OpenAI's errors."""
        named = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """Return the answer; what of it came from the client may be no valid text."""
        said = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        clean = {k: v and v.encode("utf-8", "replace").decode("utf-8") for k, v in said.items()}
        return {"error": clean}


def late(seconds: float) -> Rejected:
    """Return what those are told whose time is over."""
    message = f"not done within {seconds:g} seconds: ask for fewer tokens, or try again later"
    return Rejected(message, status=504, code="timeout")


def diverged() -> Rejected:
    """Return what those are told whose text, once begun again, is not what they have of it."""
    message = "this text was preempted and came to other tokens than those sent: ask again"
    return Rejected(message, status=503, retry_after=1)


def broken(error: Exception) -> Rejected:
    """Return what those are told in whose midst something failed."""
    from kvguard.engine.memory import (
        out_of_memory,  # not for the server before replicas, which needs no torch
    )

    if isinstance(error, RuntimeError) and out_of_memory(error):
        return Rejected("the server's memory ran out", status=503, code="out_of_memory", retry_after=5)
    return Rejected("the server failed; its log says why", status=500, code="internal_error")


def answer_in_shape(app: Starlette) -> None:
    """Let an application answer whatever is raised in it in OpenAI's shape."""
    app.add_exception_handler(Rejected, _rejection)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)


async def _rejection(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"there is no {http.url.path[:200]}", 405: f"{http.method[:20]} is not allowed here"}
    rejected = Rejected(said.get(error.status_code, str(error.detail)), status=error.status_code)
    return JSONResponse(rejected.body(), error.status_code, error.headers)


async def _failure(_: Request, error: Exception) -> Response:
    rejected = Rejected("the server failed; its log says why", status=500, code="internal_error")
    return JSONResponse(rejected.body(), 500)
