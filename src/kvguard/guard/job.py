"""One call of the guard: its arguments checked, its prompts prefilled as rows become free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import torch

from kvguard.engine.batch import Batch
from kvguard.engine.budget import Budget
from kvguard.engine.layers import attention_modules
from kvguard.engine.memory import batch_of, rows_in_memory
from kvguard.engine.prefill import prefill
from kvguard.engine.press_code import introduce
from kvguard.engine.presses import (
    NONE,
    Condition,
    asked_ratio,
    attention_for,
    check_press,
    shortest_prompt,
)
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.sampling import Nucleus, Sampler, greedy
from kvguard.engine.scorers import scorer_for, too_small
from kvguard.errors import KvguardError
from kvguard.guard.actions import Action, Guarded, GuardedRun, GuardedStep, GuardParams
from kvguard.guard.controller import ControllerParams
from kvguard.guard.features import Bools
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.watch import HazardTrigger, Watch
from kvguard.models.load import LoadedModel

if TYPE_CHECKING:
    from kvpress import BasePress


@dataclass(frozen=True)
class Options:
    """Checked arguments of a call, see :meth:`kvguard.guard.session.Guard.generate`."""

    press: BasePress | None
    max_new_tokens: int
    action: Action
    interval: int | None
    sampler: Sampler
    batch_size: int | None

    @classmethod
    def checked(
        cls,
        press: BasePress | None,
        max_new_tokens: int,
        action: str,
        compression_interval: int | None,
        temperature: float,
        top_p: float,
        seed: int,
        batch_size: int | None,
    ) -> Options:
        """Check the arguments of a call.

        Raises
        ------
        KvguardError
            Naming the argument and the mend.
        """
        counts = {
            "max_new_tokens": max_new_tokens,
            "compression_interval": compression_interval,
            "batch_size": batch_size,
        }
        for name, value in counts.items():
            if value is not None and not (_is(value, Integral) and value >= 1):
                raise KvguardError(f"{name}: {value!r} will not do: pass a whole number, at least 1")
        if action not in set(Action):
            raise KvguardError(f"action: unknown name {action!r} (known: {', '.join(Action)})")
        if press is not None:
            check_press(press)
        if compression_interval is not None and press is None:
            raise KvguardError("compression_interval: there is nothing to evict by: pass a press too")
        if action == Action.HOLD and compression_interval is None:
            raise KvguardError(
                "action: hold stops evicting, and nothing is evicted while decoding without "
                "compression_interval: pass that, or an action that restores "
                f"({', '.join(action for action in Action if action.restores)})"
            )
        sampler = _sampler(temperature, top_p, seed)
        return cls(press, max_new_tokens, Action(action), compression_interval, sampler, batch_size)

    def check_model(self, loaded: LoadedModel) -> None:
        """Refuse a model that cannot be compressed, or not by this press while decoding.

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

    def refusal(self, n_tokens: int, loaded: LoadedModel) -> str | None:
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


