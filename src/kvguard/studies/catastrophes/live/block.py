"""Making the live parts of one block of prompts: prefill once, decode under each policy, store it.

See :mod:`.branches` for policies that go on from the rows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvguard.engine.budget import Budget
from kvguard.engine.columns import SIGNALS
from kvguard.engine.loop import assemble
from kvguard.engine.memory import within_memory
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.repetition import positions
from kvguard.engine.requests import Decoding, Reason, Row
from kvguard.engine.scorers import too_small
from kvguard.engine.signals import N_SIGNALS
from kvguard.guard.actions import NEVER, Action, Guarded, GuardedRun
from kvguard.guard.answers import Answers
from kvguard.guard.features import Bools, thinking_mask
from kvguard.guard.watch import ClockTrigger, EntropyTrigger, HazardTrigger, LoopTrigger, Watch
from kvguard.guard.watch import Trigger as Watching
from kvguard.models.load import LoadedModel
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.live.names import DECODING
from kvguard.studies.catastrophes.live.plan import POLICIES, Live, LivePart, Trigger, Trunk
from kvguard.sweep.make import prefill_rows, tally, text_of
from kvguard.sweep.plan import Plan, stop_strings
from kvguard.sweep.progress import Report, Tally
from kvguard.tasks.base import Sample, Task

Key = tuple[int, Condition]

_NOTHING = np.empty(0, dtype=np.float32)
_REJECTED = Guarded(
    token_ids=np.empty(0, dtype=np.int32),
    signals=np.empty((0, N_SIGNALS), dtype=np.float32),
    hazard=_NOTHING,
    states=np.empty(0, dtype=np.uint8),
    kv_tokens=_NOTHING,
    stop_reason="rejected",
    events=(),
    kv_saved=0.0,
    n_steps=0,
    n_rewound=0,
    safe_at=NEVER,
)


def make_live_parts(
    live: Live,
    plan: Plan[LivePart],
    loaded: LoadedModel,
    parts: Sequence[LivePart],
    out: Path,
    report: Report,
) -> None:
    """Make a unit of parts: they share their prompts, a regime and an attention implementation."""
    start, stop = parts[0].start, parts[0].stop
    block = live.sweep.prompts.iloc[start:stop]
    conditions = list(dict.fromkeys(condition for part in parts for condition in part.conditions))
    prefilled = prefill_rows(loaded, plan.prompt_ids[start:stop], plan.presses, conditions)
    thinking = thinking_mask(loaded.tokenizer, live.featurize.thinking_words)
    for part in parts:
        keys = [(index, condition) for index in range(len(block)) for condition in part.conditions]
        rows = [prefilled[key] for key in keys]
        samples = [Sample.of(block.iloc[index]) for index, _ in keys]
        rejections = _rejections(live, plan.presses, loaded, part, keys, rows)
        asked = [place for place, reason in enumerate(rejections) if reason is None]
        made, batch_size = _decode(
            live,
            plan,
            loaded,
            part,
            [keys[place] for place in asked],
            [rows[place] for place in asked],
            [samples[place] for place in asked],
            thinking,
            report,
        )
        following = iter(made)
        guarded = [next(following) if reason is None else _REJECTED for reason in rejections]
        for _ in range(len(rows) - len(asked)):
            report(Tally(1))
        frame = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "regime": part.regime,
                "policy": part.policy,
                "fit": np.int32(1),
                "prompt_id": [block["prompt_id"].iloc[index] for index, _ in keys],
                "compressor": [condition.compressor for _, condition in keys],
                "ratio": [condition.ratio for _, condition in keys],
                "n_prompt_tokens": np.array([row.n_prompt for row in rows], dtype=np.int32),
                "n_kept_tokens": [row.cache.n_kept for row in rows],
                **columns(guarded, loaded, live.task, POLICIES[part.policy].action is Action.NONE),
                "error": [
                    reason or error_of(row.stop_reason, len(row.token_ids))
                    for reason, row in zip(rejections, guarded, strict=True)
                ],
            }
        )
        if isinstance(part, Trunk):
            part.write("tokens", conform("tokens", _tokens(part, guarded)), out, batch_size)
        part.write("live_parts", conform("live_parts", frame), out, batch_size)


def _rejections(
    live: Live,
    presses: Presses,
    loaded: LoadedModel,
    part: LivePart,
    keys: Sequence[Key],
    rows: Sequence[Row],
) -> list[str | None]:
    """Say of each row why it cannot be held to its budget while decoding, if so."""
    if part.regime != DECODING:
        return [None] * len(rows)

    @cache
    def reason(condition: Condition, n_prompt: int) -> str | None:
        press = presses[condition].press
        assert press is not None
        found = too_small(loaded.model, press, live.settings.compression_interval, n_prompt)
        return found and f"{n_prompt} tokens leave too small a budget while decoding: {found}"

    return [reason(condition, row.n_prompt) for (_, condition), row in zip(keys, rows, strict=True)]


def _decode(
    live: Live,
    plan: Plan[LivePart],
    loaded: LoadedModel,
    part: LivePart,
    keys: Sequence[Key],
    rows: Sequence[Row],
    samples: Sequence[Sample],
    thinking: Bools,
    report: Report,
) -> tuple[list[Guarded], int]:
    """Return what the rows generated, and how many of them were decoded together in the end."""
    if not rows:
        return [], plan.batch_size
    policy = POLICIES[part.policy]
    ratios = np.array([condition.ratio for _, condition in keys])
    report_row = reporter(live, loaded, samples, report)
    stops = stop_strings(live.task, loaded)

    def run(size: int) -> tuple[list[Guarded], int]:
        how = Decoding(live.task.max_new_tokens, loaded.eos_ids, stops=stops, keep_cache=live.guard.resume)
        batch = assemble(loaded.model, rows, size, how)
        trigger = make_trigger(live, policy.trigger, thinking, loaded.model.config)
        watch = Watch(trigger, live.triggers[policy.trigger])
        budget = _budget(live, plan.presses, loaded, keys) if part.regime == DECODING else None
        guarded = GuardedRun(
            batch,
            watch,
            policy.action,
            live.guard,
            ratios,
            budget=budget,
            thinking=thinking,
            answers=Answers(loaded.tokenizer, live.task.answered),
        )
        made: dict[int, Guarded] = {}
        with budget or nullcontext():
            for _ in chain(guarded.steps(), [None]):
                done = guarded.collect()
                made |= done
                for row, found in done.items():
                    report_row(row, found)
        return [made[row] for row in sorted(made)], size

    return within_memory(loaded.name, loaded.model.device, plan.batch_size, run)


def reporter(
    live: Live, loaded: LoadedModel, samples: Sequence[Sample], report: Report
) -> Callable[[int, Guarded], None]:
    """Return what reports a finished row, by its place among the samples, once."""
    reported: set[int] = set()

    def report_row(row: int, done: Guarded) -> None:
        if row not in reported:  # else it was decoded again with half the batch
            reported.add(row)
            stopped = done.stop_reason in (Reason.EOS.word, Reason.STOP.word, Reason.GUARD.word)
            report(tally(live.sweep, loaded, samples[row], done.token_ids, stopped))

    return report_row


def make_trigger(live: Live, kind: Trigger, thinking: Bools, config: Any, fit: int = 1) -> Watching:
    """Return the trigger called ``kind``; the hazard is that of a fit, counted from 1."""
    if kind == "entropy":
        return EntropyTrigger(config.get_text_config().vocab_size)
    if kind == "clock":
        return ClockTrigger()
    if kind == "loop":
        return LoopTrigger()
    hazard = live.hazard(kind, fit)
    assert hazard is not None
    return HazardTrigger(hazard, thinking)


def _budget(live: Live, presses: Presses, loaded: LoadedModel, keys: Sequence[Key]) -> Budget:
    """Return the decode-time budget of rows; those of one condition share a press, so they share its work."""
    return Budget(loaded.model, [presses[c].press for _, c in keys], live.settings.compression_interval)


def _tokens(part: Trunk, guarded: Sequence[Guarded]) -> pd.DataFrame:
    """Return the tokens and signals of the trunk's rows, as the sweep stores its own."""
    lengths = np.array([len(row.token_ids) for row in guarded], dtype=np.int64)
    frame = pd.DataFrame(np.concatenate([row.signals for row in guarded]), columns=list(SIGNALS))
    frame.insert(0, "trace_id", np.repeat(np.array(part.trace_ids, dtype=np.int32), lengths))
    frame.insert(1, "t", positions(lengths).astype(np.int32))
    frame.insert(2, "token_id", np.concatenate([row.token_ids for row in guarded]))
    return frame


