"""Making the parts of one block of prompts: prefill once, decode each part, store it."""

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
from kvguard.engine.presses import Condition, attention_for
from kvguard.engine.requests import Decoding, Finished, Row
from kvguard.judging.catastrophes import NO_ONSET, TraceTokens, onsets
from kvguard.models.load import LoadedModel
from kvguard.store.schemas import conform
from kvguard.sweep.parts import SweepPart
from kvguard.sweep.plan import Sweep, Tally
from kvguard.sweep.workers import Report
from kvguard.tasks.answers import is_correct, parse_answer

Key = tuple[int, Condition]


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
        n_prompt, n_kept = [row.n_prompt for row in rows], [row.cache.n_kept for row in rows]
        del rows  # the batch alone holds a row's cache from here on, until the row starts
        answers = [block["answer"].iloc[index] for index, _ in keys]

        def prefilled_rows(keys: Sequence[Key] = keys, part: SweepPart = part) -> Iterator[Row]:
            if keys[0] not in prefilled:  # memory has run out: the rows were let go as they started
                prefilled.update(prefill_block(sweep, loaded, block, part.conditions))
            return (prefilled.pop(key) for key in keys)

        on_finish = _judge_rows(sweep, loaded, answers, report)
        generated = _decode(sweep, loaded, prefilled_rows, batch_size, on_finish)
        raw = pd.DataFrame(
            {
                "trace_id": np.array(part.trace_ids, dtype=np.int32),
                "prompt_id": [block["prompt_id"].iloc[i] for i, _ in keys],
                "compressor": part.compressor,
                "ratio": [c.ratio for _, c in keys],
                "n_prompt_tokens": np.array(n_prompt, dtype=np.int32),
                "n_kept_tokens": n_kept,
                "token_ids": [generated.token_ids[r, :n] for r, n in enumerate(generated.lengths)],
                "text": [
                    loaded.decode(generated.token_ids[r, :n].tolist())
                    for r, n in enumerate(generated.lengths)
                ],
                "stop_reason": generated.stop_reasons,
            }
        )
        tokens = _tokens_frame(raw["trace_id"].to_numpy(), generated)
        part.write("tokens", conform("tokens", tokens), out)
        part.write("parts", conform("parts", raw), out)
        del generated, raw, tokens  # before the next part's batch is made


def prefill_block(
    sweep: Sweep, loaded: LoadedModel, block: pd.DataFrame, conditions: Sequence[Condition]
) -> dict[Key, Row]:
    """Prefill each prompt once: the row of every (position in the block, condition).

    Parameters
    ----------
    conditions
        All of one attention implementation.
    """
    presses = {condition: sweep.press(condition) for condition in conditions}
    implementation = attention_for(presses[conditions[0]])
    rows: dict[Key, Row] = {}
    for index, prompt in enumerate(block["prompt"]):
        ids = torch.tensor(loaded.encode(prompt), device=loaded.model.device)
        done = prefill(loaded.model, ids, presses, implementation)
        rows |= {(index, condition): Row(ids, done.logits, kept) for condition, kept in done.kept.items()}
    return rows


def _decode(
    sweep: Sweep,
    loaded: LoadedModel,
    rows: Callable[[], Iterable[Row]],
    batch_size: int,
    on_finish: Callable[[Finished], None],
) -> Generated:
    how = Decoding(sweep.spec.max_new_tokens, loaded.eos_ids)
    return within_memory(
        loaded.name,
        loaded.model.device,
        batch_size,
        lambda size: decode(loaded.model, rows(), how, batch_size=size, on_finish=on_finish),
    )


def _judge_rows(
    sweep: Sweep, loaded: LoadedModel, answers: Sequence[str], report: Report
) -> Callable[[Finished], None]:
    reported: set[int] = set()

    def on_finish(done: Finished) -> None:
        if done.row not in reported:  # else it was decoded again with half the batch
            reported.add(done.row)
            report(tally(sweep, loaded, answers[done.row], done.token_ids, done.ended))

    return on_finish


def tally(sweep: Sweep, loaded: LoadedModel, answer: str, token_ids: np.ndarray, stopped: bool) -> Tally:
    """Judge one finished trace for the progress bar."""
    verdict = is_correct(parse_answer(loaded.decode(token_ids.tolist())), answer)
    trace = TraceTokens(token_ids, np.array([len(token_ids)]), np.array(["eos" if stopped else "length"]))
    begun = onsets(trace, sweep.catastrophes, sweep.spec.max_new_tokens)
    failed = any(onset[0] != NO_ONSET for onset in begun.values())
    return Tally(1, int(failed), int(verdict is not None), int(bool(verdict)))


def _tokens_frame(ids: np.ndarray, generated: Generated) -> pd.DataFrame:
    valid = np.arange(generated.token_ids.shape[1]) < generated.lengths[:, None]  # [R, T]
    row, t = np.nonzero(valid)
    frame = pd.DataFrame(generated.signals[valid], columns=list(SIGNALS))
    frame.insert(0, "trace_id", ids[row])
    frame.insert(1, "t", t.astype(np.int32))
    frame.insert(2, "token_id", generated.token_ids[valid])
    return frame
