"""The ``certify`` stage: whether certificates hold on this run, and what a guard adds to what they allow.

====================== ===================================================================================
table                  holds
====================== ===================================================================================
coverage               violations over random splits of the sweep's prompts, by compressor, guard and alpha
saving                 memory saving certified at each alpha, by compressor and guard, of prompts that the
                       hazard model was not fitted on; saving-live: of the live guard's fresh prompts
fresh                  certified on half of the live guard's fresh prompts, checked on the others
====================== ===================================================================================

Subjects are ``compressor/guard/alpha`` with the guard ``none`` or ``simulated``; ``all`` compressors are one
family. The simulated guard is the balanced operating point on recorded traces; it takes a text that is
switched in time to end as the uncompressed one, right answer and all. What it does to the prompts that its
hazard model was fitted on is too good: they count for coverage, which holds for any policy, not for savings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kvguard.guard.bundle import load_operating_point
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.judge import read_judged
from kvguard.stats.binomial import rate
from kvguard.store.results import Results
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.certify.coverage import Splits, breaks, coverage
from kvguard.studies.catastrophes.certify.losses import Losses, losses_of, outcomes_of
from kvguard.studies.catastrophes.certify.recommend import Limits, certified_by, lost_of
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.params import CertifyParams, Params
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.studies.catastrophes.train.splits import part_of_traces, read_split

STAGE = "certify"
SIMULATED, ALL = "simulated", "all"
_ALPHAS = tuple(round(0.01 * step, 2) for step in range(1, 31))  # of the figure
_POINT = "balanced"


@dataclass(frozen=True)
class Recorded:
    """What the stage reads of the sweep.

    Attributes
    ----------
    losses
        Of every prompt, without a guard and with the simulated one.
    unfitted
        Which prompts the hazard model was not fitted on. [P]
    """

    losses: Losses
    unfitted: np.ndarray


def certify(params: Params, model: str) -> Results:
    """Fill the tables coverage, saving and fresh."""
    settings, results = params.certify, Results(STAGE, model)
    swept = read_recorded(model)
    add_coverage(results, swept.losses, settings, params.seed)
    add_saving(results, swept.losses.of(swept.unfitted), settings)
    live = read_judged(layout.live(model) / "live.parquet", kind="live")
    fresh = losses_of(outcomes_of(live))
    add_saving(results, fresh, settings, "saving-live")
    add_fresh(results, fresh, settings, params.seed)
    return results


def read_recorded(model: str) -> Recorded:
    """Read the sweep's traces and simulate the guard on them."""
    rules = PROTOCOLS[HEADLINE]
    trained = layout.trained(model, HEADLINE)
    traces = rules.select(read_judged(layout.traces(model)))
    split = read_split(rules, trained)
    known = recorded(traces, rules)
    hazard_model = HazardModel.load(trained)
    rows = load_rows(layout.features(model), hazard_model.features, known)
    replay = Replay.of(known, rows, hazard_model.predict(rows.features)).compressed
    point = load_operating_point(layout.evaluated(model, HEADLINE), _POINT)
    outcomes = pd.concat([outcomes_of(traces), simulated_outcomes(replay, point)], ignore_index=True)
    losses = losses_of(outcomes)
    part = pd.Series(part_of_traces(traces, split), index=traces["prompt_id"]).groupby(level=0).first()
    return Recorded(losses, part.loc[losses.prompt_ids].to_numpy() != "train")


def simulated_outcomes(replay: Replay, point: ControllerParams) -> pd.DataFrame:
    """Return what a simulated guard makes of recorded compressed traces; see :func:`.losses.outcomes_of`."""
    controlled, n_tokens = replay.run(point), replay.traces["n_tokens"].to_numpy(dtype=np.float64)
    return pd.DataFrame(
        {
            **{name: controlled[name] for name in ("prompt_id", "compressor", "ratio")},
            "action": SIMULATED,
            "failed": controlled["failed_controlled"],
            "correct": controlled["correct_controlled"],
            "score": np.nan,
            "kv_saved": controlled["kv_saved_controlled"],
            "n_tokens": n_tokens,
            "n_steps": n_tokens,
            "n_rewound": 0.0,
            "acted": (controlled["safe_at"] >= 0).astype(np.float64),
        }
    )


