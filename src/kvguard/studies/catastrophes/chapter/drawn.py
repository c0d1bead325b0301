"""Every figure, from the stored tables of the stages that were run."""

from __future__ import annotations

import pandas as pd

from kvguard.guard.bundle import load_operating_point
from kvguard.store.results import read_results
from kvguard.store.tables import read_table, read_tokens
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter import figures
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline
from kvguard.studies.catastrophes.train.hazards import of_horizon, read_hazards

STATE_MACHINE = layout.PLOTS / "report" / "state-machine.png"


def draw(pipeline: Pipeline) -> None:
    """Draw the figures of each model, and the controller's states."""
    figures.state_machine(STATE_MACHINE)
    for model, other in (pipeline.models, reversed(pipeline.models)):
        title = pipeline.title(model)
        for protocol in pipeline.params.protocols:
            if layout.results("train", model, protocol).is_file():
                _forecasts(model, protocol, title)
                _controllers(model, protocol, pipeline.params.horizon, title)
        for stage, figures_of, heading in (
            ("ablate", figures.ablation_figures, title),
            ("transfer", figures.transfer_figures, f"{title} to {other}"),
        ):
            if layout.results(stage, model).is_file():
                figures_of(_results(stage, model), heading, layout.plots(stage, model))
        if layout.results("certify", model).is_file():
            figures.certified_figures(_results("certify", model), title, layout.plots("certify", model))
        if layout.results("live-validate", model).is_file():
            latency = read_table("results", layout.live(model) / "latency.parquet")
            plots = layout.plots("live-validate", model)
            figures.live_figures(_results("live-validate", model), latency, plots, title)


def _results(stage: str, model: str, protocol: str | None = None) -> pd.DataFrame:
    return read_results([layout.results(stage, model, protocol)])


def _forecasts(model: str, protocol: str, title: str) -> None:
    results = _results("train", model, protocol)
    curve = read_table("curve", layout.scored(model, protocol) / "curve.parquet")
    figures.training_figures(results, curve, title, layout.plots("train", model, protocol))


def _controllers(model: str, protocol: str, horizon: int, title: str) -> None:
    evaluated = layout.evaluated(model, protocol)
    controlled = read_table("controlled", layout.scored(model, protocol) / "controlled.parquet")
    hazards = read_hazards(layout.trained(model, protocol), of_horizon(horizon))
    entropy = read_tokens(layout.generated(model), ["entropy"])
    figures.evaluation_figures(
        _results("evaluate", model, protocol),
        read_table("pareto", evaluated / "pareto.parquet"),
        controlled,
        read_table("traces", layout.traces(model)),
        hazards.merge(entropy, on=["trace_id", "t"], validate="one_to_one"),
        load_operating_point(evaluated, "balanced"),
        title,
        layout.plots("evaluate", model, protocol),
    )
