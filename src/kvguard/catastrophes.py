"""Detectors of visible failures, their onsets, and the judging of whole traces.

A detector maps the tokens of many traces to the onset of its catastrophe in each, ``NO_ONSET`` where
there is none. A new one joins by one entry in ``DETECTORS``. A wrong answer is a failure of the task and
no catastrophe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.amnesia import is_amnesic
from kvguard.config import CatastropheParams
from kvguard.errors import KvguardError
from kvguard.repetition import Ints, window_occurrences
from kvguard.tasks.answers import is_correct, parse_answer

NO_ONSET = -1
JUDGED = ("predicted", "correct", "catastrophes", "onset", "amnesia")


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


def judge(
    parts: pd.DataFrame, prompts: pd.DataFrame, params: CatastropheParams, max_new_tokens: int
) -> pd.DataFrame:
    """Judge raw traces: the columns ``JUDGED`` of the traces table, with the index of ``parts``.

    Parameters
    ----------
    parts
        Needs prompt_id, token_ids, text, stop_reason.
    prompts
        Needs prompt_id, question, answer.

    Raises
    ------
    KvguardError
        A trace's prompt is not among ``prompts``.
    """
    asked = prompts.set_index("prompt_id")
    unknown = ~parts["prompt_id"].isin(asked.index)
    if unknown.any():
        stray = parts["prompt_id"][unknown].iloc[0]
        raise KvguardError(
            f"traces: prompt {stray} is not in the prompts table; run `dvc repro sample generate` again"
        )
    questions = parts["prompt_id"].map(asked["question"])
    answers = parts["prompt_id"].map(asked["answer"])
    predicted = [parse_answer(text) for text in parts["text"]]
    correct = [is_correct(said, answer) for said, answer in zip(predicted, answers, strict=True)]
    amnesia = [
        is_amnesic(question, text, params.amnesia_threshold)
        for question, text in zip(questions, parts["text"], strict=True)
    ]
    begun = onsets(TraceTokens.of(parts), params, max_new_tokens)
    stacked = np.stack(list(begun.values()))  # [detectors, T]
    present = stacked != NO_ONSET
    first = np.where(present, stacked, np.iinfo(np.int64).max).min(axis=0)
    names = np.array(list(begun), dtype=object)
    index = parts.index
    return pd.DataFrame(
        {
            "predicted": pd.Series(predicted, index=index, dtype=object),
            "correct": pd.Series(correct, index=index, dtype="boolean"),
            "catastrophes": pd.Series(
                [list(names[column]) for column in present.T], index=index, dtype=object
            ),
            "onset": pd.Series(first, index=index).where(present.any(axis=0)).astype("Int32"),
            "amnesia": pd.Series(amnesia, index=index, dtype="boolean"),
        }
    )


def is_catastrophic(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces have a catastrophe; their share is the CBR. [T]"""
    return traces["catastrophes"].map(len).to_numpy() > 0


def is_failure_v1(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces fail in protocol v1's sense (catastrophe or wrong answer): the CFR. [T]"""
    wrong = ~traces["correct"].fillna(True).to_numpy(dtype=bool)
    return is_catastrophic(traces) | wrong
