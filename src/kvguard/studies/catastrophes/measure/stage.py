"""The ``measure`` stage: every table of what compression does to one model."""

from pathlib import Path

import pandas as pd

from kvguard.judging.judge import read_judged
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results
from kvguard.store.tables import read_tokens
from kvguard.studies.catastrophes.measure.comparisons import add_comparisons
from kvguard.studies.catastrophes.measure.outcomes import add_onsets, add_outcomes
from kvguard.studies.catastrophes.measure.signals import add_onset_entropy, add_signals

STAGE = "measure"


def measure(generate_dir: Path, model: str, n_resamples: int, seed: int) -> Results:
    """Measure all traces of ``generate_dir``; nothing is fitted, so no prompt is held out.

    Every interval is a bootstrap over the prompts, and every table uses the same resamples.
    """
    columns = ["trace_id", "prompt_id", "compressor", "ratio", "token_ids"]
    judged = ["catastrophes", "onset", "onset_by"]
    traces = read_judged(generate_dir / "traces.parquet", [*columns, *judged])
    prompt, names = pd.factorize(traces["prompt_id"], sort=True)
    weights = resample_weights(len(names), n_resamples, seed)
    results = Results(STAGE, model)
    add_outcomes(results, traces, prompt, weights)
    add_onsets(results, traces)
    add_comparisons(results, traces, prompt, weights)
    tokens = read_tokens(generate_dir, ["entropy", "top1_prob"])
    add_signals(results, traces, tokens, prompt, weights)
    add_onset_entropy(results, traces, tokens, prompt, weights)
    return results
