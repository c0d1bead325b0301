"""The resumable sweep: every prompt under every condition, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from kvguard.judging.judge import SCORES, judge, score, score_metadata
from kvguard.judging.onsets import uncompressed_lengths
from kvguard.models.load import LoadedModel, load_model
from kvguard.store.schemas import conform
from kvguard.store.tables import open_table, read_table
from kvguard.sweep.make import generate_parts
from kvguard.sweep.plan import Sweep, SweepPart, compile_sweep, cut_by_compressor, spread
from kvguard.sweep.workers import Work, make_missing


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
    loaded = load_model(sweep.name, sweep.spec, sweep.device)
    plan = compile_sweep(spread(sweep, loaded), loaded, out, cut_by_compressor)
    traces, scores = out / "traces.parquet", out / SCORES
    for path in (traces, scores):
        path.unlink(missing_ok=True)
    n_made = make_missing(Work("generate", plan, generate_parts, out), loaded, progress)
    with (
        open_table("traces", traces) as table,
        open_table("scores", scores, score_metadata(sweep.task)) as scored,
    ):
        for raw in _raw(plan.parts, out):
            table.write(_judged(sweep, loaded, raw))
            scored.write(conform("scores", score(raw, sweep.prompts, sweep.task)))
    return SweepResult(n_made, len(plan.parts) - n_made, traces)


def _raw(parts: Sequence[SweepPart], out: Path) -> Iterator[pd.DataFrame]:
    """Read the raw traces, one slice of prompts after the other, in the order of their ids."""
    for _, together in groupby(parts, key=lambda part: part.start):
        raw = pd.concat([read_table("parts", part.path("parts", out)) for part in together])
        yield raw.sort_values("trace_id", ignore_index=True)


def _judged(sweep: Sweep, loaded: LoadedModel, raw: pd.DataFrame) -> pd.DataFrame:
    """Judge all traces of a slice of prompts."""
    verdicts = judge(raw, sweep.task, sweep.catastrophes, loaded.decode, uncompressed_lengths(raw))
    params = {name: json.dumps(spec.params, sort_keys=True) for name, spec in sweep.compressors.items()}
    judged = pd.concat([raw, verdicts], axis=1)
    judged["model"] = sweep.name
    judged["compressor_params"] = judged["compressor"].map(params).fillna("{}")
    return conform("traces", judged)
