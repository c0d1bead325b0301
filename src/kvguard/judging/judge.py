"""The judging of whole traces."""

import numpy as np
import pandas as pd

from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import NO_ONSET, CatastropheParams, TraceTokens, onsets
from kvguard.tasks.amnesia import is_amnesic
from kvguard.tasks.answers import is_correct, parse_answer

JUDGED = ("predicted", "correct", "catastrophes", "onset", "amnesia")


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
