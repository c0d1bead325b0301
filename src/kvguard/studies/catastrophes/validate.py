"""What the ``validate`` stage checks across the stored tables.

The schemas already hold inside each table (types, finite numbers, ranges, no duplicates). Here the tables
are held against the plan and against each other. A breach stops with a KvguardError that names file, column
and row; what merely exceeds a tolerance from the params makes the report not ok.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.columns import LOGPROBS
from kvguard.engine.presses import Condition
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.judging.judge import read_judged
from kvguard.store.schemas import TOLERANCE
from kvguard.store.tables import iter_table, read_table, token_paths
from kvguard.studies.catastrophes.params import ValidateParams
from kvguard.sweep.settings import CompressorSpec

_SNAPKV = "SnapKVPress"


@dataclass(frozen=True)
class Plan:
    """What a dataset is held against.

    Attributes
    ----------
    conditions
        In the order of the plan: trace_id = prompt_index * n_conditions + condition_index.
    max_new_tokens
        The token budget of a trace.
    vocab_size
        V, the width of the model's logits: entropies are at most ln V.
    snapkv_windows
        See :func:`snapkv_windows`.
    """

    conditions: Sequence[Condition]
    max_new_tokens: int
    vocab_size: int
    snapkv_windows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The outcome: whether all tolerances hold, the numbers, and a readable text."""

    ok: bool
    metrics: dict[str, Any]
    markdown: str


def snapkv_windows(compressors: Mapping[str, CompressorSpec]) -> dict[str, int]:
    """Return the window size of every compressor that is a SnapKV press with a stated window."""
    return {
        name: int(spec.params["window_size"])
        for name, spec in compressors.items()
        if spec.press == _SNAPKV and "window_size" in spec.params
    }


def validate(
    prompts_path: Path, generate_dir: Path, features_path: Path, plan: Plan, params: ValidateParams
) -> Report:
    """Check a generated and featurised dataset.

    Raises
    ------
    KvguardError
        A table breaks its schema, the plan, or disagrees with another table.
    """
    traces_path = Path(generate_dir) / "traces.parquet"
    prompts = read_table("prompts", prompts_path, ["prompt_id"])
    _check_plan(prompts, read_table("traces", traces_path), plan, traces_path)
    traces = read_judged(traces_path)
    _check_traces(traces, plan, traces_path)
    lengths = traces["token_ids"].map(len).to_numpy(dtype=np.int64)
    _check_all_tokens(traces, lengths, plan, Path(generate_dir))
    _check_features(traces, lengths, features_path)
    return _report(traces, lengths, plan, params)


def _reject(path: Path, column: str, wrong: NDArray[np.bool_], what: str, first_row: int = 0) -> None:
    """Raise for the first row that is ``wrong``."""
    if wrong.any():
        row = first_row + int(np.argmax(wrong))
        raise KvguardError(
            f"{path}: column {column}, row {row}: {what}; make the table again with `dvc repro`"
        )


