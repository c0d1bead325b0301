"""Making a unit of parts: prefill each of their prompts once, decode each part, store it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import torch

from kvguard.engine.columns import SIGNALS
from kvguard.engine.loop import Generated, decode
from kvguard.engine.memory import release_unused, within_memory
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.requests import Decoding, Finished, Row
from kvguard.engine.stops import StopStrings
from kvguard.judging.catastrophes import NO_ONSET, TraceTokens, onsets
from kvguard.models.load import LoadedModel
from kvguard.store.schemas import conform
from kvguard.sweep.plan import Plan, Sweep, SweepPart, stop_strings
from kvguard.sweep.progress import Report, Tally
from kvguard.tasks.base import Sample

Key = tuple[int, Condition]


def generate_parts(
    plan: Plan[SweepPart],
    loaded: LoadedModel,
    parts: Sequence[SweepPart],
    out: Path,
    report: Report,
) -> None:
    """Make a unit of parts: they share their prompts and an attention implementation."""
    start, stop = parts[0].start, parts[0].stop
    prompts = plan.sweep.prompts.iloc[start:stop]
    conditions = [condition for part in parts for condition in part.conditions]
    prefilled = prefill_rows(loaded, plan.prompt_ids[start:stop], plan.presses, conditions)
    for part in parts:
        pyarrow.default_memory_pool().release_unused()
        release_unused()
        keys = [(index, condition) for index in range(len(prompts)) for condition in part.conditions]
        rows = [prefilled[key] for key in keys]
        n_prompt, n_kept = [row.n_prompt for row in rows], [row.cache.n_kept for row in rows]
        del rows  # the batch alone holds a row's cache from here on, until the row starts

        def prefilled_rows(keys: Sequence[Key] = keys, part: SweepPart = part) -> Iterator[Row]:
            if keys[0] not in prefilled:  # memory has run out: the rows were let go as they started
                ids = plan.prompt_ids[start:stop]
                prefilled.update(prefill_rows(loaded, ids, plan.presses, part.conditions))
            return (prefilled.pop(key) for key in keys)

        samples = [Sample.of(prompts.iloc[index]) for index, _ in keys]
        on_finish = _judge_rows(plan.sweep, loaded, samples, report)
        stops = stop_strings(plan.sweep.task, loaded)
        generated, batch_size = _decode(plan, loaded, prefilled_rows, on_finish, stops)
        raw = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "prompt_id": [prompts["prompt_id"].iloc[i] for i, _ in keys],
                "compressor": part.compressor,
                "ratio": [c.ratio for _, c in keys],
                "n_prompt_tokens": np.array(n_prompt, dtype=np.int32),
                "n_kept_tokens": n_kept,
                "token_ids": [generated.token_ids[r, :n] for r, n in enumerate(generated.lengths)],
                "text": [
                    text_of(loaded, generated.token_ids[r, :n], stops)
                    for r, n in enumerate(generated.lengths)
                ],
                "stop_reason": generated.stop_reasons,
            }
        )
        tokens = _tokens_frame(raw["trace_id"].to_numpy(), generated)
        part.write("tokens", conform("tokens", tokens), out, batch_size)
        part.write("parts", conform("parts", raw), out, batch_size)
        del generated, raw, tokens  # before the next part's batch is made


def prefill_rows(
    loaded: LoadedModel,
    prompt_ids: Sequence[np.ndarray],
    presses: Presses,
    conditions: Sequence[Condition],
) -> dict[Key, Row]:
    """Prefill each prompt once: the row of every (position among the prompts, condition).

    Parameters
    ----------
    prompt_ids
        The token ids of each prompt. [T]
    conditions
        All of one attention implementation.
    """
    wanted = {condition: presses[condition].press for condition in conditions}
    implementation = presses[conditions[0]].attention
    rows: dict[Key, Row] = {}
    for index, prompt in enumerate(prompt_ids):
        ids = torch.tensor(prompt, dtype=torch.long, device=loaded.model.device)
        done = prefill(loaded.model, ids, wanted, implementation)
        rows |= {(index, condition): Row(ids, done.logits, kept) for condition, kept in done.kept.items()}
    return rows


def _decode(
    plan: Plan[SweepPart],
    loaded: LoadedModel,
    rows: Callable[[], Iterable[Row]],
    on_finish: Callable[[Finished], None],
    stops: StopStrings | None,
) -> tuple[Generated, int]:
    """Return what the rows generated, and how many of them were decoded together in the end."""
    how = Decoding(plan.sweep.task.max_new_tokens, loaded.eos_ids, stops=stops)
    return within_memory(
        loaded.name,
        loaded.model.device,
        plan.batch_size,
        lambda size: (decode(loaded.model, rows(), how, batch_size=size, on_finish=on_finish), size),
    )


def _judge_rows(
    sweep: Sweep, loaded: LoadedModel, samples: Sequence[Sample], report: Report
) -> Callable[[Finished], None]:
    reported: set[int] = set()

    def on_finish(done: Finished) -> None:
        if done.row not in reported:  # else it was decoded again with half the batch
            reported.add(done.row)
            report(tally(sweep, loaded, samples[done.row], done.token_ids, done.ended))

    return on_finish


def text_of(loaded: LoadedModel, token_ids: np.ndarray, stops: StopStrings | None) -> str:
    """Return the text of generated tokens, up to the first stop string."""
    text = loaded.decode(token_ids.tolist())
    return stops.cut(text) if stops is not None else text


def tally(sweep: Sweep, loaded: LoadedModel, sample: Sample, token_ids: np.ndarray, stopped: bool) -> Tally:
    """Judge one finished trace for the progress bar."""
    text = text_of(loaded, token_ids, stop_strings(sweep.task, loaded))
    value = sweep.task.score(text, sample)[sweep.task.headline]
    trace = TraceTokens(token_ids, np.array([len(token_ids)]), np.array(["eos" if stopped else "length"]))
    begun = onsets(trace, sweep.catastrophes, sweep.task.max_new_tokens)
    failed = any(onset[0] != NO_ONSET for onset in begun.values())
    return Tally(1, int(failed), int(value is not None), value or 0)


def _tokens_frame(ids: np.ndarray, generated: Generated) -> pd.DataFrame:
    valid = np.arange(generated.token_ids.shape[1]) < generated.lengths[:, None]  # [R, T]
    row, t = np.nonzero(valid)
    frame = pd.DataFrame(generated.signals[valid], columns=list(SIGNALS))
    frame.insert(0, "trace_id", ids[row])
    frame.insert(1, "t", t.astype(np.int32))
    frame.insert(2, "token_id", generated.token_ids[valid])
    return frame
