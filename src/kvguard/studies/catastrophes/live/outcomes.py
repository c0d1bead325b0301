"""What each policy did to the same prompts under the same conditions, paired by prompt.

An arm is a policy's outcomes, one for every (prompt, condition) of a regime in one fixed order; the
uncompressed outcome of a prompt stands once under each condition. A prompt with a generation that broke off
for NaN logits, or was rejected, is left out of every arm.

What is compared with ``rollback`` is compared with ``rollback_fits``: rollback by every fit of the hazard.
Its value is the mean over them, and each resample of the prompts draws one of them, so that an interval is
one over prompts and fits. With one fit there is no such arm, and the intervals are over prompts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import Condition
from kvguard.judging.catastrophes import DETECTORS, NO_ONSET, is_catastrophic
from kvguard.stats.bootstrap import Floats, mean_by, resample_weights, share, sum_by
from kvguard.store.results import Results
from kvguard.studies.catastrophes.live.names import (
    BY_TRIGGER,
    ROLLBACK,
    STATIC,
    STOP_AT_ANSWER,
    UNCOMPRESSED,
)

ORACLE, MIXED, ALWAYS_SAFE, FITS = "oracle", "mixed", "always_safe", "rollback_fits"
_MIXTURES: dict[str, str] = {STATIC: MIXED, **{trigger: f"mixed_{trigger}" for trigger in BY_TRIGGER}}
_RATES = {
    "cbr": "failed",
    **{kind: kind for kind in DETECTORS},
    "accuracy": "correct",
    "accuracy_last": "correct_last",
    "kv_saved": "kv_saved",
}
_NUMBERS = ("kv_saved", "safe_at", "n_steps", "n_restores", "n_rewinds", "n_rewound")
_DIFFERENCES = ("cbr", "accuracy", "kv_saved")
_KEY = ["prompt_id", "compressor", "ratio"]

Arm = dict[str, NDArray[Any]]
Values = dict[str, Floats]


@dataclass(frozen=True)
class Arms:
    """The arms of one regime.

    Attributes
    ----------
    cases
        trace_id, onset and onset_by (of the static trace), prompt_id, compressor, ratio. [T]
    cluster
        The prompt of each case, as a number. [T]
    by_policy
        failed, each kind of catastrophe, correct and correct_last (by the first answer and the last, NaN: not
        scored), kv_saved, safe, safe_at, n_tokens, n_steps, n_restores, n_rewinds, n_rewound; same: whether
        the tokens are those of static, NaN where the trace saw SAFE. [T] each
    fits
        Rollback by every fit of the hazard, the first too; empty where there is one.
    """

    cases: pd.DataFrame
    cluster: NDArray[np.int64]
    n_prompts: int
    by_policy: Mapping[str, Arm]
    fits: Sequence[Arm]

    @property
    def conditions(self) -> list[Condition]:
        """The conditions in the order of their first case."""
        pairs = self.cases[["compressor", "ratio"]].drop_duplicates().itertuples(index=False, name=None)
        return [Condition(name, ratio) for name, ratio in pairs]

    def weights(self, n_resamples: int, seed: int) -> Floats:
        """Return the prompts' resample weights. [1 + n, P]"""
        return resample_weights(self.n_prompts, n_resamples, seed)

    def only(self, condition: Condition) -> Arms:
        """Return the cases of one condition; prompts keep their numbers."""
        of = self.cases["compressor"] == condition.compressor
        chosen = (of & (self.cases["ratio"] == condition.ratio)).to_numpy()

        def cut(arm: Arm) -> Arm:
            return {name: values[chosen] for name, values in arm.items()}

        return replace(
            self,
            cases=self.cases[chosen].reset_index(drop=True),
            cluster=self.cluster[chosen],
            by_policy={policy: cut(arm) for policy, arm in self.by_policy.items()},
            fits=[cut(arm) for arm in self.fits],
        )


