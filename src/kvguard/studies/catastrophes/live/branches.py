"""Policies that act, as branches of the ``static`` rows: one trunk, shown to every watch.

A row is its trunk's until its policy first acts, and is generated anew only from there, see
:mod:`kvguard.guard.branch`. A row that never acts is the trunk's to its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from kvguard.engine.batch import Batch
from kvguard.engine.columns import SIGNALS
from kvguard.engine.layers import sliding_windows
from kvguard.engine.memory import within_memory
from kvguard.engine.presses import Condition
from kvguard.engine.requests import Decoding, Request
from kvguard.guard.actions import Action, Guarded
from kvguard.guard.answers import Answers
from kvguard.guard.branch import BranchedRun, replay, stop_at_answer
from kvguard.guard.features import thinking_mask
from kvguard.guard.watch import Watch
from kvguard.models.load import LoadedModel
from kvguard.store.parts import Part
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.live.block import columns, error_of, make_trigger, reporter
from kvguard.studies.catastrophes.live.names import PREFILL, ROLLBACK, STOP_AT_ANSWER
from kvguard.studies.catastrophes.live.plan import POLICIES, Live, Trunk, policy_fingerprint
from kvguard.sweep.make import prefill_rows
from kvguard.sweep.plan import Plan, stop_strings
from kvguard.sweep.progress import Report
from kvguard.tasks.base import Sample


@dataclass(frozen=True)
class BranchPart(Part):
    """The rows of a trunk under a policy that acts, by a fit of the hazard where it asks one."""

    policy: str
    fit: int
    trunk: Trunk

    kinds: ClassVar[Mapping[str, str]] = {"live_parts": "part"}


def cut_branches(live: Live, plan: Plan[Any], folder: Path, first_id: int) -> list[BranchPart]:
    """Cut the policies that act once compressed into parts: one per trunk and policy, each a unit of its own.

    Parameters
    ----------
    folder
        Where the plan's trunks lie, made.
    first_id
        The first trace id that is free.
    """
    settings = live.settings
    acting = [
        *((action, 1) for action in settings.actions if action != Action.HOLD),
        *((baseline, 1) for baseline in settings.baselines),
    ]
    if ROLLBACK in settings.actions:
        acting += [(ROLLBACK, fit) for fit in range(2, len(live.hazard_models) + 1)]
    parts: list[BranchPart] = []
    for trunk in plan.parts:
        if not isinstance(trunk, Trunk):
            continue
        made_of = {
            **plan.made_of(range(trunk.start, trunk.stop), trunk.conditions),
            "trunk": _digest(trunk, folder),
        }
        for policy, fit in acting:
            name = f"{trunk.unit}-{policy}" if fit == 1 else f"{trunk.unit}-{policy}-fit{fit}"
            parts.append(
                BranchPart(
                    name=name,
                    trace_ids=tuple(range(first_id, first_id + trunk.n_traces)),
                    unit=name,
                    fingerprint=policy_fingerprint(live, PREFILL, policy, made_of, fit),
                    policy=policy,
                    fit=fit,
                    trunk=trunk,
                )
            )
            first_id += trunk.n_traces
    return parts


def _digest(trunk: Trunk, folder: Path) -> str:
    """Return what names all that a branch takes from its trunk."""
    held = hashlib.sha256()
    frame, rows = read_trunk(trunk, folder)
    for row in rows:
        for values in (row.token_ids, row.signals, row.kv_tokens):
            held.update(np.ascontiguousarray(values).tobytes())
        held.update(f"{len(row.token_ids)} {row.stop_reason} {row.kv_saved!r}".encode())
    held.update(frame[["n_prompt_tokens", "n_kept_tokens"]].to_numpy(dtype=np.float64).tobytes())
    return held.hexdigest()


def read_trunk(trunk: Trunk, folder: Path) -> tuple[pd.DataFrame, list[Guarded]]:
    """Read a made trunk: its rows of the live table, and what was recorded of each.

    The hazards are those of the policy ``static``; other watches see others.
    """
    frame = read_table("live_parts", trunk.path("live_parts", folder))
    tokens = read_table("tokens", trunk.path("tokens", folder))
    ends = np.cumsum(frame["token_ids"].map(len).to_numpy(dtype=np.int64))
    signals = np.split(tokens[list(SIGNALS)].to_numpy(dtype=np.float32), ends[:-1])
    recorded = [
        Guarded(
            token_ids=np.asarray(row.token_ids, dtype=np.int32),
            signals=read,
            hazard=np.asarray(row.hazard, dtype=np.float32),
            states=np.empty(0, dtype=np.uint8),
            kv_tokens=np.asarray(row.kv_tokens, dtype=np.float32),
            stop_reason=row.stop_reason,
            events=(),
            kv_saved=float(row.kv_saved),
            n_steps=int(row.n_steps),
            n_rewound=0,
            safe_at=int(row.safe_at),
        )
        for row, read in zip(frame.itertuples(), signals, strict=True)
    ]
    return frame, recorded


def make_branch_parts(
    live: Live,
    folder: Path,
    plan: Plan[Any],
    loaded: LoadedModel,
    parts: Sequence[BranchPart],
    out: Path,
    report: Report,
) -> None:
    """Branch from the trunks in ``folder`` under each part's policy."""
    for part in parts:
        frame, recorded = read_trunk(part.trunk, folder)
        made, batch_size = _run(live, plan, loaded, part, frame, recorded, report)
        shared = ["prompt_id", "compressor", "ratio", "n_prompt_tokens", "n_kept_tokens"]
        found = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "regime": PREFILL,
                "policy": part.policy,
                "fit": np.int32(part.fit),
                **{name: frame[name].to_numpy() for name in shared},
                **columns(made, loaded, live.task, POLICIES[part.policy].action is Action.NONE),
                "error": [error_of(row.stop_reason, len(row.token_ids)) for row in made],
            }
        )
        part.write("live_parts", conform("live_parts", found), out, batch_size)


