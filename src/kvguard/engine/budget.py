"""A budget while decoding: at most (1 - ratio) of all tokens seen stay cached, enforced every few tokens.

Row by row this is kvpress's ``CompressionRatioDecodingPress``, with all that it does:

- The budget is ``max(1, int((1 - ratio) * tokens seen))``, prompt included. It is enforced once ``interval``
  tokens were fed since the last time; while it is a single token, after every token.
- Scores see the hidden states of the tokens fed since then alone, at most 257 of them, and every query at the
  newest token's position.
- A layer's entries stand in the order of their last scores, best first, and new ones behind them. SnapKV's
  pooling, LagKV's partitions and RandomPress's draws go by that order, not by position.

It differs in two points. StreamingLLM keeps its sinks and the most recent entries; in kvpress its scores
tie, so entries lose their order with the prefill, and later "first" and "recent" are arbitrary ones. And
``RandomPress(seed=None)`` draws from the row's number and the tokens seen, so that nothing depends on the
batch; with a seed it starts its generator anew at every scoring, as in kvpress.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from kvpress import RandomPress, StreamingLLMPress
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from kvguard.engine.eviction import best, flags_of, window_of
from kvguard.engine.layers import attention_modules
from kvguard.engine.presses import asked_ratio
from kvguard.engine.requests import Follower, Request
from kvguard.engine.scorers import BUFFER, READS_ENTRIES, TOGETHER, Call, budgets, forwarded, scorer_for
from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from kvpress import BasePress

    from kvguard.engine.batch import Batch

Ints = NDArray[np.int64]

_NEW = -1


class Budget(Follower):
    """Holds rows to the budget of their press while they are decoded.

    Used as a context manager around the decoding, since some presses read hidden states, which hooks collect.

    Parameters
    ----------
    model : PreTrainedModel
    presses : press, or sequence of press or None
        Of all rows; or one per row, by its number. None, or a ratio of 0, leaves a row alone. Rows that share
        a press object, a length and a budget are scored together.
    interval : int
        Tokens between two enforcements.

    Raises
    ------
    KvguardError
        If a press cannot compress while decoding.
    """

    def __init__(
        self, model: PreTrainedModel, presses: BasePress | Sequence[BasePress | None], interval: int
    ) -> None:
        self.model, self.interval = model, interval
        self._presses = list(presses) if isinstance(presses, Sequence) else presses
        of_rows = self._presses if isinstance(self._presses, list) else [self._presses]
        self._scorers = {
            id(press): scorer_for(model, press, interval)
            for press in {id(press): press for press in of_rows}.values()
            if press is not None and asked_ratio(press) != 0
        }
        self._modules = attention_modules(model)
        self._size = min(interval, BUFFER)
        self._hooks: list[RemovableHandle] = []
        self._batch: Batch | None = None
        self._hidden: Tensor | None = None
        self._ratio, self._kind, self._windowed = np.zeros(0), np.zeros(0, np.int64), np.zeros(0, bool)
        self._last, self._known = np.zeros(0, np.int64), np.zeros(0, np.int64)  # by seat, as those above
        self._positions: Tensor | None = None

    def __enter__(self) -> Self:
        if any(type(press).__name__ not in READS_ENTRIES for press in self._scorers.values()):
            self._hooks = [
                module.register_forward_pre_hook(self._collect, with_kwargs=True) for module in self._modules
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._batch = [], None

    def due(self, batch: Batch, slots: Ints) -> Ints:
        """Return those of ``slots`` whose budget is to be enforced now."""
        self.attach(batch)
        seats, seen = batch.seat[slots], _seen(batch, slots)
        fed = seen - self._last[seats]
        single = budgets(seen, self._ratio[seats]) == 1
        return slots[((fed >= self.interval) | ((fed > 0) & single)) & (self._ratio[seats] > 0)]

    @torch.inference_mode()
    def enforce(self, batch: Batch, slots: Ints, protected: Sequence[Ints | None] | None = None) -> None:
        """Evict what the rows in ``slots`` hold beyond their budget, where that is due.

        To be called at every yield of :func:`~kvguard.engine.loop.decode_steps`. A row left out is
        held: it keeps everything, and is due as soon as it is named again.

        Parameters
        ----------
        slots : ndarray
            [s], slots of the batch.
        protected : sequence of (ndarray or None), optional
            For each of ``slots`` the logical positions that stay whatever their scores. They displace others,
            the budget stays; where it cannot hold them all, the most recent ones stay.

        Raises
        ------
        KvguardError
            If a press rejects a row, or a row was prefilled by a press that does not say what it kept.
        """
        due = self.due(batch, slots)
        if not len(due):
            return
        exempt = dict(zip(slots.tolist(), protected, strict=True)) if protected is not None else {}
        seats, seen = batch.seat[due], _seen(batch, due)
        over = batch.cache.lengths[0].numpy()[due] > budgets(seen, self._ratio[seats])
        kinds = np.where(self._windowed[seats], self._kind[seats], 0)  # all other scorers go together
        for kind in np.unique(kinds[over]):
            slots = due[over & (kinds == kind)]
            flags = flags_of(
                [exempt.get(slot) for slot in slots.tolist()], int(seen.max()), batch.cache.device
            )
            self._evict(batch, slots, flags)
        self._last[seats] = seen

    def attach(self, batch: Batch) -> None:
        """Follow the rows of a batch."""
        if batch is not self._batch:
            self._batch = batch
            self._hidden = self._positions = None
            batch.follow(self)

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row."""
        while len(self._ratio) <= seat:
            new = max(1, len(self._ratio))
            self._ratio, self._kind = np.pad(self._ratio, (0, new)), np.pad(self._kind, (0, new))
            self._windowed = np.pad(self._windowed, (0, new))
            self._last, self._known = np.pad(self._last, (0, new)), np.pad(self._known, (0, new))
        press = self._presses[row] if isinstance(self._presses, list) else self._presses
        self._ratio[seat], self._kind[seat] = asked_ratio(press) or 0.0, id(press)
        self._windowed[seat] = isinstance(press, StreamingLLMPress)
        self._last[seat] = request.n_prompt  # tokens seen when last enforced
        self._known[seat] = _NEW  # entries, from the left, whose positions are stored

    def restored(self, seat: int) -> None:
        """Start a row anew whose cache was restored.

        The row is due ``interval`` tokens later, as after a prefill. What is scored then is the whole cache
        that it has by then, with the hidden states of the tokens fed since; the restoring pass leaves none.
        """
        assert self._batch is not None
        slot = np.flatnonzero(self._batch.seat == seat)
        self._last[seat], self._known[seat] = _seen(self._batch, slot)[0], _NEW

    def rewind(self, seat: int, n_tokens: int) -> None:
        """Start a row anew, as :meth:`restored` does, from fewer tokens."""
        self.restored(seat)

    def _room(self, batch: Batch) -> Tensor:
        """Return where entries' positions are stored, [L, seats, H, W], with room for all of the batch."""
        layers, heads = len(batch.cache.layers), batch.cache.n_heads
        shape = layers, len(self._ratio), heads, int(batch.cache.lengths.max())
        old = self._positions
        if old is None or old.shape[1] < shape[1] or old.shape[3] < shape[3]:
            wider = shape[3] * 9 // 8 + self.interval
            new = torch.zeros(*shape[:3], wider, dtype=torch.int32, device=batch.cache.device)
            if old is not None:
                new[:, : old.shape[1], :, : old.shape[3]] = old[..., :wider]
            self._positions = old = new
        return old

    def _collect(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: keep the hidden state of the token that each row is fed."""
        batch = self._batch
        if batch is None or kwargs["past_key_values"] is not getattr(batch, "cache", None):
            return  # a prefill that restores a row
        hidden = kwargs["hidden_states"]
        if module is self._modules[0]:
            self._ring(hidden)
            position = _seen(batch, np.arange(batch.n))
            self._where = torch.from_numpy(np.stack([batch.seat, position % self._size])).to(hidden.device)
        assert self._hidden is not None
        self._hidden[module.layer_idx, self._where[0], self._where[1]] = hidden[:, 0]  # type: ignore[index]

    def _ring(self, like: Tensor) -> None:
        """Make room for the newest hidden states of every seat. [L, seats, size, D]"""
        old, seats = self._hidden, len(self._ratio)
        if old is None or old.shape[1] < seats:
            shape = len(self._modules), seats, self._size, like.shape[2]
            self._hidden = torch.zeros(shape, dtype=like.dtype, device=like.device)
            if old is not None:
                self._hidden[:, : old.shape[1]] = old

    def _evict(self, batch: Batch, slots: Ints, flags: Tensor | None) -> None:
        """Evict from rows down to their budget: from rows of one window press, or of any scorers."""
        cache, seats, seen = batch.cache, batch.seat[slots], _seen(batch, slots)
        stored = self._room(batch)
        press = self._scorers[self._kind[seats[0]]]
        window = press.n_sink if isinstance(press, StreamingLLMPress) else None
        for slot in slots[self._known[seats] == _NEW]:
            self._locate(batch, int(slot), window is not None)
        lengths, targets = cache.lengths[0].numpy()[slots], budgets(seen, self._ratio[seats])
        place = torch.from_numpy(seats).to(cache.device)
        columns = torch.arange(int(lengths.max()))
        tail = (columns + torch.from_numpy(seen - lengths)[:, None])[:, None].to(cache.device)  # [R, 1, W]
        fresh = (columns >= torch.from_numpy(self._known[seats])[:, None])[:, None].to(cache.device)
        heads = slice(None) if window is None else slice(1)  # a window is the same in all layers and heads
        calls = self._calls(batch, slots, lengths, targets) if window is None else []
        keep = torch.zeros(len(slots), cache.n_heads, int(targets.max()), dtype=torch.long)
        keep = keep.to(cache.device)
        for index in range(len(cache.layers)):
            if index == 0 or window is None:
                known = stored[index, place, heads, : len(columns)]
                positions = torch.where(fresh, tail, known)  # [R, H, W]
                if window is not None:
                    ends = torch.from_numpy(np.stack([lengths, targets])).to(cache.device)
                    keep = window_of(positions[:, 0], ends, window, flags)[:, None]
                for call in calls:
                    scores = call.scores(index, self._modules[index], cache, self._hidden)
                    told = None if flags is None else flags[call.members]
                    at = positions[call.members, :, : scores.shape[-1]]
                    keep[call.members, :, : call.n_kept] = best(scores, call.n_kept, at, told)
                stored[index, place, heads, : keep.shape[2]] = positions.gather(2, keep).int()
            cache.evict(slots, index, keep, targets)
        self._known[seats] = targets

    def _calls(self, batch: Batch, slots: Ints, lengths: Ints, targets: Ints) -> list[Call]:
        """Part rows into those that one call can score."""
        seats, seen = batch.seat[slots], _seen(batch, slots)
        fed = np.minimum(seen - self._last[seats], self._size)
        alone = np.array([type(self._scorers[kind]).__name__ not in TOGETHER for kind in self._kind[seats]])
        told_apart = np.stack([self._kind[seats], lengths, targets, fed, np.where(alone, slots, -1)])
        kinds, inverse = np.unique(told_apart, axis=1, return_inverse=True)
        calls = []
        for number, (kind, length, n_kept, n_hidden, _) in enumerate(kinds.T.tolist()):
            members = np.flatnonzero(inverse == number)
            press, row = self._scorers[kind], int(batch.row[slots[members[0]]])
            if isinstance(press, RandomPress) and press.seed is None:
                seed = np.random.SeedSequence([row, int(seen[members[0]])]).generate_state(1)
                press = RandomPress(seed=int(seed[0]))
            newest = seen[members, None] - 1
            ring = (newest - np.arange(n_hidden)[::-1]) % self._size
            at = members, seats[members, None], ring, newest
            *tensors, position = (torch.from_numpy(part).to(batch.cache.device) for part in at)
            kwargs = forwarded(self._modules[0], batch.cache.none[0], position)
            calls.append(Call(press, row, length, n_kept, kwargs, slots[members], *tensors))
        return calls

    def _locate(self, batch: Batch, slot: int, in_order: bool) -> None:
        """Note the positions of a row's entries; unless ``in_order``, sort them by score, as kvpress does."""
        row, seat, cache = int(batch.row[slot]), int(batch.seat[slot]), batch.cache
        length, seen = int(cache.lengths[0, slot]), int(_seen(batch, np.array([slot]))[0])
        stored = self._room(batch)
        self._known[seat] = 0
        if length == seen:
            return  # all there: an entry's place is its position
        request = batch.requests[row]
        kept, n_prompt = request.positions, request.n_prompt
        if kept is None or kept[0].shape[1] != length - (seen - n_prompt):
            raise KvguardError(
                f"row {row}: which entries its prefill kept is not known; prefill it with its budget's press"
            )
        self._known[seat] = n = kept[0].shape[1]
        for index, ranked in enumerate(kept):
            # Of an entry, best first, its place by position.
            order = ranked.long().argsort(dim=-1).argsort(dim=-1)
            if in_order:
                stored[index, seat, :, :n] = ranked.sort(dim=-1).values
            else:
                stored[index, seat, :, :n] = ranked
                rest = torch.arange(n, length, device=order.device).expand(len(order), -1)
                keep = torch.cat([order, rest], dim=1)[None]
                cache.evict(np.array([slot]), index, keep, np.array([length]))


def _seen(batch: Batch, slots: Ints) -> Ints:
    """Tokens that rows have been fed, the prompt's included; also the position of the newest token drawn."""
    return batch.n_prompt[slots] + batch.t[slots] - 1
