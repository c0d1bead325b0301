"""Judged traces small enough to count by hand, and what is measured on them."""

import numpy as np
import pandas as pd

from kvguard.stats.bootstrap import resample_weights
from kvguard.store.results import Results

LOOP, LONG = ["looping"], ["non_termination"]


def judged(rows):
    """Judged traces from (prompt, compressor, ratio, correct, catastrophes, amnesia, tokens)."""
    names = ("prompt_id", "compressor", "ratio", "correct", "catastrophes", "amnesia", "tokens")
    frame = pd.DataFrame(rows, columns=names)
    frame["token_ids"] = [np.zeros(n, dtype=np.int32) for n in frame.pop("tokens")]
    return frame.astype({"correct": "float64", "amnesia": "float64"})


def measured(traces, add, *tables):
    """The numbers that ``add`` adds, by table, subject and metric."""
    prompt, names = pd.factorize(traces["prompt_id"])
    results = Results("measure", "m")
    add(results, traces, *tables, prompt, resample_weights(len(names), 200, 0))
    frame = results.frame.set_index(["table", "subject", "metric"]).sort_index()
    return frame[["value", "low", "high"]]
