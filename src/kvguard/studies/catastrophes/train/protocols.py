"""What the two protocols do differently: the flawed one of earlier work beside the honest one.

====================== ============================================ ==========================================
choice                 v1                                           v2
====================== ============================================ ==========================================
split                  by trace: a prompt is in train and test      by prompt
features               41, with t / trace length, which looks ahead 40, with t / max_new_tokens
prompts                the first 50                                 all
early stopping,        on the traces that are measured              on tune prompts
calibration, threshold
failure                CFR: catastrophe or wrong answer             CBR: catastrophe
====================== ============================================ ==========================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.guard.columns import FEATURES
from kvguard.judging.catastrophes import is_catastrophic

Name = Literal["v1", "v2"]

_RIGHT = 0.5  # the headline score from which an answer is no failure; most are 0 or 1


def is_failure_v1(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces fail in protocol v1's sense (catastrophe or wrong answer): the CFR. [T]"""
    wrong = traces["correct"].astype("Float64").lt(_RIGHT).fillna(False).to_numpy(dtype=bool)
    return is_catastrophic(traces) | wrong


@dataclass(frozen=True)
class Protocol:
    """One way to train and to judge.

    Attributes
    ----------
    name
        Also selects the features; see :func:`kvguard.guard.features.feature_columns`.
    by_trace
        Whether traces are split, instead of prompts.
    n_prompts
        How many prompts count, None for all.
    tune_part
        The part on which everything is chosen.
    failed
        Judged traces -> which failed. [T]
    """

    name: Name
    by_trace: bool
    n_prompts: int | None
    tune_part: str
    failed: Callable[[pd.DataFrame], NDArray[np.bool_]]

    def select(self, traces: pd.DataFrame) -> pd.DataFrame:
        """Return the traces of the prompts that count, in their order."""
        if self.n_prompts is None:
            return traces.reset_index(drop=True)
        first = traces.sort_values("trace_id")["prompt_id"].drop_duplicates().iloc[: self.n_prompts]
        return traces[traces["prompt_id"].isin(first)].reset_index(drop=True)


PROTOCOLS: dict[Name, Protocol] = {
    "v1": Protocol("v1", True, 50, "test", is_failure_v1),
    "v2": Protocol("v2", False, None, "tune", is_catastrophic),
}


def feature_columns(protocol: Literal["v1", "v2"]) -> list[str]:
    """Return the model's features in order: 40 for v2; v1 has its own token_position and rank_of_chosen."""
    if protocol == "v2":
        return list(FEATURES)
    own_position = ["token_position_v1" if name == "token_position" else name for name in FEATURES]
    return [*own_position, "rank_of_chosen"]
