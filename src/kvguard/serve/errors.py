"""What a request is told when it cannot be served, in OpenAI's shape."""

from __future__ import annotations

from typing import Any


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
