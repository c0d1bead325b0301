"""The ``intervals`` stage: every interval of what ``ablate``, ``transfer`` and ``live-validate`` made."""

from __future__ import annotations

from kvguard.guard.bundle import load_operating_point
from kvguard.judging.judge import read_judged
from kvguard.store.results import Results
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.intervals.variants import Bench, ablation_results, transfer_results
from kvguard.studies.catastrophes.live.results import live_results
from kvguard.studies.catastrophes.params import Params
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.hazards import of_horizon, read_hazards
from kvguard.studies.catastrophes.train.splits import read_split
from kvguard.studies.catastrophes.variants import read_variants


def measure_intervals(model: str, target: str, params: Params) -> list[Results]:
    """Measure what the stages made of ``model``, and of its hazard model's transfer to ``target``."""
    horizon, n_resamples, seed = params.horizon, params.n_resamples, params.seed

    def bench(of: str) -> Bench:
        split = read_split(PROTOCOLS[HEADLINE], layout.trained(of, HEADLINE))
        return Bench(
            PROTOCOLS[HEADLINE].select(read_judged(layout.traces(of))), split, horizon, n_resamples, seed
        )

    hazards = read_hazards(layout.trained(model, HEADLINE), of_horizon(horizon))
    evaluated = layout.evaluated(model, HEADLINE)
    ablated = ablation_results(
        model,
        bench(model),
        read_variants(layout.compared("ablate", model)),
        hazards,
        load_operating_point(evaluated, "balanced"),
        params.ablate,
    )
    carried = read_variants(layout.compared("transfer", model))
    live = live_results(
        model,
        read_judged(layout.live(model) / "live.parquet", kind="live"),
        load_operating_point(evaluated, params.live_point),
        params.switch_offsets,
        n_resamples,
        seed,
    )
    return [ablated, transfer_results(model, target, bench(target), carried), live]
