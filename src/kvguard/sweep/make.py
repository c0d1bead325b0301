"""Making the parts of one block of prompts: prefill once, decode each part, store it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import torch

from kvguard.engine.batch import Generated, Row, decode
from kvguard.engine.columns import SIGNALS
from kvguard.engine.memory import release_unused, within_memory
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, attention_for
from kvguard.engine.stops import StopStrings
from kvguard.judging.catastrophes import NO_ONSET, TraceTokens, onsets
from kvguard.models.load import LoadedModel
from kvguard.store.schemas import conform
from kvguard.sweep.parts import SweepPart
from kvguard.sweep.plan import Sweep, Tally, stop_strings
from kvguard.sweep.workers import Report
from kvguard.tasks.base import Sample


def generate_parts(
    sweep: Sweep,
    loaded: LoadedModel,
    parts: Sequence[SweepPart],
    out: Path,
    batch_size: int,
    report: Report,
) -> None:
    """Make parts that share a block and an attention implementation, one prefill per prompt for all."""
    first = parts[0]
    block = sweep.prompts.iloc[first.start : first.stop]
    prefilled = prefill_block(sweep, loaded, block, [c for part in parts for c in part.conditions])
    for part in parts:
        pyarrow.default_memory_pool().release_unused()
        release_unused()
        keys = [(index, condition) for index in range(len(block)) for condition in part.conditions]
        rows = [prefilled[key] for key in keys]
        samples = [Sample.of(block.iloc[index]) for index, _ in keys]
        on_finish = _judge_rows(sweep, loaded, samples, report)
        stops = stop_strings(sweep.task, loaded)
        generated = _decode(sweep, loaded, rows, batch_size, on_finish, stops)
        raw = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "prompt_id": [block["prompt_id"].iloc[i] for i, _ in keys],
                "compressor": part.compressor,
                "ratio": [c.ratio for _, c in keys],
                "n_prompt_tokens": np.array([row.n_prompt for row in rows], dtype=np.int32),
                "n_kept_tokens": [row.cache.n_kept for row in rows],
                "token_ids": [generated.token_ids[r, :n] for r, n in enumerate(generated.lengths)],
                "text": [
                    text_of(loaded, generated.token_ids[r, :n], stops)
                    for r, n in enumerate(generated.lengths)
                ],
                "stop_reason": np.select([~generated.valid, generated.stopped], ["invalid", "eos"], "length"),
            }
        )
        tokens = _tokens_frame(raw["trace_id"].to_numpy(), generated)
        part.write("tokens", conform("tokens", tokens), out)
        part.write("parts", conform("parts", raw), out)
        del generated, raw, tokens  # before the next part's batch is made


def prefill_block(
    sweep: Sweep, loaded: LoadedModel, block: pd.DataFrame, conditions: Sequence[Condition]
) -> dict[tuple[int, Condition], Row]:
    """Prefill each prompt once: the row of every (position in the block, condition).

    Parameters
    ----------
    conditions
        All of one attention implementation.
    """
    presses = {condition: sweep.press(condition) for condition in conditions}
    implementation = attention_for(presses[conditions[0]])
    rows: dict[tuple[int, Condition], Row] = {}
    for index, prompt in enumerate(block["prompt"]):
        ids = torch.tensor(loaded.encode(prompt), device=loaded.model.device)
        done = prefill(loaded.model, ids, presses, implementation)
        rows |= {(index, condition): Row(ids, done.logits, kept) for condition, kept in done.kept.items()}
    return rows


def _decode(
    sweep: Sweep,
    loaded: LoadedModel,
    rows: Sequence[Row],
    batch_size: int,
    on_finish: Callable[[int, np.ndarray, bool], None],
    stops: StopStrings | None,
) -> Generated:
    return within_memory(
        loaded.name,
        loaded.model.device,
        batch_size,
        lambda size: decode(
            loaded.model,
            rows,
            batch_size=size,
            max_new_tokens=sweep.task.max_new_tokens,
            eos_ids=loaded.eos_ids,
            on_finish=on_finish,
            stops=stops,
        ),
    )


def _judge_rows(
    sweep: Sweep, loaded: LoadedModel, samples: Sequence[Sample], report: Report
) -> Callable[[int, np.ndarray, bool], None]:
    reported: set[int] = set()

    def on_finish(row: int, token_ids: np.ndarray, stopped: bool) -> None:
        if row not in reported:  # else it was decoded again with half the batch
            reported.add(row)
            report(tally(sweep, loaded, samples[row], token_ids, stopped))

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
