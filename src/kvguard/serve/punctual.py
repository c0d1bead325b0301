"""Connections whose requests have to begin in time: one that says nothing, or too slowly, is closed."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SLOW = 30.0  # seconds that the head of a request may take to come


class Punctual(H11Protocol):
    """uvicorn's protocol, which by itself waits for the first line and the headers of a request for ever.

    That of a body is the gate's matter, that between two requests is ``timeout_keep_alive``.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has come; where that is no whole head, its rest is still waited for."""
        begun = self.cycle
        super().data_received(data)
        if self.cycle is not begun:
            self._stop()
        elif self._late is None and (begun is None or begun.response_complete):
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(SLOW, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
