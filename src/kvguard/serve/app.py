"""The routes: OpenAI's, those that its evaluation harnesses probe, and those that operators watch."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from kvguard.serve import response_models as models
from kvguard.serve.card import card
from kvguard.serve.errors import Rejected, answer_in_shape
from kvguard.serve.events import event
from kvguard.serve.gate import Gate
from kvguard.serve.metrics import CONTENT_TYPE, Metrics
from kvguard.serve.page import page
from kvguard.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    TokenizeRequest,
    read,
)
from kvguard.serve.responses import Json, Shape
from kvguard.serve.scheduler import Scheduler, Told
from kvguard.serve.schema import schema_of, told
from kvguard.serve.served import Served
from kvguard.serve.text_log import TextLog
from kvguard.serve.tickets import Done, Ticket, Update

T = TypeVar("T")


class Service:
    """What the routes share: the scheduler, the encoder's thread, the requests under way."""

    def __init__(self, served: Served, log: TextLog) -> None:
        self.served, self.metrics, self._log = served, Metrics(served.name), log
        self.started = int(time.time())
        model, params, limits = served.loaded.model, served.params, served.limits
        self.scheduler = Scheduler(model, served.watch(), params, limits, self.metrics, self._deliver)
        self._encoding = ThreadPoolExecutor(1, "kvguard-encoder")
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Generate while the server is up; what is under way when it ends is finished first."""
        self._loop = asyncio.get_running_loop()
        self.served.encode("a")  # what tokenizers set up at first use is set up before there are threads
        self.scheduler.start()
        yield
        await asyncio.to_thread(self.scheduler.stop)
        self._encoding.shutdown()

    def _deliver(self, told: Told) -> None:
        """Hand over, from the scheduler's thread, what is new."""
        if told and self._loop is not None:
            with suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._hand_out, told)

    def _hand_out(self, told: Told) -> None:
        for ticket, update in told:
            ticket.inbox.put_nowait((ticket.number, update))
            if isinstance(update, Done):
                self._log.write(ticket, update)

    async def encoding(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what may take long beside the event loop, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, function, *arguments)

    async def generate(
        self, http: Request, request: Generation, prompts: Sequence[Sequence[int]], chat: bool
    ) -> Response:
        """Answer a request that generates."""
        asks = await self.encoding(self.served.asks, request, prompts)
        now, inbox = time.monotonic(), asyncio.Queue[tuple[int, Update]]()
        deadline = now + self.served.limits.timeout
        name = http.state.request_id
        tickets = [Ticket(ask, number, inbox, now, deadline, name) for number, ask in enumerate(asks)]
        self.scheduler.submit(tickets)
        shape = Shape(self.served, tickets, chat, request.n or 1)
        watch = asyncio.create_task(_cancelled_with(http, tickets))
        try:
            first = await inbox.get()
            if not request.stream:
                return JSONResponse(shape.whole(await _all_done(first, inbox, len(tickets))))
            if isinstance(first[1], Rejected):
                raise first[1]
        except BaseException:
            _cancel(tickets)
            raise
        finally:
            if not request.stream:
                watch.cancel()
        stream = _stream(request, shape, tickets, first, watch)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )


def _cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancelled = True


