"""The features of a token, from one definition that serves whole tables and live decoding.

:func:`derive` is the definition of all that are not a signal of the token itself. It sees the
values of the series so far; :func:`featurize_tokens` takes those from a table, :class:`FeatureState` from
what it was fed so far. The operations and their order are the same, so the features are equal bit for bit.

Rolling statistics run over the tokens t-7 .. t, and at t < 7 over the tokens so far; the standard deviation
is the population's. At t = 0 ``delta_h`` is 0, also in its rolling statistics, and ``delta_h_valid`` is 0.
What tells a text from its own beginning (``DRIFT``) runs over all tokens so far: their mean entropy, that of
the first 16, how far that of the last 32 lies above it, and the highest.
Every feature but v1's ``token_position_v1`` (t / trace length) is causal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.columns import SIGNALS
from kvguard.engine.compiled import compiled
from kvguard.engine.growth import grown
from kvguard.engine.repetition import Ints, RepeatCounter
from kvguard.guard.columns import FEATURES, ROLLED
from kvguard.models.decoding import texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

WINDOW = 8  # tokens of a rolling statistic: part of the features' names
REPEAT_WINDOW = 20  # tokens of the window that rep_count counts
N_READ = len(SIGNALS) - 1  # all but rank_of_chosen, which only v1 reads
_TOKENS = 64  # of every row: room for its series at first
SERIES = (*ROLLED, "rep_count", "entropy_sum", "entropy_max")
_BEGINNING, _RECENT = 16, 32  # tokens: part of the features' names
_ROLLED_SIGNALS = [SIGNALS.index(name) for name in ROLLED[:-1]]


def thinking_mask(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> Bools:
    """Return for every token id whether its text, space around it and case aside, is one of ``words``. [V]"""
    wanted = {word.lower() for word in words}
    texts = texts_of(tokenizer, range(len(tokenizer)))
    return np.array([text.strip().lower() in wanted for text in texts], dtype=bool)


def look_up(mask: Bools, token_ids: NDArray[Any]) -> Bools:
    """Return ``mask[token_ids]``; ids past its end (a padded vocabulary's) are no words. [R]"""
    found: Bools = mask[np.minimum(token_ids, len(mask) - 1)] & (token_ids < len(mask))
    return found


@compiled()
def derive(
    series: Floats,
    places: Ints,
    t: Ints,
    thinking: Bools,
    ratio: Floats,
    max_new_tokens: Ints,
    out: Floats,
) -> None:
    """Write the features of R tokens that follow their signals in ``FEATURES``; the one definition.

    Parameters
    ----------
    series
        Values of ``SERIES``, the tokens of a trace one after another; delta_h and the last two are written
        here. [M, 7]
    places
        Where each token stands in ``series``; the tokens before it come first. [R]
    t, thinking, ratio, max_new_tokens
        Token index, whether the token is a thinking word, compression ratio, token budget. [R]
    out
        [R, 19]
    """
    for row in range(len(places)):
        newest = places[row]
        values = series[newest]
        known = values[0] if np.isfinite(values[0]) else np.float32(0)  # else one NaN would stay for good
        if t[row]:
            before = series[newest - 1]
            values[3] = values[0] - before[0]
            values[5] = before[5] + known
            values[6] = max(before[6], known)
        else:
            values[3] = np.float32(0)
            values[5] = values[6] = known
        n = min(t[row] + 1, WINDOW)
        count = np.float32(n)
        out[row, 0] = values[3]
        out[row, 1] = t[row] > 0
        out[row, 2] = values[4]
        out[row, 3] = thinking[row]
        for rolled in range(4):
            mean = variance = np.float32(0)
            for back in range(n):
                mean += series[newest - back, rolled]
            mean /= count
            for back in range(n):
                deviation = series[newest - back, rolled] - mean
                variance += deviation * deviation
            out[row, 4 + 2 * rolled] = mean
            out[row, 5 + 2 * rolled] = np.sqrt(variance / count)
        repeats = np.float32(0)
        for back in range(n):
            repeats += series[newest - back, 4]
        out[row, 12] = repeats
        out[row, 13] = np.float32(t[row]) / np.float32(max_new_tokens[row])
        out[row, 14] = ratio[row]
        first = min(t[row] + 1, _BEGINNING)
        beginning = series[newest - t[row] + first - 1, 5] / np.float32(first)
        recent = values[5]
        if t[row] >= _RECENT:
            recent -= series[newest - _RECENT, 5]
        out[row, 15] = values[5] / np.float32(t[row] + 1)
        out[row, 16] = beginning
        out[row, 17] = recent / np.float32(min(t[row] + 1, _RECENT)) - beginning
        out[row, 18] = values[6]


class FeatureState:
    """Features token by token for many rows at once; every row has its own clock.

    Parameters
    ----------
    ratios
        Compression ratio of each row. [B]
    mask
        See :func:`thinking_mask`. [V]
    """

    def __init__(self, ratios: NDArray[Any], mask: Bools, max_new_tokens: int) -> None:
        n_rows = len(ratios)
        self._ratios = np.array(ratios, dtype=np.float32)
        self._mask = mask
        self._max_new_tokens = np.full(n_rows, max_new_tokens, dtype=np.int64)
        self._t = np.zeros(n_rows, dtype=np.int64)
        # Every value of every series, so that a row can be rewound.
        self._series = np.zeros((n_rows, _TOKENS, len(SERIES)), dtype=np.float32)
        self._repeats = RepeatCounter(n_rows, REPEAT_WINDOW, _TOKENS)
        self._rows = np.arange(n_rows)

    def open(self, row: int, ratio: float, max_new_tokens: int) -> None:
        """Begin ``row``, a new one or one that was another sequence."""
        self._ratios, self._t = grown(self._ratios, row + 1), grown(self._t, row + 1)
        self._max_new_tokens = grown(self._max_new_tokens, row + 1)
        self._series = grown(self._series, row + 1)
        self._rows = np.arange(len(self._t))
        self._repeats.open(row)
        self._ratios[row], self._t[row], self._max_new_tokens[row] = ratio, 0, max_new_tokens

    def update(self, signals: Floats, token_ids: NDArray[Any], rows: Ints | slice = slice(None)) -> Floats:
        """Take the next token of each of ``rows`` and return its features.

        Parameters
        ----------
        signals
            In the order of ``SIGNALS``; rank_of_chosen may be left out. [R, 25 or 26]
        token_ids
            [R]
        rows
            Which rows these are, all by default.

        Returns
        -------
        Floats
            In the order of ``FEATURES``. [R, 44]

        Raises
        ------
        IndexError
            A row has had its ``max_new_tokens`` tokens.
        """
        row_numbers = self._rows[rows]
        t, limit = self._t[row_numbers], self._max_new_tokens[row_numbers]
        if (t >= limit).any():
            raise IndexError("a row has had all the tokens of its budget")
        self._series = grown(self._series, 0, int(t.max(initial=0)) + 1)
        self._series[row_numbers, t, :3] = signals[:, _ROLLED_SIGNALS]
        self._series[row_numbers, t, 4] = self._repeats.update(token_ids, rows)
        thinking, ratio = look_up(self._mask, token_ids), self._ratios[row_numbers]
        out = np.empty((len(t), len(FEATURES)), dtype=np.float32)
        out[:, :N_READ] = signals[:, :N_READ]
        series, places = self._series.reshape(-1, len(SERIES)), row_numbers * self._series.shape[1] + t
        derive(series, places, t, thinking, ratio, limit, out[:, N_READ:])
        self._t[row_numbers] = t + 1
        return out

    def copy(self, source: int, row: int) -> None:
        """Let ``row``, an open one, stand where ``source`` stands."""
        for values in (self._ratios, self._max_new_tokens, self._t, self._series):
            values[row] = values[source]
        self._repeats.copy(source, row)

    def repeats_from(self, row: int) -> int:
        """Return the first token of the repetition that ``row`` is in; its length if it is in none."""
        return self._repeats.repeats_from(row)

    def rewind(self, row: int, n_tokens: int) -> None:
        """Forget all but the first ``n_tokens`` tokens of ``row``."""
        self._t[row] = n_tokens
        self._repeats.rewind(row, n_tokens)

    def set_ratio(self, row: int, ratio: float) -> None:
        """Let the compression ratio of ``row`` be ``ratio`` from its next token on."""
        self._ratios[row] = ratio
