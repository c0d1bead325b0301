"""When alarms come, counted from the token at which a failure begins, and what is generated in vain."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.judging.catastrophes import DETECTORS, NO_ONSET
from kvguard.stats.bootstrap import count_by, mean_by, quantile, share, sum_by
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.simulate import NEVER, OVERALL
from kvguard.studies.catastrophes.train.labels import Bools
from kvguard.studies.catastrophes.train.metrics import Floats, Ints

CLOSE = 16  # tokens: an alarm no further from the onset is at it
BIN = 8  # tokens
NEVER_BIN = "never"
QUARTILES = {"delay_q25": 0.25, "delay_median": 0.5, "delay_q75": 0.75}


@dataclass(frozen=True)
class Alarms:
    """Traces, simulated or live: where each begins to fail, and where its alarm came.

    Attributes
    ----------
    prompt
        Numbered in the order of their first trace. [T]
    n_tokens
        As generated without alarms, also where a live guard acted. [T]
    onset, kind
        ``NO_ONSET`` and None for none. [T]
    safe_at
        The first token after which the controller is in SAFE, or ``NEVER``. [T]
    """

    prompt: Ints
    n_tokens: Ints
    onset: Ints
    kind: NDArray[Any]
    safe_at: Ints

    def __post_init__(self) -> None:
        assert set(self.kind[self.failing]) <= set(DETECTORS), "every onset is of a known kind"

    @classmethod
    def of(cls, traces: pd.DataFrame, kind: NDArray[Any], safe_at: Ints) -> "Alarms":
        """Gather them from a table with prompt_id, n_tokens and onset (null: none), one row per trace."""
        return cls(
            pd.factorize(traces["prompt_id"])[0],
            traces["n_tokens"].to_numpy(dtype=np.int64),
            traces["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int64),
            kind,
            safe_at,
        )

    @property
    def failing(self) -> Bools:
        """Which traces have an onset. [T]"""
        return self.onset != NO_ONSET

    @property
    def alarmed(self) -> Bools:
        """Which traces have an alarm. [T]"""
        return self.safe_at != NEVER

    @property
    def delay(self) -> Floats:
        """Tokens from the onset to the alarm, negative in advance; NaN without an onset or an alarm. [T]"""
        return np.where(self.failing & self.alarmed, self.safe_at - self.onset, np.nan)

    def by_kind(self) -> dict[str, Bools]:
        """Return the failing traces: all, and those of each kind. {``OVERALL`` or kind: [T]}"""
        kinds = {kind: self.failing & np.equal(self.kind, kind).astype(bool) for kind in DETECTORS}
        return {OVERALL: self.failing, **kinds}


def in_vain(n_tokens: Ints, onset: Ints, safe_at: Ints) -> Ints:
    """Return how many tokens each trace generates from its onset on, up to its alarm or its end. [T]

    The token of the alarm is generated too, so an alarm at the onset costs one; one in advance costs none.
    0 where nothing fails.

    Parameters
    ----------
    n_tokens, onset, safe_at
        See :class:`Alarms`. [T]
    """
    end = np.where(safe_at == NEVER, n_tokens, safe_at + 1)
    return np.where(onset == NO_ONSET, 0, np.maximum(end - onset, 0))


def delay_metrics(weights: Floats, alarms: Alarms, chosen: Bools) -> dict[str, Floats]:
    """Return how long after the onset the alarm comes. {metric: [R]}

    Quartiles are of the traces that are alarmed at all; shares are of all that are chosen. ``close`` means at
    most ``CLOSE`` tokens before or after; an alarm at the onset counts as ``after_onset``.

    Parameters
    ----------
    weights
        [R, P]
    chosen
        Failing traces. [T]
    """
    prompt, delay, n_prompts = alarms.prompt[chosen], alarms.delay[chosen], weights.shape[1]
    known = ~np.isnan(delay)
    tokens = delay[known].astype(np.int64)
    lowest = int(tokens.min(initial=0))
    counts = count_by(prompt[known], tokens - lowest, n_prompts, int(tokens.max(initial=0)) - lowest + 1)
    return {
        "n_failing": weights @ sum_by(prompt, np.ones(len(prompt)), n_prompts),
        **{name: quantile(weights, counts, q) + lowest for name, q in QUARTILES.items()},
        "close": mean_by(weights, prompt, np.abs(delay) <= CLOSE),
        "after_onset": mean_by(weights, prompt, delay >= 0),
        "never": mean_by(weights, prompt, ~known),
    }


def vain_metrics(weights: Floats, alarms: Alarms, chosen: Bools) -> dict[str, Floats]:
    """Return the tokens generated in vain: the mean of failing traces, the share of all. {metric: [R]}

    The share is of all tokens of all traces, the healthy ones too, as generated without alarms;
    ``_unguarded`` is the same were there no alarm.

    Parameters
    ----------
    weights
        [R, P]
    chosen
        Failing traces. [T]
    """
    n_prompts, prompt = weights.shape[1], alarms.prompt
    whole = sum_by(prompt, alarms.n_tokens, n_prompts)
    found = {}
    for suffix, safe_at in (("", alarms.safe_at), ("_unguarded", np.full(len(prompt), NEVER))):
        tokens = in_vain(alarms.n_tokens, alarms.onset, safe_at)
        part = sum_by(prompt[chosen], tokens[chosen], n_prompts)
        found[f"tokens_in_vain{suffix}"] = mean_by(weights, prompt[chosen], tokens[chosen])
        found[f"share_in_vain{suffix}"] = share(weights, part, whole)
    return found


def delay_bins(alarms: Alarms) -> dict[str, dict[str, int]]:
    """Return how many failing traces have their alarm where: {first of ``BIN`` tokens: {kind: traces}}.

    Bins are counted from the onset, rise without gaps, and end with ``NEVER_BIN``.
    """
    known = np.isfinite(alarms.delay)
    number = np.floor_divide(alarms.delay, BIN)
    bins = np.arange(number[known].min(), number[known].max() + 1) if known.any() else np.zeros(0)
    of_kinds = {kind: of_kind for kind, of_kind in alarms.by_kind().items() if kind != OVERALL}
    rows = {str(int(this * BIN)): number == this for this in bins} | {NEVER_BIN: ~alarms.alarmed}
    return {
        name: {kind: int((here & of_kind).sum()) for kind, of_kind in of_kinds.items()}
        for name, here in rows.items()
    }


def add_alarms(results: Results, name: str, alarms: Alarms, weights: Floats) -> None:
    """Add the tables alarms-NAME and alarm_bins-NAME.

    The first has a subject ``OVERALL`` and one for each kind of catastrophe; the second one for each bin of
    :func:`delay_bins`, the kinds being its metrics.

    Parameters
    ----------
    name
        Of the operating point or policy.
    weights
        Of the prompts in the order of their first trace. [R, P]
    """
    for subject, chosen in alarms.by_kind().items():
        found = delay_metrics(weights, alarms, chosen) | vain_metrics(weights, alarms, chosen)
        results.add_resampled(f"alarms-{name}", subject, found)
    for subject, counts in delay_bins(alarms).items():
        results.add(f"alarm_bins-{name}", subject, counts)
