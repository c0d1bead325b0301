"""The figure of when alarms come, offline and live."""

from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.report.drawing import BLUE, INK, PALE, PINK, canvas, metric
from kvguard.studies.catastrophes.score.alarms import BIN, NEVER_BIN

_KINDS = {"non_termination": ("run-ons", BLUE), "looping": ("loops", PINK)}


def delay_figures(results: pd.DataFrame, name: str, heading: str, folder: Path) -> list[Path]:
    """Draw how many tokens after the onset of a failure its alarm came; nothing where that was not measured.

    Parameters
    ----------
    results
        Of a stage with the tables ``alarms-NAME`` and ``alarm_bins-NAME``.
    """
    counts = pd.DataFrame(
        {kind: metric(results, f"alarm_bins-{name}", kind)["value"] for kind in _KINDS}, dtype=float
    )
    if counts.empty:
        return []
    path = folder / "alarm-delay.png"
    shown = counts.drop(index=NEVER_BIN, errors="ignore").rename(index=float).sort_index()
    never = counts.reindex([NEVER_BIN]).fillna(0).iloc[0]
    first = shown.index.to_numpy(dtype=float)
    apart = (first[-1] if len(first) else 0.0) + 3 * BIN  # where those without an alarm stand
    median = metric(results, f"alarms-{name}", "delay_median")["value"].get("overall", np.nan)
    with canvas(path, heading, size=(8.2, 4.0)) as ((axis,),):
        below, below_never = np.zeros(len(first)), 0.0
        for kind, (label, colour) in _KINDS.items():
            of_kind = shown[kind].to_numpy()
            axis.bar(first, of_kind, BIN, bottom=below, align="edge", color=colour, label=label)
            axis.bar(apart, never[kind], 2 * BIN, bottom=below_never, align="edge", color=colour)
            below, below_never = below + of_kind, below_never + never[kind]
        axis.axvline(0, color=PALE, linewidth=5, zorder=0, label="the onset")
        if np.isfinite(median):
            axis.axvline(median, color=INK, linestyle="--", label=f"median: {median:.0f} tokens")
        axis.annotate("no alarm", (apart + BIN, below_never), ha="center", va="bottom", fontsize=9)
        axis.margins(y=0.08)
        axis.set(xlabel="tokens from the onset to the alarm (negative: in advance)", ylabel="failing traces")
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return [path]
