"""Detectors of visible failures, their onsets, and the judging of whole traces.

A detector maps the tokens of many traces to the onset of its catastrophe in each, ``NO_ONSET`` where
there is none. A new one joins by one entry in ``DETECTORS``. A wrong answer is a failure of the task and
no catastrophe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from kvguard.config import Count, Natural, Section, Share
from kvguard.engine.repetition import Ints, window_occurrences

NO_ONSET = -1


class CatastropheParams(Section):
    """When a trace counts as looping, and where one that does not end begins to fail.

    ``run_on_margin`` is how many tokens longer than uncompressed a text may be, see
    :mod:`kvguard.judging.onsets`.
    """

    loop_window: Count = 20
    loop_repeats: Annotated[int, Field(strict=True, ge=2)] = 3
    nontermination_onset: Share = 0.75
    run_on_margin: Natural = 16


@dataclass(frozen=True)
class TraceTokens:
    """The tokens of many traces, one trace after another.

    Attributes
    ----------
    token_ids
        [N]
    lengths
        Tokens of each trace. [T]
    stop_reason
        ``eos`` or ``length`` for each trace. [T]
    """

    token_ids: NDArray[Any]
    lengths: Ints
    stop_reason: NDArray[Any]

    @classmethod
    def of(cls, traces: pd.DataFrame) -> "TraceTokens":
        """Gather them from the columns token_ids and stop_reason of a traces (or parts) table."""
        lengths = traces["token_ids"].map(len).to_numpy(dtype=np.int64)
        tokens = [np.asarray(ids, dtype=np.int64) for ids in traces["token_ids"]]
        flat = np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int64)
        return cls(flat, lengths, traces["stop_reason"].to_numpy())


Detector = Callable[[TraceTokens, CatastropheParams, int], Ints]


def looping_onset(traces: TraceTokens, params: CatastropheParams, max_new_tokens: int) -> Ints:
    """Return where each trace begins to loop. [T]

    A trace loops when some window of ``loop_window`` tokens occurs in it at least ``loop_repeats`` times;
    occurrences may overlap. The onset is the index of the first token of the second occurrence, and if
    several windows occur that often, the earliest such index among them, whichever completes its
    repeats first.
    """
    found = window_occurrences(traces.token_ids, traces.lengths, params.loop_window)
    onset = np.full(len(traces.lengths), np.iinfo(np.int64).max)
    if len(found.end):
        often = np.bincount(found.group) >= params.loop_repeats  # [groups]
        second = (found.rank == 1) & often[found.group]
        ends = found.end[second]
        stops = np.cumsum(traces.lengths)
        trace = np.searchsorted(stops, ends, side="right")
        begins = ends - (stops - traces.lengths)[trace] - (params.loop_window - 1)
        np.minimum.at(onset, trace, begins)
    return np.where(onset == np.iinfo(np.int64).max, NO_ONSET, onset)


def non_termination_onset(traces: TraceTokens, params: CatastropheParams, max_new_tokens: int) -> Ints:
    """Return ``int(nontermination_onset * max_new_tokens)`` for traces cut off by the token budget. [T]

    Nothing marks where a text should have ended, so the onset is a proxy.
    """
    proxy = int(params.nontermination_onset * max_new_tokens)
    return np.where(traces.stop_reason == "length", proxy, NO_ONSET)


DETECTORS: Mapping[str, Detector] = {
    "looping": looping_onset,
    "non_termination": non_termination_onset,
}


def onsets(traces: TraceTokens, params: CatastropheParams, max_new_tokens: int) -> dict[str, Ints]:
    """Return the onset of every registered catastrophe, ``NO_ONSET`` where there is none. {name: [T]}"""
    return {name: detect(traces, params, max_new_tokens) for name, detect in DETECTORS.items()}


def is_catastrophic(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces have a catastrophe; their share is the CBR. [T]"""
    return traces["catastrophes"].map(len).to_numpy() > 0