@dataclass(frozen=True)
class Turn:
    """What is new of a call's prompts, which are named by their places.

    Attributes
    ----------
    step : GuardedStep, optional
        One token of every row under way; ``numbers`` says which prompt each of its entries is.
    refused : dict
        Why prompts are not asked.
    done : dict
        What became of prompts.
    """

    step: GuardedStep | None = None
    numbers: Sequence[int] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    done: Mapping[int, Guarded] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What one call does.

    Attributes
    ----------
    encoded
        The token ids of every prompt.
    mask
        See :func:`kvguard.guard.features.thinking_mask`. [V]
    """

    loaded: LoadedModel
    encoded: Sequence[Sequence[int]]
    options: Options
    hazard: HazardModel
    point: ControllerParams
    params: GuardParams
    mask: Bools

    def batch_size(self) -> int:
        """Return the rows to decode together: those asked for, else as many as memory takes."""
        longest = max((len(ids) for ids in self.encoded), default=0) + self.options.max_new_tokens
        return self.options.batch_size or batch_of(rows_in_memory(self.loaded.model, longest))

    def turns(self, batch_size: int) -> Iterator[Turn]:
        """Ask all prompts, each as soon as a row is free; those that cannot be asked come first."""
        by_length = cache(lambda n_tokens: self.options.refusal(n_tokens, self.loaded))
        found = {n: self._stray(ids) or by_length(len(ids)) for n, ids in enumerate(self.encoded)}
        yield Turn(refused={n: _about(n, reason) for n, reason in found.items() if reason is not None})
        asked = [n for n, reason in found.items() if reason is None]
        if asked:
            waiting = deque(sorted(asked, key=lambda n: -len(self.encoded[n])))
            yield from _Asking(self, waiting, batch_size).turns()

    def _stray(self, ids: Sequence[int]) -> str | None:
        """Say which token id the model does not know, if any."""
        size = self.loaded.model.config.get_text_config().vocab_size
        stray = [token for token in ids if not 0 <= token < size]
        return f"the model knows no token {stray[0]}, only 0 to {size - 1}: encode it anew" if stray else None

    def prefill(self, number: int) -> Row:
        """Prefill and compress a prompt."""
        prompt = torch.tensor(self.encoded[number], device=self.loaded.model.device)
        condition, press = self.options.condition, self.options.press
        done = prefill(self.loaded.model, prompt, {condition: press}, attention_for(press))
        return Row(prompt, done.logits, done.kept[condition])


class _Asking:
    """Prompts on their way through a batch."""

    def __init__(self, job: Job, waiting: deque[int], batch_size: int) -> None:
        self._job, self._waiting = job, waiting
        self._numbers: list[int] = []  # prompt of each row
        self._ratios: list[float] = []
        options, model = job.options, job.loaded.model
        self._how = Decoding(
            options.max_new_tokens, job.loaded.eos_ids, options.sampler, keep_cache=job.params.resume
        )
        self._batch = Batch(model, batch_size)
        self._budget = Budget(model, options.press, options.interval) if options.interval else None
        self._run = GuardedRun(
            self._batch,
            Watch(HazardTrigger(job.hazard, job.mask), job.point),
            options.action,
            job.params,
            self._ratios,
            budget=self._budget,
            thinking=job.mask,
        )

    def turns(self) -> Iterator[Turn]:
        with self._budget or nullcontext():
            yield Turn(refused=self._admit())
            for step in self._run.steps():
                numbers = [self._numbers[row] for row in step.row.tolist()]
                yield Turn(step, numbers, self._admit(), self._done())
            yield Turn(done=self._done())

    def _admit(self) -> dict[int, str]:
        """Prefill waiting prompts for the rows that are free before the next step."""
        batch, refused = self._batch, {}
        while self._waiting and batch.n - batch.leaving.sum() + batch.n_waiting < batch.size:
            number = self._waiting.popleft()
            try:
                row = self._job.prefill(number)
            except KvguardError as error:
                refused[number] = _about(number, str(error))
                continue
            self._numbers.append(number)
            self._ratios.append(self._job.options.ratio(row))
            batch.add(self._how.request(row, key=number))
        return refused

    def _done(self) -> dict[int, Guarded]:
        return {self._numbers[row]: found for row, found in self._run.collect().items()}


def _is(value: object, kind: type) -> bool:
    """Tell what an argument is in truth, whatever its annotation says."""
    return isinstance(value, kind)


def _sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    if not (_is(temperature, Real) and 0 <= temperature < np.inf):
        raise KvguardError(f"temperature: {temperature!r} will not do: pass 0 (greedy) or more")
    if not (_is(top_p, Real) and 0 < top_p <= 1):
        raise KvguardError(f"top_p: {top_p!r} is no share: pass one above 0, and 1 to leave nothing out")
    if not (_is(seed, Integral) and seed >= 0):
        raise KvguardError(f"seed: {seed!r} will not do: pass a whole number, 0 or more")
    return Nucleus(temperature, top_p, seed) if temperature > 0 else greedy


def _about(number: int, reason: str) -> str:
    return f"prompt {number}: {reason}"
