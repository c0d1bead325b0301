"""What is asked of a batch, row by row, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvguard.engine.kept import KeptCache
from kvguard.engine.sampling import Sampler, greedy


class StopTest(Protocol):
    """Tells of one row's tokens where they are to end."""

    def push(self, token_id: int) -> bool:
        """Take the next token; tell whether it is the last."""

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens."""


class StopRule(Protocol):
    """Makes the stop test of each row, such as :class:`~kvguard.engine.stops.StopStrings`."""

    def start(self) -> StopTest:
        """Return the test of a row that has no token yet."""


class Reason(IntEnum):
    """Why a row has left, or that it goes on; its word is the stop reason of tables.

    ``STOP`` is a stop string, ``GUARD`` whoever watches the row.
    """

    GOING = 0
    EOS = 1
    STOP = 2
    LENGTH = 3
    INVALID = 4
    CANCELLED = 5
    GUARD = 6

    @property
    def word(self) -> str:
        """As tables have it."""
        return self.name.lower()


@dataclass(frozen=True)
class Row:
    """A prompt under one condition: its token ids [T], its last logits [V], and its kept cache."""

    prompt_ids: Tensor
    logits: Tensor
    cache: KeptCache

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


@dataclass(frozen=True)
class Request:
    """A generation to run.

    Parameters
    ----------
    prompt_ids : Tensor
        [T]
    max_new_tokens : int
        Tokens of the generation at most, those of the prefix included.
    eos_ids : tuple of int
        Tokens that end it.
    logits, cache : Tensor [V] and KeptCache, or None
        What follows prompt and prefix, and what is kept of their cache. None: computed in one pass when the
        row starts, uncompressed.
    prefix : tuple of int
        Tokens that were generated before; it goes on from there.
    stop : StopTest, optional
        Without one only ``eos_ids`` and the budget end it.
    key : int, optional
        What chance depends on in place of the row's number.
    keep_cache : bool
        Keep ``cache`` beside the row, so that it can be compressed again after it was restored.
    positions : list of Tensor, optional
        Where in the prompt its kept entries stood; set when the row starts and its cache is let go.
    """

    prompt_ids: Tensor
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    logits: Tensor | None = None
    cache: KeptCache | None = None
    prefix: tuple[int, ...] = ()
    stop: StopTest | None = None
    sampler: Sampler = greedy
    key: int | None = None
    keep_cache: bool = False
    positions: list[Tensor] | None = None

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def n_entries(self) -> int:
        """Cache entries of its longest layer when it starts."""
        return self.n_prompt + len(self.prefix) if self.cache is None else max(self.cache.lengths)

    def started(self) -> Request:
        """Return the request without what the batch has taken over."""
        positions = self.cache.positions if self.cache is not None else None
        kept = self.cache if self.keep_cache else None
        return replace(self, logits=None, cache=kept, positions=positions)


@dataclass(frozen=True)
class Decoding:
    """How rows are decoded: the one place where a prefilled row becomes a row of a batch.

    See :class:`Request`; ``stops`` makes the stop test of each row.
    """

    max_new_tokens: int
    eos_ids: Sequence[int]
    sampler: Sampler = greedy
    stops: StopRule | None = None
    keep_cache: bool = False

    def request(self, row: Row, key: int | None = None) -> Request:
        """Return the request to generate from a prefilled row."""
        return replace(self.resume(row.prompt_ids, (), key), logits=row.logits, cache=row.cache)

    def resume(self, prompt_ids: Tensor, prefix: Sequence[int], key: int | None = None) -> Request:
        """Return the request to go on from a prompt and generated tokens, uncompressed."""
        return Request(
            prompt_ids,
            self.max_new_tokens,
            tuple(self.eos_ids),
            prefix=tuple(int(token) for token in prefix),
            stop=self.stops.start() if self.stops is not None else None,
            sampler=self.sampler,
            key=key,
            keep_cache=self.keep_cache,
        )


@dataclass(frozen=True)
class Finished:
    """What a row generated.

    Parameters
    ----------
    row : int
        Its number in the batch.
    token_ids : ndarray
        [T] int32, prefix and end token included.
    signals : ndarray
        [T, 26] float32; NaN for tokens of the prefix.
    reason : Reason
        Why it left.
    """

    row: int
    token_ids: NDArray[np.int32]
    signals: NDArray[np.float32]
    reason: Reason

    @property
    def ended(self) -> bool:
        """Whether it ended by itself: neither cut at its budget nor cut short."""
        return self.reason in (Reason.EOS, Reason.STOP)

    @property
    def stop_reason(self) -> str:
        """As tables have it: the word of its reason."""
        return self.reason.word


class Follower:
    """State of a batch's rows that is kept elsewhere, by seat; the batch tells it what becomes of them.

    A seat is a number below the batch's size that a row keeps from its start to its end, and that is then
    another row's.
    """

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row."""

    def restored(self, seat: int) -> None:
        """Learn that a row has its full cache back."""

    def rewind(self, seat: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of a row."""

    def close(self, seat: int, done: Finished) -> None:
        """End a row."""
