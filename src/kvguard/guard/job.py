"""One call of the guard: its prompts prefilled as rows become free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch

from kvguard.engine.batch import Batch
from kvguard.engine.budget import Budget
from kvguard.engine.memory import batch_of, rows_in_memory
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import attention_for
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.guard.actions import Guarded, GuardedRun, GuardedStep, GuardParams
from kvguard.guard.answers import Answers
from kvguard.guard.arguments import Options
from kvguard.guard.certificate import Certified
from kvguard.guard.controller import ControllerParams
from kvguard.guard.features import Bools
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.watch import HazardTrigger, Watch
from kvguard.models.load import LoadedModel


@dataclass(frozen=True)
class Turn:
    """What is new of a call's prompts, which are named by their places.

    Attributes
    ----------
    step : GuardedStep, optional
        One token of every row under way; ``numbers`` says which prompt each of its entries is.
    rejected : dict
        Why prompts are not asked.
    done : dict
        What became of prompts.
    """

    step: GuardedStep | None = None
    numbers: Sequence[int] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    done: Mapping[int, Guarded] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What one call does.

    Attributes
    ----------
    encoded
        The token ids of every prompt.
    unasked
        Why prompts, by their places, have no token ids.
    mask
        See :func:`kvguard.guard.features.thinking_mask`. [V]
    covered
        The certified setting that it is, where a policy asks for one.
    """

    loaded: LoadedModel
    encoded: Sequence[Sequence[int]]
    unasked: Mapping[int, str]
    options: Options
    hazard: HazardModel
    point: ControllerParams
    params: GuardParams
    mask: Bools
    covered: Certified | None = None

    @cached_property
    def stops(self) -> StopStrings | None:
        """What ends a text besides the end tokens."""
        return StopStrings(self.loaded.tokenizer, self.options.stop) if self.options.stop else None

    @cached_property
    def answers(self) -> Answers | None:
        """What finds the complete answers of a text."""
        answered = self.options.answered
        return Answers(self.loaded.tokenizer, answered) if answered is not None else None

    def batch_size(self) -> int:
        """Return the rows to decode together: those asked for, else as many as memory takes."""
        longest = max((len(ids) for ids in self.encoded), default=0) + self.options.max_new_tokens
        rows = self.options.batch_size or batch_of(rows_in_memory(self.loaded.model, longest))
        return min(rows, max(1, len(self.encoded)))

    def turns(self, batch_size: int) -> Iterator[Turn]:
        """Ask all prompts, each as soon as a row is free; those that cannot be asked come first."""
        by_length = cache(lambda n_tokens: self.options.rejection(n_tokens, self.loaded))
        found = {
            n: self.unasked.get(n) or self._stray(ids) or by_length(len(ids))
            for n, ids in enumerate(self.encoded)
        }
        yield Turn(rejected={n: _about(n, reason) for n, reason in found.items() if reason is not None})
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
            options.max_new_tokens,
            job.loaded.eos_ids,
            options.sampler,
            stops=job.stops,
            keep_cache=job.params.resume,
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
            answers=job.answers,
        )

    def turns(self) -> Iterator[Turn]:
        with self._budget or nullcontext():
            yield Turn(rejected=self._admit())
            for step in self._run.steps():
                numbers = [self._numbers[row] for row in step.row.tolist()]
                yield Turn(step, numbers, self._admit(), self._done())
            yield Turn(done=self._done())

    def _admit(self) -> dict[int, str]:
        """Prefill waiting prompts for the rows that are free before the next step."""
        batch, rejected = self._batch, {}
        while self._waiting and batch.n - batch.leaving.sum() + batch.n_waiting < batch.size:
            number = self._waiting.popleft()
            try:
                row = self._job.prefill(number)
            except KvguardError as error:
                rejected[number] = _about(number, str(error))
                continue
            self._numbers.append(number)
            self._ratios.append(self._job.options.ratio(row))
            batch.add(self._how.request(row, key=number))
        return rejected

    def _done(self) -> dict[int, Guarded]:
        return {self._numbers[row]: found for row, found in self._run.collect().items()}


def _about(number: int, reason: str) -> str:
    return f"prompt {number}: {reason}"
