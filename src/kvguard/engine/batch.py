"""Ragged batched decoding: rows of different lengths and conditions, one token each per step.

The loop is a generator: after every draw it hands the step to its consumer, which may act on the batch
before the loop goes on: rewind a row, give it back its full cache, evict from it. :func:`decode` is the
consumer that does nothing of that; the guard is another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.attention import NAME, attention
from kvguard.engine.cache import KeptCache, RaggedCache
from kvguard.engine.graphs import RECORDERS, RecordedStep
from kvguard.engine.prefill import full_cache, sliding_windows
from kvguard.engine.sampling import Draw, Sampler, greedy
from kvguard.engine.signals import N_SIGNALS, signals
from kvguard.engine.stops import StopStrings

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """A generation to run: the prompt's token ids [T], its last logits [V], and its kept cache."""

    prompt_ids: Tensor
    logits: Tensor
    cache: KeptCache

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


@dataclass(frozen=True)
class Step:
    """One token of every row under way; slot i of the batch is entry i here.

    Attributes
    ----------
    row : ndarray
        [n], the row that a slot holds.
    t : ndarray
        [n], the index in its row of the token just drawn.
    tokens : Tensor
        [n]
    signals : Tensor
        [n, 26]
    ended : ndarray
        [n] bool: an end-of-sequence token, or the last one allowed.
    valid : ndarray
        [n] bool: False where the logits were no numbers; that token does not count, and the row leaves.
    """

    row: Ints
    t: Ints
    tokens: Tensor
    signals: Tensor
    ended: Bools
    valid: Bools


@dataclass(frozen=True)
class Generated:
    """What rows generated, in the order they were given.

    Parameters
    ----------
    token_ids : ndarray
        [R, max_new_tokens] int32; only the first ``lengths[r]`` of a row count.
    signals : ndarray
        [R, max_new_tokens, 26] float32.
    lengths : ndarray
        [R], tokens generated, the end-of-sequence token included.
    stopped : ndarray
        [R] bool: ended by itself (True) or cut at max_new_tokens.
    valid : ndarray
        [R] bool: False for a row that was cut short by logits that are no numbers.
    """

    token_ids: NDArray[np.int32]
    signals: NDArray[np.float32]
    lengths: Ints
    stopped: Bools
    valid: Bools


def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    batch_size: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    sampler: Sampler = greedy,
    on_finish: Callable[[int, NDArray[np.int32], bool], None] | None = None,
    stops: StopStrings | None = None,
) -> Generated:
    """Decode all rows, ``batch_size`` at a time; finished rows leave and waiting rows take their places.

    Parameters
    ----------
    on_finish : callable, optional
        Called as ``on_finish(row, token_ids, stopped)`` whenever a row ends.
    stops : StopStrings, optional
        What ends a row besides the end tokens.
    """
    states = {row: stops.start() for row in range(len(rows))} if stops is not None else {}
    batch = Batch(model, rows, batch_size, max_new_tokens, eos_ids)
    for step in decode_steps(batch, sampler):
        if states:
            drawn = zip(step.row, step.tokens.tolist(), strict=True)
            found = [states[row].push(token) for row, token in drawn]
            batch.stopped[: batch.n] |= np.array(found) & step.valid
            batch.ended[: batch.n] |= batch.stopped[: batch.n]
        if on_finish is not None:
            for slot in np.flatnonzero(batch.ended[: batch.n] | ~step.valid):
                row = int(step.row[slot])
                token_ids = batch.tokens[row, : batch.t[slot]].cpu().numpy()
                on_finish(row, token_ids, bool(batch.stopped[slot]))
    return batch.generated()


@torch.inference_mode()
def decode_steps(batch: Batch, sampler: Sampler = greedy) -> Iterator[Step]:
    """Decode all rows of a batch, yielding after every draw.

    When the token with index t of a row is yielded, t generated tokens have been fed: the cache holds what is
    kept of the prompt, and of those. Then rows that ended leave (unless they were rewound), waiting rows take
    their places, and every row is fed its newest token.
    """
    with attention(batch.model, NAME):
        while batch.refill():
            yield batch.draw(sampler)
            batch.clear()
            batch.feed()