async def _cancelled_with(http: Request, tickets: Sequence[Ticket]) -> None:
    """Cancel the texts of a client that leaves."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    _cancel(tickets)
    for ticket in tickets:
        ticket.inbox.put_nowait((ticket.number, Rejected("the client has left", status=499)))


async def _all_done(
    first: tuple[int, Update], inbox: asyncio.Queue[tuple[int, Update]], n: int
) -> dict[int, Done]:
    """Wait for the ends of all texts of a request.

    Raises
    ------
    Rejected
        One of them failed.
    """
    ends: dict[int, Done] = {}
    number, update = first
    while True:
        if isinstance(update, Rejected):
            raise update
        if isinstance(update, Done):
            ends[number] = update
        if len(ends) == n:
            return ends
        number, update = await inbox.get()


async def _stream(
    request: Generation,
    shape: Shape,
    tickets: Sequence[Ticket],
    first: tuple[int, Update],
    watch: asyncio.Task[None],
) -> AsyncIterator[bytes]:
    """Yield the events of a stream."""
    options = request.stream_options
    usage = options is not None and options.include_usage
    always = options is not None and options.continuous_usage_stats
    inbox, left = tickets[0].inbox, len(tickets)

    def told(chunk: Json) -> bytes:
        if always:
            chunk["usage"] = shape.usage()
        elif usage:
            chunk["usage"] = None
        return event(chunk)

    try:
        for chunk in shape.opening():
            yield told(chunk)
        number, update = first
        while True:
            if isinstance(update, Rejected):
                yield event(update.body())
                return
            for chunk in shape.chunks(number, update):
                yield told(chunk)
            left -= isinstance(update, Done)
            if not left:
                break
            number, update = await inbox.get()
        if usage:
            yield event(shape.usage_chunk())
        yield event("[DONE]")
    finally:
        _cancel(tickets)
        watch.cancel()


def create_app(served: Served, keys: Sequence[str] = (), log_text: bool = False) -> FastAPI:
    """Return the application that serves a model.

    Parameters
    ----------
    keys
        One of them is asked for on every route but ``/health`` and ``/``.
    log_text
        Prompts and answers go to the log.
    """
    service = Service(served, TextLog(served, log_text))
    app = FastAPI(title="kvguard", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.running)
    app.state.service = service
    app.add_middleware(Gate, keys=keys, limits=served.limits)
    answer_in_shape(app)
    _generation(app, service)
    _tokens(app, service)
    _operations(app, service)
    front = page(bool(keys))

    @app.get("/")
    async def at_front() -> Response:
        return front

    schema_of(app, served.name, bool(keys))
    return app


def _generation(app: FastAPI, service: Service) -> None:
    """Add the routes that generate."""
    served = service.served

    @app.post("/v1/completions", **told(models.Completion, CompletionRequest, streams=True))
    async def completions(http: Request) -> Response:
        request = read(CompletionRequest, await http.body())
        served.check_model(request.model)
        if len(request.prompts) > served.limits.queue:
            raise Rejected(f"prompt: more than {served.limits.queue} at once", param="prompt")
        prompts = [await service.encoding(served.encode, prompt) for prompt in request.prompts]
        return await service.generate(http, request, prompts, chat=False)

    @app.post("/v1/chat/completions", **told(models.ChatCompletion, ChatRequest, streams=True))
    async def chat(http: Request) -> Response:
        request = read(ChatRequest, await http.body())
        served.check_model(request.model)
        ids = await service.encoding(served.encode_chat, request.messages)
        return await service.generate(http, request, [ids], chat=True)


def _tokens(app: FastAPI, service: Service) -> None:
    """Add the routes about the tokenizer."""
    served = service.served

    @app.post("/tokenize", **told(models.Tokenized, TokenizeRequest))
    async def tokenize(http: Request) -> Json:
        request = read(TokenizeRequest, await http.body())
        served.check_model(request.model or served.name)
        if request.messages is not None:
            ids = await service.encoding(served.encode_chat, request.messages)
        else:
            special = request.add_special_tokens is not False
            ids = await service.encoding(served.tokenize, request.prompt or "", special)
        return {"count": len(ids), "max_model_len": served.window, "tokens": ids}

    @app.post("/detokenize", **told(models.Detokenized, DetokenizeRequest))
    async def detokenize(http: Request) -> Json:
        request = read(DetokenizeRequest, await http.body())
        served.check_model(request.model or served.name)
        return {"prompt": await service.encoding(served.detokenize, request.tokens)}

    @app.get("/tokenizer_info", **told(models.TokenizerInfo))
    async def tokenizer_info() -> Json:
        tokenizer = served.loaded.tokenizer
        special = ("bos_token", "eos_token", "pad_token", "unk_token")
        named = {name: getattr(tokenizer, name, None) for name in special}
        told = {"tokenizer_class": type(tokenizer).__name__, "chat_template": tokenizer.chat_template}
        return {**told, **named, "eos_token_ids": served.loaded.eos_ids, "max_model_len": served.window}


def _operations(app: FastAPI, service: Service) -> None:
    """Add the routes about the server itself."""
    served = service.served

    @app.get("/v1/models", **told(models.ModelList))
    async def listed() -> Json:
        return {"object": "list", "data": [card(served, service.started)]}

    @app.get("/v1/models/{name:path}", **told(models.ModelCard))
    async def model(name: str) -> Json:
        served.check_model(name)
        return card(served, service.started)

    @app.get("/health", **told(models.Health))
    async def health() -> Json:
        if not service.scheduler.alive:
            raise Rejected("the scheduler does not run", status=503)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/version", **told(models.Version))
    async def version() -> Json:
        return {"version": importlib.metadata.version("kvguard")}
