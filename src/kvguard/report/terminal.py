"""Tables, traces and curves as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvguard.engine.presses import Condition

_LEVELS = "▁▂▃▄▅▆▇█"
_HEADS = {
    "accuracy": "accuracy",
    "cfr": "CFR",
    "cbr": "CBR",
    "non_termination": "non-term.",
    "mean_entropy": "mean entropy",
    "max_entropy": "max entropy",
    "min_top1_prob": "min top-1",
}


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Align ``rows`` under ``heads``: the first column to the left, numbers to the right; null is a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def condition_table(frame: pd.DataFrame) -> str:
    """Lay out a table that is indexed by compressor and ratio."""
    heads = ["condition", *(_HEADS.get(str(name), str(name)) for name in frame.columns)]
    rows = [
        [str(Condition(compressor, ratio)), *_row(values)]
        for (compressor, ratio), values in zip(frame.index, frame.to_dict("records"), strict=True)
    ]
    return table(heads, rows)


def curve(values: np.ndarray, width: int = 72, mark: int | None = None) -> str:
    """Draw ``values`` as one line of bars, the largest of each stretch, with a caret under index ``mark``."""
    if not len(values):
        return "(no tokens)"
    stretches = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    peaks = np.array([stretch.max() for stretch in stretches])
    top = max(float(peaks.max()), 1e-9)
    line = "".join(_LEVELS[min(int(peak / top * len(_LEVELS)), len(_LEVELS) - 1)] for peak in peaks)
    if mark is None:
        return line
    ends = np.cumsum([len(stretch) for stretch in stretches])
    return f"{line}\n{' ' * int(np.searchsorted(ends, mark, side='right'))}^"


def trace_text(trace: Mapping[str, Any], tokens: pd.DataFrame, pieces: Sequence[str]) -> str:
    """Show one trace: how it ended, its tokens, its entropy, its onset.

    Parameters
    ----------
    trace
        A row of the traces table.
    tokens
        Its rows of the tokens table, with entropy.
    pieces
        The text of each token.
    """
    onset = None if pd.isna(trace["onset"]) else int(trace["onset"])
    judged = "not scored" if pd.isna(trace["correct"]) else "right" if trace["correct"] >= 0.5 else "wrong"
    kinds = ", ".join(trace["catastrophes"]) or "none"
    head = [
        f"trace {trace['trace_id']}: {trace['model']}, "
        f"{Condition(trace['compressor'], trace['ratio'])}, prompt {trace['prompt_id']}",
        f"prompt tokens {trace['n_prompt_tokens']}, kept {trace['n_kept_tokens']:.0f}; "
        f"{len(pieces)} generated, stopped by {trace['stop_reason']}",
        f"answer {trace['predicted'] or '(none)'}: {judged}; catastrophes: {kinds}; "
        f"onset: {'none' if onset is None else f'token {onset}'}",
    ]
    shown = "".join(("«onset»" if t == onset else "") + piece for t, piece in enumerate(pieces))
    entropy = tokens["entropy"].to_numpy()
    title = (
        f"entropy over {len(entropy)} tokens, peak {entropy.max():.2f} nats" if len(entropy) else "entropy"
    )
    return "\n".join([*head, "", shown, "", title, curve(entropy, mark=onset)])


def _row(values: Mapping[Any, Any]) -> list[Any]:
    return [int(v) if name == "n" else (f"{v:.1f}" if name == "tokens" else v) for name, v in values.items()]


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
