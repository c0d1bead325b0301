"""What the protocols do differently; each is one entry of ``PROTOCOLS``.

====================== ========================= ===================== =====================================
choice                 v1                        v2                    v3
====================== ========================= ===================== =====================================
split                  by trace: a prompt is in  by prompt             by prompt
                       train and test
features               41, with t / trace        40, with              these, and the entropy so far against
                       length, which looks ahead t / max_new_tokens    the text's own beginning
prompts                the first 50              all                   all
early stopping,        on the traces that are    on tune prompts       on tune prompts
calibration, threshold measured
failure                CFR: catastrophe or       CBR: catastrophe      CBR: catastrophe
                       wrong answer
onset of a text that   a share of the token      a share of the token  where it should have ended: after its
does not end           budget                    budget                first complete answer, see
                                                                       :mod:`kvguard.judging.onsets`
an alarm is in time    before the onset          before the onset      up to 16 tokens after it: the guard
                                                                       rewinds
====================== ========================= ===================== =====================================

v1 is the flawed one of earlier work, v2 the honest one; but v2's onset is a time, so its forecast is a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvguard.guard.columns import FEATURES, FEATURES_V2

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

HEADLINE = "v3"  # the protocol of guards, ablations, transfer and live runs
BEFORE = "v2"  # what it is held against live

_RIGHT = 0.5  # the headline score from which an answer is no failure; most are 0 or 1


def is_failure_v1(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces fail in protocol v1's sense (catastrophe or wrong answer): the CFR. [T]"""
    wrong = traces["correct"].astype("Float64").lt(_RIGHT).fillna(False).to_numpy(dtype=bool)
    return is_failure(traces) | wrong


def is_failure(traces: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which judged traces have a catastrophe: the CBR. [T]"""
    from kvguard.judging.catastrophes import is_catastrophic

    return is_catastrophic(traces)


@dataclass(frozen=True)
class Protocol:
    """One way to train and to judge.

    Attributes
    ----------
    failure
        What the share of failing traces is called.
    about
        What is particular to it, in a sentence or two that begin with its name.
    by_trace
        Whether traces are split, instead of prompts.
    features
        What the hazard model reads, in order.
    n_prompts
        How many prompts count, None for all.
    tune_part
        The part on which everything is chosen.
    failed
        Judged traces -> which failed. [T]
    onset
        The column of judged traces that says where a failure begins; what found it is in ``_by``.
    grace
        Tokens after the onset up to which an alarm is taken to come in time, since the guard rewinds.
    """

    name: str
    failure: str
    about: str
    by_trace: bool
    features: tuple[str, ...]
    n_prompts: int | None
    tune_part: str
    failed: Callable[[pd.DataFrame], NDArray[np.bool_]]
    onset: str
    grace: int

    def select(self, traces: pd.DataFrame) -> pd.DataFrame:
        """Return the traces of the prompts that count, in order; onset and onset_by are the protocol's."""
        traces = traces.assign(onset=traces[self.onset], onset_by=traces[f"{self.onset}_by"])
        if self.n_prompts is None:
            return traces.reset_index(drop=True)
        first = traces.sort_values("trace_id")["prompt_id"].drop_duplicates().iloc[: self.n_prompts]
        return traces[traces["prompt_id"].isin(first)].reset_index(drop=True)


_LOOKING_AHEAD = {"token_position": "token_position_v1"}
_V1_FEATURES = (*(_LOOKING_AHEAD.get(name, name) for name in FEATURES_V2), "rank_of_chosen")

_V1 = (
    "v1 keeps the mistakes of earlier work: a prompt in train and test, a feature that looks ahead, "
    "thresholds picked on the traces that are measured, 50 prompts, wrong answers counted as failures."
)
_V2 = (
    "v2 makes none of them, but lets a text that does not end begin to fail at a fixed share of the token "
    "budget: a clock forecasts that."
)
_V3 = (
    "v3 is v2 with more features and the onset where a failure begins: where the task can tell, after the "
    "first complete answer of a text that runs on. So what it forecasts is no fixed time; an alarm shortly "
    "after the onset is in time, since the guard rewinds."
)

PROTOCOLS: dict[str, Protocol] = {
    "v1": Protocol("v1", "CFR", _V1, True, _V1_FEATURES, 50, "test", is_failure_v1, "proxy_onset", 0),
    "v2": Protocol("v2", "CBR", _V2, False, FEATURES_V2, None, "tune", is_failure, "proxy_onset", 0),
    "v3": Protocol("v3", "CBR", _V3, False, FEATURES, None, "tune", is_failure, "onset", 16),
}