def add_coverage(results: Results, losses: Losses, settings: CertifyParams, seed: int) -> None:
    """Add the table coverage: every compressor by itself, and all together."""
    splits = Splits.draw(len(losses.prompt_ids), settings.calibration, settings.n_splits, seed)
    drawn = splits.drawn(seed)
    for subject, chosen in _subjects(losses):
        for alpha in settings.alphas:
            limits = Limits(alpha, _max_lost(losses, settings), settings.confidence)
            results.add("coverage", f"{subject}/{alpha:g}", coverage(chosen, limits, splits, drawn))


def add_saving(results: Results, losses: Losses, settings: CertifyParams, table: str = "saving") -> None:
    """Add the table saving: what all of the prompts certify, each policy by itself."""
    everyone = np.ones((1, len(losses.prompt_ids)))
    for subject, chosen in _subjects(losses):
        saved = chosen.cost["kv_saved"].mean(axis=0)
        for alpha in dict.fromkeys(sorted((*_ALPHAS, *settings.alphas))):
            limits = Limits(alpha, _max_lost(losses, settings), settings.confidence)
            certified = certified_by(everyone, chosen, limits)[0]
            best = int(np.where(certified, saved, -1.0).argmax()) if certified.any() else None
            results.add(
                table,
                f"{subject}/{alpha:g}",
                {
                    "n": len(losses.prompt_ids),
                    "kv_saved": float(saved[best]) if best is not None else 0.0,
                    "ratio": chosen.settings[best].ratio if best is not None else None,
                },
            )


def add_fresh(results: Results, losses: Losses, settings: CertifyParams, seed: int) -> None:
    """Add the table fresh: every live policy by itself, ``compressor/action/alpha``.

    Parameters
    ----------
    losses
        Of live generations.
    """
    n = len(losses.prompt_ids)
    once = Splits.draw(n, settings.calibration, 1, seed)
    held = once.held_out[0].astype(bool)
    for policy, places in losses.policies.items():
        chosen = losses.of_policy(*policy)
        for alpha in settings.alphas:
            limits = Limits(alpha, _max_lost(losses, settings), settings.confidence)
            certified = certified_by(once.calibration, chosen, limits)[0]
            found: dict[str, Any] = {
                "n_calibration": int((~held).sum()),
                "n_held_out": int(held.sum()),
                "certified": int(certified.sum()),
                "tested": len(places),
            }
            if certified.any():
                best = int(np.flatnonzero(certified)[-1])
                one = chosen.of(held)
                found |= {
                    "ratio": chosen.settings[best].ratio,
                    "kv_saved": float(chosen.cost["kv_saved"][:, best].mean()),
                    "added": rate(int(one.added[:, best].sum()), int(held.sum())),
                    "broken": int((certified & breaks(once.held_out, chosen, limits)[0]).any()),
                }
                if limits.max_lost_answers is not None:
                    scored = one.scored
                    found["lost"] = rate(int(lost_of(one)[:, best].sum()), int(scored.sum()))
            results.add("fresh", f"{'/'.join(policy)}/{alpha:g}", found)


def headline(results: Results) -> dict[str, Any]:
    """Return what the metrics file holds: coverage, the live check, and savings at the alphas of coverage.

    Returns
    -------
    dict
        {table: {compressor: {guard: {alpha: {metric: number}}}}}
    """
    found = results.metrics("coverage", "saving", "fresh")
    told: dict[str, Any] = {}
    for table, subjects in found.items():
        for subject, numbers in subjects.items():
            if table != "saving" or subject in found["coverage"]:
                compressor, guard, alpha = subject.split("/")
                told.setdefault(table, {}).setdefault(compressor, {}).setdefault(guard, {})[alpha] = numbers
    return told


def _subjects(losses: Losses) -> list[tuple[str, Losses]]:
    """Return each policy by itself, then those of all compressors together, without and with the guard."""
    found = [(f"{name}/{guard}", losses.of_policy(name, guard)) for name, guard in losses.policies]
    guards = dict.fromkeys(guard for _, guard in losses.policies)
    for guard in guards:
        found.append((f"{ALL}/{guard}", losses.of_policy(None, guard)))
    return found


def _max_lost(losses: Losses, settings: CertifyParams) -> float | None:
    """Return the limit on lost answers, None where no answer is scored."""
    return settings.max_lost_answers if losses.scored.any() else None
