"""The figures of the ``evaluate`` stage."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from kvguard.engine.presses import NONE, Condition
from kvguard.guard.controller import ControllerParams, State, states_of
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
    line_with_band,
    metric,
    titled,
)
from kvguard.studies.catastrophes.chapter.figures.alarms import delay_figures
from kvguard.studies.catastrophes.chapter.figures.labels import LABELS
from kvguard.studies.catastrophes.evaluate.simulate import NEVER
from kvguard.studies.catastrophes.measure.comparisons import RANDOM
from kvguard.studies.catastrophes.protocols import PROTOCOLS

STATE_COLOURS = {State.NORMAL: "#ffffff", State.ALERT: ORANGE, State.SAFE: GREEN}


def evaluation_figures(
    results: pd.DataFrame,
    pareto: pd.DataFrame,
    controlled: pd.DataFrame,
    traces: pd.DataFrame,
    tokens: pd.DataFrame,
    point: ControllerParams,
    title: str,
    folder: Path,
) -> list[Path]:
    """Draw what the ``evaluate`` stage found.

    Parameters
    ----------
    results, pareto, controlled
        The stage's tables.
    traces
        Judged traces, those of ``controlled`` among them.
    tokens
        trace_id, hazard and entropy of their tokens, in order.
    point
        The balanced operating point.
    """
    tested = controlled.merge(traces, on="trace_id", validate="one_to_one")
    return [
        _outcomes(results, title, folder / "outcome-by-ratio.png"),
        _pareto(pareto, titled(results, "Threshold search on tune prompts", title), folder / "pareto.png"),
        _lead_time(tested, titled(results, "How early the guard acts", title), folder / "lead-time.png"),
        _example(results, tested, tokens, point, title, folder / "hazard-example.png"),
        _entropy(results, tested, tokens, title, folder / "entropy-by-condition.png"),
        *delay_figures(results, "balanced", titled(results, "When the alarm comes", title), folder),
    ]


def _outcomes(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Small multiples: a column for each compressor; CBR above, accuracy below."""
    table = "controller-balanced"
    subjects = results.loc[results["table"] == table, "subject"].drop_duplicates()
    parsed = [subject.partition("@") for subject in subjects if "@" in subject]
    compressors = list(dict.fromkeys(name for name, _, _ in parsed))
    failure = f"{PROTOCOLS[results['protocol'].iloc[0]].failure} (share of traces)"
    heading = titled(results, "What compression costs, and what the guard would save", title)
    with canvas(
        path, heading, (2, len(compressors)), (2.6, 2.4), sharex=True, sharey=True
    ) as panels:  # [2, compressors]
        for row, (name, label) in zip(panels, (("cbr", failure), ("accuracy", "accuracy")), strict=True):
            without, guarded = (
                metric(results, table, f"{name}_{how}") for how in ("uncontrolled", "controlled")
            )
            for axis, compressor in zip(row, compressors, strict=True):
                ratios = sorted(float(ratio) for other, _, ratio in parsed if other == compressor)
                here = [str(Condition(compressor, ratio)) for ratio in ratios]
                if compressor != RANDOM and RANDOM in compressors:
                    known = [(r, str(Condition(RANDOM, r))) for r in ratios]
                    known = [(r, subject) for r, subject in known if subject in without.index]
                    axis.plot(
                        [r for r, _ in known],
                        without.loc[[subject for _, subject in known], "value"],
                        color=PALE,
                        linewidth=2.5,
                        label="random eviction, no guard",
                    )
                if NONE in without.index:
                    axis.axhline(
                        without.loc[NONE, "value"],
                        color=GREY,
                        linestyle=":",
                        linewidth=1.2,
                        label="uncompressed",
                    )
                line_with_band(axis, ratios, without.loc[here], VERMILION, marker="o", label="no guard")
                line_with_band(
                    axis,
                    ratios,
                    guarded.loc[here],
                    BLUE,
                    marker="s",
                    linestyle="--",
                    label="guard (simulated)",
                )
                axis.set(ylim=(-0.03, 1.03), xlim=(min(ratios) - 0.06, max(ratios) + 0.06))
            row[0].set_ylabel(label)
        for axis, compressor in zip(panels[0], compressors, strict=True):
            axis.set_title(compressor)
        for axis in panels[1]:
            axis.set_xlabel("compression ratio")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        panels[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return path


def _pareto(trials: pd.DataFrame, title: str, path: Path) -> Path:
    with canvas(path, title, size=(7.4, 4.6)) as ((axis,),):
        shown = axis.scatter(
            trials["false_positive_rate"],
            trials["reduction"],
            c=trials["kv_saved"],
            s=np.where(trials["on_front"], 34, 12),
            edgecolors=np.where(trials["on_front"], INK, "none"),
            linewidths=0.7,
            cmap="cividis",
        )
        axis.figure.colorbar(shown, ax=axis, label="KV memory saved", format=PercentFormatter(1, decimals=0))
        for (_, trial), offset in zip(
            trials.dropna(subset=["operating_point"]).sort_values("false_positive_rate").iterrows(),
            ((14, -28), (26, -44), (34, -20)),
            strict=False,
        ):
            x, y = trial["false_positive_rate"], trial["reduction"]
            axis.scatter(x, y, marker="*", s=230, color=VERMILION, edgecolors="white", zorder=3)
            axis.annotate(
                trial["operating_point"],
                (x, y),
                xytext=offset,
                textcoords="offset points",
                fontweight="bold",
                color=INK,
                arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 6},
            )
        axis.set(xlabel=LABELS["false_positive_rate"], ylabel="reduction (share of traces)")
        axis.scatter([], [], s=12, color=GREY, label="trial")
        axis.scatter([], [], s=34, color=GREY, edgecolors=INK, label="on the front of all three objectives")
        axis.scatter([], [], s=150, marker="*", color=VERMILION, label="operating point")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return path


