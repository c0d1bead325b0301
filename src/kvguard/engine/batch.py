"""Ragged batched decoding: rows of different lengths and conditions, one token each per step.

A batch is an open population: rows are added and cancelled while it runs, and each leaves with its own
results. It is driven by the loop of :mod:`kvguard.engine.loop`, whose consumer may act on rows between two
steps: rewind one, give it back its full cache, evict from it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.cache import RaggedCache
from kvguard.engine.graphs import RECORDERS, RecordedStep
from kvguard.engine.kept import KeptCache
from kvguard.engine.layers import sliding_windows
from kvguard.engine.prefill import full_cache, full_pass
from kvguard.engine.records import Bools, Ints, Records, Step
from kvguard.engine.requests import Finished, Follower, Reason, Request, StopTest
from kvguard.engine.sampling import Draw, Past, Sampler
from kvguard.engine.signals import N_SIGNALS, signals

_STATE = np.dtype(
    [
        *((name, np.int64) for name in ("row", "seat", "key", "t", "attempt", "n_prompt", "most", "eos")),
        ("sampler", np.int64),
        ("reason", np.uint8),
    ]
)


class Batch:
    """The rows under way, in slots 0 to n - 1, those that wait, and the results of those that left.

    Waiting rows start in order of kept length, longest first, so that rows of like length share a step.

    Parameters
    ----------
    size : int
        Rows decoded together at most; may be changed at any time.
    reads : bool
        Whether signals are read; if not they are NaN, and cost nothing.

    Attributes
    ----------
    n : int
        Rows under way.
    cache : RaggedCache
        Theirs, once there is a row.
    pending : Tensor
        [n], drawn and not yet fed.
    logits : Tensor
        [n, V], of the newest step.
    requests : dict
        By row number, of rows that wait or are under way.
    """

    cache: RaggedCache

    def __init__(self, model: PreTrainedModel, size: int, *, reads: bool = True) -> None:
        self.model, self.size, self._reads = model, size, reads
        self.requests: dict[int, Request] = {}
        self._waiting: list[tuple[int, int]] = []  # -entries, row
        self._n_added = 0
        self._state = np.zeros(0, dtype=_STATE)
        self._finished: list[Finished] = []
        self._followers: list[Follower] = []
        vocabulary, device = model.config.get_text_config().vocab_size, model.device
        self._eos: dict[tuple[int, ...], int] = {}
        self._is_eos = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)
        self._samplers: list[Sampler] = []
        self._tests: dict[int, StopTest] = {}  # of the rows under way that have one
        self.pending = torch.zeros(0, dtype=torch.long, device=device)
        self.logits = torch.zeros(0, vocabulary, device=device)
        self._records = Records(device)
        self._recorded: RecordedStep | None = None

    @property
    def n(self) -> int:
        """Rows under way."""
        return len(self._state)

    @property
    def row(self) -> Ints:
        """Row in each slot. [n]"""
        return self._state["row"]

    @property
    def seat(self) -> Ints:
        """Seat of the row in each slot. [n]"""
        return self._state["seat"]

    @property
    def t(self) -> Ints:
        """Tokens that the row in each slot has. [n]"""
        return self._state["t"]

    @property
    def attempt(self) -> Ints:
        """How often the row in each slot was rewound. [n]"""
        return self._state["attempt"]

    @property
    def n_prompt(self) -> Ints:
        """Prompt tokens of the row in each slot. [n]"""
        return self._state["n_prompt"]

    @property
    def leaving(self) -> Bools:
        """Whether the row in each slot leaves before the next step, unless it is rewound. [n]"""
        return self._state["reason"] != Reason.GOING

    @property
    def n_waiting(self) -> int:
        """Rows that have not started."""
        return len(self._waiting)

    def add(self, request: Request) -> int:
        """Let a row wait for its start; return its number, counted from 0."""
        row = self._n_added
        self._n_added += 1
        self.requests[row] = request
        insort(self._waiting, (-request.n_entries, row))
        return row

    def cancel(self, row: int) -> None:
        """End a row before its next step, or before its start; what it has generated is its result."""
        if row not in self.requests:
            return
        waiting = [place for place, (_, number) in enumerate(self._waiting) if number == row]
        if waiting:
            del self._waiting[waiting[0]]
            prefix = np.array(self.requests.pop(row).prefix, dtype=np.int32)
            blank = np.full((len(prefix), N_SIGNALS), np.nan, dtype=np.float32)
            self._finished.append(Finished(row, prefix, blank, Reason.CANCELLED))
        else:
            self._state["reason"][self.row == row] = Reason.CANCELLED

    def finish(self, slot: int, keep: int, reason: Reason) -> None:
        """End a row under way before its next step, with its first ``keep`` generated tokens as its result.

        Tokens beyond them are forgotten as those of a rewound row are; its cache goes with the row.
        """
        if keep < self._state["t"][slot]:
            self._rewind(slot, keep)
        self._state["reason"][slot] = reason

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` from now on what becomes of the rows; those under way it opens now."""
        if follower not in self._followers:
            self._followers.append(follower)
            for seat, row in zip(self.seat.tolist(), self.row.tolist(), strict=True):
                follower.open(seat, row, self.requests[row])

    def collect(self) -> list[Finished]:
        """Return the results of the rows that have left since the last call; they are the caller's now."""
        finished, self._finished = self._finished, []
        return finished

    def token_ids(self, slot: int) -> Tensor:
        """Return the tokens that a row under way has. [t] int32"""
        return self._records.tokens[int(self.seat[slot]), : int(self.t[slot])]

    def kv_tokens(self) -> NDArray[np.float64]:
        """Return the live cache entries of each row, a mean over layers and heads. [n]"""
        return self.cache.live()

    @torch.inference_mode()
    def restore(self, slots: Sequence[int], keep: Sequence[int] | None = None) -> None:
        """Give rows the cache that an uncompressed model would have, recomputed from their token ids.

        All that is known of a rewound row goes back with it: its stop test, its followers' state.

        Parameters
        ----------
        keep : sequence of int, optional
            How many generated tokens of each stay; with fewer than it has the row is rewound, and draws
            the others anew. All by default.
        """
        for slot, kept in zip(slots, self.t[list(slots)] if keep is None else keep, strict=True):
            state = self._state[slot]
            request = self.requests[int(state["row"])]
            ids = torch.cat([request.prompt_ids, self.token_ids(slot)[:kept].long()])
            self.cache.load(slot, self._before(ids[:-1]))
            self.pending[slot] = ids[-1]
            for follower in self._followers:
                follower.restored(int(state["seat"]))
            if kept < state["t"]:
                self._rewind(slot, int(kept))
                if state["reason"] != Reason.CANCELLED:
                    state["reason"] = Reason.GOING

    def _rewind(self, slot: int, kept: int) -> None:
        """Let a row, and all who know of it, forget all but its first ``kept`` generated tokens."""
        state = self._state[slot]
        state["t"] = kept
        state["attempt"] += 1
        request = self.requests[int(state["row"])]
        if request.stop is not None:
            request.stop.rewind(kept)
        for follower in self._followers:
            follower.rewind(int(state["seat"]), kept)

    def _before(self, ids: Tensor) -> KeptCache:
        """Return the full cache of the token ids that precede a row's newest token."""
        if len(ids):
            return full_cache(self.model, ids)
        none = self.cache.none  # a prompt of one token, rewound to nothing: no pass can compute that
        return KeptCache(none, none)

    @torch.inference_mode()
    def recompress(self, slots: Sequence[int]) -> None:
        """Compress the prompt of restored rows again, as it was; what they generated stays.

        Raises
        ------
        ValueError
            A row was added without ``keep_cache``.
        """
        for slot in slots:
            request = self.requests[int(self.row[slot])]
            if request.cache is None:
                raise ValueError(f"row {self.row[slot]} was added without keep_cache")
            self.cache.load(slot, request.cache, self.cache.tail(slot, request.n_prompt))

    def refill(self) -> bool:
        """Start waiting rows while there is room; tell whether any row is under way."""
        while self._waiting and self.n < self.size:
            free = self.size - self.n
            rows = [row for _, row in self._waiting[:free]]
            given = [self.requests[row].cache is not None for row in rows]
            together = given.index(False) or 1 if False in given else len(rows)  # passes run one by one
            del self._waiting[:together]
            self._start(rows[:together])
        return self.n > 0

    def _start(self, rows: Sequence[int]) -> None:
        """Seat rows."""
        requests = [self.requests[row] for row in rows]
        logits, caches = zip(*(self._prefilled(request) for request in requests), strict=True)
        if not hasattr(self, "cache"):
            self.cache = RaggedCache(caches[0].keys, sliding_windows(self.model))
            record = RECORDERS.get(self.model.device.type)
            self._recorded = record and RecordedStep(self.model, self.cache, record)
        self.cache.add(caches)
        self.logits = torch.cat([self.logits[: self.n].to(logits[0].dtype), torch.stack(logits)])
        self.pending = torch.cat([self.pending, self.pending.new_zeros(len(rows))])
        seats = np.setdiff1d(np.arange(self.size + len(rows)), self.seat)[: len(rows)].tolist()
        self._records.room(max(seats) + 1, max(len(request.prefix) for request in requests))
        for row, seat, request in zip(rows, seats, requests, strict=True):
            self._open(row, seat, request)

    def _prefilled(self, request: Request) -> tuple[Tensor, KeptCache]:
        if request.cache is not None and request.logits is not None:
            return request.logits, request.cache
        prefix = request.prompt_ids.new_tensor(request.prefix)
        return full_pass(self.model, torch.cat([request.prompt_ids, prefix]))

    def _open(self, row: int, seat: int, request: Request) -> None:
        state = np.zeros(1, dtype=_STATE)
        n, key = len(request.prefix), row if request.key is None else request.key
        if request.eos_ids not in self._eos:
            self._eos[request.eos_ids] = len(self._eos)
            table = self._is_eos.new_zeros(1, self._is_eos.shape[1])
            table[0, list(request.eos_ids)] = True
            self._is_eos = torch.cat([self._is_eos, table])
        numbers = {"row": row, "seat": seat, "key": key, "t": n, "n_prompt": request.n_prompt}
        numbers |= {"most": request.max_new_tokens, "eos": self._eos[request.eos_ids]}
        numbers |= {"sampler": self._sampler(request.sampler)}
        for name, number in numbers.items():
            state[name] = number
        self._state = np.concatenate([self._state, state])
        self._records.begin(seat, request.prefix)
        if request.stop is not None:
            self._tests[row] = request.stop
            for token in request.prefix:
                request.stop.push(token)
        for follower in self._followers:
            follower.open(seat, row, request)
        self.requests[row] = request.started()

    def _sampler(self, sampler: Sampler) -> int:
        """Return the number of a sampler; those that no row has any longer make place."""
        if sampler in self._samplers:
            return self._samplers.index(sampler)
        free = np.setdiff1d(np.arange(len(self._samplers) + 1), self._state["sampler"])[0]
        self._samplers[free : free + 1] = [sampler]
        return int(free)

    def draw(self) -> Step:
        """Draw and record one token per row."""
        n, state = self.n, self._state
        row, seat, t = self.row.copy(), self.seat.copy(), self.t.copy()
        self._records.room(0, int(t.max()))
        tokens = self._sample()
        logits = self.logits[:n]
        if self._reads:
            read = signals(logits, tokens)
            known = read[:, 0]
        else:
            read = logits.new_full((n, N_SIGNALS), torch.nan, dtype=torch.float32)
            known = logits.amax(dim=-1)
        where = torch.from_numpy(np.stack([seat, t, state["eos"]])).to(tokens.device)
        self._records.write(where[0], where[1], tokens, read)
        self.pending = tokens
        flags = torch.stack([self._is_eos[where[2], tokens], known.isfinite()]).cpu().numpy()
        valid = flags[1]
        state["t"] += valid
        reasons = [Reason.INVALID, Reason.EOS, Reason.STOP, Reason.LENGTH]
        ends = [~valid, flags[0], self._stops(tokens, valid), state["t"] >= state["most"]]
        state["reason"] = np.select(ends, reasons, Reason.GOING)
        return Step(row, seat, t, tokens, read, self.leaving & valid, valid)

    def _sample(self) -> Tensor:
        """Draw a token per row, each by its own sampler. [n]"""
        numbers = self._state["sampler"]
        used = np.unique(numbers)
        if len(used) == 1:
            sampler = self._samplers[used[0]]
            return sampler(self.logits[: self.n], self._drawn_for(np.arange(self.n), sampler))
        tokens = torch.zeros_like(self.pending)
        for number in used.tolist():
            here, sampler = np.flatnonzero(numbers == number), self._samplers[number]
            where = torch.from_numpy(here).to(tokens.device)
            tokens[where] = sampler(self.logits[where], self._drawn_for(here, sampler))
        return tokens

    def _drawn_for(self, slots: Ints, sampler: Sampler) -> Draw:
        """Say which tokens are drawn, and, to a sampler that reads it, what stands before them."""
        past = None
        if getattr(sampler, "reads_past", False):
            seats = torch.from_numpy(self.seat[slots]).to(self.pending.device)
            prompts = [self.requests[row].prompt_ids for row in self.row[slots].tolist()]
            past = Past(prompts, self._records.tokens[seats, : int(self.t[slots].max())])
        return Draw(self._state["key"][slots], self.t[slots], self.attempt[slots], past)

    def _stops(self, tokens: Tensor, valid: Bools) -> Bools:
        """Ask the stop tests of the rows that have one. [n]"""
        found = np.zeros(self.n, dtype=bool)
        if self._tests:
            drawn = tokens.tolist()
            for slot in np.flatnonzero(np.isin(self.row, list(self._tests)) & valid).tolist():
                found[slot] = self._tests[int(self.row[slot])].push(drawn[slot])
        return found

    def clear(self) -> None:
        """Let the rows leave that have ended, with their results."""
        leaving = np.flatnonzero(self.leaving)
        if not len(leaving):
            return
        for slot in leaving.tolist():
            seat, reason = int(self.seat[slot]), Reason(self._state["reason"][slot])
            done = Finished(int(self.row[slot]), *self._records.read(seat, int(self.t[slot])), reason)
            for follower in self._followers:
                follower.close(seat, done)
            self._finished.append(done)
            del self.requests[done.row]
            self._tests.pop(done.row, None)
        broken = leaving[self._state["reason"][leaving] == Reason.INVALID]
        self._select(self.cache.drop(leaving.tolist(), erase=broken.tolist()))

    def _select(self, slots: Ints) -> None:
        self._state = self._state[slots]
        self.pending = self.pending[torch.from_numpy(slots).to(self.pending.device)]

    def feed(self) -> None:
        """Feed every row its newest token and keep the logits."""
        if self.n == 0:
            self.logits = self.logits[:0]
            return
        order = self.cache.order()
        if order is not None:
            self._select(order)
        positions = self.n_prompt + self.t - 1
        logits = self._recorded(self.pending, positions, self._forward) if self._recorded else None
        if logits is None:
            self.cache.begin()
            logits = self._forward(self.pending, torch.from_numpy(positions).to(self.model.device))
        self.logits = logits
        self.cache.advance()

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed rows tokens [n] at positions [n], which the host does not read; return logits [n, V]."""
        logits: Tensor = self.model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            cache_position=positions[:1],
            use_cache=True,
            ragged=self.cache,
        ).logits
        return logits[:, -1]
