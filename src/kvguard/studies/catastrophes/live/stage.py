"""The ``live-validate`` stage: run every policy on fresh prompts, and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from kvguard.judging.judge import SCORES, judge, score, score_metadata
from kvguard.judging.onsets import uncompressed_lengths
from kvguard.models.load import LoadedModel
from kvguard.store.results import Results
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.live.block import make_live_parts
from kvguard.studies.catastrophes.live.branches import BranchPart, cut_branches, make_branch_parts
from kvguard.studies.catastrophes.live.latency import measure_latency
from kvguard.studies.catastrophes.live.names import PREFILL, STAGE, STATIC
from kvguard.studies.catastrophes.live.plan import Live, cut_by_policy
from kvguard.studies.catastrophes.live.switch import (
    SwitchPart,
    choose_cases,
    cut_by_offset,
    make_switch_parts,
)
from kvguard.studies.catastrophes.protocols import HEADLINE
from kvguard.sweep.plan import Plan, compile_sweep, plan_workers
from kvguard.sweep.progress import Report
from kvguard.sweep.workers import Work, cpu_threads, make_missing

_BATCH, _TOKENS, _ROUNDS = 64, 64, 7  # of the timing


@dataclass(frozen=True)
class LiveRun:
    """How many parts were made and kept, and where the judged generations lie."""

    n_made: int
    n_kept: int
    table: Path


def run_live(
    live: Live, loaded: LoadedModel, out: Path, progress: bool = True, stage: str = STAGE
) -> LiveRun:
    """Generate what is missing under ``out`` and judge it all into ``live.parquet`` and ``scores.parquet``.

    First what is run from the start; then what goes on from its ``static`` rows: the policies that act,
    and the continuations of failing traces. Parts that match their fingerprint are kept; a run that was
    killed goes on where it stopped and ends with the same bytes.

    Parameters
    ----------
    stage
        Who asks, for errors.

    Raises
    ------
    KvguardError
        If a prompt does not fit the model or a press, a press cannot compress while decoding, or the engine
        is not installed (before anything is written), or if memory or disk run out.
    """
    settings = live.settings
    folder = out / "parts"
    plan = compile_sweep(live.sweep, loaded, folder, partial(cut_by_policy, live, loaded), restorable=True)
    table = out / "live.parquet"
    table.unlink(missing_ok=True)
    n_made = make_missing(Work(stage, plan, partial(make_live_parts, live), folder), loaded, progress)
    rows = _raw([part.path("live_parts", folder) for part in plan.parts])
    uncompressed = uncompressed_lengths(rows)
    rows = _judged(live, loaded, rows, uncompressed)

    static = rows[(rows["regime"] == PREFILL) & (rows["policy"] == STATIC) & rows["error"].isna()]
    cases = choose_cases(static, settings.switch_traces)
    branches = cut_branches(live, plan, folder, len(rows))
    n_rows = len(rows) + sum(part.n_traces for part in branches)
    switched = cut_by_offset(plan, cases, settings.switch_offsets, settings.prompts_per_part, n_rows)
    further = [*branches, *switched]
    below = folder / "further"
    below.mkdir(exist_ok=True)
    work = Work(stage, plan.with_parts(further), partial(_make_further, live, folder, cases), below)
    n_made += make_missing(work, loaded, progress)
    if further:
        continued = _raw([part.path("live_parts", below) for part in further])
        continued = _judged(live, loaded, continued, uncompressed)
        rows = pd.concat([rows, continued], ignore_index=True)
    found = conform("scores", score(rows, live.sweep.prompts, live.task))
    write_table("scores", found, table.with_name(SCORES), score_metadata(live.task))
    write_table("live", conform("live", rows), table)
    return LiveRun(n_made, len(plan.parts) + len(further) - n_made, table)


def _make_further(
    live: Live,
    folder: Path,
    cases: pd.DataFrame,
    plan: Plan[Any],
    loaded: LoadedModel,
    parts: Sequence[BranchPart | SwitchPart],
    out: Path,
    report: Report,
) -> None:
    """Make a unit of parts that go on from those in ``folder``."""
    branches = [part for part in parts if isinstance(part, BranchPart)]
    switched = [part for part in parts if isinstance(part, SwitchPart)]
    make_branch_parts(live, folder, plan, loaded, branches, out, report)
    make_switch_parts(cases, plan, loaded, switched, out, report)


def _raw(paths: Sequence[Path]) -> pd.DataFrame:
    """Read raw generations, in the order of their ids."""
    return pd.concat([read_table("live_parts", path) for path in paths], ignore_index=True)


def _judged(
    live: Live, loaded: LoadedModel, raw: pd.DataFrame, uncompressed: Mapping[str, int]
) -> pd.DataFrame:
    verdicts = judge(raw, live.task, live.sweep.catastrophes, loaded.decode, uncompressed)
    return conform("live", pd.concat([raw, verdicts], axis=1).assign(model=live.name))


def live_latency(live: Live, loaded: LoadedModel) -> Results:
    """Fill the table latency, on the threads that a worker has."""
    _, threads = plan_workers(live.sweep.settings, loaded, len(live.sweep.prompts))
    results = Results(STAGE, live.name, HEADLINE)
    with cpu_threads(threads):
        measure_latency(results, live, loaded, batch_size=_BATCH, n_tokens=_TOKENS, rounds=_ROUNDS)
    return results
