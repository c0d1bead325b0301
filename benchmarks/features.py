"""Bulk featurising against a simple per-token loop: tokens a second on one core, and their ratio.

Run: PYTHONPATH=src python benchmarks/features.py [--traces 8000] [--tokens 256]
"""

import argparse
import os
import time
from collections import Counter, deque

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from kvguard.engine.columns import SIGNALS
from kvguard.engine.repetition import repeat_counts
from kvguard.guard.columns import FEATURES, ROLLED
from kvguard.guard.features import WINDOW
from kvguard.store.schemas import conform
from kvguard.studies.catastrophes.featurize import featurize_tokens

VOCAB = 512


def make_tables(n_traces: int, n_tokens: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Random signals; every fourth trace loops from its middle on."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, VOCAB, (n_traces, n_tokens))
    token_ids[::4, n_tokens // 2 :] = np.resize(token_ids[0, :9], n_tokens - n_tokens // 2)
    n = token_ids.size
    columns = {name: rng.random(n, dtype=np.float32) for name in SIGNALS}
    keys = {
        "trace_id": np.repeat(np.arange(n_traces, dtype=np.int32), n_tokens),
        "t": np.tile(np.arange(n_tokens, dtype=np.int32), n_traces),
        "token_id": token_ids.ravel().astype(np.int32),
    }
    traces = pd.DataFrame({"trace_id": np.arange(n_traces, dtype=np.int32), "ratio": 0.5})
    return conform("tokens", pd.DataFrame({**keys, **columns}, copy=False)), traces


def reference(tokens: pd.DataFrame, mask: np.ndarray, max_new_tokens: int) -> np.ndarray:
    """Featurise one token after another in plain Python."""
    rows = []
    records = tokens[["trace_id", "t", "token_id", *SIGNALS]].itertuples(index=False)
    for record in records:
        if record.t == 0:
            history, seen, last = deque(maxlen=WINDOW), Counter(), deque(maxlen=20)
            before, entropies = record.entropy, []
        delta = record.entropy - before
        before = record.entropy
        last.append(record.token_id)
        window = tuple(last) if len(last) == 20 else None
        repeats = seen[window] if window else 0
        seen[window] += 1
        history.append((record.entropy, record.top1_prob, record.h_alts, delta, repeats))
        past = list(zip(*history, strict=True))
        rolled = [f(values) for values in past[: len(ROLLED)] for f in (np.mean, np.std)]
        thinking, position = mask[record.token_id], record.t / max_new_tokens
        entropies.append(record.entropy)
        first, recent = np.mean(entropies[:16]), np.mean(entropies[-32:])
        drift = [np.mean(entropies), first, recent - first, max(entropies)]
        own = [delta, record.t > 0, repeats, thinking, *rolled, sum(past[-1]), position, 0.5, *drift]
        rows.append([*record[3:-1], *own])
    return np.array(rows, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    tokens, traces = make_tables(arguments.traces, arguments.tokens)
    mask = np.arange(VOCAB) % 9 == 0
    found = featurize_tokens(tokens.iloc[: arguments.tokens], traces, arguments.tokens, mask)
    few = tokens.iloc[: 20 * arguments.tokens]
    start = time.perf_counter()
    simple = reference(few, mask, arguments.tokens)
    simple_rate = len(few) / (time.perf_counter() - start)
    np.testing.assert_allclose(simple[: arguments.tokens], found[list(FEATURES)].to_numpy(), atol=1e-5)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        featurize_tokens(tokens, traces, arguments.tokens, mask)
        rates.append(len(tokens) / (time.perf_counter() - start))
    start = time.perf_counter()
    repeat_counts(tokens["token_id"].to_numpy(), np.full(arguments.traces, arguments.tokens), 20)
    repeats = time.perf_counter() - start
    print(f"bulk       {max(rates) / 1e6:8.2f} M tokens/s (best of 5; rep_count alone {repeats:.2f} s)")
    print(f"per token  {simple_rate / 1e6:8.4f} M tokens/s")
    print(f"ratio      {max(rates) / simple_rate:8.0f} x")


if __name__ == "__main__":
    main()