class Batch:
    """The rows under way, in the first ``n`` slots of the cache, and everything recorded so far.

    Rows start in order of kept length, longest first, so that rows of similar length share a step.

    Parameters
    ----------
    size : int
        Rows decoded together.
    restorable : bool
        Make room for the full cache of every row.

    Attributes
    ----------
    row, t, attempt : ndarray
        [slots]: which row a slot holds, the tokens it has drawn, how often it was rewound.
    tokens, signals : Tensor
        [R, max_new_tokens] int32 and [R, max_new_tokens, 26], by row.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        size: int,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        *,
        restorable: bool = False,
    ) -> None:
        vocabulary, device = model.config.get_text_config().vocab_size, model.device
        self.model, self.rows, self.max_new_tokens = model, rows, max_new_tokens
        self.waiting = deque(sorted(range(len(rows)), key=lambda r: -max(rows[r].cache.lengths)))
        longest = [row.n_prompt if restorable else max(row.cache.lengths) for row in rows]
        keys = rows[0].cache.keys
        self.n, self.slots = 0, min(size, len(rows))
        self.cache = RaggedCache(
            len(keys),
            self.slots,
            max(longest) + max_new_tokens,
            keys[0].shape[0],
            keys[0].shape[2],
            keys[0].dtype,
            device,
            windows=sliding_windows(model),
        )
        self.logits = torch.empty(self.slots, vocabulary, dtype=rows[0].logits.dtype, device=device)
        self.pending = torch.zeros(self.slots, dtype=torch.long, device=device)  # drawn, not yet fed
        self.tokens = torch.zeros(len(rows), max_new_tokens, dtype=torch.int32, device=device)
        self.signals = torch.zeros(len(rows), max_new_tokens, N_SIGNALS, device=device)
        self.row, self.t, self.attempt = (np.zeros(self.slots, dtype=np.int64) for _ in range(3))
        self.stopped, self.ended, self.valid = (np.zeros(self.slots, dtype=bool) for _ in range(3))
        self._is_eos = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._is_eos[list(eos_ids)] = True
        self._lengths = np.zeros(len(rows), dtype=np.int64)
        self._stopped, self._valid = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
        record = RECORDERS.get(device.type)
        self._recorded = record and RecordedStep(model, self.cache, record)

    def generated(self) -> Generated:
        """Return what the rows that left have generated."""
        recorded = self.tokens.cpu().numpy(), self.signals.cpu().numpy()
        return Generated(*recorded, self._lengths, self._stopped, self._valid)

    def kv_tokens(self) -> NDArray[np.float64]:
        """Return the live cache entries of each row, a mean over layers and heads. [n]"""
        return self.cache.live(self.n)

    @torch.inference_mode()
    def restore(self, slots: Sequence[int], keep: Sequence[int] | None = None) -> None:
        """Give rows the cache that an uncompressed model would have, recomputed from their token ids.

        Parameters
        ----------
        slots : sequence of int
        keep : sequence of int, optional
            How many generated tokens of each stay; with fewer than it has the row is rewound, and draws
            the others anew. All by default.
        """
        for slot, kept in zip(slots, self.t[list(slots)] if keep is None else keep, strict=True):
            row = int(self.row[slot])
            ids = torch.cat([self.rows[row].prompt_ids, self.tokens[row, :kept].long()])
            self.cache.load(slot, self._before(row, ids[:-1]))
            self.pending[slot] = ids[-1]
            if kept < self.t[slot]:
                self.t[slot] = kept
                self.attempt[slot] += 1
                self.ended[slot] = self.stopped[slot] = False

    def _before(self, row: int, ids: Tensor) -> KeptCache:
        """Return the full cache of the token ids that precede a row's newest token."""
        if len(ids):
            return full_cache(self.model, ids)
        kept = self.rows[row].cache  # a prompt of one token, rewound to nothing: no pass can compute that
        return KeptCache([keys[:, :0] for keys in kept.keys], [values[:, :0] for values in kept.values])

    @torch.inference_mode()
    def recompress(self, slots: Sequence[int]) -> None:
        """Compress the prompt of restored rows again, as it was; what they generated stays."""
        for slot in slots:
            row = self.rows[self.row[slot]]
            tail = self.cache.tail(slot, row.n_prompt)
            self.cache.load(slot, row.cache)
            self.cache.extend(slot, tail)

    def refill(self) -> bool:
        """Seat waiting rows in the free slots; tell whether any row is under way."""
        while self.waiting and self.n < self.slots:
            slot, row = self.n, self.waiting.popleft()
            self.cache.load(slot, self.rows[row].cache)
            self.logits[slot] = self.rows[row].logits
            self.row[slot], self.t[slot], self.attempt[slot] = row, 0, 0
            self.n += 1
        return self.n > 0

    def draw(self, sampler: Sampler) -> Step:
        """Draw and record one token per row."""
        n = self.n
        row, t = self.row[:n].copy(), self.t[:n].copy()
        tokens = sampler(self.logits[:n], Draw(row, t, self.attempt[:n].copy()))
        read = signals(self.logits[:n], tokens)
        where = torch.from_numpy(np.stack([row, t])).to(tokens.device)
        self.tokens[where[0], where[1]] = tokens.to(torch.int32)
        self.signals[where[0], where[1]] = read
        self.pending[:n] = tokens
        flags = torch.stack([self._is_eos[tokens], read[:, 0].isfinite()]).cpu().numpy()
        self.valid[:n] = flags[1]
        self.t[:n] += flags[1]
        self.stopped[:n] = flags[0] & flags[1]
        self.ended[:n] = self.stopped[:n] | (self.t[:n] == self.max_new_tokens)
        return Step(row, t, tokens, read, self.ended[:n].copy(), self.valid[:n].copy())

    def clear(self) -> None:
        """Let the rows leave that have ended; the last rows move into their slots."""
        left = self.ended[: self.n] | ~self.valid[: self.n]
        for slot in np.flatnonzero(left)[::-1]:  # from the right: a slot moved in is never one still to leave
            row = self.row[slot]
            self._lengths[row], self._stopped[row] = self.t[slot], self.stopped[slot]
            self._valid[row] = self.valid[slot]
            if not self.valid[slot]:
                self.cache.erase(int(slot))
            last = self.n = self.n - 1
            if slot != last:
                self.cache.move(last, int(slot))
                self.pending[slot] = self.pending[last]
                for state in (self.row, self.t, self.attempt):
                    state[slot] = state[last]

    def feed(self) -> None:
        """Feed every row its newest token and keep the logits."""
        n = self.n
        if n == 0:
            return
        order = self.cache.arrange(n)
        if order is not None:
            self.pending[:n] = self.pending[:n][torch.from_numpy(order).to(self.pending.device)]
            for state in (self.row, self.t, self.attempt):
                state[:n] = state[order]
        position = np.array([self.rows[row].n_prompt for row in self.row[:n]]) + self.t[:n] - 1
        if self._recorded is None or not self._recorded(position, self._forward):
            self.cache.begin(n)
            self._forward(torch.from_numpy(position).to(self.model.device))
        self.cache.advance(n)

    def _forward(self, positions: Tensor) -> None:
        """Feed the first rows their newest tokens, at ``positions`` [n], which the host does not read."""
        n = len(positions)
        self.logits[:n] = self.model(
            input_ids=self.pending[:n, None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            cache_position=positions[:1],
            use_cache=True,
            ragged=self.cache,
        ).logits[:, -1]
