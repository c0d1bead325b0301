"""Ragged batched decoding: rows of different lengths and conditions, one token each per step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.generation.attention import NAME, attention
from kvguard.generation.cache import KeptCache, RaggedCache
from kvguard.generation.sampler import Sampler, greedy
from kvguard.generation.signals import N_LOGPROBS, signals

N_SIGNALS = N_LOGPROBS + 6


@dataclass(frozen=True)
class Row:
    """A generation to run: the prompt's length, its last logits [V], and its kept cache."""

    n_prompt: int
    logits: Tensor
    cache: KeptCache


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
    """

    token_ids: np.ndarray
    signals: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    batch_size: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    sampler: Sampler = greedy,
    on_finish: Callable[[int, np.ndarray, bool], None] | None = None,
) -> Generated:
    """Decode all rows, ``batch_size`` at a time; finished rows leave and waiting rows take their places.

    Rows start in order of kept length, longest first, so that rows of similar length share a step.

    Parameters
    ----------
    on_finish : callable, optional
        Called as ``on_finish(row, token_ids, stopped)`` whenever a row ends.
    """
    batch = _Batch(model, rows, min(batch_size, len(rows)), max_new_tokens)
    is_eos = torch.zeros(model.config.get_text_config().vocab_size, dtype=torch.bool, device=model.device)
    is_eos[list(eos_ids)] = True
    lengths = np.zeros(len(rows), dtype=np.int64)
    stopped = np.zeros(len(rows), dtype=bool)
    with attention(model, NAME):
        while batch.refill():
            tokens = sampler(batch.logits[: batch.n])
            t = batch.record(tokens, signals(batch.logits[: batch.n], tokens))
            ended = is_eos[tokens].cpu().numpy()
            finished = np.flatnonzero(ended | (t == max_new_tokens))
            for slot in finished[::-1]:  # from the right, so that a slot moved in is never one still to leave
                row = batch.row[slot]
                lengths[row], stopped[row] = t[slot], ended[slot]
                if on_finish is not None:
                    on_finish(int(row), batch.tokens[row, : t[slot]].cpu().numpy(), bool(ended[slot]))
                tokens = batch.leave(int(slot), tokens)
            batch.step(tokens[: batch.n])
    return Generated(batch.tokens.cpu().numpy(), batch.signals.cpu().numpy(), lengths, stopped)


class _Batch:
    """The rows under way, in the first ``n`` slots of the cache, and everything recorded so far."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], slots: int, max_new_tokens: int) -> None:
        config, device = model.config.get_text_config(), model.device
        self.model, self.rows = model, rows
        self.waiting = deque(sorted(range(len(rows)), key=lambda r: -max(rows[r].cache.lengths)))
        capacity = max((max(row.cache.lengths) for row in rows), default=0) + max_new_tokens
        keys = rows[0].cache.keys
        self.cache = RaggedCache(
            len(keys), slots, capacity, keys[0].shape[0], keys[0].shape[2], keys[0].dtype, device
        )
        self.n, self.slots = 0, slots
        self.logits = torch.empty(slots, config.vocab_size, dtype=rows[0].logits.dtype, device=device)
        self.tokens = torch.zeros(len(rows), max_new_tokens, dtype=torch.int32, device=device)
        self.signals = torch.zeros(len(rows), max_new_tokens, N_SIGNALS, device=device)
        self.row = np.zeros(slots, dtype=np.int64)  # which row a slot holds
        self.t = np.zeros(slots, dtype=np.int64)  # tokens it has generated
        self.position = np.zeros(slots, dtype=np.int64)  # logical position of its next token

    def refill(self) -> bool:
        """Seat waiting rows in the free slots; tell whether any row is under way."""
        while self.waiting and self.n < self.slots:
            slot, row = self.n, self.waiting.popleft()
            self.cache.load(slot, self.rows[row].cache)
            self.logits[slot] = self.rows[row].logits
            self.row[slot], self.t[slot], self.position[slot] = row, 0, self.rows[row].n_prompt
            self.n += 1
        return self.n > 0

    def record(self, tokens: Tensor, read: Tensor) -> np.ndarray:
        """Store this step's tokens [n] and signals [n, 26]; return how many tokens each row has now."""
        where = torch.from_numpy(np.stack([self.row[: self.n], self.t[: self.n]])).to(tokens.device)
        self.tokens[where[0], where[1]] = tokens.to(torch.int32)
        self.signals[where[0], where[1]] = read
        self.t[: self.n] += 1
        return self.t[: self.n].copy()

    def leave(self, slot: int, tokens: Tensor) -> Tensor:
        """Free a slot by moving the last row into it; the tokens about to be fed move along."""
        last = self.n = self.n - 1
        if slot != last:
            self.cache.move(last, slot)
            for state in (self.row, self.t, self.position):
                state[slot] = state[last]
            tokens[slot] = tokens[last]
        return tokens

    def step(self, tokens: Tensor) -> None:
        """Feed one token [n] per row and keep the logits."""
        n = self.n
        if n == 0:
            return
        positions = torch.from_numpy(self.position[:n, None]).to(tokens.device)
        self.cache.begin(n)
        self.logits[:n] = self.model(
            input_ids=tokens[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            cache_position=positions[:1, 0],
            use_cache=True,
            ragged=self.cache,
        ).logits[:, -1]
        self.cache.advance(n)
        self.position[:n] += 1
