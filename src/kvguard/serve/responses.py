"""Responses in OpenAI's shapes, from what the scheduler tells."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvguard.engine.presses import NONE
from kvguard.guard.controller import State
from kvguard.guard.text import Unfolding
from kvguard.serve.logprobs import Said
from kvguard.serve.served import Served
from kvguard.serve.tickets import Done, Ticket, Tokens
from kvguard.serve.trail import Seen
from kvguard.serve.words import ChatLogprobs, TextLogprobs

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
Json = dict[str, Any]


def telemetry(ticket: Ticket, done: Done) -> Json:
    """Return what compression and guard did to a text; what was not watched is null."""
    ask, found, course = ticket.ask, done.found, done.course
    known = found.hazard[~np.isnan(found.hazard)]
    counts = {state.name.lower(): int((found.states == state).sum()) for state in State}
    what = [event.what for event in found.events]
    return {
        "compressor": ask.condition.compressor,
        "ratio": ask.condition.ratio if ask.condition.compressor != NONE else 0.0,
        "kv_tokens": {"prompt": len(ask.ids), "kept": round(done.kept, 2), "peak": round(course.peak, 2)},
        "action": ask.action.value if ask.guarded else None,
        "point": ask.guarding.point,
        "states": counts if ask.guarded else None,
        "alarms": course.alarms if ask.guarded else None,
        "restores": what.count("restore"),
        "rewinds": what.count("rollback") + what.count("restart"),
        "rewinds_withheld": course.withheld,
        "preempted": ticket.preempted,
        "hazard_max": float(known.max()) if ask.guarded and len(known) else None,
        "saved": round(found.kv_saved, 4),
    }


@dataclass
class Telling:
    """One text on its way to its client: its tokens as text, piece by piece."""

    served: Served
    ticket: Ticket
    chat: bool
    n_tokens: int = 0
    reason: str | None = None
    kvguard: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        ask, words = self.ticket.ask, self.served.words
        self._text, self._echo = Unfolding(self.served.loaded.tokenizer, ask.stops), ask.echo
        n_echoed = len(ask.ids) if ask.prompt_logprobs is not None else 0
        self._fresh: list[Said] = []
        self._logprobs = ChatLogprobs(words) if self.chat else TextLogprobs(words, ask.echo, n_echoed)

    def logprobs(self) -> Json | None:
        """Return the log-probabilities that have not been told yet, if there are any."""
        fresh, self._fresh = self._fresh, []
        return self._logprobs.told(fresh) if fresh else None

    def tell(self, update: Tokens | Done) -> Iterator[tuple[str, Json | None]]:
        """Yield what an update adds to the text; of traced tokens one by one, with what was seen of each."""
        done = update if isinstance(update, Done) else None
        ids = update.ids if isinstance(update, Tokens) else update.found.token_ids[self.n_tokens :].tolist()
        pieces = list(_pieces(ids, update.said, update.seen))
        for place, (some, said, told) in enumerate(pieces, 1):
            self._fresh += said
            added = self._add(some)
            if done is not None and place == len(pieces):
                added += self._text.rest()
            if added or told is not None:
                yield added, told
        if done is not None:
            self._end(done)

    def whole(self, done: Done) -> str:
        """Return the whole text at once."""
        ids = done.found.token_ids.tolist()
        self.n_tokens = len(ids)
        self._fresh += done.said
        self._end(done)
        return self._echo + self.served.decode(ids, self.ticket.ask.stops)

    def _add(self, ids: Sequence[int]) -> str:
        self.n_tokens += len(ids)
        echo, self._echo = self._echo, ""
        return echo + "".join(map(self._text.add, ids))

    def _end(self, done: Done) -> None:
        self.reason = _REASONS[done.found.stop_reason]
        self.kvguard = telemetry(self.ticket, done)


def _pieces(
    ids: Sequence[int], said: Sequence[Said], seen: Sequence[Seen]
) -> Iterator[tuple[Sequence[int], Sequence[Said], Json | None]]:
    """Yield tokens, their log-probabilities and what was seen of them: one by one where something was."""
    if not seen:
        yield ids, said, None
        return
    begin, first = max(len(said) - len(ids), 0), 0  # a prompt's come with the first token's
    for place, (token, one) in enumerate(zip(ids, seen, strict=True), begin + 1):
        yield [token], said[first:place], one.told()
        first = place


class Shape:
    """How one request is answered, whole or in chunks."""

    def __init__(self, served: Served, tickets: Sequence[Ticket], chat: bool, n: int) -> None:
        self.texts = [Telling(served, ticket, chat) for ticket in tickets]
        self._chat = chat
        self._n_prompt = sum(len(ticket.ask.ids) for ticket in tickets[::n])
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.name,
        }

    def whole(self, ends: Mapping[int, Done]) -> Json:
        """Return the answer to a request that is no stream."""
        choices = []
        for index, text in enumerate(self.texts):
            said = text.whole(ends[index])
            body: Json = {"message": {"role": "assistant", "content": said}} if self._chat else {"text": said}
            choices.append(self._choice(index, text, body))
        answer = {**self._head, "object": "chat.completion" if self._chat else "text_completion"}
        answer |= {"choices": choices, "usage": self.usage()}
        return answer | ({"kvguard": choices[0]["kvguard"]} if len(choices) == 1 else {})

    def _choice(self, index: int, text: Telling, body: Json) -> Json:
        choice = {"index": index, **body, "logprobs": text.logprobs(), "finish_reason": text.reason}
        return choice | ({"kvguard": text.kvguard} if text.reason is not None else {})

    def opening(self) -> list[Json]:
        """Return the chunks that a stream opens with."""
        if not self._chat:
            return []
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self.texts))]

    def chunks(self, index: int, update: Tokens | Done) -> Iterator[Json]:
        """Yield the chunks of a stream for one update; the last one has the finish reason."""
        text = self.texts[index]
        for added, seen in text.tell(update):
            yield self._chunk(index, {"content": added} if self._chat else added, seen)
        if text.reason is not None:
            yield self._chunk(index, {} if self._chat else "")

    def _chunk(self, index: int, added: Any, seen: Json | None = None) -> Json:
        choice = self._choice(index, self.texts[index], {"delta" if self._chat else "text": added})
        if seen is not None:
            choice["kvguard"] = seen
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        told = {"kvguard": choice["kvguard"]} if "kvguard" in choice else {}
        return {**self._head, "object": kind, "choices": [choice], **told}

    def usage_chunk(self) -> Json:
        """Return the chunk that tells the usage of a whole stream."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [], "usage": self.usage()}

    def usage(self) -> Json:
        """Return the tokens of prompts and texts so far."""
        generated = sum(text.n_tokens for text in self.texts)
        return {
            "prompt_tokens": self._n_prompt,
            "completion_tokens": generated,
            "total_tokens": self._n_prompt + generated,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
