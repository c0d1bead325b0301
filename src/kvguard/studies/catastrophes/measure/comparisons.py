"""Each condition against a control on the same prompts: no compression, and random eviction.

Random eviction at equal ratio keeps as many KV pairs, so what is left of a difference is the strategy's.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE, Condition
from kvguard.stats.bootstrap import Floats, Interval
from kvguard.stats.paired import compare
from kvguard.store.results import Results
from kvguard.studies.catastrophes.measure.outcomes import CONDITION, conditions_of, trace_outcomes

RANDOM = "random"
COMPARED = ("cbr", "accuracy")


def add_comparisons(
    results: Results, traces: pd.DataFrame, prompt: NDArray[np.integer[Any]], weights: Floats
) -> None:
    """Add the tables ``against_none`` and ``against_random``; without a control its table is left out.

    For the rates in ``COMPARED``: the difference (condition minus control) with its interval over prompts,
    the odds ratio of the discordant pairs with its exact interval, the p-value of McNemar's exact test, and
    that value after Holm's correction over all conditions of the table. Prompts that either side has not
    scored are left out.

    Parameters
    ----------
    prompt
        Number of each trace's prompt. [T]
    weights
        Of the prompts in each resample. [R, P]
    """
    found = conditions_of(traces)
    compressed = [condition for condition in found if condition.compressor != NONE]
    controls = {
        "against_none": {condition: Condition(NONE, 0.0) for condition in compressed},
        "against_random": {
            condition: Condition(RANDOM, condition.ratio)
            for condition in compressed
            if condition.compressor != RANDOM
        },
    }
    by_prompt = {name: _by_prompt(traces, prompt, name, weights.shape[1]) for name in COMPARED}
    for table, pairs in controls.items():
        present = {condition: control for condition, control in pairs.items() if control in found}
        values: dict[Condition, dict[str, Interval | float]] = {condition: {} for condition in present}
        for name in COMPARED:
            for condition, numbers in compare(by_prompt[name], present, weights).items():
                values[condition] |= {f"{name}_{key}": number for key, number in numbers.items()}
        for condition in present:
            results.add(table, str(condition), values[condition])


def _by_prompt(
    traces: pd.DataFrame, prompt: NDArray[np.integer[Any]], name: str, n_prompts: int
) -> dict[Condition, Floats]:
    """Return one outcome under each condition, NaN where a prompt has no trace or no score. [P] each"""
    frame = traces[CONDITION].assign(prompt=prompt, value=trace_outcomes(traces)[name])
    values = {}
    for condition, group in frame.groupby(CONDITION, sort=False):
        values[Condition(*condition)] = np.full(n_prompts, np.nan)
        values[Condition(*condition)][group["prompt"]] = group["value"]
    return values
