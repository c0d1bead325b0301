"""The same prompts under a press without and with a guard, judged and laid out side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kvguard.engine.presses import Condition
from kvguard.errors import KvguardError
from kvguard.guard.actions import Event
from kvguard.guard.output import REJECTED, Output
from kvguard.guard.session import Guard
from kvguard.guard.settings import Action
from kvguard.judging.catastrophes import CatastropheParams, is_catastrophic
from kvguard.judging.judge import judge, score, with_scores
from kvguard.judging.onsets import Decode
from kvguard.report.terminal import curve, table
from kvguard.sweep.plan import stop_strings
from kvguard.tasks.base import Task

if TYPE_CHECKING:
    from kvpress import BasePress

    from kvguard.models.load import LoadedModel

HEADS = (
    *("condition", "n", "CBR", "guarded", "accuracy", "guarded", "saved", "guarded"),
    *("alarms", "false", "rewinds"),
)
NOTE = (
    "CBR: looping or non-termination. Saved: share of KV memory, mean over steps. Alarms: traces on which\n"
    "the guard acted; false: those of them that end without a catastrophe when it does not."
)


@dataclass(frozen=True)
class Trial:
    """One condition's traces.

    Attributes
    ----------
    static, guarded
        Judged and scored: prompt_id, stop_reason, predicted, correct, catastrophes, onset; and ``output``,
        the :class:`~kvguard.guard.output.Output`. The same prompts in the same order; ``guarded`` is None
        where nothing is compressed.
    """

    condition: Condition
    static: pd.DataFrame
    guarded: pd.DataFrame | None


def run_trial(
    guard: Guard,
    loaded: LoadedModel,
    prompts: pd.DataFrame,
    task: Task,
    condition: Condition,
    press: BasePress | None,
    rules: CatastropheParams,
    *,
    action: str,
    compression_interval: int | None,
    on_finish: Callable[[int], None],
) -> Trial:
    """Generate without and with the guard's action, and judge both.

    Parameters
    ----------
    prompts
        A prompts table.
    press
        None for the baseline, which is not guarded.

    Raises
    ------
    KvguardError
        A prompt does not fit, or see :meth:`~kvguard.guard.session.Guard.generate`.
    """

    stops = stop_strings(task, loaded)

    def judged(act: str) -> pd.DataFrame:
        outputs = guard.generate(
            loaded.model,
            loaded.tokenizer,
            [loaded.encode(prompt) for prompt in prompts["prompt"]],
            press=press,
            max_new_tokens=task.max_new_tokens,
            action=act,
            answered=task.answered,
            compression_interval=compression_interval if press is not None else None,
            stop=stops.strings if stops is not None else (),
            on_finish=on_finish,
        )
        return judge_outputs(outputs, prompts, task, rules, loaded.decode)

    return Trial(condition, judged("none"), judged(action) if press is not None else None)


def judge_outputs(
    outputs: Sequence[Output],
    prompts: pd.DataFrame,
    task: Task,
    rules: CatastropheParams,
    decode: Decode,
) -> pd.DataFrame:
    """Judge what became of each prompt, see :class:`Trial`.

    Raises
    ------
    KvguardError
        A prompt was rejected.
    """
    for output in outputs:
        if output.stop_reason == REJECTED:
            raise KvguardError(str(output.error))
    found = pd.DataFrame(
        {
            "trace_id": np.arange(len(outputs), dtype=np.int32),
            "prompt_id": prompts["prompt_id"].to_numpy(),
            "token_ids": [output.token_ids for output in outputs],
            "text": [output.text for output in outputs],
            "stop_reason": [output.stop_reason for output in outputs],
        }
    )
    judged = found.join(judge(found, task, rules, decode))
    judged = with_scores(judged, score(found, prompts, task), task.headline)
    return judged.assign(output=list(outputs))


def summary(trials: Sequence[Trial]) -> str:
    """Lay out one row for each condition, and one for all guarded ones where there are several."""
    rows = [_row(str(trial.condition), [trial]) for trial in trials]
    guarded = [trial for trial in trials if trial.guarded is not None]
    if len(guarded) > 1:
        rows.append(_row("all compressed", guarded))
    return f"{table(HEADS, rows)}\n\n{NOTE}"


def trace_text(trial: Trial, pieces: Callable[[list[int]], list[str]]) -> str:
    """Show one guarded trace, its events in the text: the first on which the guard acted, if any.

    Parameters
    ----------
    pieces
        Token ids to the text of each.
    """
    assert trial.guarded is not None
    acted = trial.guarded["output"].map(lambda output: bool(output.actions)).to_numpy()
    row = trial.guarded.iloc[int(np.argmax(acted))]
    before = trial.static.iloc[int(np.argmax(acted))]
    output: Output = row["output"]
    shown = pieces(output.token_ids.tolist())
    shown.append("")  # where the guard ended the text
    for event in reversed(output.actions):  # of those at one place, the first comes first
        if event.kept < len(shown):
            shown[event.kept] = f"«{_told(event)}»{shown[event.kept]}"
    hazard = np.nan_to_num(output.hazard)
    events = ", ".join(f"{_told(event)} after token {event.t}" for event in output.actions)
    return "\n".join(
        [
            f"{trial.condition}, prompt {row['prompt_id']}: {output.n_steps} tokens drawn, "
            f"{output.n_rewound} of them rewound, {output.kv_saved:.3f} of the KV memory saved",
            f"unguarded: {_ended(before)}",
            f"guarded:   {_ended(row)}",
            f"events: {events or 'none'}",
            "",
            "".join(shown),
            "",
            f"hazard over {len(hazard)} tokens, peak {hazard.max(initial=0):.2f}",
            curve(hazard),
        ]
    )


def _row(name: str, trials: Sequence[Trial]) -> list[Any]:
    static = pd.concat([trial.static for trial in trials])
    guarded = [trial.guarded for trial in trials if trial.guarded is not None]
    if not guarded:
        return [name, len(static), *_interleaved(_means(static), [None] * 3), None, None, None]
    after = pd.concat(guarded)
    acted = after["output"].map(lambda output: bool(output.actions)).to_numpy()
    events = [event.what for output in after["output"] for event in output.actions]
    rewinds = sum(events.count(action) for action in Action if action.rewinds)
    false = int((acted & ~is_catastrophic(static)).sum())
    counts = [int(acted.sum()), false, rewinds]
    return [name, len(static), *_interleaved(_means(static), _means(after)), *counts]


def _means(judged: pd.DataFrame) -> list[float | None]:
    """Return CBR, accuracy and the share of memory saved."""
    correct = judged["correct"].astype("Float64").mean()
    saved = float(np.mean([output.kv_saved for output in judged["output"]]))
    return [float(is_catastrophic(judged).mean()), None if pd.isna(correct) else float(correct), saved]


def _interleaved(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    return [value for pair in zip(first, second, strict=True) for value in pair]


def _ended(row: pd.Series) -> str:
    scored = "not scored" if pd.isna(row["correct"]) else "right" if row["correct"] >= 0.5 else "wrong"
    kinds = ", ".join(row["catastrophes"]) or "none"
    return (
        f"answer {row['predicted'] or '(none)'}, {scored}; catastrophes: {kinds}; "
        f"{len(row['token_ids'])} tokens, stopped by {row['stop_reason']}"
    )


def _told(event: Event) -> str:
    rewound = event.t + 1 - event.kept
    return f"{event.what} of {rewound} tokens" if rewound else event.what
