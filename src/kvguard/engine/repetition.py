"""How often the last tokens stood before: one definition, in bulk and token by token.

``rep_count`` at t is the number of earlier positions of the same trace at which a window of equal tokens
ended; windows may overlap, and it is 0 until the trace is a whole window long.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kvguard.engine.compiled import compiled
from kvguard.engine.growth import grown

Ints = NDArray[np.int64]

_CHUNK = 1 << 20  # tokens hashed and sorted together
_NO_TOKEN = -1
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class WindowOccurrences:
    """All whole windows of a table of traces.

    Attributes
    ----------
    end
        Index in the table of each window's last token; windows of a group follow one another. [W]
    group
        Windows of one trace with equal tokens share a number, counted from 0. [W]
    rank
        How many windows of the group end earlier. [W]
    """

    end: Ints
    group: Ints
    rank: Ints


def positions(lengths: Ints) -> Ints:
    """Return each token's index inside its trace: 0 .. length - 1 for each trace in turn. [N]"""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def window_occurrences(token_ids: NDArray[Any], lengths: Ints, window: int) -> WindowOccurrences:
    """Group the windows of ``window`` tokens of every trace, exactly.

    Windows are sorted by trace, hash and position in one 64-bit key, and each is then compared with the
    one before it in its group; should two different ones ever share a hash, another hash is taken.

    Parameters
    ----------
    token_ids
        The tokens of all traces, one trace after another. [N]
    lengths
        Tokens of each trace, in the same order. [T]
    """
    token_ids = np.ascontiguousarray(token_ids, dtype=np.int64)
    stops = np.cumsum(lengths)
    found: list[WindowOccurrences] = []
    first_trace, first_token, first_group = 0, 0, 0
    while first_trace < len(lengths):
        last_trace = max(int(np.searchsorted(stops, first_token + _CHUNK)), first_trace + 1)
        last_token = int(stops[last_trace - 1])
        part = _exact_groups(token_ids[first_token:last_token], lengths[first_trace:last_trace], window)
        found.append(WindowOccurrences(part.end + first_token, part.group + first_group, part.rank))
        first_group += int(part.group.max(initial=-1)) + 1
        first_trace, first_token = last_trace, last_token
    if not found:
        return WindowOccurrences(*np.zeros((3, 0), dtype=np.int64))
    return WindowOccurrences(
        *(np.concatenate([getattr(part, name) for part in found]) for name in ("end", "group", "rank"))
    )


def _exact_groups(token_ids: Ints, lengths: Ints, window: int) -> WindowOccurrences:
    for multiplier in _MULTIPLIERS:
        found = _hash_groups(token_ids, lengths, window, multiplier)
        again = np.flatnonzero(found.rank)
        here, before = found.end[again], found.end[again - 1]
        if all((token_ids[here - back] == token_ids[before - back]).all() for back in range(window)):
            return found
    raise AssertionError("no hash tells the windows apart")


def _hash_groups(token_ids: Ints, lengths: Ints, window: int, multiplier: int) -> WindowOccurrences:
    n_windows = np.maximum(lengths - window + 1, 0)
    begin = positions(n_windows)  # index in the trace of each window's first token
    starts = np.cumsum(lengths) - lengths
    position_bits = int(lengths.max()).bit_length()
    kept = np.uint64(64 - position_bits - len(lengths).bit_length())
    key = _hashes(token_ids, window, multiplier)[begin + np.repeat(starts, n_windows)]
    key >>= np.uint64(64) - kept
    key |= np.repeat(np.arange(len(lengths), dtype=np.uint64), n_windows) << kept
    key <<= np.uint64(position_bits)
    key |= begin.astype(np.uint64)
    key.sort()
    begin = (key & np.uint64((1 << position_bits) - 1)).astype(np.int64)
    key >>= np.uint64(position_bits)
    trace = (key >> kept).astype(np.int64)
    opens = np.ones(len(key), dtype=bool)
    opens[1:] = key[1:] != key[:-1]
    group = np.cumsum(opens) - 1
    rank = np.arange(len(key)) - np.flatnonzero(opens)[group]
    return WindowOccurrences(begin + starts[trace] + window - 1, group, rank)


