"""Variants of the hazard model against the model itself, on the same test prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvguard.guard.controller import ControllerParams
from kvguard.stats.bootstrap import Floats, resample_weights
from kvguard.store.results import Results
from kvguard.studies.catastrophes.evaluate.simulate import NEVER, Replay, safe_from, simulate
from kvguard.studies.catastrophes.forecasts import control_values, minus, with_threshold
from kvguard.studies.catastrophes.params import AblateParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.score.controllers import replay_test
from kvguard.studies.catastrophes.score.hazards import rows_of
from kvguard.studies.catastrophes.train.matched import pre_onset_matched
from kvguard.studies.catastrophes.train.metrics import Measured, pre_onset_ranking
from kvguard.studies.catastrophes.variants import OTHER, OWN, RISK_SCORE, Variant


@dataclass(frozen=True)
class Bench:
    """The test prompts of a model, and what its hazard model does there.

    Attributes
    ----------
    traces, split
        Judged traces, and the parts of their prompts.
    horizon
        The H of the labels.
    n_resamples, seed
        Of prompts.
    """

    traces: pd.DataFrame
    split: pd.DataFrame
    horizon: int
    n_resamples: int
    seed: int

    def replay(self, hazards: pd.DataFrame) -> Replay:
        """Return the compressed test traces under a ``hazards`` table of their tokens."""
        return replay_test(hazards, self.traces, self.split, PROTOCOLS[HEADLINE], self.horizon).compressed

    def control(self, per_trace: pd.DataFrame) -> dict[str, Floats]:
        """Return what a controller did to the compressed test traces, for every resample."""
        weights = resample_weights(per_trace["prompt_id"].nunique(), self.n_resamples, self.seed)
        return control_values(weights, per_trace)

    def whole(self, variant: Variant) -> dict[str, Floats]:
        """Return how a variant ranks tokens, and what the controller does by it, for every resample."""
        tested = Measured.of(self.traces, rows_of(variant.hazards, self.traces, self.horizon))
        weights = resample_weights(tested.n_prompts, self.n_resamples, self.seed)
        hazard = variant.hazards["hazard"].to_numpy()
        return {
            **pre_onset_ranking(weights, tested, hazard),
            **pre_onset_matched(weights, tested, hazard),
            **self.control(self.replay(variant.hazards).run(variant.setting)),
        }


def ablation_results(
    model: str,
    bench: Bench,
    variants: Mapping[str, Variant],
    hazards: pd.DataFrame,
    point: ControllerParams,
    params: AblateParams,
) -> Results:
    """Fill the tables features, controllers, hysteresis and thresholds: test prompts, headline protocol.

    Parameters
    ----------
    variants
        See :func:`kvguard.studies.catastrophes.ablate.ablate`.
    hazards, point
        What the hazard model forecasts for test tokens, and the balanced operating point.
    """
    results = Results("ablate", model)
    found = {name: bench.whole(variant) for name, variant in variants.items() if name != RISK_SCORE}
    for name, values in found.items():
        results.add_resampled("features", name, minus(values, found["full"], "full"))
    test = bench.replay(hazards)
    by_hazard = test.run(point)
    balanced = bench.control(by_hazard)
    risk = variants[RISK_SCORE]
    at_once = safe_from(np.zeros(len(test.hazard), dtype=np.int64), test.hazard.shape[1])
    for name, values in {
        "hazard": balanced,
        "always_safe": bench.control(simulate(test.traces, at_once)),
        "random": _random(bench, test, by_hazard["safe_at"].to_numpy(), params.n_random),
        "risk_score": bench.control(bench.replay(risk.hazards).run(risk.setting)),
    }.items():
        results.add_resampled("controllers", name, minus(values, balanced, "hazard"))
    for k in params.hysteresis:
        setting = point.model_copy(update={"k_escalate": k})
        results.add_resampled("hysteresis", str(k), bench.control(test.run(setting)))
    for tau in params.thresholds:
        values = bench.control(test.run(with_threshold(point, tau)))
        results.add_resampled("thresholds", f"{tau:g}", values)
    return results


def transfer_results(source: str, target: str, bench: Bench, variants: Mapping[str, Variant]) -> Results:
    """Fill the table transfer: the source's hazard model and the target's own on the target's test prompts.

    Parameters
    ----------
    bench
        Of the target.
    variants
        See :func:`kvguard.studies.catastrophes.transfer.transfer`.
    """
    results = Results("transfer", source)
    own, other = (bench.whole(variants[name]) for name in (OWN, OTHER))
    results.add_resampled("transfer", f"{target}->{target}", own)
    results.add_resampled("transfer", f"{source}->{target}", minus(other, own, "in_domain"))
    return results


def _random(bench: Bench, test: Replay, safe_at: np.ndarray, n_draws: int) -> dict[str, Floats]:
    """Return the mean over draws of a predictor that fires as often, and as late, but at random traces.

    Each draw deals the hazard's moments of SAFE out anew among the traces; one that falls behind the end
    of its trace is moved to the trace's last token.
    """
    rng = np.random.default_rng(bench.seed)
    last = test.traces["n_tokens"].to_numpy() - 1
    total: dict[str, Floats] = {}
    for _ in range(n_draws):
        dealt = rng.permutation(safe_at)
        dealt = np.where(dealt == NEVER, NEVER, np.minimum(dealt, last))
        values = bench.control(simulate(test.traces, safe_from(dealt, test.hazard.shape[1])))
        total = {name: total.get(name, 0.0) + value / n_draws for name, value in values.items()}
    return total
