"""How early is early enough: traces that fail, restored d tokens before their onset and left uncompressed.

A row goes on from one prefill of its prompt and the tokens it keeps, which is what restoring does, and
nothing compresses or watches it any more. A trace whose onset is fewer than d tokens from its start has no
such moment and is left out at that d; so the traces differ between offsets, and their number is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from kvguard.engine.batch import Batch
from kvguard.engine.layers import sliding_windows
from kvguard.engine.loop import Generated, finished
from kvguard.engine.memory import within_memory
from kvguard.engine.requests import Decoding
from kvguard.guard import VERSION
from kvguard.guard.actions import saved
from kvguard.models.load import LoadedModel
from kvguard.store.parts import Part, digest, fingerprint, slices
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.live.block import error_of
from kvguard.studies.catastrophes.live.names import SWITCH
from kvguard.sweep.make import tally, text_of
from kvguard.sweep.plan import Plan, stop_strings
from kvguard.sweep.progress import Report
from kvguard.tasks.base import Sample


@dataclass(frozen=True)
class SwitchPart(Part):
    """Failing traces, restored at one offset from their onsets.

    Parameters
    ----------
    cases : tuple of int
        Positions among the cases, see :func:`choose_cases`.
    """

    offset: int
    cases: tuple[int, ...]

    kinds: ClassVar[Mapping[str, str]] = {"live_parts": "part"}


def choose_cases(static: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return at most ``n`` failing traces, spread evenly over all of them.

    Parameters
    ----------
    static
        Rows of the live table.
    """
    failing = static[static["catastrophes"].map(len) > 0].sort_values("trace_id", ignore_index=True)
    spread = np.linspace(0, len(failing) - 1, min(n, len(failing))).round().astype(np.int64)
    return failing.iloc[spread].reset_index(drop=True)


def cut_by_offset(
    plan: Plan[Any], cases: pd.DataFrame, offsets: Sequence[int], prompts_per_part: int, first_id: int
) -> list[SwitchPart]:
    """Cut the continuations of all cases into parts, offset by offset; each is a unit of its own.

    Parameters
    ----------
    cases
        Rows of the live table: failing ``static`` traces, compressed once.
    first_id
        The first trace id that is free.
    """
    length = cases["token_ids"].map(len).to_numpy(dtype=np.int64)
    onset = cases["onset"].to_numpy(dtype=np.int64)
    position = _positions(plan, cases)
    parts: list[SwitchPart] = []
    for offset in dict.fromkeys(offsets):
        kept = onset - offset
        possible = np.flatnonzero((kept >= 0) & (kept < length))
        for number, (start, stop) in enumerate(slices(len(possible), prompts_per_part)):
            chosen = possible[start:stop]
            its = cases.iloc[chosen]
            ids = [tokens[:n].tolist() for tokens, n in zip(its["token_ids"], kept[chosen], strict=True)]
            made_of = {
                **plan.made_of(position[chosen].tolist(), []),
                "offset": offset,
                "cases": [its["compressor"].tolist(), its["ratio"].tolist()],
                "kept": digest(ids),
                "held": digest([its["n_kept_tokens"].tolist(), its["kv_tokens"].map(list).tolist()]),
                "guard_version": VERSION,
            }
            name = f"{SWITCH}-{number:04d}-{offset}"
            parts.append(
                SwitchPart(
                    name=name,
                    trace_ids=tuple(range(first_id, first_id + len(chosen))),
                    unit=name,
                    fingerprint=fingerprint(made_of),
                    offset=offset,
                    cases=tuple(chosen.tolist()),
                )
            )
            first_id += len(chosen)
    return parts


def _positions(plan: Plan[Any], cases: pd.DataFrame) -> np.ndarray:
    """Return the position of each case's prompt in the prompts table. [R]"""
    where = pd.Index(plan.sweep.prompts["prompt_id"]).get_indexer(cases["prompt_id"])
    return np.asarray(where, dtype=np.int64)


def make_switch_parts(
    all_cases: pd.DataFrame,
    plan: Plan[SwitchPart],
    loaded: LoadedModel,
    parts: Sequence[SwitchPart],
    out: Path,
    report: Report,
) -> None:
    """Restore and continue the cases of each part."""
    for part in parts:
        cases = all_cases.iloc[list(part.cases)]
        kept = cases["onset"].to_numpy(dtype=np.int64) - part.offset
        begun = [ids[:n] for ids, n in zip(cases["token_ids"], kept, strict=True)]
        position = _positions(plan, cases)
        prompts = [plan.prompt_ids[i] for i in position]
        samples = [Sample.of(plan.sweep.prompts.iloc[i]) for i in position]
        made, batch_size = _continue(plan, loaded, prompts, begun)
        tokens, stop = _tokens(made), made.stop_reasons
        stops = stop_strings(plan.sweep.task, loaded)
        for ids, sample, stopped in zip(tokens, samples, made.stopped, strict=True):
            report(tally(plan.sweep, loaded, sample, ids, bool(stopped)))
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int32)
        frame = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "regime": SWITCH,
                "policy": str(part.offset),
                "fit": np.int32(1),
                **{name: cases[name].to_numpy() for name in ("prompt_id", "compressor", "ratio")},
                **{name: cases[name].to_numpy() for name in ("n_prompt_tokens", "n_kept_tokens")},
                "token_ids": tokens,
                "text": [text_of(loaded, ids, stops) for ids in tokens],
                "stop_reason": stop,
                "kv_saved": _saved(cases, kept, sliding_windows(loaded.model)) / np.maximum(lengths, 1),
                "safe_at": kept.astype(np.int32),
                "n_steps": lengths,
                "n_restores": np.int32(1),
                "n_rewinds": np.int32(0),
                "n_rewound": np.int32(0),
                "hazard": [np.empty(0, dtype=np.float32)] * len(cases),
                "kv_tokens": [np.empty(0, dtype=np.float32)] * len(cases),
                "error": [error_of(reason, n) for reason, n in zip(stop, lengths, strict=True)],
            }
        )
        part.write("live_parts", conform("live_parts", frame), out, batch_size)


def _continue(
    plan: Plan[SwitchPart],
    loaded: LoadedModel,
    prompts: Sequence[np.ndarray],
    begun: Sequence[np.ndarray],
) -> tuple[Generated, int]:
    """Go on from each prompt and the tokens kept of its trace, to the end of the token budget. [R]

    Also returns how many rows were decoded together in the end.
    """
    task = plan.sweep.task
    how = Decoding(task.max_new_tokens, loaded.eos_ids, stops=stop_strings(task, loaded))

    def run(size: int) -> tuple[Generated, int]:
        batch = Batch(loaded.model, size)
        for prompt, prefix in zip(prompts, begun, strict=True):
            ids = torch.tensor(prompt, dtype=torch.long, device=loaded.model.device)
            batch.add(how.resume(ids, prefix.tolist()))
        return Generated.of(list(finished(batch))), size

    return within_memory(loaded.name, loaded.model.device, plan.batch_size, run)


def _tokens(made: Generated) -> list[np.ndarray]:
    return [made.token_ids[row, :n] for row, n in enumerate(made.lengths)]


def _saved(cases: pd.DataFrame, kept: np.ndarray, windows: Sequence[int | None]) -> np.ndarray:
    """Return the sum of 1 - held / full over the steps before the cache was restored. [R]"""
    rows = zip(cases["kv_tokens"], cases["n_prompt_tokens"], kept, strict=True)
    return np.array([saved(held, n_prompt, 0, n, windows) for held, n_prompt, n in rows])
