"""Prompts in three parts, so that no prompt is ever in two; and protocol v1's split, which does not care."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.store.schemas import PARTS
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.params import SplitParams
from kvguard.studies.catastrophes.protocols import Protocol

_log = logging.getLogger(__name__)
_FILE = "split.parquet"


def make_split(traces: pd.DataFrame, protocol: Protocol, shares: SplitParams, seed: int) -> pd.DataFrame:
    """Split judged traces as ``protocol`` does."""
    split = split_by_trace if protocol.by_trace else split_by_prompt
    return split(traces, shares, seed)


def split_by_prompt(traces: pd.DataFrame, shares: SplitParams, seed: int) -> pd.DataFrame:
    """Split the prompts of judged traces into train, tune and test.

    Stratified by whether any of a prompt's traces has a catastrophe; deterministic in the seed, whatever
    the order of the traces. Where all prompts are of one class it says so and splits without strata.

    Parameters
    ----------
    traces
        Needs prompt_id and catastrophes.

    Returns
    -------
    pd.DataFrame
        A ``split`` table, ordered by prompt_id.

    Raises
    ------
    KvguardError
        A part would be empty.
    """
    fails = pd.Series(is_catastrophic(traces)).groupby(traces["prompt_id"].to_numpy(), sort=True).any()
    part = _stratified(fails.to_numpy(), shares, seed, "prompt")
    split = pd.DataFrame({"prompt_id": fails.index.to_numpy(dtype=object), "part": part})
    reject_leaks(split["prompt_id"], part)
    return split


def split_by_trace(traces: pd.DataFrame, shares: SplitParams, seed: int) -> pd.DataFrame:
    """Split judged traces, whatever their prompts: the flaw of protocol v1, and of no other.

    Otherwise as :func:`split_by_prompt`, and stratified by whether the trace has a catastrophe.

    Parameters
    ----------
    traces
        Needs trace_id and catastrophes.

    Returns
    -------
    pd.DataFrame
        A ``split_v1`` table, ordered by trace_id.
    """
    ordered = traces.sort_values("trace_id", kind="stable")
    part = _stratified(is_catastrophic(ordered), shares, seed, "trace")
    return pd.DataFrame({"trace_id": ordered["trace_id"].to_numpy(), "part": part})


def _stratified(fails: NDArray[np.bool_], shares: SplitParams, seed: int, unit: str) -> NDArray[np.object_]:
    """Return a part for each unit, the shares kept among those that fail and among the others. [U]"""
    if fails.all() or not fails.any():
        which = f"every {unit} has" if fails.any() else f"no {unit} has"
        _log.warning("split: %s a catastrophe; splitting without stratification", which)
    rng = np.random.default_rng(seed)
    strata = [rng.permutation(np.flatnonzero(fails == fate)) for fate in (True, False)]
    part = np.empty(len(fails), dtype=object)
    part[np.concatenate(strata)] = _deal(len(fails), shares)
    for name in PARTS:
        if name not in part:
            raise KvguardError(
                f"split: no {unit} is left for {name}: {len(fails)} {unit}s, shares {shares.train:g}, "
                f"{shares.tune:g}, {shares.test:g}; raise sample.n or change train.split"
            )
    return part


def _deal(n: int, shares: SplitParams) -> list[str]:
    """Deal n units out one by one, each to the part that lacks most: shares hold on every stretch."""
    lacking = dict.fromkeys(PARTS, 0.0)
    dealt = []
    for _ in range(n):
        for name in PARTS:
            lacking[name] += getattr(shares, name)
        neediest = max(PARTS, key=lambda name: round(lacking[name], 9))
        lacking[neediest] -= 1
        dealt.append(neediest)
    return dealt


def reject_leaks(prompt_id: "pd.Series[Any]", part: NDArray[np.object_]) -> None:
    """Raise unless every prompt is in one part.

    Parameters
    ----------
    prompt_id, part
        Of each prompt of a split, or of each trace. [N]

    Raises
    ------
    KvguardError
        The first prompt that is in two parts, and which they are.
    """
    pairs = pd.DataFrame({"prompt_id": prompt_id.to_numpy(), "part": part}).drop_duplicates()
    leaked = pairs["prompt_id"].duplicated()
    if leaked.any():
        prompt = pairs["prompt_id"][leaked].iloc[0]
        parts = " and ".join(pairs["part"][pairs["prompt_id"] == prompt])
        raise KvguardError(f"split: prompt {prompt} is in {parts}: a leak; run `dvc repro train` again")


def part_of_traces(traces: pd.DataFrame, split: pd.DataFrame) -> NDArray[np.object_]:
    """Return the part of each trace, by its prompt, or by itself if ``split`` is a ``split_v1`` table. [T]

    Raises
    ------
    KvguardError
        A trace is in no part; or, by prompt, a prompt is in two.
    """
    unit = "trace_id" if "trace_id" in split else "prompt_id"
    if unit == "prompt_id":
        reject_leaks(split["prompt_id"], split["part"].to_numpy())
    part = traces[unit].map(split.drop_duplicates(unit).set_index(unit)["part"])
    if part.isna().any():
        stray = traces[unit][part.isna()].iloc[0]
        name = unit.removesuffix("_id")
        raise KvguardError(f"split: {name} {stray} is in no part; run `dvc repro train` again")
    return part.to_numpy(dtype=object)


def write_split(split: pd.DataFrame, protocol: Protocol, folder: Path) -> Path:
    """Write a split to the ``train`` stage's folder and return its path."""
    path = folder / _FILE
    write_table(_kind(protocol), split, path)
    return path


def read_split(protocol: Protocol, folder: Path) -> pd.DataFrame:
    """Read the split in the ``train`` stage's folder; one of the other protocol's kind is rejected."""
    return read_table(_kind(protocol), folder / _FILE)


def _kind(protocol: Protocol) -> str:
    return "split_v1" if protocol.by_trace else "split"
