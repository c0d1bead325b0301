"""One budget's open requests against one endpoint: several at once, each response handed on as it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from kv_transition.data.example import render
from kv_transition.db.dao import Answered, Open, now
from kv_transition.engines.base import Ask, Engine, Rejected, TimedOut, Unreachable
from kv_transition.run.retries import patiently
from kv_transition.run.telemetry import MemoryWatch, measured
from kv_transition.settings import Settings
from kvguard.errors import KvguardError

_OURS = {
    401: "a key is missing or wrong",
    403: "the key may not do this",
    404: "there is no such route or model",
}


@dataclass(frozen=True)
class Runner:
    """Asks an engine what a run has not got an answer to.

    ``template`` makes a prompt of a question and its context.
    """

    engine: Engine
    settings: Settings
    template: str
    memory: MemoryWatch

    def answers(self, requests: Sequence[Open]) -> Iterator[tuple[Open, Answered]]:
        """Yield requests with their answers as these come; at most ``concurrency`` are under way.

        Raises
        ------
        KvguardError
            The endpoint is gone, or rejects all requests alike. What was answered until then was yielded.
        """
        todo, ended = iter(requests), threading.Event()
        pool = ThreadPoolExecutor(self.settings.engine.concurrency)
        under_way: dict[Future[Answered], Open] = {}
        try:
            while True:
                while len(under_way) < self.settings.engine.concurrency and (one := next(todo, None)):
                    under_way[pool.submit(self._answer, one, ended)] = one
                if not under_way:
                    return
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    yield under_way.pop(future), future.result()
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: Open, ended: threading.Event) -> Answered:
        decoding = self.settings.decoding
        prompt = render(self.template, request.question, request.context)
        ask = Ask(prompt, decoding.max_tokens, decoding.temperature, request.seed)
        started, start = now(), time.monotonic()
        outcome = patiently(
            lambda: self.engine.ask(ask, self.memory.look), self.settings.engine.retries, ended
        )
        if (reply := outcome.reply) is not None:
            end = time.monotonic()
            return Answered(
                reply.text,
                reply.finish_reason,
                200,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                attempts=outcome.attempts,
                retries=outcome.retries,
                started_at=started,
                measured=measured(reply, self.memory.peak(end - reply.latency_s, end)),
            )
        trouble = outcome.trouble
        if isinstance(trouble, Unreachable):
            raise KvguardError(
                f"engine: the endpoint is gone: {trouble} after {outcome.attempts} attempts: start it again "
                "and repeat `run`, which asks what is missing"
            )
        if isinstance(trouble, Rejected) and trouble.status in _OURS:
            raise KvguardError(f"engine: {_OURS[trouble.status]} ({trouble}): fix the engine's settings")
        assert trouble is not None
        return Answered(
            trouble.text,
            http_status=trouble.status,
            error=str(trouble),
            timed_out=isinstance(trouble, TimedOut),
            attempts=outcome.attempts,
            retries=outcome.retries,
            started_at=started,
            measured={"latency_s": time.monotonic() - start},
        )
