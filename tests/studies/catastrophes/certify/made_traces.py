"""Judged traces with known losses: no model, no tokens worth the name."""

import numpy as np
import pandas as pd


def traces(n, rates, *, seed=0, baseline=(0.0, 1.0), scored=True, model="made"):
    """Return judged traces of ``n`` prompts.

    Parameters
    ----------
    rates
        {(compressor, ratio): (rate of catastrophes, rate of wrong answers)}
    baseline
        The same of the uncompressed texts, the second as a rate of right answers.
    """
    rng = np.random.default_rng(seed)
    settings = {("none", 0.0): (baseline[0], 1 - baseline[1]), **rates}
    frames = []
    for (compressor, ratio), (fails, wrong) in settings.items():
        frames.append(
            pd.DataFrame(
                {
                    "prompt_id": [f"p{i}" for i in range(n)],
                    "compressor": compressor,
                    "ratio": ratio,
                    "model": model,
                    "catastrophes": [["looping"] if one else [] for one in rng.random(n) < fails],
                    "correct": (rng.random(n) >= wrong).astype(float) if scored else np.nan,
                    "stop_reason": "eos",
                    "n_prompt_tokens": 100,
                    "n_kept_tokens": 100 * (1 - ratio),
                    "token_ids": [np.zeros(10, dtype=np.int32)] * n,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
