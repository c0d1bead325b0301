"""The resumable sweep: every prompt under every condition, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from kvguard.engine.presses import attention_for
from kvguard.judging.judge import SCORES, judge, score, score_metadata
from kvguard.models.load import load_model
from kvguard.store.parts import keep_made
from kvguard.store.schemas import conform
from kvguard.store.tables import open_table, read_table, remove_temporaries
from kvguard.sweep.make import generate_parts
from kvguard.sweep.parts import SweepPart, plan_parts
from kvguard.sweep.plan import Sweep, check_engine, check_prompts, made_with, plan_batch, plan_workers
from kvguard.sweep.workers import Work, make_units


@dataclass(frozen=True)
class SweepResult:
    """How many parts were made and kept, and where the judged traces lie."""

    n_made: int
    n_kept: int
    traces: Path


def run_sweep(sweep: Sweep, out: Path, progress: bool = True) -> SweepResult:
    """Generate what is missing under ``out``; judge it all into ``traces.parquet`` and ``scores.parquet``.

    Parts that match their fingerprint are kept; a run that was killed goes on where it stopped and ends
    with the same bytes.

    Raises
    ------
    KvguardError
        If a prompt does not fit the model or a press, or the engine is not installed (before anything is
        written), or if memory or disk run out.
    """
    check_engine(sweep.settings)
    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    lengths = [len(loaded.encode(prompt)) for prompt in sweep.prompts["prompt"]]
    check_prompts(sweep, loaded, lengths)
    workers, threads = plan_workers(sweep.settings, loaded)
    out.mkdir(parents=True, exist_ok=True)
    batch_size = plan_batch(sweep, loaded, lengths, workers, out)
    parts = plan_parts(
        sweep.prompts,
        sweep.conditions,
        sweep.compressors,
        sweep.settings.prompts_per_part,
        made_with(sweep, loaded, batch_size, threads),
    )
    remove_temporaries(out)
    missing = keep_made(out, parts)
    traces, scores = out / "traces.parquet", out / SCORES
    for path in (traces, scores):
        path.unlink(missing_ok=True)
    work = Work("generate", sweep, generate_parts, out, batch_size, workers, threads, sweep.settings)
    make_units(work, loaded, _units(sweep, missing), sweep.n_traces, progress)
    with (
        open_table("traces", traces) as table,
        open_table("scores", scores, score_metadata(sweep.task)) as scored,
    ):
        for raw in _raw(parts, out):
            table.write(_judged(sweep, raw))
            scored.write(conform("scores", score(raw, sweep.prompts, sweep.task)))
    return SweepResult(len(missing), len(parts) - len(missing), traces)


def _units(sweep: Sweep, parts: Sequence[SweepPart]) -> list[list[SweepPart]]:
    """Group parts that one prefill can serve."""
    groups: dict[tuple[int, str], list[SweepPart]] = {}
    for part in parts:
        implementation = attention_for(sweep.press(part.conditions[0]))
        groups.setdefault((part.block, implementation), []).append(part)
    return list(groups.values())


def _raw(parts: Sequence[SweepPart], out: Path) -> Iterator[pd.DataFrame]:
    """Read the raw traces block by block, in the order of their ids."""
    for _, block in groupby(parts, key=lambda part: part.block):
        raw = pd.concat([read_table("parts", part.path("parts", out)) for part in block])
        yield raw.sort_values("trace_id", ignore_index=True)


def _judged(sweep: Sweep, raw: pd.DataFrame) -> pd.DataFrame:
    params = {name: json.dumps(spec.params, sort_keys=True) for name, spec in sweep.compressors.items()}
    judged = pd.concat([raw, judge(raw, sweep.task, sweep.catastrophes)], axis=1)
    judged["model"] = sweep.name
    judged["compressor_params"] = judged["compressor"].map(params).fillna("{}")
    return conform("traces", judged)
