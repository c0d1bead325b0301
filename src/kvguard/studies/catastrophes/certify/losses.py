"""What compression loses of each prompt, paired with the same prompt uncompressed: 0 or 1, for every setting.

*Added catastrophe*: compressed it fails, uncompressed it does not. *Lost answer*: uncompressed it is right,
compressed it is wrong. A prompt whose uncompressed text fails or is wrong cannot lose, and counts all the
same: the rates are shares of all prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE, Condition
from kvguard.errors import KvguardError
from kvguard.guard.settings import Action
from kvguard.judging.catastrophes import is_catastrophic
from kvguard.studies.catastrophes.live.names import PREFILL, STATIC, UNCOMPRESSED

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

UNGUARDED = Action.NONE.value
_UNGUARDED_LIVE = (UNCOMPRESSED, STATIC)
_BROKEN = ("invalid", "rejected")  # stop reasons of texts that came to nothing
_COST = ("kv_saved", "n_tokens", "n_steps", "n_rewound", "acted")


@dataclass(frozen=True, order=True)
class Setting:
    """A compressor at a ratio, and what its guard does; ``none`` without a guard."""

    compressor: str
    action: str
    ratio: float

    def __str__(self) -> str:
        guard = "" if self.action == UNGUARDED else f" under {self.action}"
        return f"{Condition(self.compressor, self.ratio)}{guard}"

    @property
    def policy(self) -> tuple[str, str]:
        """The compressor and the action: what one sequence of ratios belongs to."""
        return self.compressor, self.action


@dataclass(frozen=True)
class Losses:
    """The losses of every prompt under every setting.

    Attributes
    ----------
    prompt_ids
        [P]
    settings
        Policy by policy, each from mild to severe. [S]
    added
        Added catastrophes. [P, S]
    lost
        Lost answers, NaN where the prompt is not scored. [P, S]
    cost
        kv_saved (share of KV memory, mean over steps), n_tokens, n_steps, n_rewound, acted. [P, S] each
    score
        What a guard thought of the prompt under the setting, NaN where none watched; see
        :func:`kvguard.guard.drift.score`. [P, S]
    """

    prompt_ids: NDArray[Any]
    settings: tuple[Setting, ...]
    added: Bools
    lost: Floats
    cost: dict[str, Floats]
    score: Floats

    @property
    def scored(self) -> Bools:
        """Which prompts are scored. [P]"""
        return np.asarray(~np.isnan(self.lost).any(axis=1), dtype=bool)

    @property
    def policies(self) -> dict[tuple[str, str], list[int]]:
        """The places of each policy's settings, from mild to severe."""
        found: dict[tuple[str, str], list[int]] = {}
        for place, setting in enumerate(self.settings):
            found.setdefault(setting.policy, []).append(place)
        return found

    def of(self, prompts: NDArray[Any]) -> Losses:
        """Return those of some prompts, by places or by a mask."""
        return replace(
            self,
            prompt_ids=self.prompt_ids[prompts],
            added=self.added[prompts],
            lost=self.lost[prompts],
            cost={name: values[prompts] for name, values in self.cost.items()},
            score=self.score[prompts],
        )

    def of_policy(self, compressor: str | None, action: str) -> Losses:
        """Return those of one policy's settings; without a compressor, of all that have the action."""
        return self.only(lambda one: compressor in (None, one.compressor) and one.action == action)

    def only(self, chosen: Callable[[Setting], bool]) -> Losses:
        """Return those of some settings."""
        places = [place for place, setting in enumerate(self.settings) if chosen(setting)]
        return replace(
            self,
            settings=tuple(self.settings[place] for place in places),
            added=self.added[:, places],
            lost=self.lost[:, places],
            cost={name: values[:, places] for name, values in self.cost.items()},
            score=self.score[:, places],
        )


def outcomes_of(traces: pd.DataFrame) -> pd.DataFrame:
    """Return how texts ended and what they cost, of a sweep's judged traces or of a live table.

    A live generation's policy says what its guard does; other triggers, further fits of the hazard, and other
    regimes than compression once are left out. A text that broke off for NaN logits has failed.

    Returns
    -------
    pd.DataFrame
        prompt_id, compressor, ratio, action, failed, correct, score, kv_saved, n_tokens, n_steps, n_rewound,
        acted.
    """
    live = "policy" in traces
    if live:
        kept = traces["policy"].isin([*Action, *_UNGUARDED_LIVE])
        traces = traces[(traces["regime"] == PREFILL) & (traces["fit"] == 1) & kept]
    n_tokens = traces["token_ids"].map(len).to_numpy(dtype=np.float64)
    broken = traces["stop_reason"].isin(_BROKEN).to_numpy()
    found: dict[str, Any] = {
        **{name: traces[name].to_numpy() for name in ("prompt_id", "compressor", "ratio")},
        "action": traces["policy"].where(traces["policy"].isin(list(Action)), UNGUARDED)
        if live
        else UNGUARDED,
        "failed": is_catastrophic(traces) | broken,
        "correct": np.where(broken, 0.0, traces["correct"].astype("float64").to_numpy()),
        "n_tokens": n_tokens,
    }
    if live:
        found |= {
            name: traces[name].to_numpy(dtype=np.float64) for name in ("kv_saved", "n_steps", "n_rewound")
        }
        found["acted"] = (traces["safe_at"] >= 0).to_numpy(dtype=np.float64)
        found["score"] = _scores(traces)
    else:
        found |= {"kv_saved": _saved(traces, n_tokens), "n_steps": n_tokens}
        found |= {"n_rewound": 0.0, "acted": 0.0, "score": np.nan}
    return pd.DataFrame(found)


