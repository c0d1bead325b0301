"""The arguments of a call of the guard, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from kvguard.config import check_known
from kvguard.engine.layers import attention_modules
from kvguard.engine.press_code import introduce
from kvguard.engine.presses import NONE, Condition, asked_ratio, check_press, shortest_prompt
from kvguard.engine.requests import Row
from kvguard.engine.sampling import Nucleus, Sampler, greedy
from kvguard.engine.scorers import scorer_for, too_small
from kvguard.errors import KvguardError
from kvguard.guard.answers import Answered
from kvguard.guard.settings import Action
from kvguard.models.load import LoadedModel

if TYPE_CHECKING:
    from kvpress import BasePress


class Arguments(TypedDict, total=False):
    """What a call may be given besides model, tokenizer and prompts, see :meth:`kvguard.Guard.generate`."""

    press: BasePress | None
    max_new_tokens: int | None
    action: str
    answered: Answered | None
    compression_interval: int | None
    stop: Sequence[str]
    temperature: float
    top_p: float
    seed: int
    batch_size: int | None


@dataclass(frozen=True)
class Options:
    """Checked arguments of a call."""

    press: BasePress | None
    max_new_tokens: int
    action: Action
    answered: Answered | None
    interval: int | None
    stop: tuple[str, ...]
    sampler: Sampler
    batch_size: int | None

    @classmethod
    def checked(cls, given: Arguments, max_new_tokens: int) -> Options:
        """Check the arguments of a call; ``max_new_tokens`` is the one of a call that is given none.

        Raises
        ------
        KvguardError
            Naming the argument and the fix.
        """
        for name in given:
            check_known("argument", name, Arguments.__annotations__)
        press, interval = (
            given.get("press"),
            _count("compression_interval", given.get("compression_interval")),
        )
        if press is not None:
            check_press(press)
        action, answered = _action(given.get("action", Action.ROLLBACK)), given.get("answered")
        if answered is not None and not callable(answered):
            raise KvguardError(f"answered: {answered!r} cannot be called: pass a function of a text")
        if action is Action.STOP and answered is None:
            raise KvguardError(
                "action: stop ends a text at its last complete answer: pass answered, a function that says "
                "where the answers of a text end (`kvguard run --guard` passes the task's)"
            )
        if interval is not None and press is None:
            raise KvguardError("compression_interval: there is nothing to evict by: pass a press too")
        if action == Action.HOLD and interval is None:
            raise KvguardError(
                "action: hold stops evicting, and nothing is evicted while decoding without "
                "compression_interval: pass that, or an action that restores "
                f"({', '.join(action for action in Action if action.restores)})"
            )
        return cls(
            press,
            _count("max_new_tokens", given.get("max_new_tokens")) or max_new_tokens,
            action,
            answered,
            interval,
            _stop(given.get("stop", ())),
            _sampler(given.get("temperature", 0.0), given.get("top_p", 1.0), given.get("seed", 0)),
            _count("batch_size", given.get("batch_size")),
        )

    def check_model(self, loaded: LoadedModel) -> None:
        """Reject a model that cannot be compressed, not by this press while decoding, or not for so long.

        Raises
        ------
        KvguardError
            Naming the model or the press.
        """
        try:
            attention_modules(loaded.model)
        except AttributeError:
            raise KvguardError(
                f"model {loaded.name}: a {type(loaded.model).__name__} has no attention layers where kvpress "
                "looks for them: use a Llama, Mistral, Phi3, Qwen2, Qwen3 or Gemma3"
            ) from None
        for name, tokens in {
            "max_new_tokens": self.max_new_tokens,
            "compression_interval": self.interval or 0,
        }.items():
            if tokens >= loaded.window:
                raise KvguardError(
                    f"{name}: {tokens} tokens and a prompt exceed the window of {loaded.window} of model "
                    f"{loaded.name}: pass fewer"
                )
        if self.press is None:
            return
        introduce(loaded.model, self.press, str(self.condition))
        if self.interval is not None:
            scorer_for(loaded.model, self.press, self.interval)

    @property
    def condition(self) -> Condition:
        """The press under the name of its class."""
        if self.press is None:
            return Condition(NONE, 0.0)
        return Condition(type(self.press).__name__, asked_ratio(self.press) or 0.0)

    def ratio(self, row: Row) -> float:
        """Return the compression ratio of a row: what the press was asked, else what it came to."""
        if self.press is None:
            return 0.0
        asked = asked_ratio(self.press)
        return float(asked) if asked is not None else 1 - row.cache.n_kept / row.n_prompt

    def rejection(self, n_tokens: int, loaded: LoadedModel) -> str | None:
        """Say why a prompt of ``n_tokens`` cannot be asked, if so."""
        if n_tokens + self.max_new_tokens > loaded.window:
            return (
                f"{n_tokens} tokens and {self.max_new_tokens} new ones exceed the model's window of "
                f"{loaded.window}: shorten it, or pass a smaller max_new_tokens"
            )
        needed = shortest_prompt(self.press) if self.press is not None else 1
        if n_tokens < needed:
            return f"{n_tokens} tokens are too few for {self.condition}, which needs {needed}: lengthen it"
        if self.press is None or self.interval is None:
            return None
        reason = too_small(loaded.model, self.press, self.interval, n_tokens)
        return reason and (
            f"{n_tokens} tokens leave {self.condition} too small a budget while decoding: {reason}; "
            "lengthen it, or lower the press's ratio"
        )


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    count = _whole(value)
    if count is None or count < 1:
        raise KvguardError(f"{name}: {value!r} will not do: pass a whole number, at least 1")
    return count


def _action(value: object) -> Action:
    if not isinstance(value, str) or value not in set(Action):
        raise KvguardError(f"action: unknown name {value!r} (known: {', '.join(Action)})")
    return Action(value)


def _stop(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise KvguardError(f"stop: {value!r} is no list of texts: pass ['\\n\\nQ:'], say")
    for text in value:
        if not isinstance(text, str) or not text:
            raise KvguardError(f"stop: {text!r} ends no text: pass texts of at least one character")
    return tuple(value)


def _sampler(temperature: object, top_p: object, seed: object) -> Sampler:
    heat, share, start = _number(temperature), _number(top_p), _whole(seed)
    if heat is None or not 0 <= heat < np.inf:
        raise KvguardError(f"temperature: {temperature!r} will not do: pass 0 (greedy) or more")
    if share is None or not 0 < share <= 1:
        raise KvguardError(f"top_p: {top_p!r} is no share: pass one above 0, and 1 to leave nothing out")
    if start is None or not 0 <= start < 2**64:
        raise KvguardError(f"seed: {seed!r} will not do: pass a whole number from 0 to 2**64 - 1")
    return Nucleus(heat, share, start) if heat > 0 else greedy


def _number(value: object) -> float | None:
    """Return a real number as a float; None where it is none, or beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    return int(value) if not isinstance(value, bool) and isinstance(value, Integral) else None