def _check_plan(prompts: pd.DataFrame, traces: pd.DataFrame, plan: Plan, path: Path) -> None:
    n_conditions = len(plan.conditions)
    due = len(prompts) * n_conditions
    trace_id = traces["trace_id"].to_numpy()
    _reject(path, "trace_id", trace_id >= due, f"the plan ends at {due - 1}")
    missing = np.setdiff1d(np.arange(due), trace_id)
    if len(missing):
        prompt, condition = divmod(int(missing[0]), n_conditions)
        raise KvguardError(
            f"{path}: {len(traces)} traces where {len(prompts)} prompts x {n_conditions} conditions make "
            f"{due}; the first missing is prompt {prompts['prompt_id'].iloc[prompt]} under "
            f"{plan.conditions[condition]}; run `dvc repro generate`"
        )
    planned = pd.DataFrame(
        [(c.compressor, c.ratio) for c in plan.conditions], columns=["compressor", "ratio"]
    )
    due_values = planned.iloc[trace_id % n_conditions].assign(
        prompt_id=prompts["prompt_id"].to_numpy()[trace_id // n_conditions]
    )
    for column in ("prompt_id", "compressor", "ratio"):
        wrong = traces[column].to_numpy() != due_values[column].to_numpy()
        _reject(path, column, wrong, "not the plan's value for this trace_id")
    _reject(path, "model", (traces["model"] != traces["model"].iloc[0]).to_numpy(), "a second model")


def _check_traces(traces: pd.DataFrame, plan: Plan, path: Path) -> None:
    lengths = traces["token_ids"].map(len).to_numpy(dtype=np.int64)
    cut = (traces["stop_reason"] == "length").to_numpy()
    _reject(path, "token_ids", (lengths < 1) | (lengths > plan.max_new_tokens), "no tokens, or too many")
    _reject(path, "stop_reason", cut & (lengths != plan.max_new_tokens), "cut off before the token budget")
    too_many = traces["n_kept_tokens"].to_numpy() > traces["n_prompt_tokens"].to_numpy()
    _reject(path, "n_kept_tokens", too_many, "more tokens kept than the prompt has")
    for name in ("onset", "proxy_onset"):
        has_onset = traces[name].notna().to_numpy()
        _reject(path, name, has_onset != is_catastrophic(traces), f"{name} and catastrophes disagree")
        late = has_onset & (traces[name].fillna(0).to_numpy(dtype=np.int64) >= lengths)
        _reject(path, name, late, "not inside the trace")


def _check_all_tokens(traces: pd.DataFrame, lengths: NDArray[np.int64], plan: Plan, folder: Path) -> None:
    order = np.argsort(traces["trace_id"].to_numpy())
    lengths = lengths[order]
    starts = np.cumsum(lengths) - lengths
    said = np.concatenate([np.asarray(traces["token_ids"].iloc[row]) for row in order])
    seen = np.zeros(len(order), dtype=np.int64)
    for path in token_paths(folder):
        tokens = read_table("tokens", path)
        trace_id, t = tokens["trace_id"].to_numpy(), tokens["t"].to_numpy()
        _reject(path, "trace_id", trace_id >= len(order), "not in the traces table")
        _reject(path, "t", t >= lengths[trace_id], "past the end of its trace")
        differs = said[starts[trace_id] + t] != tokens["token_id"].to_numpy()
        _reject(path, "token_id", differs, "not the token that the traces table has there")
        _check_signals(tokens, plan, path)
        seen += np.bincount(trace_id, minlength=len(order))
    if (seen != lengths).any():
        trace = int(np.argmax(seen != lengths))
        found = f"trace {trace} has {seen[trace]} rows and {lengths[trace]} tokens"
        raise KvguardError(f"{folder}/tokens-*.parquet: column trace_id: {found}; run `dvc repro generate`")


def _check_signals(tokens: pd.DataFrame, plan: Plan, path: Path) -> None:
    limit = math.log(plan.vocab_size) + TOLERANCE
    for name in ("entropy", "h_alts"):
        _reject(path, name, tokens[name].to_numpy() > limit, f"above ln {plan.vocab_size}")
    for above, name in pairwise(LOGPROBS):
        rises = tokens[name].to_numpy() > tokens[above].to_numpy()
        _reject(path, name, rises, f"above {above}: the log-probabilities are not sorted")
    less = tokens["top5_prob"].to_numpy() < tokens["top1_prob"].to_numpy() - TOLERANCE
    _reject(path, "top5_prob", less, "below top1_prob")
    _reject(
        path,
        "rank_of_chosen",
        tokens["rank_of_chosen"].to_numpy() >= plan.vocab_size,
        "beyond the vocabulary",
    )


def _check_features(traces: pd.DataFrame, lengths: NDArray[np.int64], path: Path) -> None:
    size = int(traces["trace_id"].max()) + 1
    counts = np.zeros(size, dtype=np.int64)
    first_row = 0
    for rows in iter_table("features", path):
        trace_id = rows["trace_id"].to_numpy()
        _reject(path, "trace_id", trace_id >= size, "not in the traces table", first_row)
        position = rows["token_position"].to_numpy()
        _reject(path, "token_position", (position < 0) | (position >= 1), "outside [0, 1)", first_row)
        counts += np.bincount(trace_id, minlength=size)
        first_row += len(rows)
    found = counts[traces["trace_id"].to_numpy()]
    if (found != lengths).any():
        row = int(np.argmax(found != lengths))
        trace = f"trace {traces['trace_id'].iloc[row]} has {found[row]} rows"
        raise KvguardError(
            f"{path}: column trace_id: {trace} and {lengths[row]} tokens; run `dvc repro featurize`"
        )


def _report(traces: pd.DataFrame, lengths: NDArray[np.int64], plan: Plan, params: ValidateParams) -> Report:
    inside = _inside_window(traces, plan.snapkv_windows)
    ok = inside is None or inside <= params.max_snapkv_inside_window
    catastrophic = is_catastrophic(traces)
    correct = traces["correct"].astype("float64")
    columns = pd.DataFrame(
        {
            "compressor": traces["compressor"],
            "ratio": traces["ratio"],
            "n_traces": 1,
            "cbr": catastrophic.astype(float),
            "accuracy": correct,
            "n_tokens": lengths,
        }
    )
    grouped = columns.groupby(["compressor", "ratio"], sort=False)
    table = grouped.agg(
        n_traces=("n_traces", "sum"),
        cbr=("cbr", "mean"),
        accuracy=("accuracy", "mean"),
        mean_tokens=("n_tokens", "mean"),
    ).reset_index()
    metrics: dict[str, Any] = {
        "ok": ok,
        "n_prompts": int(traces["prompt_id"].nunique()),
        "n_conditions": len(plan.conditions),
        "n_traces": len(traces),
        "n_tokens": int(lengths.sum()),
        "onsets_by": traces["onset_by"].dropna().value_counts().sort_index().to_dict(),
        "cbr": float(catastrophic.mean()),
        "accuracy": None if correct.isna().all() else float(correct.mean()),
        "snapkv_inside_window": inside,
    }
    return Report(ok, metrics, _markdown(str(traces["model"].iloc[0]), metrics, table, params))


def _inside_window(traces: pd.DataFrame, windows: Mapping[str, int]) -> float | None:
    """Return the share of SnapKV traces that keep no token beyond the window; None without such traces."""
    window = traces["compressor"].map(windows)
    judged = window.notna()
    if not judged.any():
        return None
    return float((traces["n_kept_tokens"][judged] <= window[judged]).mean())


def _markdown(model: str, metrics: Mapping[str, Any], table: pd.DataFrame, params: ValidateParams) -> str:
    lines = [
        f"# Data checks: {model}",
        "",
        "All tables agree with their schemas, with the plan and with each other.",
        "",
        f"- {metrics['n_prompts']} prompts x {metrics['n_conditions']} conditions ="
        f" {metrics['n_traces']:,} traces, {metrics['n_tokens']:,} tokens",
        f"- onsets: {_onsets_line(metrics['onsets_by'])}",
        f"- {_snapkv_line(metrics['snapkv_inside_window'], params.max_snapkv_inside_window)}",
        "",
        *_table_lines(
            ("compressor", "ratio", "traces", "CBR", "accuracy", "mean tokens"),
            (
                (
                    row.compressor, f"{row.ratio:g}", f"{row.n_traces}", f"{row.cbr:.3f}",
                    "not scored" if math.isnan(row.accuracy) else f"{row.accuracy:.3f}",
                    f"{row.mean_tokens:.1f}",
                )
                for row in table.itertuples()
            ),
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _onsets_line(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} by {rule}" for rule, count in counts.items()) or "none"


def _snapkv_line(inside: float | None, limit: float) -> str:
    if inside is None:
        return "no SnapKV traces"
    verdict = "within" if inside <= limit else "ABOVE"
    return f"SnapKV traces that keep only its window: {inside:.2%}, {verdict} the limit of {limit:.2%}"


def _table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---"] * len(header)
    return [f"| {' | '.join(row)} |" for row in (header, ruler, *rows)]
