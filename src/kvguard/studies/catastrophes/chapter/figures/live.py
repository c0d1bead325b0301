"""The figures of the ``live-validate`` stage: what the guard did while the model was writing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from kvguard.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    SKY,
    VERMILION,
    canvas,
    metric,
    titled,
    whiskers,
)
from kvguard.studies.catastrophes.chapter.figures.alarms import delay_figures
from kvguard.studies.catastrophes.protocols import BEFORE

GUARD = "rollback"
REGIMES = {
    "prefill": "compressed once, after the prefill",
    "decoding": "compressed after the prefill and while decoding",
}
BASELINE = "stop_at_answer"  # a stop string, without a model: what a guard has to beat on run-ons
POLICIES = {  # in the order in which they are shown
    "uncompressed": "uncompressed",
    "static": "no guard",
    "loop": "loop detector",
    "clock": "clock",
    "entropy": "entropy trigger",
    "hold": "guard: hold",
    "restore": "guard: restore",
    "rollback": "guard: rollback",
    "restart": "guard: restart",
    "stop": "guard: stop",
    BASELINE: "stop at the answer",
    f"rollback_{BEFORE}": f"rollback by protocol {BEFORE}",
}
ACTIONS = ("restore", "rollback", "restart")  # those that the offline simulation forecasts
_STYLES = {
    "uncompressed": (GREY, "D"),
    "static": (VERMILION, "o"),
    "loop": (PINK, "v"),
    "clock": (INK, "1"),
    "entropy": (ORANGE, "^"),
    "hold": (SKY, "P"),
    "restore": (GREEN, "s"),
    "rollback": (BLUE, "X"),
    "restart": (INK, "h"),
    "stop": (GREEN, "*"),
    BASELINE: (GREY, "<"),
    f"rollback_{BEFORE}": (SKY, "X"),
}
_POOLED = "all conditions"


def live_figures(results: pd.DataFrame, latency: pd.DataFrame, folder: Path, title: str) -> list[Path]:
    """Draw what the ``live-validate`` stage found.

    Parameters
    ----------
    results, latency
        Its two ``results`` tables: what the guard changed, and what it cost in time.
    """
    return [
        _rates(results, title, folder / "cbr-by-policy.png"),
        _frontier(results, title, folder / "frontier.png"),
        _gap(results, title, folder / "causality-gap.png"),
        _switch(results, title, folder / "switch-time.png"),
        _latency(latency, title, folder / "latency.png"),
        *delay_figures(results, GUARD, titled(results, "When the alarm comes, live", title), folder),
    ]


def policies_table(regime: str) -> str:
    """Return the name of the table that holds what each policy did."""
    return f"policies-{regime}"


def _regimes(results: pd.DataFrame) -> dict[str, str]:
    """Return the regimes that were run; none was: the first, for an empty panel."""
    run = {
        regime: spelled
        for regime, spelled in REGIMES.items()
        if policies_table(regime) in set(results["table"])
    }
    return run or dict(list(REGIMES.items())[:1])


def conditions_of(subjects: list[str]) -> list[str]:
    """Return the conditions that subjects like ``rollback/snapkv@0.75`` name, in their order."""
    return list(dict.fromkeys(subject.partition("/")[2] for subject in subjects if "/" in subject))


def _rates(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the CBR of every policy, a row for each condition and one for all of them together."""
    regimes = _regimes(results)
    known = [results.loc[results["table"] == policies_table(regime), "subject"] for regime in regimes]
    rows = ["", *conditions_of([subject for subjects in known for subject in subjects])]
    heading = titled(results, "Catastrophes, live", title)
    size = (5.2, 1.6 + 0.95 * len(rows))
    with canvas(path, heading, (1, len(regimes)), size, sharex=True, sharey=True) as (axes,):
        for axis, (regime, spelled) in zip(axes, regimes.items(), strict=True):
            found = metric(results, policies_table(regime), "cbr")
            for place, policy in enumerate(POLICIES):
                shift = (place - (len(POLICIES) - 1) / 2) * 0.8 / len(POLICIES)
                its = found.reindex(_subjects(policy, rows))
                _mark(axis, policy, its["value"], np.arange(len(rows)) + shift, xerr=whiskers(its))
            axis.set(title=spelled, xlabel="CBR (share of traces)")
            axis.grid(visible=False, axis="y")
        forecast = metric(results, "gap", "cbr_simulated").reindex(_subjects("rollback", rows))
        axes[0].plot(
            forecast["value"], np.arange(len(rows)) + 0.45, "X", color=BLUE, markerfacecolor="white",
            label="guard: rollback, simulated offline",
        )  # fmt: skip
        axes[0].set_yticks(range(len(rows)), [row or _POOLED for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        _shared_legend(axes, 2 * len(regimes))
    return path


def _subjects(policy: str, conditions: list[str]) -> list[str]:
    return [f"{policy}/{condition}" if condition else policy for condition in conditions]


def _mark(axis: Axes, policy: str, x: pd.Series, y: pd.Series | NDArray[Any], **bars: Any) -> None:
    """Mark a policy's points with their error bars; one that was not measured is not in the legend."""
    if np.isnan(x + y).all():
        return
    colour, marker = _STYLES[policy]
    axis.errorbar(
        x, y, color=colour, fmt=marker, markersize=6, capsize=2, linewidth=1, label=POLICIES[policy], **bars
    )


def _shared_legend(axes: Sequence[Axes], columns: int) -> None:
    """Put one legend below panels that may each lack some of the entries."""
    entries = [entry for axis in axes for entry in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in entries}
    figure = axes[0].figure
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def _frontier(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw memory saved against CBR, with the line of those who guard by lot and the oracle's point."""
    heading = titled(results, "What memory costs in catastrophes", title)
    regimes = _regimes(results)
    with canvas(path, heading, (1, len(regimes)), (5.6, 4.6), sharex=True, sharey=True) as (axes,):
        for axis, (regime, spelled) in zip(axes, regimes.items(), strict=True):
            table = policies_table(regime)
            saved, failed = metric(results, table, "kv_saved"), metric(results, table, "cbr")
            ends = ["always_safe", "static"]
            axis.plot(
                saved["value"].reindex(ends), failed["value"].reindex(ends), color=GREY, linestyle=":",
                linewidth=1.4, label="mixtures of always safe and no guard",
            )  # fmt: skip
            for policy in POLICIES:
                x, y = saved.reindex([policy]), failed.reindex([policy])
                _mark(axis, policy, x["value"], y["value"], xerr=whiskers(x), yerr=whiskers(y))
            axis.plot(
                saved["value"].reindex(["oracle"]), failed["value"].reindex(["oracle"]), "*", color=INK,
                markerfacecolor="white", markersize=12, label="oracle: restores failing traces at the onset",
            )  # fmt: skip
            axis.set(title=spelled, xlabel="KV memory saved (mean over steps)")
            axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[0].axhline(
            _one(results, "gap", "rollback", "cbr_simulated")["value"], color=BLUE, linestyle="--",
            linewidth=1, label="CBR of guard: rollback, simulated offline",
        )  # fmt: skip
        axes[0].set_ylabel("CBR (share of traces)")
        _shared_legend(axes, 1 + len(regimes))
    return path


def _gap(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw, for each action, predicted against really prevented as shares of the failing traces."""
    heading = titled(results, "Does the forecast come true?", title)
    cells = (("both", "predicted_only"), ("prevented_only", "neither"))
    known = metric(results, "gap", "gap").index
    actions = [action for action in ACTIONS if action in known] or ACTIONS
    with canvas(path, heading, (1, len(actions)), (4.7, 3.9)) as (axes,):
        for axis, action in zip(axes, actions, strict=True):
            numbers = {name: _one(results, "gap", action, name) for row in cells for name in row}
            shares = np.array([[numbers[name]["value"] for name in row] for row in cells])
            axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.4)
            for (row, column), name in zip(np.ndindex(2, 2), np.ravel(cells), strict=True):
                axis.text(column, row, _spelled(numbers[name]), ha="center", va="center", fontsize=11)
            axis.set_xticks([0, 1], ["prevented live", "not prevented live"])
            axis.set_yticks(
                [0, 1], ["prevented, says\nthe simulation", "not prevented,\nsays the simulation"]
            )
            axis.grid(visible=False)
            gap, n_failed = (_one(results, "gap", action, name) for name in ("gap", "n_failed"))
            axis.set_title(
                f"{action}, {n_failed['value']:.0f} failing traces\n"
                "CBR, live minus simulated:\n" + _spelled(gap).replace(" %\n", " points ")
            )
    return path


def _switch(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the share of failing traces that recover against how early they were restored."""
    heading = titled(results, "How early is early enough?", title)
    found = {name: metric(results, "switch", name) for name in ("recovered", "correct", "n_traces")}
    offsets = sorted(found["recovered"].index, key=float, reverse=True)
    counts = found["n_traces"]["value"].reindex(offsets)
    with canvas(path, heading, size=(7.2, 4.2) if offsets else (7.2, 1.6)) as ((axis,),):
        if not offsets:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "not run: live_validate.switch_traces is 0", ha="center", color=GREY)
            return path
        if "0" in offsets:
            axis.axvline(offsets.index("0"), color=PALE, linewidth=6, zorder=0, label="the onset")
        for name, label, colour, marker in (
            ("recovered", "ends without a catastrophe", BLUE, "o"),
            ("correct", "ends with the right answer", GREEN, "s"),
        ):
            values, x = found[name].reindex(offsets), np.arange(len(offsets))
            axis.errorbar(
                x, values["value"], yerr=whiskers(values), color=colour, marker=marker, capsize=3, label=label
            )
        ticks = [f"{offset}\nn={n:.0f}" for offset, n in zip(offsets, counts, strict=True)]
        axis.set_xticks(range(len(offsets)), ticks)
        axis.set(
            xlabel="cache restored this many tokens before the onset (negative: after it)",
            ylabel="share of the failing traces",
            ylim=(-0.03, 1.03),
        )
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return path


def _latency(latency: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the time of a token with and without the guard, while the guard never fires."""
    subjects = ["unguarded", "guarded"]
    found = metric(latency, "latency", "ms_per_token").reindex(subjects)
    with canvas(path, titled(latency, "What guarding costs in time", title), size=(6.4, 2.4)) as ((axis,),):
        axis.barh(subjects, found["value"], color=[SKY, BLUE], height=0.6)
        axis.errorbar(
            found["value"], subjects, xerr=whiskers(found), color=INK, fmt="none", capsize=3, linewidth=1
        )
        overhead = _spelled(_one(latency, "latency", "overhead", "share"))
        axis.set_title("overhead: " + overhead.replace("\n", " "))
        axis.set_xlabel("milliseconds per token")
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
    return path


def _one(results: pd.DataFrame, table: str, subject: str, name: str) -> pd.Series:
    """Return value, low and high of one number, NaN where it was not measured."""
    return metric(results, table, name).reindex([subject]).iloc[0]


def _spelled(found: pd.Series) -> str:
    """Return a share in percent, its interval below."""
    if np.isnan(found["value"]):
        return "–"
    value, low, high = found * 100
    return f"{value:.1f} %" + ("" if np.isnan(low) else f"\n[{low:.1f}, {high:.1f}]")
