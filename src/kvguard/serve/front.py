"""One address before several replicas: a request goes to the one that has least to do. It needs no torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kvguard.serve import logs
from kvguard.serve.errors import Rejected, answer_in_shape
from kvguard.serve.events import event
from kvguard.serve.gate import Gate
from kvguard.serve.limits import Limits
from kvguard.serve.merged import merged
from kvguard.serve.metrics import CONTENT_TYPE
from kvguard.serve.replicas import Fleet, Recipe, Replica
from kvguard.serve.start import check_address, serve_at

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from kvguard.serve.served import Served

_TRIES = 2
_SCRAPE = 5.0  # seconds that the metrics of a replica may take
_OF_CONNECTION = frozenset(  # headers that are about one connection, or made anew for the next
    b"connection keep-alive proxy-authorization proxy-connection te trailer transfer-encoding upgrade expect "
    b"content-length date server x-request-id".split()
)
_END = b"\n\n"  # of an event
_LAST = event("[DONE]")


def run(
    load: Callable[[], Served],
    replicas: int,
    limits: Limits,
    host: str,
    port: int,
    keys: Sequence[str],
    log_text: bool = False,
) -> None:
    """Serve by several processes until a signal comes and all that was asked is answered.

    Parameters
    ----------
    load
        Makes what is served, in each process; can be pickled.
    limits
        As in what ``load`` makes: the body's and the key's hold for all replicas together.

    Raises
    ------
    KvguardError
        The address needs a key, or cannot be had; a replica cannot be started.
    """
    check_address(host, keys)
    logs.begin()

    async def serve() -> None:
        fleet = Fleet(Recipe(load, replicas, keys, log_text))
        await serve_at(create_front(fleet, keys, limits), host, port, fleet.running())

    asyncio.run(serve())


def create_front(fleet: Fleet, keys: Sequence[str], limits: Limits) -> Starlette:
    """Return the application that stands before the replicas."""
    passing = Passing(fleet)

    async def health(_: Request) -> Response:
        if not any(replica.up for replica in fleet.replicas):
            raise Rejected("no replica is up", status=503, retry_after=1)
        return JSONResponse({"status": "ok"})

    async def metrics(http: Request) -> Response:
        return Response(merged(fleet.replicas, await passing.scraped(http)), media_type=CONTENT_TYPE)

    routes = [Route("/health", health), Route("/metrics", metrics), Route("/{path:path}", passing)]
    app = Starlette(routes=routes)
    app.add_middleware(Gate, keys=keys, limits=limits)
    answer_in_shape(app)
    return app


class Passing:
    """An ASGI application that passes requests on to replicas.

    What is lost before anything of its answer was passed on is given to another replica, once. A whole answer
    is passed on when all of it is there; a stream event by event, with an error at the end if its replica is
    lost.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._turn = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, for as long as its client is there."""
        http = Request(scope, receive)
        body = await http.body()
        passing = asyncio.create_task(self._pass(http, body, send))
        leaving = asyncio.create_task(_left(http))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await passing

    async def _pass(self, http: Request, body: bytes, send: Send) -> None:
        async with AsyncExitStack() as held:
            answer = await self._answer(http, body, held)
            await answer(http.scope, http.receive, send)

    async def _answer(self, http: Request, body: bytes, held: AsyncExitStack) -> Response:
        """Return the answer of a replica, which is held until it has been passed on."""
        tried: set[int] = set()
        for _ in range(_TRIES):
            replica = self._choose(tried)
            tried.add(replica.number)
            try:
                async with AsyncExitStack() as attempt:
                    answer = await self._asked(replica, http, body, attempt)
                    await held.enter_async_context(attempt.pop_all())
                    return answer
            except httpx.TransportError as error:
                _tell(http, replica, error)
        raise lost("the replicas that worked on this were lost: ask again")

    async def _asked(self, replica: Replica, http: Request, body: bytes, held: AsyncExitStack) -> Response:
        held.enter_context(replica.busy())
        found = await replica.ask(_request(http, body))
        held.push_async_callback(found.aclose)
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in found.headers.raw
            if name.lower() not in _OF_CONNECTION
        }
        if not headers.get("content-type", "").startswith("text/event-stream"):
            return Response(await found.aread(), found.status_code, headers)
        return StreamingResponse(_events(replica, http, found), found.status_code, headers)

    def _choose(self, tried: set[int]) -> Replica:
        """Return the replica that has least to do; of equals, each in turn; one that was tried only at need.

        Raises
        ------
        Rejected
            None is up.
        """
        up = [replica for replica in self._fleet.replicas if replica.up]
        if not up:
            raise lost("its replica was lost, and no other is up") if tried else _none_up()
        self._turn += 1
        n = len(self._fleet.replicas)
        return min(up, key=lambda one: (one.number in tried, one.under_way, (one.number - self._turn) % n))

    async def scraped(self, http: Request) -> dict[int, str]:
        """Return the metrics of each replica that is up, by its number."""
        found = {}
        for replica in self._fleet.replicas:
            if replica.up:
                with suppress(httpx.TransportError, TimeoutError):
                    async with asyncio.timeout(_SCRAPE):
                        answer = await replica.ask(_request(http, b""))
                        found[replica.number] = (await answer.aread()).decode()
        return found


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _request(http: Request, body: bytes) -> httpx.Request:
    """Return a client's request as a replica is asked it."""
    target = http.scope["raw_path"]
    if http.scope["query_string"]:
        target += b"?" + http.scope["query_string"]
    headers = [pair for pair in http.scope["headers"] if pair[0].lower() not in _OF_CONNECTION]
    headers.append((b"x-request-id", http.state.request_id.encode()))
    try:
        url = httpx.URL("http://replica", raw_path=target)
    except httpx.InvalidURL:
        raise Rejected("there is no such path", status=404) from None
    return httpx.Request(http.method, url, headers=headers, content=body or None)


async def _events(replica: Replica, http: Request, found: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the events of a stream, each when all of it is there, so that what follows it can be read."""
    part, whole = b"", b""
    try:
        async for piece in found.aiter_raw():
            complete, end, part = (part + piece).rpartition(_END)
            if end:
                whole = complete + end
                yield whole
        if part:
            yield part
    except httpx.TransportError as error:
        if not whole.endswith(_LAST):
            _tell(http, replica, error)
            yield event(lost("the replica that wrote this was lost: ask again").body())


def _tell(http: Request, replica: Replica, error: Exception) -> None:
    told = {"request_id": http.state.request_id, "replica": replica.number}
    logs.say("request lost", **told, why=f"{type(error).__name__}: {error}")


def lost(message: str) -> Rejected:
    """Return what those are told whose replica has ended."""
    return Rejected(message, status=502, code="replica_lost", retry_after=1)


def _none_up() -> Rejected:
    return Rejected("no replica is up: try again later", status=503, retry_after=1)