def _lead_time(tested: pd.DataFrame, title: str, path: Path) -> Path:
    foreseen = tested.dropna(subset=["lead_time"])
    looping = foreseen["catastrophes"].map(lambda kinds: "looping" in kinds).to_numpy(dtype=bool)
    lead = foreseen["lead_time"].to_numpy()
    failed = int(tested["failed"].sum())
    with canvas(path, title, size=(7.2, 3.9)) as ((axis,),):
        axis.hist(
            [lead[looping], lead[~looping]],
            bins=np.linspace(0, max(lead.max(initial=1), 1), 33),
            stacked=True,
            color=[PINK, BLUE],
            label=["traces that loop", "other failures"],
        )
        if len(lead):
            low, median, high = np.quantile(lead, [0.25, 0.5, 0.75])
            axis.axvspan(
                low, high, color=PALE, alpha=0.4, zorder=0, label=f"quartiles: {low:.0f} to {high:.0f}"
            )
            axis.axvline(median, color=INK, linestyle="--", label=f"median: {median:.0f} tokens")
        axis.set(xlabel="lead time (tokens from SAFE to the onset)", ylabel="traces")
        axis.set_title(f"{len(lead)} of {failed} failures of the test prompts met before their onset")
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return path


def _example(
    results: pd.DataFrame,
    tested: pd.DataFrame,
    tokens: pd.DataFrame,
    point: ControllerParams,
    title: str,
    path: Path,
) -> Path:
    """Draw the foreseen failure of median lead time; without any, the first trace."""
    lead = tested["lead_time"].dropna().sort_values(kind="stable")
    trace = tested.loc[lead.index[len(lead) // 2] if len(lead) else tested.index[0]]
    its = tokens[tokens["trace_id"] == trace["trace_id"]]
    hazard, entropy = its["hazard"].to_numpy(), its["entropy"].to_numpy()
    condition = Condition(trace["compressor"], trace["ratio"])
    heading = titled(results, f"One trace, {condition}, prompt {trace['prompt_id']}", title)
    states = states_of(hazard, np.array([len(hazard)]), point)
    t = np.arange(len(hazard))
    with canvas(path, heading, (2, 1), (8.6, 2.4), sharex=True) as ((upper,), (lower,)):
        for state in (State.ALERT, State.SAFE):
            upper.fill_between(
                t, 0, 1, where=states == state, step="mid", alpha=0.22, linewidth=0,
                color=STATE_COLOURS[state], label=state.name,
            )  # fmt: skip
        upper.plot(t, hazard, color=VERMILION, label="hazard")
        for tau, name in ((point.tau_low, "tau_low"), (point.tau_high, "tau_high")):
            upper.axhline(tau, color=GREY, linestyle=":", linewidth=1)
            upper.annotate(
                f"{name} {tau:.2f}", (1, tau), xycoords=("axes fraction", "data"), fontsize=8, va="center"
            )
        lower.plot(t, entropy, color=BLUE, linewidth=1.2, label="entropy")
        for axis in (upper, lower):
            if pd.notna(trace["onset"]):
                axis.axvline(trace["onset"], color=INK, label=f"onset: token {trace['onset']}")
            if trace["safe_at"] != NEVER:
                axis.axvline(
                    trace["safe_at"], color=GREEN, linestyle="--", label=f"SAFE: token {trace['safe_at']}"
                )
        upper.set(ylabel="hazard", ylim=(-0.03, 1.03))
        lower.set(xlabel="generated token", ylabel="entropy (nats)")
        handles = dict(zip(*reversed(upper.get_legend_handles_labels()), strict=True))
        handles |= dict(zip(*reversed(lower.get_legend_handles_labels()), strict=True))
        upper.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    return path


def _entropy(
    results: pd.DataFrame, tested: pd.DataFrame, tokens: pd.DataFrame, title: str, path: Path
) -> Path:
    means = tested["trace_id"].map(tokens.groupby("trace_id")["entropy"].mean())
    names = pd.Series(
        [str(Condition(*pair)) for pair in zip(tested["compressor"], tested["ratio"], strict=True)],
        index=tested.index,
    )
    heading = titled(results, "Mean entropy of a trace", title)
    groups = {
        (name, failed): group.to_numpy()
        for (name, failed), group in means.groupby([names, tested["failed"]], sort=False)
    }
    order = list(names.drop_duplicates())
    with canvas(path, heading, size=(7.4, 1.6 + 0.3 * len(order))) as ((axis,),):
        for failed, colour, label, shift in (
            (False, SKY, "no failure", -0.19),
            (True, VERMILION, "failure", 0.19),
        ):
            drawn = [place for place, name in enumerate(order) if (name, failed) in groups]
            axis.barh(0, 0, color=colour, alpha=0.65, label=label)
            if not drawn:
                continue
            axis.boxplot(
                [groups[order[place], failed] for place in drawn],
                positions=np.array(drawn) + shift,
                orientation="horizontal",
                widths=0.32,
                patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.65, "linewidth": 0.6},
                medianprops={"color": INK, "linewidth": 1.4},
                whiskerprops={"linewidth": 0.8},
                capprops={"linewidth": 0.8},
                flierprops={"markersize": 2, "alpha": 0.35},
            )
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.set_xlabel("mean entropy over the tokens of a trace (nats)")
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return path
