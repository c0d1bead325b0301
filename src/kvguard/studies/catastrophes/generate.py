"""From settings to the sweep that a command or a stage runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from kvguard.studies.catastrophes.params import Params
    from kvguard.sweep.plan import Sweep
    from kvguard.sweep.settings import Preset


def draw_prompts(params: Params, model: str, n: int | None = None) -> pd.DataFrame:
    """Sample the prompts of the model's task: ``n`` of them, or as many as the settings say."""
    return params.task(model).prompts(n or params.sample.n, params.seed)


def plan_sweep(params: Params, model: str, prompts: pd.DataFrame, preset: Preset | None = None) -> Sweep:
    """Plan the sweep of ``model`` over ``prompts`` and the preset, by default the one that generate names."""
    from kvguard.sweep.plan import Sweep
    from kvguard.sweep.settings import conditions

    return Sweep(
        name=model,
        spec=params.spec(model),
        task=params.task(model),
        prompts=prompts,
        conditions=conditions(preset or params.preset),
        compressors=params.compressors,
        settings=params.generate,
        catastrophes=params.catastrophes,
        device=params.device,
    )
