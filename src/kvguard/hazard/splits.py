"""Prompts in three parts, so that no prompt is ever in two."""

import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.catastrophes import is_catastrophic
from kvguard.config import SplitParams
from kvguard.errors import KvguardError
from kvguard.schemas import PARTS

_log = logging.getLogger(__name__)


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
    if fails.nunique() < 2:
        which = "every prompt has" if len(fails) and fails.iloc[0] else "no prompt has"
        _log.warning("split: %s a catastrophe; splitting without stratification", which)
    rng = np.random.default_rng(seed)
    strata = [rng.permutation(np.flatnonzero(fails.to_numpy() == fate)) for fate in (True, False)]
    part = np.empty(len(fails), dtype=object)
    part[np.concatenate(strata)] = _deal(len(fails), shares)
    for name in PARTS:
        if name not in part:
            raise KvguardError(
                f"split: no prompt is left for {name}: {len(fails)} prompts, shares {shares.train:g}, "
                f"{shares.tune:g}, {shares.test:g}; raise sample.n or change train.split"
            )
    return pd.DataFrame({"prompt_id": fails.index.to_numpy(dtype=object), "part": part})


def _deal(n: int, shares: SplitParams) -> list[str]:
    """Deal n prompts out one by one, each to the part that lacks most: shares hold on every stretch."""
    lacking = dict.fromkeys(PARTS, 0.0)
    dealt = []
    for _ in range(n):
        for name in PARTS:
            lacking[name] += getattr(shares, name)
        neediest = max(PARTS, key=lambda name: round(lacking[name], 9))
        lacking[neediest] -= 1
        dealt.append(neediest)
    return dealt


def part_of_traces(traces: pd.DataFrame, split: pd.DataFrame) -> NDArray[np.object_]:
    """Return the part of each trace's prompt. [T]

    Raises
    ------
    KvguardError
        A prompt is not in the split.
    """
    part = traces["prompt_id"].map(split.set_index("prompt_id")["part"])
    if part.isna().any():
        stray = traces["prompt_id"][part.isna()].iloc[0]
        raise KvguardError(f"split: prompt {stray} is in no part; run `dvc repro train` again")
    return part.to_numpy(dtype=object)
