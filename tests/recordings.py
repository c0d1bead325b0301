"""Recorded traces small enough to reckon with by hand, and hazards planted in them."""

import numpy as np
import pandas as pd

from kvguard.judging.onsets import LOOPING
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.protocols import PROTOCOLS


def judged(rows):
    """Judged traces from (prompt, compressor, ratio, n_tokens, onset, correct); half of 10 tokens is kept."""
    columns = ["prompt_id", "compressor", "ratio", "n_tokens", "onset", "correct"]
    frame = pd.DataFrame(rows, columns=columns)
    found_by = frame["onset"].map(lambda onset: None if pd.isna(onset) else LOOPING).astype(object)
    return frame.assign(
        trace_id=np.arange(len(frame), dtype=np.int32),
        token_ids=[np.zeros(n, dtype=np.int32) for n in frame["n_tokens"]],
        catastrophes=[[] if pd.isna(onset) else ["looping"] for onset in frame["onset"]],
        **{name: frame["onset"].astype("Int32") for name in ("onset", "proxy_onset")},
        **dict.fromkeys(("onset_by", "proxy_onset_by"), found_by),
        correct=frame["correct"].astype("float64"),
        n_prompt_tokens=10,
        n_kept_tokens=np.where(frame["compressor"] == "none", 10.0, 5.0),
    )


def planted(n_prompts=20, foreseen=0.75, alarmed=0.2, n_tokens=40, onset=30, horizon=16):
    """Replayed traces of known hazard, and the split that calls them all tune.

    Each prompt has an uncompressed trace, one that fails and one that does not. The hazard is 0.8 over the
    ``horizon`` tokens before the onset in the first share ``foreseen`` of the failures, and over as many in
    the first share ``alarmed`` of the others; elsewhere it is 0.1.
    """
    rows, hazard = [], []
    for prompt in range(n_prompts):
        for compressor, ratio, fails, share in (
            ("none", 0.0, False, 0),
            ("x", 0.5, True, foreseen),
            ("y", 0.5, False, alarmed),
        ):
            rows.append((f"p{prompt}", compressor, ratio, n_tokens, onset if fails else None, not fails))
            line = np.full(n_tokens, 0.1, dtype=np.float32)
            if prompt < share * n_prompts:
                line[onset - horizon : onset] = 0.8
            hazard.append(line)
    traces = recorded(judged(rows), PROTOCOLS["v2"])
    split = pd.DataFrame({"prompt_id": traces["prompt_id"].unique(), "part": "tune"})
    return Replay(traces, np.stack(hazard)), split