def _run(
    live: Live,
    plan: Plan[Any],
    loaded: LoadedModel,
    part: BranchPart,
    frame: pd.DataFrame,
    recorded: Sequence[Guarded],
    report: Report,
) -> tuple[list[Guarded], int]:
    """Return what became of each of the trunk's rows, and how many were decoded together in the end."""
    trunk, policy = part.trunk, POLICIES[part.policy]
    keys = [(i, condition) for i in range(trunk.start, trunk.stop) for condition in trunk.conditions]
    report_row = reporter(live, loaded, [Sample.of(live.sweep.prompts.iloc[i]) for i, _ in keys], report)
    answers = Answers(loaded.tokenizer, live.task.answered)
    if part.policy == STOP_AT_ANSWER:
        made, windows = [], sliding_windows(loaded.model)
        for place, (row, n_prompt) in enumerate(zip(recorded, frame["n_prompt_tokens"], strict=True)):
            made.append(stop_at_answer(row, int(n_prompt), answers, windows))
            report_row(place, made[-1])
        return made, plan.batch_size
    thinking = thinking_mask(loaded.tokenizer, live.featurize.thinking_words)
    how = Decoding(
        live.task.max_new_tokens,
        loaded.eos_ids,
        stops=stop_strings(live.task, loaded),
        keep_cache=live.guard.resume,
    )

    def run(size: int) -> tuple[list[Guarded], int]:
        trigger = make_trigger(live, policy.trigger, thinking, loaded.model.config, part.fit)
        watch = Watch(trigger, live.triggers[policy.trigger])
        ratios = [condition.ratio for _, condition in keys]
        watched = replay(watch, recorded, ratios, how.max_new_tokens, first_seat=size)
        acting = [place for place, past in enumerate(watched) if past.acts]
        made = {place: past.row for place, past in enumerate(watched) if not past.acts}
        for place, done in made.items():
            report_row(place, done)
        branched = BranchedRun(
            Batch(loaded.model, size),
            watch,
            policy.action,
            live.guard,
            [ratios[place] for place in acting],
            answers=answers,
        )
        for place in acting:
            branched.branch(_request(plan, loaded, how, *keys[place]), watched[place])
        for _ in chain(branched.steps(), [None]):
            for row, done in branched.collect().items():
                made[acting[row]] = done
                report_row(acting[row], done)
        return [made[place] for place in range(len(recorded))], size

    return within_memory(loaded.name, loaded.model.device, plan.batch_size, run)


def _request(plan: Plan[Any], loaded: LoadedModel, how: Decoding, i: int, condition: Condition) -> Request:
    """Return the request of a row from its prompt; with what it may be compressed to again, if it may."""
    ids = plan.prompt_ids[i]
    if not how.keep_cache:
        return how.resume(torch.tensor(ids, dtype=torch.long, device=loaded.model.device), ())
    return how.request(prefill_rows(loaded, [ids], plan.presses, [condition])[0, condition])
