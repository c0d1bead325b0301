"""Whether a stored data set is whole, whether kvpress itself generates the same tokens, and whether the
guard's streaming features are those of the pipeline's table.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kvguard.engine.columns import SIGNALS
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES
from kvguard.store.tables import count_rows, iter_table, read_table, token_paths
from kvguard.sweep.plan import stop_strings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvguard.engine.presses import Presses
    from kvguard.guard.features import Bools, Floats
    from kvguard.studies.catastrophes.params import Params
    from kvguard.sweep.settings import CompressorSpec

MOST_DISAGREEMENT = 0.005
_SEED = 0


@dataclass(frozen=True)
class Counts:
    """What a whole data set holds."""

    n_traces: int
    n_tokens: int
    n_files: int


@dataclass(frozen=True)
class Agreement:
    """How many traces kvpress generated again, and which of them it ended differently."""

    n: Counter[str]
    differing: list[str]

    def text(self) -> str:
        """Return a table by condition, and the verdict in one line."""
        from kvguard.report.terminal import table

        differing = Counter(name.split(" ")[0] for name in self.differing)
        rows = [[condition, n, n - differing[condition]] for condition, n in self.n.items()]
        total = sum(self.n.values())
        verdict = f"{total - len(self.differing)} of {total} traces agree with kvpress"
        return f"{table(['condition', 'traces', 'agree'], rows)}\n\n{verdict}"

    def require(self) -> None:
        """Raise unless the share of differing traces is at most ``MOST_DISAGREEMENT``."""
        total = sum(self.n.values())
        if len(self.differing) > MOST_DISAGREEMENT * total:
            raise KvguardError(
                f"{len(self.differing)} of {total} traces differ from kvpress, {self.differing[0]} first: "
                "was the data made with other parameters, weights or another device? run `dvc repro generate`"
            )


def check_finished(folder: Path) -> None:
    """Raise unless a sweep has ended in ``folder``: its traces are judged once all of its parts are made."""
    if not (folder / "traces.parquet").is_file():
        raise KvguardError(
            f"{folder}: holds no finished sweep: run the sweep again (`dvc repro generate` in the pipeline): "
            "it goes on where it stopped"
        )


def check_dataset(folder: Path, prompts: pd.DataFrame) -> Counts:
    """Read every file of ``folder`` and hold its tables against each other.

    Raises
    ------
    KvguardError
        The first thing that is broken: file, trace, and the fix.
    """
    traces = read_table("traces", folder / "traces.parquet").set_index("trace_id")
    parts = sorted(folder.glob("part-*.parquet"))
    raw = pd.concat([read_table("parts", path) for path in parts] or [traces.iloc[:0].reset_index()])
    lost = traces.index.symmetric_difference(raw["trace_id"])
    if len(lost):
        raise KvguardError(_broken(folder, f"trace {lost[0]} is in traces.parquet or in a part, not in both"))
    stray = traces[~traces["prompt_id"].isin(prompts["prompt_id"])]
    if len(stray):
        raise KvguardError(
            _broken(folder, f"trace {stray.index[0]} answers a prompt that is not in the sample")
        )
    incomplete = traces.groupby(["compressor", "ratio"])["prompt_id"].nunique()
    incomplete = incomplete[incomplete < len(prompts)]
    if len(incomplete):
        name, n = incomplete.index[0], incomplete.iloc[0]
        raise KvguardError(_broken(folder, f"{name[0]}@{name[1]:g} has {n} of {len(prompts)} prompts"))
    n_tokens = sum(_check_tokens(path, traces["token_ids"]) for path in token_paths(folder))
    if n_tokens != traces["token_ids"].map(len).sum():
        raise KvguardError(_broken(folder, "the tokens of some traces are missing"))
    return Counts(len(traces), n_tokens, len(parts) + len(token_paths(folder)) + 1)


def compare_with_kvpress(
    params: Params, model: str, folder: Path, prompts: pd.DataFrame, n: int
) -> Agreement:
    """Generate ``n`` traces again, one by one through kvpress, spread over the conditions.

    Raises
    ------
    KvguardError
        If kvpress itself fails: which trace, and how.
    """
    import torch
    from tqdm import tqdm

    from kvguard.engine.oracle import kvpress_generate
    from kvguard.engine.presses import Condition
    from kvguard.models.load import load_model

    spec, task = params.spec(model), params.task(model)
    traces = _spread(read_table("traces", folder / "traces.parquet"), n)
    loaded = load_model(model, spec, params.device)
    text = prompts.set_index("prompt_id")["prompt"]
    presses = _presses(traces, params.compressors)
    counted: Counter[str] = Counter()
    differing = []
    for trace in tqdm(traces.itertuples(), total=len(traces), desc="kvpress", unit="trace"):
        condition = Condition(trace.compressor, trace.ratio)
        ids = torch.tensor(loaded.encode(text[trace.prompt_id]), device=loaded.model.device)
        try:
            reference = kvpress_generate(
                loaded.model,
                ids,
                presses[condition].press,
                task.max_new_tokens,
                loaded.eos_ids,
                stop_strings(task, loaded),
            )
        except KvguardError as error:
            raise KvguardError(f"{condition} trace {trace.trace_id} cannot be compared: {error}") from None
        counted[str(condition)] += 1
        if not reference.agrees(list(trace.token_ids)):
            differing.append(f"{condition} trace {trace.trace_id}")
    return Agreement(counted, differing)


def check_features(folder: Path, features: Path, max_new_tokens: int, mask: Bools) -> int:
    """Feed every trace of ``folder`` to the guard's features token by token, and hold them against a table.

    Parameters
    ----------
    features
        The features table that ``featurize`` made of ``folder``.
    mask
        See :func:`kvguard.guard.features.thinking_mask`. [V]

    Returns
    -------
    int
        The number of tokens, every feature of which is the same float32 number.

    Raises
    ------
    KvguardError
        The first feature that differs: trace, token, both values.
    """
    from tqdm import tqdm

    traces = read_table("traces", folder / "traces.parquet", ["trace_id", "ratio"])
    ratio = traces.set_index("trace_id")["ratio"]
    stored = _Rows(iter_table("features", features, ["trace_id", "t", *FEATURES]))
    with tqdm(total=count_rows(features), desc="features", unit="token", unit_scale=True) as bar:
        for path in token_paths(folder):
            tokens = read_table("tokens", path).sort_values(
                ["trace_id", "t"], kind="stable", ignore_index=True
            )
            _require_same(
                features, tokens, stored.take(len(tokens)), _stream(tokens, ratio, max_new_tokens, mask)
            )
            bar.update(len(tokens))
        return int(bar.n)


class _Rows:
    """Takes a table, which comes in pieces, in pieces of other sizes."""

    def __init__(self, pieces: Iterator[pd.DataFrame]) -> None:
        self._pieces = pieces
        self._ahead = next(pieces)

    def take(self, n: int) -> pd.DataFrame:
        """Return the next ``n`` rows, fewer at the end."""
        while len(self._ahead) < n and (piece := next(self._pieces, None)) is not None:
            self._ahead = pd.concat([self._ahead, piece], ignore_index=True)
        taken, self._ahead = self._ahead.iloc[:n], self._ahead.iloc[n:]
        return taken.reset_index(drop=True)


def _stream(tokens: pd.DataFrame, ratio: pd.Series, max_new_tokens: int, mask: Bools) -> Floats:
    """Return the features of ``tokens``, one token of every trace at a time. [N, 44]"""
    from kvguard.guard.features import FeatureState

    starts = np.flatnonzero(np.diff(tokens["trace_id"], prepend=-1))
    lengths = np.diff(starts, append=len(tokens))
    state = FeatureState(ratio.loc[tokens["trace_id"].iloc[starts]].to_numpy(), mask, max_new_tokens)
    signals, token_id = tokens[list(SIGNALS)].to_numpy(), tokens["token_id"].to_numpy()
    found = np.empty((len(tokens), len(FEATURES)), dtype=np.float32)
    for t in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > t)
        here = starts[rows] + t
        found[here] = state.update(signals[here], token_id[here], rows)
    return found


def _require_same(path: Path, tokens: pd.DataFrame, stored: pd.DataFrame, found: Floats) -> None:
    keys = ["trace_id", "t"]
    if not stored[keys].equals(tokens[keys]):
        raise KvguardError(
            f"{path}: its rows are not those of the tokens, in their order: run `dvc repro featurize`"
        )
    table = stored[list(FEATURES)].to_numpy()
    if (table != found).any():
        row, column = np.argwhere(table != found)[0]
        trace_id, t = (stored[key].iloc[row] for key in keys)
        raise KvguardError(
            f"{path}: trace {trace_id}, token {t}: {FEATURES[column]} is {table[row, column]} and streamed "
            f"{found[row, column]}: were the tokens or the settings changed since? run `dvc repro featurize`"
        )


def _presses(traces: pd.DataFrame, compressors: Mapping[str, CompressorSpec]) -> Presses:
    from kvguard.config import check_known
    from kvguard.engine.presses import NONE, Condition, Presses

    pairs = traces[["compressor", "ratio"]].drop_duplicates()
    conditions = [Condition(*pair) for pair in pairs.itertuples(index=False, name=None)]
    for condition in conditions:
        if condition.compressor != NONE:
            check_known("compressors", condition.compressor, compressors)
    return Presses(conditions, compressors)


def _spread(traces: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose ``n`` traces at random, as evenly over the conditions as they go."""
    shuffled = traces.sample(frac=1, random_state=_SEED)
    turn = shuffled.groupby(["compressor", "ratio"]).cumcount()
    return shuffled.iloc[np.argsort(turn.to_numpy(), kind="stable")[:n]].sort_values(["compressor", "ratio"])


def _check_tokens(path: Path, token_ids: pd.Series) -> int:
    frame = read_table("tokens", path, ["trace_id", "t", "token_id"])
    expected = token_ids.reindex(frame["trace_id"].unique())
    for trace_id, own in frame.groupby("trace_id", sort=False):
        ids = expected[trace_id]
        if not isinstance(ids, np.ndarray | list) or not np.array_equal(own["token_id"], ids):
            raise KvguardError(
                _broken(path, f"the tokens of trace {trace_id} are not those of traces.parquet")
            )
    return len(frame)


def _broken(path: Path, what: str) -> str:
    return f"{path}: {what}: run `dvc repro generate`, or the sweep again"
