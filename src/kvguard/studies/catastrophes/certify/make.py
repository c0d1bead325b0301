"""The traces that a recommendation rests on: every calibration prompt under every setting, resumable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvguard.errors import KvguardError
from kvguard.guard.bundle import digest_of, load
from kvguard.guard.certificate import GuardOf
from kvguard.judging.judge import read_judged
from kvguard.store.results import Results
from kvguard.studies.catastrophes.generate import plan_sweep
from kvguard.studies.catastrophes.live.latency import measure_latency
from kvguard.studies.catastrophes.live.names import STAGE
from kvguard.studies.catastrophes.live.plan import Live
from kvguard.studies.catastrophes.live.stage import run_live
from kvguard.studies.catastrophes.params import FeaturizeParams, LiveValidateParams, Params
from kvguard.sweep.plan import Sweep, plan_workers
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import Preset
from kvguard.sweep.workers import cpu_threads
from kvguard.tasks.own import OwnPrompts

if TYPE_CHECKING:
    import pandas as pd

    from kvguard.models.load import LoadedModel

_ROWS, _TOKENS, _ROUNDS = 32, 32, 3  # of the timing


@dataclass(frozen=True)
class Guarded:
    """A guard in a folder, and what it does."""

    bundle: Path
    action: str
    point: str


@dataclass(frozen=True)
class Price:
    """What a guard costs in time.

    Attributes
    ----------
    per_token
        The share by which decoding takes longer while it only watches.
    restore_ms
        Milliseconds that one restore takes.
    """

    per_token: float
    restore_ms: float


def calibration_prompts(params: Params, model: str, n: int) -> pd.DataFrame:
    """Draw prompts of the model's task: a user's own, or some that no guard was trained on.

    Raises
    ------
    KvguardError
        The task has not so many.
    """
    task = params.task(model)
    if isinstance(task, OwnPrompts):
        return task.prompts(n, params.seed)
    trained = task.prompts(params.sample.n, params.seed)["question"]
    try:
        drawn = task.prompts(n + len(trained), params.certify.seed)
    except KvguardError as error:
        raise KvguardError(
            f"{error} ({len(trained)} of them are kept for training guards, sample.n)"
        ) from None
    return drawn[~drawn["question"].isin(trained)].iloc[:n].reset_index(drop=True)


def make_traces(
    params: Params, model: str, loaded: LoadedModel, prompts: pd.DataFrame, preset: Preset, out: Path
) -> pd.DataFrame:
    """Return the judged traces of a sweep under ``out``, made where they are missing."""
    sweep = _evenly(plan_sweep(params, model, prompts, preset), loaded)
    return read_judged(run_sweep(sweep, out).traces)


def make_guarded(live: Live, loaded: LoadedModel, out: Path) -> pd.DataFrame:
    """Return live generations under ``out``, without and with the guard, made where they are missing."""
    return read_judged(run_live(live, loaded, out, stage="recommend").table, kind="live")


def live_of(
    params: Params, model: str, loaded: LoadedModel, prompts: pd.DataFrame, preset: Preset, guarded: Guarded
) -> Live:
    """Return what is run live: every setting watched, and acted on.

    Raises
    ------
    KvguardError
        The folder holds no guard.
    """
    hazard, point, card = load(guarded.bundle, guarded.point)
    sweep = _evenly(plan_sweep(params, model, prompts, preset), loaded)
    settings = LiveValidateParams(
        n=len(prompts),
        seed=params.certify.seed,
        conditions=tuple(f"{c.compressor}@{c.ratio!r}" for c in sweep.conditions[1:]),
        actions=(guarded.action,),  # type: ignore[arg-type]  # checked there
        baselines=(),
        prompts_per_part=sweep.settings.prompts_per_part,
        decoding_n=0,
        switch_traces=0,
    )
    words = FeaturizeParams(thinking_words=card.thinking_words)
    return Live(sweep, settings, params.guard, words, {"hazard": point}, (hazard,))


def guard_of(params: Params, guarded: Guarded) -> GuardOf:
    """Return what a certificate says of a guard.

    Raises
    ------
    KvguardError
        The folder holds no guard, or not this operating point.
    """
    load(guarded.bundle, guarded.point)
    return GuardOf(
        digest=digest_of(guarded.bundle),
        point=guarded.point,
        max_rewinds=params.guard.max_rewinds,
        resume=params.guard.resume,
    )


def price_of(live: Live, loaded: LoadedModel) -> Price:
    """Time the guard on some of the prompts."""
    results = Results(STAGE, live.name)
    _, threads = plan_workers(live.sweep.settings, loaded, len(live.sweep.prompts))
    with cpu_threads(threads):
        measure_latency(results, live, loaded, batch_size=_ROWS, n_tokens=_TOKENS, rounds=_ROUNDS)
    found = results.metrics("latency")["latency"]
    return Price(found["overhead"]["share"]["value"], found["restore"]["ms"]["value"])


def _evenly(sweep: Sweep, loaded: LoadedModel) -> Sweep:
    """Return a sweep cut so that each worker of this machine gets as many parts of prompts as any other."""
    n, size = len(sweep.prompts), sweep.settings.prompts_per_part
    workers, _ = plan_workers(sweep.settings, loaded, n)
    turns = -(-n // (workers * size))
    settings = sweep.settings.model_copy(update={"prompts_per_part": -(-n // (workers * turns))})
    return replace(sweep, settings=settings)
