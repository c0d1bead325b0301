"""The judging of whole traces: their catastrophes, and their task's scores beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import NO_ONSET, CatastropheParams, TraceTokens, onsets
from kvguard.judging.onsets import Decode, true_onsets
from kvguard.store.tables import read_metadata, read_table
from kvguard.tasks.base import Sample, Task

SCORES = "scores.parquet"  # lies beside the traces that it scores
_HEADLINE = "kvguard.headline"


def judge(
    parts: pd.DataFrame,
    task: Task,
    params: CatastropheParams,
    decode: Decode,
    uncompressed: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Judge raw traces: what was predicted, catastrophes, and onsets with what found them.

    Indexed as ``parts``.

    Parameters
    ----------
    parts
        Needs prompt_id, token_ids, text, stop_reason.
    decode
        Token ids -> text.
    uncompressed
        See :func:`kvguard.judging.onsets.uncompressed_lengths`.
    """
    predicted = [task.extract(text) for text in parts["text"]]
    begun = onsets(TraceTokens.of(parts), params, task.max_new_tokens)
    stacked = np.stack(list(begun.values()))  # [detectors, T]
    present = stacked != NO_ONSET
    known = np.where(present, stacked, np.iinfo(np.int64).max)
    first, earliest = known.min(axis=0), known.argmin(axis=0)
    names = np.array(list(begun), dtype=object)
    index = parts.index
    return pd.DataFrame(
        {
            "predicted": pd.Series(predicted, index=index, dtype=object),
            "catastrophes": pd.Series(
                [list(names[column]) for column in present.T], index=index, dtype=object
            ),
            **true_onsets(parts, begun, task.answered, decode, uncompressed or {}, params),
            "proxy_onset": pd.Series(first, index=index).where(present.any(axis=0)).astype("Int32"),
            "proxy_onset_by": np.where(present.any(axis=0), names[earliest], None),
        }
    )


def score(parts: pd.DataFrame, prompts: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Score the texts of raw traces: the scores table, a row for each trace and metric.

    Parameters
    ----------
    parts
        Needs trace_id, prompt_id, text.
    prompts
        The prompts table.

    Raises
    ------
    KvguardError
        A trace's prompt is not among ``prompts``.
    """
    samples = {row["prompt_id"]: Sample.of(row) for _, row in prompts.iterrows()}
    unknown = ~parts["prompt_id"].isin(samples)
    if unknown.any():
        stray = parts["prompt_id"][unknown].iloc[0]
        raise KvguardError(
            f"traces: prompt {stray} is not in the prompts table; run `dvc repro sample generate` again"
        )
    rows = [
        (trace_id, metric, value)
        for trace_id, prompt_id, text in parts[["trace_id", "prompt_id", "text"]].itertuples(index=False)
        for metric, value in task.score(text, samples[prompt_id]).items()
    ]
    frame = pd.DataFrame(rows, columns=["trace_id", "metric", "value"])
    return frame.astype({"trace_id": np.int32, "value": np.float64})


def score_metadata(task: Task) -> dict[str, str]:
    """Return what the file of a scores table carries: which metric stands for the task."""
    return {_HEADLINE: task.headline}


def with_scores(traces: pd.DataFrame, scores: pd.DataFrame, headline: str) -> pd.DataFrame:
    """Return traces with a column for each of their scores, NaN where not scored.

    The headline's is called ``correct``, since it says how right an answer is; the others' are called like
    their metrics.

    Raises
    ------
    KvguardError
        A trace has no scores, or scores no trace.
    """
    stray = set(traces["trace_id"]) ^ set(scores["trace_id"])
    if stray:
        raise KvguardError(f"trace {min(stray)} is in the traces or in the scores, not in both")
    wide = scores.pivot(index="trace_id", columns="metric", values="value")
    wide = wide.rename(columns={headline: "correct"}).reindex(traces["trace_id"])
    return traces.assign(**{str(name): wide[name].to_numpy(dtype=np.float64) for name in wide})


def read_judged(path: Path, columns: Sequence[str] | None = None, kind: str = "traces") -> pd.DataFrame:
    """Read judged traces, and their scores as :func:`with_scores` adds them.

    Parameters
    ----------
    path
        Their file; the scores lie beside it.
    columns
        The columns of the traces, trace_id among them; all by default.

    Raises
    ------
    KvguardError
        A file is missing, is no such table, or does not fit the other.
    """
    traces, scores = read_table(kind, path, columns), path.with_name(SCORES)
    headline = read_metadata(scores).get(_HEADLINE, "")
    try:
        return with_scores(traces, read_table("scores", scores), headline)
    except KvguardError as error:
        raise KvguardError(f"{scores}: {error}") from None
