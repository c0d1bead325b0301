"""The one decode loop.

It is a generator: after every draw it hands the step to its consumer, which may act on the batch before the
loop goes on: add rows or cancel them, rewind a row, give it back its full cache, evict from it.
:func:`decode` is the consumer that does nothing of that; the guard is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from kvguard.engine.attention import NAME, attention
from kvguard.engine.batch import Batch, Bools, Ints, Step
from kvguard.engine.requests import Decoding, Finished, Reason, Row
from kvguard.engine.signals import N_SIGNALS


@dataclass(frozen=True)
class Generated:
    """What rows generated, in order of their numbers.

    Parameters
    ----------
    token_ids : ndarray
        [R, longest] int32; only the first ``lengths[r]`` of a row count.
    signals : ndarray
        [R, longest, 26] float32.
    lengths : ndarray
        [R], tokens generated, the end token included.
    reasons : ndarray
        [R], :class:`~kvguard.engine.requests.Reason`.
    """

    token_ids: NDArray[np.int32]
    signals: NDArray[np.float32]
    lengths: Ints
    reasons: NDArray[np.uint8]

    @classmethod
    def of(cls, finished: Sequence[Finished]) -> Generated:
        """Lay the results of rows side by side."""
        done = sorted(finished, key=lambda row: row.row)
        lengths = np.array([len(row.token_ids) for row in done], dtype=np.int64)
        shape = len(done), int(lengths.max(initial=0))
        token_ids = np.zeros(shape, dtype=np.int32)
        signals = np.zeros((*shape, N_SIGNALS), dtype=np.float32)
        for r, row in enumerate(done):
            token_ids[r, : lengths[r]], signals[r, : lengths[r]] = row.token_ids, row.signals
        return cls(token_ids, signals, lengths, np.array([row.reason for row in done], dtype=np.uint8))

    @property
    def stopped(self) -> Bools:
        """[R]: ended by itself, neither cut at max_new_tokens nor cut short."""
        return np.isin(self.reasons, (Reason.EOS, Reason.STOP))

    @property
    def valid(self) -> Bools:
        """[R]: False for a row that was cut short by logits that are NaN."""
        return self.reasons != Reason.INVALID

    @property
    def stop_reasons(self) -> list[str]:
        """Why each row ended: ``eos``, ``stop``, ``length`` or ``invalid``."""
        return [Reason(reason).word for reason in self.reasons]


def assemble(model: PreTrainedModel, rows: Iterable[Row], size: int, how: Decoding) -> Batch:
    """Return a batch that these rows wait in; row r has the number r."""
    batch = Batch(model, size)
    for row in rows:
        batch.add(how.request(row))
    return batch


def decode(
    model: PreTrainedModel,
    rows: Iterable[Row],
    how: Decoding,
    *,
    batch_size: int,
    on_finish: Callable[[Finished], None] | None = None,
) -> Generated:
    """Decode all rows, ``batch_size`` at a time; finished rows leave and waiting rows take their places.

    Parameters
    ----------
    on_finish : callable, optional
        Called whenever a row ends.
    """
    batch = assemble(model, rows, batch_size, how)
    return Generated.of(list(finished(batch, on_finish)))


def finished(batch: Batch, on_finish: Callable[[Finished], None] | None = None) -> Iterator[Finished]:
    """Decode, yielding rows as they end."""
    steps = decode_steps(batch)
    running = True
    while running:
        running = next(steps, None) is not None
        for done in batch.collect():
            if on_finish is not None:
                on_finish(done)
            yield done


@torch.inference_mode()
def decode_steps(batch: Batch) -> Iterator[Step]:
    """Decode the rows of a batch until none is left, yielding after every draw.

    When the token with index t of a row is yielded, t generated tokens have been fed: the cache holds what is
    kept of the prompt, and of those. Then rows that ended leave (unless they were rewound), waiting rows take
    their places, and every row is fed its newest token.
    """
    with attention(batch.model, NAME):
        while batch.refill():
            yield batch.draw()
            batch.clear()
            batch.feed()