def _hashes(token_ids: Ints, window: int, multiplier: int) -> NDArray[np.uint64]:
    """Return a hash of the ``window`` tokens from each token on. [max(N - window + 1, 0)]"""
    base = np.uint64(multiplier)
    mixed = (token_ids.astype(np.uint64) + np.uint64(1)) * base
    mixed ^= mixed >> np.uint64(29)
    hashed = np.zeros(max(len(token_ids) - window + 1, 0), dtype=np.uint64)
    for offset in range(window):
        hashed *= base
        hashed += mixed[offset : offset + len(hashed)]
    return hashed


def repeat_counts(token_ids: NDArray[Any], lengths: Ints, window: int) -> Ints:
    """Return ``rep_count`` of every token; arguments as in :func:`window_occurrences`. [N]"""
    occurrences = window_occurrences(token_ids, lengths, window)
    counts = np.zeros(len(token_ids), dtype=np.int64)
    counts[occurrences.end] = occurrences.rank
    return counts


class RepeatCounter:
    """``rep_count`` token by token, for many rows at once.

    For every earlier position s of a row it keeps the length, one window at most, of the longest common
    suffix of the tokens up to s and the tokens up to now; a new token extends or clears each. Exact, without
    hashing.
    """

    def __init__(self, n_rows: int, window: int, capacity: int = 256) -> None:
        self.window = window
        self._rows = np.arange(n_rows)
        self._lengths = np.zeros(n_rows, dtype=np.int64)
        self._tokens = np.zeros((n_rows, capacity), dtype=np.int32)  # [B, capacity]
        # [B, at least 1 + capacity]: column s + 1 belongs to s, so that the next token finds s - 1 at s
        self._common = np.zeros((n_rows, 1 + capacity), dtype=np.min_scalar_type(window + 1))

    def update(self, token_ids: NDArray[Any], rows: Ints | slice = slice(None)) -> Ints:
        """Append one token to each of ``rows`` and return their ``rep_count``. [R] -> [R]"""
        row_numbers = self._rows[rows]
        capacity = int(self._lengths[row_numbers].max(initial=0)) + 1
        self._tokens = grown(self._tokens, 0, capacity)
        self._common = grown(self._common, 0, capacity + 1)
        counts = np.empty(len(row_numbers), dtype=np.int64)
        newest = token_ids.astype(np.int32, copy=False)
        _extend(self._tokens, self._common, self._lengths, self.window, row_numbers, newest, counts)
        return counts

    def repeats_from(self, row: int) -> int:
        """Return where the repetition began that ``row`` is in; its length if it is in none.

        That is where the second occurrence begins of the window that was repeated first, without a break
        since.
        """
        n = int(self._lengths[row])
        counts = repeat_counts(self._tokens[row, :n], np.array([n]), self.window)
        newest_fresh = int(np.flatnonzero(counts == 0).max(initial=-1))
        return n if newest_fresh == n - 1 else newest_fresh + 2 - self.window

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""
        tokens = self._tokens[row]
        self._lengths[row] = n_tokens
        if n_tokens > 1:
            before = np.full(self.window - 1, _NO_TOKEN, dtype=np.int32)
            windows = sliding_window_view(np.concatenate([before, tokens[:n_tokens]]), self.window)
            same = (windows[:-1] == windows[-1])[:, ::-1]  # [n - 1, window], newest first
            self._common[row, 1:n_tokens] = np.minimum.accumulate(same, axis=1).sum(axis=1)

    def open(self, row: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""
        self._lengths = grown(self._lengths, row + 1)
        self._tokens = grown(self._tokens, row + 1)
        self._common = grown(self._common, row + 1)
        self._rows = np.arange(len(self._lengths))
        self._lengths[row] = 0

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        for values in (self._lengths, self._tokens, self._common):
            values[row] = values[source]


@compiled()
def _extend(
    tokens: NDArray[np.int32],
    common: NDArray[np.uint8],
    lengths: Ints,
    window: int,
    rows: Ints,
    newest: NDArray[np.int32],
    counts: Ints,
) -> None:
    """Append ``newest`` [R] to ``rows`` of a counter's state, and write their ``rep_count``. [R]"""
    for i in range(len(rows)):
        row, token = rows[i], newest[i]
        n = lengths[row]
        count = 0
        for s in range(n - 1, -1, -1):  # downwards, so that s is read before it is written
            suffix = min(common[row, s] + 1, window) if tokens[row, s] == token else 0
            common[row, s + 1] = suffix
            count += suffix == window
        tokens[row, n] = token
        lengths[row] = n + 1
        counts[i] = count
