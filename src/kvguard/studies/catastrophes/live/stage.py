"""The ``live-validate`` stage: run every policy on fresh prompts, judge, and say what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from kvguard.judging.judge import judge
from kvguard.models.load import LoadedModel
from kvguard.store.parts import P, keep_made
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table, remove_temporaries, write_table
from kvguard.studies.catastrophes.live.block import make_live_parts
from kvguard.studies.catastrophes.live.gap import add_gap, simulate_live
from kvguard.studies.catastrophes.live.latency import measure_latency
from kvguard.studies.catastrophes.live.outcomes import add_policies, arms_of, sound
from kvguard.studies.catastrophes.live.plan import (
    DECODING,
    PREFILL,
    PROTOCOL,
    STATIC,
    Live,
    decoding_conditions,
    plan_live_parts,
    units,
)
from kvguard.studies.catastrophes.live.switch import (
    Switch,
    add_switch,
    choose_cases,
    make_switch_parts,
    one_by_one,
    plan_switch_parts,
)
from kvguard.sweep.plan import check_engine, check_prompts, made_with, plan_batch, plan_workers
from kvguard.sweep.workers import J, Work, cpu_threads, make_units

STAGE = "live-validate"
_BATCH, _TOKENS, _ROUNDS = 64, 64, 7  # of the timing


@dataclass(frozen=True)
class LiveRun:
    """How many parts were made and kept, and where the judged generations lie."""

    n_made: int
    n_kept: int
    table: Path


def run_live(live: Live, loaded: LoadedModel, out: Path, progress: bool = True) -> LiveRun:
    """Generate what is missing under ``out`` and judge it all into ``out/live.parquet``.

    First all policies, then the continuations of failing traces. Parts that match their fingerprint are
    kept; a run that was killed goes on where it stopped and ends with the same bytes.

    Raises
    ------
    KvguardError
        If a prompt does not fit the model or a press, a press cannot compress while decoding, or the engine
        is not installed (before anything is written), or if memory or disk run out.
    """
    sweep, settings = live.sweep, live.settings
    check_engine(sweep.settings)
    lengths = [len(loaded.encode(prompt)) for prompt in sweep.prompts["prompt"]]
    check_prompts(sweep, loaded, lengths)
    budgeted = decoding_conditions(live, loaded) if settings.decoding_n else []
    workers, threads = plan_workers(sweep.settings, loaded)
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = plan_batch(sweep, loaded, lengths, workers, folder, restorable=True)
    depends_on = made_with(sweep, loaded, batch_size, threads)
    table = out / "live.parquet"
    table.unlink(missing_ok=True)

    parts = plan_live_parts(live, budgeted, depends_on)
    work = Work(STAGE, live, make_live_parts, folder, batch_size, workers, threads, sweep.settings)
    n_made = _make(work, loaded, parts, partial(units, sweep), progress)
    rows = _judged(live, [part.path("live_parts", folder) for part in parts])
    static = rows[(rows["regime"] == PREFILL) & (rows["policy"] == STATIC) & rows["error"].isna()]
    switch = Switch(sweep, choose_cases(static, settings.switch_traces))
    further = plan_switch_parts(
        switch, settings.switch_offsets, settings.prompts_per_part, len(rows), depends_on
    )
    below = folder / "switch"
    below.mkdir(exist_ok=True)
    continuing = Work(STAGE, switch, make_switch_parts, below, batch_size, workers, threads, sweep.settings)
    n_made += _make(continuing, loaded, further, one_by_one, progress)
    if further:
        continued = _judged(live, [part.path("live_parts", below) for part in further])
        rows = pd.concat([rows, continued], ignore_index=True)
    write_table("live", conform("live", rows), table)
    return LiveRun(n_made, len(parts) + len(further) - n_made, table)


def _make(
    work: Work[J, P],
    loaded: LoadedModel,
    parts: Sequence[P],
    group: Callable[[Sequence[P]], list[list[P]]],
    progress: bool,
) -> int:
    """Make the parts that are missing and return how many they are."""
    remove_temporaries(work.out)
    missing = keep_made(work.out, parts)
    make_units(work, loaded, group(missing), sum(part.n_traces for part in parts), progress)
    return len(missing)


def _judged(live: Live, paths: Sequence[Path]) -> pd.DataFrame:
    """Judge raw generations, in the order of their ids."""
    raw = pd.concat([read_table("live_parts", path) for path in paths], ignore_index=True)
    verdicts = judge(raw, live.sweep.prompts, live.sweep.catastrophes, live.spec.max_new_tokens)
    return conform("live", pd.concat([raw, verdicts], axis=1).assign(model=live.name))


def live_results(live: Live, table: pd.DataFrame, n_resamples: int, seed: int) -> Results:
    """Fill the tables policies-prefill, policies-decoding, gap, switch and prompts.

    Parameters
    ----------
    table
        The live table.
    """
    results = Results(STAGE, live.name, PROTOCOL)
    kept = sound(table)
    n_prompts = {"n_prompts": table["prompt_id"].nunique(), "n_used": kept["prompt_id"].nunique()}
    results.add("prompts", "all", n_prompts)
    for regime in (PREFILL, DECODING):
        if ((kept["regime"] == regime) & (kept["policy"] == STATIC)).any():
            arms = arms_of(kept, regime)
            weights = arms.weights(n_resamples, seed)
            add_policies(results, arms, regime, weights)
            if regime == PREFILL:
                simulated = simulate_live(kept, live.triggers["hazard"])
                add_gap(results, arms, simulated, weights)
    add_switch(results, kept, live.settings.switch_offsets, n_resamples, seed)
    return results


def live_latency(live: Live, loaded: LoadedModel) -> Results:
    """Fill the table latency, on the threads that a worker has."""
    _, threads = plan_workers(live.sweep.settings, loaded)
    results = Results(STAGE, live.name, PROTOCOL)
    with cpu_threads(threads):
        measure_latency(results, live, loaded, batch_size=_BATCH, n_tokens=_TOKENS, rounds=_ROUNDS)
    return results


def headline(results: Results) -> dict[str, Any]:
    """Return what the metrics file holds: every table, over all conditions together."""
    found = results.metrics(*results.frame["table"].unique())
    return {
        table: {subject: numbers for subject, numbers in subjects.items() if "/" not in subject}
        for table, subjects in found.items()
    }