def columns(
    guarded: Sequence[Guarded], loaded: LoadedModel, task: Task, only_watched: bool
) -> dict[str, Any]:
    """Return what the live table says of each row's generation."""
    done = [[Action(event.what) for event in row.events if event.what in set(Action)] for row in guarded]
    counts = {
        "safe_at": [row.safe_at for row in guarded],
        "n_steps": [row.n_steps for row in guarded],
        "n_restores": [sum(action.restores for action in actions) for actions in done],
        "n_rewinds": [sum(action.rewinds for action in actions) for actions in done],
        "n_rewound": [row.n_rewound for row in guarded],
    }
    stops = stop_strings(task, loaded)
    return {
        "token_ids": [row.token_ids for row in guarded],
        "text": [text_of(loaded, row.token_ids, stops) for row in guarded],
        "stop_reason": [row.stop_reason for row in guarded],
        "kv_saved": [row.kv_saved for row in guarded],
        **{name: np.array(numbers, dtype=np.int32) for name, numbers in counts.items()},
        "hazard": [row.hazard if only_watched else _NOTHING for row in guarded],
        "kv_tokens": [row.kv_tokens if only_watched else _NOTHING for row in guarded],
    }


def error_of(stop_reason: str, n_tokens: int) -> str | None:
    """Return what went wrong with a row, in words."""
    return f"the logits of token {n_tokens} are NaN" if stop_reason == "invalid" else None
