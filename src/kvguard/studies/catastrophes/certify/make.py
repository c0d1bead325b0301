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
from kvguard.tasks.base import Sample, Task
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


def n_scored(task: Task, prompts: pd.DataFrame) -> int:
    """Count the prompts whose answers the task can score."""
    samples = (Sample.of(row) for _, row in prompts.iterrows())
    return sum(task.score("", sample)[task.headline] is not None for sample in samples)


def guard_of(params: Params, guarded: Guarded) -> GuardOf:
    """Return what a certificate says of a guard.

    Raises
    ------
    KvguardError
        The folder holds no guard, or not this operating point.
    """
    load(guarded.bundle, guarded.point)
    return GuardOf(digest=digest_of(guarded.bundle), point=guarded.point, **params.guard.model_dump())


@dataclass(frozen=True)
class Maker:
    """Makes the judged traces of some settings, where they are missing.

    Attributes
    ----------
    guarded
        With a guard the traces are live generations, without it and with it.
    """

    params: Params
    model: str
    loaded: LoadedModel
    prompts: pd.DataFrame
    guarded: Guarded | None

    def __call__(self, preset: Preset, out: Path) -> pd.DataFrame:
        """Return the judged traces of a preset, kept under ``out``.

        Raises
        ------
        KvguardError
            A prompt does not fit the model or a press, or memory or disk run out.
        """
        if self.guarded is None:
            return read_judged(run_sweep(self._sweep(preset), out).traces)
        made = run_live(self._live(preset, self.guarded), self.loaded, out, stage="recommend")
        return read_judged(made.table, kind="live")

    def price(self, preset: Preset) -> Price | None:
        """Time the guard, if there is one, on some of the prompts."""
        if self.guarded is None:
            return None
        live, results = self._live(preset, self.guarded), Results(STAGE, self.model)
        _, threads = plan_workers(live.sweep.settings, self.loaded, len(self.prompts))
        with cpu_threads(threads):
            measure_latency(results, live, self.loaded, batch_size=_ROWS, n_tokens=_TOKENS, rounds=_ROUNDS)
        found = results.metrics("latency")["latency"]
        return Price(found["overhead"]["share"]["value"], found["restore"]["ms"]["value"])

    def _sweep(self, preset: Preset) -> Sweep:
        return _evenly(plan_sweep(self.params, self.model, self.prompts, preset), self.loaded)

    def _live(self, preset: Preset, guarded: Guarded) -> Live:
        """Return what is run live: every setting watched, and acted on."""
        hazard, point, card = load(guarded.bundle, guarded.point)
        sweep = self._sweep(preset)
        settings = LiveValidateParams.model_validate(
            {
                "n": len(self.prompts),
                "seed": self.params.certify.seed,
                "conditions": tuple(f"{c.compressor}@{c.ratio!r}" for c in sweep.conditions[1:]),
                "actions": (guarded.action,),
                "baselines": (),
                "prompts_per_part": sweep.settings.prompts_per_part,
                "decoding_n": 0,
                "switch_traces": 0,
            }
        )
        words = FeaturizeParams(thinking_words=card.thinking_words)
        return Live(sweep, settings, self.params.guard, words, {"hazard": point}, (hazard,))


def _evenly(sweep: Sweep, loaded: LoadedModel) -> Sweep:
    """Return a sweep cut so that each worker of this machine gets as many parts of prompts as any other."""
    n, size = len(sweep.prompts), sweep.settings.prompts_per_part
    workers, _ = plan_workers(sweep.settings, loaded, n)
    turns = -(-n // (workers * size))
    settings = sweep.settings.model_copy(update={"prompts_per_part": -(-n // (workers * turns))})
    return replace(sweep, settings=settings)
