"""What guarding costs in time while it never fires, and what one restore costs.

Measured in rounds, the guarded and the unguarded decoding in turn; the value is the median of the rounds, the
interval their own 2.5 % and 97.5 % quantiles. Decoding reads the signals with or without a guard, since the
sweep stores them; a user without a guard would not, so their time is taken off the unguarded decoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from kvguard.engine.loop import assemble, decode
from kvguard.engine.prefill import full_cache
from kvguard.engine.presses import Presses
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.signals import signals
from kvguard.guard.actions import Action, GuardedRun
from kvguard.guard.features import thinking_mask
from kvguard.guard.watch import Watch
from kvguard.models.load import LoadedModel
from kvguard.stats.bootstrap import LEVEL, Interval
from kvguard.store.results import Results
from kvguard.studies.catastrophes.live.block import make_trigger
from kvguard.studies.catastrophes.live.names import STATIC
from kvguard.studies.catastrophes.live.plan import POLICIES, Live
from kvguard.sweep.make import prefill_rows

TABLE = "latency"

_FEW, _SECONDS = 4, 5  # tokens that tell how fast a model is, and what a decoding may take


def measure_latency(
    results: Results, live: Live, loaded: LoadedModel, *, batch_size: int, n_tokens: int, rounds: int
) -> None:
    """Add the table latency, in milliseconds.

    Parameters
    ----------
    batch_size
        Rows; with fewer prompts some stand twice.
    n_tokens
        Of each row; of a slow model fewer, so that a decoding takes some seconds.
    """
    condition = live.sweep.conditions[1]
    block = live.sweep.prompts.iloc[:batch_size]
    prompt_ids = [np.array(loaded.encode(prompt)) for prompt in block["prompt"]]
    presses = Presses([condition], live.sweep.compressors)
    prefilled = prefill_rows(loaded, prompt_ids, presses, [condition])
    rows = [prefilled[row % len(block), condition] for row in range(batch_size)]
    thinking = thinking_mask(loaded.tokenizer, live.featurize.thinking_words)
    ratios = np.full(batch_size, condition.ratio)
    trigger = POLICIES[STATIC].trigger

    def unguarded(how: Decoding) -> None:
        decode(loaded.model, rows, how, batch_size=batch_size)

    def guarded(how: Decoding) -> None:
        batch = assemble(loaded.model, rows, batch_size, how)
        made = make_trigger(live, trigger, thinking, loaded.model.config)
        watch = Watch(made, live.triggers[trigger])
        for _ in GuardedRun(batch, watch, Action.NONE, live.guard, ratios).steps():
            pass

    logits = torch.stack([row.logits for row in rows])

    def read(how: Decoding) -> None:
        for _ in range(how.max_new_tokens):
            signals(logits, logits.argmax(dim=-1))

    n_tokens = min(n_tokens, live.task.max_new_tokens)
    few = Decoding(min(_FEW, n_tokens), [])
    unguarded(few)
    guarded(few)
    allowed = int(_SECONDS * 1000 / _ms(loaded, partial(unguarded, few)) * few.max_new_tokens)
    n_tokens = max(few.max_new_tokens, min(n_tokens, allowed))
    how = Decoding(n_tokens, [])
    timed = [partial(what, how) for what in (unguarded, read, guarded)]
    bar = tqdm(range(rounds), desc="latency", unit="round", disable=None)
    times = np.array([[_ms(loaded, what) for what in timed] for _ in bar])
    per_token = 1 / (batch_size * n_tokens)
    found = {"unguarded": (times[:, 0] - times[:, 1]) * per_token, "guarded": times[:, 2] * per_token}
    for name, ms in found.items():
        results.add(TABLE, name, {"ms_per_token": _spread(ms), "tokens_per_second": _spread(1000 / ms)})
    results.add(TABLE, "overhead", {"share": _spread(found["guarded"] / found["unguarded"] - 1)})
    restores = [_ms(loaded, partial(full_cache, loaded.model, ids)) for ids in _ids(rows, n_tokens)]
    results.add(TABLE, "restore", {"ms": _spread(np.array(restores))})


def _ids(rows: Sequence[Row], n_tokens: int) -> list[torch.Tensor]:
    """Return token ids as long as those of rows that are restored after ``n_tokens`` tokens."""
    return [torch.cat([row.prompt_ids, row.prompt_ids.new_zeros(n_tokens)]) for row in rows[:16]]


def _ms(loaded: LoadedModel, what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    if loaded.model.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def _spread(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.median(values)), float(low), float(high))