def losses_of(outcomes: pd.DataFrame) -> Losses:
    """Pair every text with the uncompressed one of its prompt.

    Parameters
    ----------
    outcomes
        See :func:`outcomes_of`.

    Raises
    ------
    KvguardError
        A prompt has no uncompressed text, or not one under each setting.
    """
    bare = outcomes[outcomes["compressor"] == NONE].set_index("prompt_id")
    compressed = outcomes[outcomes["compressor"] != NONE]
    if bare.empty:
        raise KvguardError(
            f"traces: none is uncompressed, and losses are against that: add the compressor `{NONE}`"
        )
    if compressed.empty:
        raise KvguardError("traces: none is compressed: there is nothing to certify: add a compressor")
    _reject_twice(bare.index, "uncompressed")
    settings = _settings(compressed)
    tables: dict[str, Floats] = {}
    for name in ("failed", "correct", "score", *_COST):
        columns = []
        for setting in settings:
            rows = _rows(compressed, setting)
            _reject_twice(rows.index, str(setting))
            _reject_missing(rows.index, bare.index, setting)
            columns.append(rows[name].reindex(bare.index).to_numpy(dtype=np.float64))
        tables[name] = np.stack(columns, axis=1)
    fails, right = bare["failed"].to_numpy(dtype=bool), bare["correct"].to_numpy(dtype=np.float64)
    correct = tables["correct"]
    lost = np.where((right[:, None] >= 0.5) & (correct < 0.5), 1.0, 0.0)
    lost[np.isnan(right)] = np.nan
    lost[np.isnan(correct)] = np.nan
    return Losses(
        prompt_ids=bare.index.to_numpy(),
        settings=settings,
        added=(tables["failed"] > 0) & ~fails[:, None],
        lost=lost,
        cost={name: tables[name] for name in _COST},
        score=_watched(tables["score"], settings),
    )


def _watched(scores: Floats, settings: tuple[Setting, ...]) -> Floats:
    """Return scores, of guarded settings the unguarded ones: so is the text until the guard acts. [P, S]"""
    places = {
        (one.compressor, one.ratio): place for place, one in enumerate(settings) if one.action == UNGUARDED
    }
    return scores[:, [places.get((one.compressor, one.ratio), place) for place, one in enumerate(settings)]]


def _settings(compressed: pd.DataFrame) -> tuple[Setting, ...]:
    """Return the settings, policies in the order of their first text, each from mild to severe."""
    found = [Setting(*row) for row in compressed[["compressor", "action", "ratio"]].itertuples(index=False)]
    unique = list(dict.fromkeys(found))
    order = {
        policy: place for place, policy in reversed(list(enumerate(setting.policy for setting in unique)))
    }
    return tuple(sorted(unique, key=lambda setting: (order[setting.policy], setting.ratio)))


def _rows(compressed: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    chosen = (
        (compressed["compressor"] == setting.compressor)
        & (compressed["action"] == setting.action)
        & (compressed["ratio"] == setting.ratio)
    )
    return compressed[chosen].set_index("prompt_id")


def _reject_twice(prompts: pd.Index[Any], where: str) -> None:
    twice = prompts[prompts.duplicated()]
    if len(twice):
        raise KvguardError(f"traces: prompt {twice[0]} stands twice under {where}: keep each once")


def _reject_missing(prompts: pd.Index[Any], baseline: pd.Index[Any], setting: Setting) -> None:
    missing, stray = baseline.difference(prompts), prompts.difference(baseline)
    if len(stray):
        raise KvguardError(
            f"traces: prompt {stray[0]} has no uncompressed text (`{NONE}`): run the sweep again"
        )
    if len(missing):
        raise KvguardError(f"traces: prompt {missing[0]} has no text under {setting}: run the sweep again")


def _saved(traces: pd.DataFrame, n_tokens: Floats) -> Floats:
    """Return the mean over steps of the share of the uncompressed cache that is not held. [T]

    NaN where a prompt has no uncompressed text.
    """
    from scipy.special import digamma  # slow to import

    kept = traces["n_kept_tokens"].astype("float64")
    none = traces["compressor"] == NONE
    full = traces["prompt_id"].map(kept[none].groupby(traces["prompt_id"][none]).first())
    steps = digamma(full + n_tokens) - digamma(full)  # of 1 / (full + t), summed
    sums = ((full - kept) * steps).to_numpy()
    return np.divide(sums, n_tokens, out=np.zeros(len(sums)), where=n_tokens > 0)


def _scores(live: pd.DataFrame) -> Floats:
    """Return what the guard thought of each text that was watched, NaN of those it acted on. [T]"""
    from kvguard.guard.drift import score

    return np.array(
        [
            score(np.asarray(hazard, dtype=np.float32), int(safe_at)) if len(hazard) else np.nan
            for hazard, safe_at in zip(live["hazard"], live["safe_at"], strict=True)
        ]
    )