def sound(live: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of prompts that have no broken or rejected generation."""
    broken = live["prompt_id"][live["error"].notna()].unique()
    return live[~live["prompt_id"].isin(broken)]


def arms_of(live: pd.DataFrame, regime: str) -> Arms:
    """Return the arms of a regime, the oracle and always-safe among them.

    Parameters
    ----------
    live
        A live table, see :func:`sound`.
    """
    here = live[(live["regime"] == regime) & (live["policy"] != UNCOMPRESSED)]
    static = here[here["policy"] == STATIC].sort_values("trace_id", ignore_index=True)
    cases = static[["trace_id", *_KEY, "onset", "onset_by"]]
    keys = pd.MultiIndex.from_frame(static[_KEY])
    found = {
        policy: rows.set_index(_KEY).loc[keys].reset_index()
        for policy, rows in here[here["fit"] == 1].groupby("policy", sort=False)
    }
    repeats = [
        _arm(rows.set_index(_KEY).loc[keys].reset_index(), static)
        for _, rows in here[here["fit"] > 1].groupby("fit")
    ]
    none = live[live["policy"] == UNCOMPRESSED].set_index("prompt_id")
    found[UNCOMPRESSED] = none.loc[static["prompt_id"]].reset_index()
    arms = {policy: _arm(rows, static) for policy, rows in found.items()}
    arms[ALWAYS_SAFE] = arms[UNCOMPRESSED] | {"safe": np.ones(len(cases), dtype=bool)}
    arms[ORACLE] = _oracle(static, found[UNCOMPRESSED], arms[STATIC], arms[UNCOMPRESSED])
    cluster, prompts = pd.factorize(cases["prompt_id"])
    return Arms(cases, cluster, len(prompts), arms, [arms[ROLLBACK], *repeats] if repeats else [])


def _arm(rows: pd.DataFrame, static: pd.DataFrame) -> Arm:
    safe = rows["safe_at"].to_numpy() >= 0
    equal = [np.array_equal(a, b) for a, b in zip(rows["token_ids"], static["token_ids"], strict=True)]
    return {
        "failed": is_catastrophic(rows),
        **{kind: _has(rows, kind) for kind in DETECTORS},
        "correct": rows["correct"].astype("float64").to_numpy(),
        "correct_last": _score(rows, "accuracy_last"),
        "safe": safe,
        "n_tokens": rows["token_ids"].map(len).to_numpy(dtype=np.int64),
        "same": np.where(safe, np.nan, np.array(equal, dtype=np.float64)),
        **{name: rows[name].to_numpy() for name in _NUMBERS},
    }


def _score(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a score of the task, NaN where it has no such score. [T]"""
    return rows[name].to_numpy(dtype=np.float64) if name in rows else np.full(len(rows), np.nan)


def _has(rows: pd.DataFrame, kind: str) -> NDArray[np.bool_]:
    return rows["catastrophes"].map(lambda found: kind in found).to_numpy(dtype=bool)


def _oracle(rows: pd.DataFrame, none: pd.DataFrame, static: Arm, uncompressed: Arm) -> Arm:
    """Return what is reached by restoring exactly the failing traces, each at its onset.

    They are taken to end as the uncompressed ones do, and to hold the full cache from the onset to the end
    of their recordings.

    Parameters
    ----------
    rows, none
        The static rows, and the uncompressed ones of the same prompts.
    """
    lengths, forgotten = _sliding(none)
    failed = static["failed"]
    onset = np.where(failed, rows["onset"].fillna(NO_ONSET).to_numpy(dtype=np.int64), static["n_tokens"])
    saved = []
    for held, n_prompt, n in zip(rows["kv_tokens"], rows["n_prompt_tokens"], onset, strict=True):
        fed = n_prompt + np.arange(n)
        full = fed - np.interp(fed, lengths, forgotten)
        saved.append((1 - held[:n] / full).sum() / max(len(held), 1))
    names = ("failed", *DETECTORS, "correct", "correct_last")
    ends = {name: np.where(failed, uncompressed[name], static[name]) for name in names}
    none = np.zeros(len(rows), dtype=np.int64)
    return {
        **static,
        **ends,
        "safe": failed,
        "safe_at": np.where(failed, onset - 1, -1),
        "same": np.full(len(rows), np.nan),
        "kv_saved": np.array(saved),
        "n_steps": static["n_tokens"],
        "n_restores": failed.astype(np.int64),
        "n_rewinds": none,
        "n_rewound": none,
    }


def _sliding(none: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return lengths, and how many entries of so many tokens an uncompressed model does not hold. [N], [N]"""
    held = np.concatenate([np.zeros(1), *none["kv_tokens"]])
    fed = [
        n_prompt + np.arange(len(row))
        for n_prompt, row in zip(none["n_prompt_tokens"], none["kv_tokens"], strict=True)
    ]
    lengths, first = np.unique(np.concatenate([np.zeros(1), *fed]), return_index=True)
    return lengths, lengths - held[first]


def add_policies(results: Results, arms: Arms, regime: str, weights: Floats, seed: int) -> None:
    """Add the table ``policies-REGIME``: every policy over all conditions, then under each."""
    drawn = np.random.default_rng([seed, len(arms.fits)]).integers(len(arms.fits) or 1, size=len(weights))
    for subset, suffix in [(arms, ""), *((arms.only(c), f"/{c}") for c in arms.conditions)]:
        for policy, values in policy_values(subset, weights, drawn).items():
            results.add_resampled(f"policies-{regime}", f"{policy}{suffix}", values)


def policy_values(arms: Arms, weights: Floats, drawn: NDArray[np.integer]) -> dict[str, Values]:
    """Return the metrics of every policy for every resample. {policy: {metric: [R]}}

    ``mixed`` is a share of traces never compressed and the others static, drawn by lot, at rollback's memory;
    ``mixed_TRIGGER`` is the same with that trigger on the others. One that saves less than rollback by itself
    stays as it is.

    Parameters
    ----------
    drawn
        The fit of the hazard, counted from 0, that each resample takes. [R]
    """
    static = arms.by_policy[STATIC]
    found = {policy: _rates(weights, arms.cluster, arm, static) for policy, arm in arms.by_policy.items()}
    if arms.fits:
        fits = [_rates(weights, arms.cluster, arm, static) for arm in arms.fits]
        found[FITS] = {name: _over_fits([values[name] for values in fits], drawn) for name in fits[0]}
    rollback = FITS if arms.fits else ROLLBACK
    if rollback in found:
        saved = found[rollback]["kv_saved"]
        mixed = {
            name: _mixed(found[policy], found[UNCOMPRESSED], saved)
            for policy, name in _MIXTURES.items()
            if policy in found
        }
        found |= mixed
    references = {
        STATIC: STATIC,
        UNCOMPRESSED: UNCOMPRESSED,
        ROLLBACK: rollback,
        STOP_AT_ANSWER: STOP_AT_ANSWER,
    }
    return {
        policy: {
            **values,
            "residual_cbr": _residual("cbr", values, found),
            "residual_accuracy": _residual("accuracy", values, found),
            "residual_accuracy_last": _residual("accuracy_last", values, found),
            **{
                f"{metric}_minus_{name}": values[metric] - found[reference][metric]
                for name, reference in references.items()
                if reference in found and policy not in (name, reference)
                for metric in _DIFFERENCES
            },
        }
        for policy, values in found.items()
    }


def _rates(weights: Floats, cluster: NDArray[np.int64], arm: Arm, static: Arm) -> Values:
    n = weights.shape[1]

    def total(values: NDArray[Any]) -> Floats:
        return sum_by(cluster, values, n)

    healthy = ~static["failed"]
    return {
        **{metric: mean_by(weights, cluster, arm[name]) for metric, name in _RATES.items()},
        "safe_rate": mean_by(weights, cluster, arm["safe"]),
        "false_alarm_rate": share(weights, total(arm["safe"] & healthy), total(healthy)),
        "healthy_saving_kept": share(
            weights, total(arm["kv_saved"] * healthy), total(static["kv_saved"] * healthy)
        ),
        "saving_kept": share(weights, total(arm["kv_saved"]), total(static["kv_saved"])),
        **{name: mean_by(weights, cluster, arm[name]) for name in ("n_restores", "n_rewinds", "n_rewound")},
        "steps_ratio": share(weights, total(arm["n_steps"]), total(arm["n_tokens"])),
        "unchanged": mean_by(weights, cluster, arm["same"]),
    }


def _over_fits(values: Sequence[Floats], drawn: NDArray[np.integer]) -> Floats:
    """Return the mean over fits, then for each resample the value of the fit that it draws. [R]"""
    by_fit = np.stack(values)  # [F, R]
    found = by_fit[drawn, np.arange(len(drawn))]
    found[0] = by_fit[:, 0].mean()
    return found


def _mixed(policy: Values, uncompressed: Values, kv_saved: Floats) -> Values:
    """Return the mean of both ends at which as much memory is saved as ``kv_saved``. [R]"""
    kept = _ratio(kv_saved, policy["kv_saved"]).clip(0, 1)
    return {name: kept * policy[name] + (1 - kept) * uncompressed[name] for name in _RATES}


def _residual(metric: str, values: Values, found: Mapping[str, Values]) -> Floats:
    """Return how much of compression's effect on a metric is left: 0 as uncompressed, 1 as static. [R]"""
    none = found[UNCOMPRESSED][metric]
    return _ratio(values[metric] - none, found[STATIC][metric] - none)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
