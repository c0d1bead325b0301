"""The resumable sweep: every prompt under every condition, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from kvguard.judging.judge import judge
from kvguard.models.load import load_model
from kvguard.store.schemas import conform
from kvguard.store.tables import open_table, read_table
from kvguard.sweep.make import generate_parts
from kvguard.sweep.plan import Plan, Sweep, SweepPart, compile_sweep, cut_by_compressor
from kvguard.sweep.workers import Work, make_missing


@dataclass(frozen=True)
class SweepResult:
    """How many parts were made and kept, and where the judged traces lie."""

    n_made: int
    n_kept: int
    traces: Path


def run_sweep(sweep: Sweep, out: Path, progress: bool = True) -> SweepResult:
    """Generate what is missing under ``out`` and judge all traces into ``out/traces.parquet``.

    Parts that match their fingerprint are kept; a run that was killed goes on where it stopped and ends
    with the same bytes.

    Raises
    ------
    KvguardError
        If a prompt does not fit the model or a press, or the engine is not installed (before anything is
        written), or if memory or disk run out.
    """
    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    plan = compile_sweep(sweep, loaded, out, cut_by_compressor)
    traces = out / "traces.parquet"
    traces.unlink(missing_ok=True)
    n_made = make_missing(Work("generate", plan, generate_parts, out), loaded, progress)
    with open_table("traces", traces) as table:
        for judged in _judged(plan, out):
            table.write(judged)
    return SweepResult(n_made, len(plan.parts) - n_made, traces)


def _judged(plan: Plan[SweepPart], out: Path) -> Iterator[pd.DataFrame]:
    """Judge the raw traces, one slice of prompts after the other, in the order of their ids."""
    sweep = plan.sweep
    params = {name: json.dumps(spec.params, sort_keys=True) for name, spec in sweep.compressors.items()}
    for _, parts in groupby(plan.parts, key=lambda part: part.start):
        raw = pd.concat([read_table("parts", part.path("parts", out)) for part in parts])
        raw = raw.sort_values("trace_id", ignore_index=True)
        verdicts = judge(raw, sweep.prompts, sweep.catastrophes, sweep.spec.max_new_tokens)
        judged = pd.concat([raw, verdicts], axis=1)
        judged["model"] = sweep.name
        judged["compressor_params"] = judged["compressor"].map(params).fillna("{}")
        yield conform("traces", judged)
