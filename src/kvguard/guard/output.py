"""What a call of the guard gives back: a text of each prompt, or its tokens as they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvguard.guard.actions import Event, Guarded, GuardedStep
from kvguard.guard.controller import State
from kvguard.guard.drift import score
from kvguard.guard.job import Job
from kvguard.guard.settings import Action
from kvguard.guard.text import Unfolding, told

GUARD, INVALID, REJECTED = "guard", "invalid", "rejected"


@dataclass(frozen=True)
class Output:
    """What became of one prompt; arrays run over the tokens that it ended with. [T]

    Attributes
    ----------
    text, token_ids
        What was generated; the ids have the end-of-sequence token, or the tokens of a stop string, too. A
        text that the guard ended has all of the token that completes its answer, but for what a stop string
        may begin with.
    states
        The controller's after each token, see :class:`~kvguard.guard.controller.State`.
    hazard
        The probability that a catastrophe begins within the horizon, after each token.
    actions
        What the guard did, in order.
    kv_tokens
        Cache entries held when each token was drawn, a mean over layers and heads.
    stop_reason
        ``eos``, ``stop`` (a stop string), ``length`` or ``guard`` (its action ``stop``); with an ``error``
        also ``invalid`` (logits that are NaN) and ``rejected`` (the prompt was never asked).
    error
        One line: what was wrong with this prompt.
    score
        What the guard thought of it: 1 if it alarmed, else the highest hazard.
    kv_saved
        The mean of 1 - held / full over all steps, those of rewound tokens included; full is what the
        uncompressed model would hold.
    n_steps, n_rewound
        Tokens drawn, and those of them thrown away.
    """

    text: str
    token_ids: NDArray[np.int32]
    states: NDArray[np.uint8]
    hazard: NDArray[np.float32]
    actions: tuple[Event, ...]
    kv_tokens: NDArray[np.float32]
    stop_reason: str
    error: str | None = None
    kv_saved: float = 0.0
    n_steps: int = 0
    n_rewound: int = 0
    score: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One token as it is drawn, and what the guard did after it.

    Attributes
    ----------
    prompt
        Its place among the prompts.
    t, token_id, text
        The token's index, its id, and what it adds to the text. None for an id: the prompt ended without a
        token, see ``error``.
    hazard, state
        After this token.
    event
        What the guard did then. Tokens from index ``event.kept`` on are void, mostly this one too: they are
        drawn anew, but for ``stop``, which ends the text there.
    stop_reason, error
        Of a prompt's last piece, see :class:`Output`; None before.
    """

    prompt: int
    t: int
    token_id: int | None
    text: str
    hazard: float
    state: State
    event: Event | None = None
    stop_reason: str | None = None
    error: str | None = None


def piece_of(step: GuardedStep, slot: int, number: int, text: Unfolding, eos_ids: Sequence[int]) -> Piece:
    """Return what is new of one row of a step; ``text`` is that of its prompt so far."""
    row, t, token = int(step.row[slot]), int(step.t[slot]), int(step.token[slot])
    hazard, state = float(step.hazard[slot]), State(step.state[slot])
    if not step.valid[slot]:
        return Piece(number, t, None, text.rest(), hazard, state, None, INVALID, _invalid(t))
    event, left = step.events.get(row), bool(step.left[slot])
    added = text.add(token)
    if event is not None and event.what == Action.STOP:
        return Piece(number, t, token, added, hazard, state, event, GUARD)
    added += text.rest() if left else ""
    stopped = text.stopped
    if event is not None:
        text.rewind(event.kept)
    stop = ("eos" if token in eos_ids else "stop" if stopped else "length") if left else None
    return Piece(number, t, token, added, hazard, state, event, stop)


def output_of(found: Guarded, job: Job) -> Output:
    """Return what became of a prompt."""
    return Output(
        text=_text(found, job),
        token_ids=found.token_ids,
        states=found.states,
        hazard=found.hazard,
        actions=found.events,
        kv_tokens=found.kv_tokens,
        stop_reason=found.stop_reason,
        error=_invalid(len(found.token_ids)) if found.stop_reason == INVALID else None,
        kv_saved=found.kv_saved,
        n_steps=found.n_steps,
        n_rewound=found.n_rewound,
        score=score(found.hazard, found.safe_at),
    )


def _text(found: Guarded, job: Job) -> str:
    ids = found.token_ids.tolist()
    if found.stop_reason == GUARD:  # as it was told: the tokens that came after it cannot be taken back
        return told(job.loaded.tokenizer, ids, job.stops)
    text = job.loaded.decode(ids)
    return job.stops.cut(text) if job.stops is not None else text


def rejection(reason: str) -> Output:
    """Return the output of a prompt that was never asked."""
    ids, states, numbers = np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.float32)
    return Output("", ids, states, numbers, (), numbers, REJECTED, reason)


def _invalid(n_tokens: int) -> str:
    return f"the model's logits after {n_tokens} tokens are NaN: try another dtype, float32 say"
