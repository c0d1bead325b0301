"""Where failures begin.

====================== ======================================================================================
failure                begins at
====================== ======================================================================================
looping                the second occurrence of the repeated window
non-termination        the first token after the text's first complete answer, where the task can tell
                       (``answer``); else ``run_on_margin`` tokens after the length at which the same prompt
                       ends uncompressed, where it does (``uncompressed``); else the proxy
                       ``nontermination_onset`` x token budget (``proxy``)
====================== ======================================================================================

The earlier one counts. An onset is read off the whole text, and nothing that forecasts it sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE
from kvguard.judging.catastrophes import DETECTORS, NO_ONSET, CatastropheParams

Ints = NDArray[np.int64]
Decode = Callable[[list[int]], str]

LOOPING, ANSWER, UNCOMPRESSED, PROXY = "looping", "answer", "uncompressed", "proxy"
RULES = (LOOPING, ANSWER, UNCOMPRESSED, PROXY)
_NEVER = np.iinfo(np.int64).max


def tokens_up_to(decode: Decode, token_ids: NDArray[np.integer], beginning: str) -> int:
    """Return how many tokens it takes until the text begins so; all where it never does.

    Length alone does not tell: half a character may decode to more than the whole one.
    """
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if decode(token_ids[:middle].tolist()).startswith(beginning):
            high = middle
        else:
            low = middle + 1
    return low


def uncompressed_lengths(traces: pd.DataFrame) -> dict[str, int]:
    """Return the tokens of each prompt's uncompressed text, by its id, where it ended by itself."""
    plain = traces[(traces["compressor"] == NONE) & traces["stop_reason"].isin(["eos", "stop"])]
    return dict(zip(plain["prompt_id"], plain["token_ids"].map(len), strict=True))


def kinds_of(found_by: pd.Series[Any]) -> NDArray[np.object_]:
    """Return the kind of catastrophe that begins at each onset, by what found it; None without one. [T]"""
    kinds = found_by.where(found_by.isin(list(DETECTORS)) | found_by.isna(), "non_termination")
    return kinds.astype(object).where(kinds.notna(), None).to_numpy()


def true_onsets(
    parts: pd.DataFrame,
    begun: Mapping[str, Ints],
    answered: Callable[[str], list[int]],
    decode: Decode,
    uncompressed: Mapping[str, int],
    params: CatastropheParams,
) -> pd.DataFrame:
    """Return ``onset``, null for none, and ``onset_by``, the rule that found it, of raw traces.

    Parameters
    ----------
    parts
        prompt_id, text, token_ids. [T]
    begun
        Onsets by the detectors, the proxy of a non-termination among them. {name: [T]}
    answered
        Text -> where its complete answers end, the first one first.
    decode
        Token ids -> text.
    uncompressed
        Tokens of texts that ended uncompressed, by prompt_id.
    """
    endless = begun["non_termination"] != NO_ONSET
    run_on, by = np.full(len(parts), _NEVER), np.full(len(parts), None, dtype=object)
    lengths = parts["token_ids"].map(len).to_numpy()
    for row in np.flatnonzero(endless).tolist():
        text = parts["text"].iloc[row]
        ends = answered(text)
        twin = uncompressed.get(parts["prompt_id"].iloc[row])
        at = tokens_up_to(decode, parts["token_ids"].iloc[row], text[: ends[0]]) if ends else None
        if at is not None and at < lengths[row]:
            run_on[row], by[row] = at, ANSWER
        elif twin is not None and twin + params.run_on_margin < lengths[row]:
            run_on[row], by[row] = twin + params.run_on_margin, UNCOMPRESSED
        else:
            run_on[row], by[row] = begun["non_termination"][row], PROXY
    onset = run_on
    for name, found in begun.items():
        if name != "non_termination":
            earlier = (found != NO_ONSET) & (found <= onset)
            onset, by = np.where(earlier, found, onset), np.where(earlier, name, by)
    frame = pd.DataFrame({"onset": onset, "onset_by": by}, index=parts.index)
    return frame.assign(onset=frame["onset"].where(onset != _NEVER).astype("Int32"))
