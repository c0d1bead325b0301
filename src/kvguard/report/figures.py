"""The figures of the pipeline: PNG files whose bytes depend on nothing but their data.

Numbers come from the ``results`` tables, so a figure shows what the tables say; bars and bands are the 95 %
intervals found there. Colours are those of Okabe and Ito, told apart under every common colour blindness,
and what differs in colour differs in its marker, its line or its label too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from kvguard.compressors import NONE, Condition
from kvguard.config import ControllerParams
from kvguard.guard.controller import State, states_of
from kvguard.guard.simulate import NEVER
from kvguard.measure.comparisons import RANDOM

Scores = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

_BLUE, _VERMILION, _GREEN, _PINK, _ORANGE, _SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
)  # fmt: skip
_INK, _GREY, _PALE = "#222222", "#7a7a7a", "#c9c9c9"
STATE_COLOURS = {State.NORMAL: "#ffffff", State.ALERT: _ORANGE, State.SAFE: _GREEN}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 120,
}
_FAILURE = {"v1": "CFR (share of traces)", "v2": "CBR (share of traces)"}
_LABELS = {
    "auroc": "AUROC, pre-onset",
    "auprc": "AUPRC, pre-onset",
    "recall_at_5pct_fpr": "recall at 5 % FPR",
    "reduction": "reduction of CBR (share of traces)",
    "false_positive_rate": "false positives (share of traces)",
    "kv_saved": "KV memory saved",
    "kv_saved_controlled": "KV memory saved",
}


def model_title(model: str, is_reference: bool) -> str:
    """Return how figures and tables name a model."""
    return f"{model} (reference model)" if is_reference else model


def training_figures(
    results: pd.DataFrame, hazard: Scores, label: Bools, title: str, folder: Path
) -> list[Path]:
    """Draw what the ``train`` stage found.

    Parameters
    ----------
    results
        Its ``results`` table.
    hazard, label
        Of the pre-onset tokens of the test prompts. [N]
    """
    return [
        _ranking(results, hazard, label, title, folder / "pre-onset.png"),
        _reliability(results, title, folder / "reliability.png"),
        _importance(results, title, folder / "importance.png"),
        _horizons(results, title, folder / "horizons.png"),
        _left_out(results, title, folder / "cross-validation.png"),
    ]


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
        _pareto(pareto, _titled(results, "Threshold search on tune prompts", title), folder / "pareto.png"),
        _lead_time(tested, _titled(results, "How early the guard acts", title), folder / "lead-time.png"),
        _example(results, tested, tokens, point, title, folder / "hazard-example.png"),
        _entropy(results, tested, tokens, title, folder / "entropy-by-condition.png"),
    ]


def ablation_figures(results: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``ablate`` stage found: what features, controller parts and settings contribute."""
    return [
        _bars(
            results,
            "features",
            ("auroc", "auprc", "reduction", "false_positive_rate"),
            _titled(results, "Hazard models with fewer features", title),
            folder / "features.png",
            dark=["full"],
        ),
        _bars(
            results,
            "controllers",
            ("reduction", "false_positive_rate", "kv_saved"),
            _titled(results, "Ways to decide when to switch", title),
            folder / "controllers.png",
            dark=["hazard"],
        ),
        _settings(results, title, folder / "settings.png"),
    ]


def transfer_figures(results: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``transfer`` stage found: each way beside the target's own hazard model."""
    metrics = ("auroc", "auprc", "reduction", "false_positive_rate")
    at_home = [subject for subject in results["subject"].unique() if len(set(subject.split("->"))) == 1]
    heading = f"Trained on one model, tested on another (dark: on the same)\n{title}"
    return [_bars(results, "transfer", metrics, heading, folder / "transfer.png", dark=at_home)]


def metric(results: pd.DataFrame, table: str, name: str) -> pd.DataFrame:
    """Return value, low and high of one metric of one table, indexed by subject."""
    chosen = results[(results["table"] == table) & (results["metric"] == name)]
    return chosen.set_index("subject")[["value", "low", "high"]]


def _titled(results: pd.DataFrame, text: str, title: str) -> str:
    protocol = results["protocol"].iloc[0]
    return f"{text}\n{title}" + (f", protocol {protocol}" if protocol else "")


@contextmanager
def _figure(
    path: Path,
    title: str,
    panels: tuple[int, int] = (1, 1),
    size: tuple[float, float] = (5.6, 3.9),
    **layout: Any,
) -> Iterator[NDArray[Any]]:
    """Yield rows x columns of axes, each of ``size`` inches; write the figure afterwards."""
    rows, columns = panels
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.01, ha="left")
        yield figure.subplots(rows, columns, squeeze=False, **layout)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
        path.parent.mkdir(parents=True, exist_ok=True)
        # 256 colours are plenty for a chart, and take a third of the room in the report.
        image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(path, "PNG", optimize=True)


def _whiskers(found: pd.DataFrame) -> NDArray[np.float64]:
    """Return the lengths of the error bars of values with intervals. [2, N]"""
    below, above = found["value"] - found["low"], found["high"] - found["value"]
    return np.nan_to_num(np.clip(np.stack([below, above]), 0, None))


def _line_with_band(axis: Axes, x: Sequence[float], found: pd.DataFrame, colour: str, **style: Any) -> None:
    axis.plot(x, found["value"], color=colour, **style)
    axis.fill_between(x, found["low"], found["high"], color=colour, alpha=0.18, linewidth=0)


def _ranking(results: pd.DataFrame, hazard: Scores, label: Bools, title: str, path: Path) -> Path:
    heading = _titled(results, "Forecasting catastrophes before their onset", title)
    with _figure(path, heading, (1, 2)) as ((roc, pr),):
        roc.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1.2, label="chance")
        roc.axvline(0.05, color=_PALE, linewidth=1.2, label="5 % false positives")
        pr.axhline(
            label.mean() if len(label) else 0, color=_GREY, linestyle=":", linewidth=1.2, label="chance"
        )
        if 0 < label.sum() < len(label):
            fpr, recall, _ = roc_curve(label, hazard)
            roc.plot(fpr, recall, color=_BLUE, label=f"hazard: AUROC {_spelled(results, 'auroc')}")
            precision, reached, _ = precision_recall_curve(label, hazard)
            pr.step(reached, precision, color=_BLUE, label=f"hazard: AUPRC {_spelled(results, 'auprc')}")
        roc.set(xlabel="false-positive rate (of tokens)", ylabel="recall (of tokens)")
        pr.set(xlabel="recall (of tokens)", ylabel="precision (of tokens)", ylim=(-0.03, 1.03))
        roc.legend(loc="lower right")
        pr.legend(loc="lower left")
    return path


def _spelled(results: pd.DataFrame, name: str) -> str:
    value, low, high = metric(results, "predictor", name).loc["pre_onset"]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _reliability(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = _titled(results, "Is the hazard a probability?", title)
    predicted, observed, n_tokens = (
        metric(results, "reliability", name) for name in ("mean_hazard", "observed", "n_tokens")
    )
    with _figure(path, heading, (2, 1), (6.4, 2.3), sharex=True, height_ratios=[3, 1]) as (
        (curve,),
        (count,),
    ):
        curve.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1.2, label="perfectly calibrated")
        curve.errorbar(
            predicted["value"],
            observed["value"],
            yerr=_whiskers(observed),
            color=_BLUE,
            marker="o",
            capsize=3,
            label="ten bins of hazard, 95 % interval",
        )
        curve.set(ylabel="share of tokens within\nthe horizon of an onset", ylim=(-0.04, 1.04))
        curve.legend(loc="upper left")
        count.bar(predicted["value"], n_tokens["value"], width=0.04, color=_SKY)
        count.set(xlabel="mean hazard of the bin", ylabel="tokens", yscale="log", xlim=(-0.04, 1.04))
    return path


def _importance(results: pd.DataFrame, title: str, path: Path) -> Path:
    shap, gain = (metric(results, "importance", name)["value"] for name in ("mean_abs_shap", "gain"))
    top = shap.sort_values(ascending=False, kind="stable").index[:15]
    heading = _titled(results, "What the hazard model reads (15 of its features)", title)
    with _figure(path, heading, (1, 2), (5.6, 4.6), sharey=True) as ((left, right),):
        left.barh(top, shap[top], color=_BLUE)
        left.set(xlabel="mean |SHAP value| (log-odds)")
        right.barh(top, gain[top], color=_SKY)
        right.set(xlabel="gain (mean loss reduction of a split)")
        left.invert_yaxis()
        for axis in (left, right):
            axis.grid(visible=False, axis="y")
    return path


def _horizons(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = _titled(results, "How far ahead a catastrophe shows", title)
    styles = {"auroc": (_BLUE, "o"), "auprc": (_VERMILION, "s"), "recall_at_5pct_fpr": (_GREEN, "^")}
    with _figure(path, heading, size=(6.8, 3.9)) as ((axis,),):
        for shift, (name, (colour, marker)) in zip((-0.08, 0, 0.08), styles.items(), strict=True):
            found = metric(results, "horizons", name)
            axis.errorbar(
                np.arange(len(found)) + shift,
                found["value"],
                yerr=_whiskers(found),
                color=colour,
                marker=marker,
                capsize=3,
                linewidth=1.2,
                label=_LABELS[name],
            )
        axis.set_xticks(range(len(found)), found.index)
        axis.set(xlabel="horizon H (tokens ahead of the onset)", ylabel="value", ylim=(0, 1.03))
        axis.legend(loc="lower right")
    return path


def _left_out(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = _titled(results, "On a compressor never trained on", title)
    return _bars(results, "cross_validation", ("auroc", "auprc", "recall_at_5pct_fpr"), heading, path)


def _bars(
    results: pd.DataFrame,
    table: str,
    names: Sequence[str],
    title: str,
    path: Path,
    dark: Collection[str] = (),
) -> Path:
    """Draw a panel of horizontal bars for each metric, a bar for each subject of the table."""
    subjects = list(results.loc[results["table"] == table, "subject"].drop_duplicates())
    size = (3.3 + 0.9 / len(names), 1.6 + 0.32 * len(subjects))
    with _figure(path, title, (1, len(names)), size, sharey=True) as (axes,):
        for axis, name in zip(axes, names, strict=True):
            found = metric(results, table, name).reindex(subjects)
            start = 0.5 if name == "auroc" else 0.0  # chance
            colours = [_BLUE if subject in dark else _SKY for subject in subjects]
            names_shown = [subject.replace("->", " → ") for subject in subjects]
            axis.barh(names_shown, found["value"] - start, left=start, color=colours, height=0.62)
            axis.errorbar(
                found["value"],
                names_shown,
                xerr=_whiskers(found),
                color=_INK,
                fmt="none",
                capsize=2.5,
                linewidth=1,
            )
            axis.set_xlabel(_LABELS[name])
            axis.set_xlim(*_range(found, start))
            axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.grid(visible=False, axis="y")
        axes[0].invert_yaxis()
    return path


def _range(found: pd.DataFrame, start: float) -> tuple[float, float]:
    """Return limits that hold ``start`` and every interval, with room to spare."""
    edges = found.to_numpy(dtype=np.float64)
    edges = np.append(edges[np.isfinite(edges)], start)
    room = max(edges.max() - edges.min(), 0.02) * 0.06
    return float(edges.min() - (room if edges.min() < start else 0)), float(edges.max() + room)


def _outcomes(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Small multiples: a column for each compressor; CBR above, accuracy below."""
    table = "controller-balanced"
    subjects = results.loc[results["table"] == table, "subject"].drop_duplicates()
    parsed = [subject.partition("@") for subject in subjects if "@" in subject]
    compressors = list(dict.fromkeys(name for name, _, _ in parsed))
    failure = _FAILURE[results["protocol"].iloc[0]]
    heading = _titled(results, "What compression costs, and what the guard would save", title)
    with _figure(
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
                        color=_PALE,
                        linewidth=2.5,
                        label="random eviction, no guard",
                    )
                if NONE in without.index:
                    axis.axhline(
                        without.loc[NONE, "value"],
                        color=_GREY,
                        linestyle=":",
                        linewidth=1.2,
                        label="uncompressed",
                    )
                _line_with_band(axis, ratios, without.loc[here], _VERMILION, marker="o", label="no guard")
                _line_with_band(
                    axis,
                    ratios,
                    guarded.loc[here],
                    _BLUE,
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
    with _figure(path, title, size=(7.4, 4.6)) as ((axis,),):
        shown = axis.scatter(
            trials["false_positive_rate"],
            trials["reduction"],
            c=trials["kv_saved"],
            s=np.where(trials["on_front"], 34, 12),
            edgecolors=np.where(trials["on_front"], _INK, "none"),
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
            axis.scatter(x, y, marker="*", s=230, color=_VERMILION, edgecolors="white", zorder=3)
            axis.annotate(
                trial["operating_point"],
                (x, y),
                xytext=offset,
                textcoords="offset points",
                fontweight="bold",
                color=_INK,
                arrowprops={"arrowstyle": "-", "color": _GREY, "shrinkB": 6},
            )
        axis.set(xlabel=_LABELS["false_positive_rate"], ylabel="reduction (share of traces)")
        axis.scatter([], [], s=12, color=_GREY, label="trial")
        axis.scatter([], [], s=34, color=_GREY, edgecolors=_INK, label="on the front of all three objectives")
        axis.scatter([], [], s=150, marker="*", color=_VERMILION, label="operating point")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return path


def _lead_time(tested: pd.DataFrame, title: str, path: Path) -> Path:
    foreseen = tested.dropna(subset=["lead_time"])
    looping = foreseen["catastrophes"].map(lambda kinds: "looping" in kinds).to_numpy(dtype=bool)
    lead = foreseen["lead_time"].to_numpy()
    failed = int(tested["failed"].sum())
    with _figure(path, title, size=(7.2, 3.9)) as ((axis,),):
        axis.hist(
            [lead[looping], lead[~looping]],
            bins=np.linspace(0, max(lead.max(initial=1), 1), 33),
            stacked=True,
            color=[_PINK, _BLUE],
            label=["traces that loop", "other failures"],
        )
        if len(lead):
            low, median, high = np.quantile(lead, [0.25, 0.5, 0.75])
            axis.axvspan(
                low, high, color=_PALE, alpha=0.4, zorder=0, label=f"quartiles: {low:.0f} to {high:.0f}"
            )
            axis.axvline(median, color=_INK, linestyle="--", label=f"median: {median:.0f} tokens")
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
    heading = _titled(results, f"One trace, {condition}, prompt {trace['prompt_id']}", title)
    states = states_of(hazard, np.array([len(hazard)]), point)
    t = np.arange(len(hazard))
    with _figure(path, heading, (2, 1), (8.6, 2.4), sharex=True) as ((upper,), (lower,)):
        for state in (State.ALERT, State.SAFE):
            upper.fill_between(
                t, 0, 1, where=states == state, step="mid", alpha=0.22, linewidth=0,
                color=STATE_COLOURS[state], label=state.name,
            )  # fmt: skip
        upper.plot(t, hazard, color=_VERMILION, label="hazard")
        for tau, name in ((point.tau_low, "tau_low"), (point.tau_high, "tau_high")):
            upper.axhline(tau, color=_GREY, linestyle=":", linewidth=1)
            upper.annotate(
                f"{name} {tau:.2f}", (1, tau), xycoords=("axes fraction", "data"), fontsize=8, va="center"
            )
        lower.plot(t, entropy, color=_BLUE, linewidth=1.2, label="entropy")
        for axis in (upper, lower):
            if pd.notna(trace["onset"]):
                axis.axvline(trace["onset"], color=_INK, label=f"onset: token {trace['onset']}")
            if trace["safe_at"] != NEVER:
                axis.axvline(
                    trace["safe_at"], color=_GREEN, linestyle="--", label=f"SAFE: token {trace['safe_at']}"
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
    heading = _titled(results, "Mean entropy of a trace", title)
    groups = {
        (name, failed): group.to_numpy()
        for (name, failed), group in means.groupby([names, tested["failed"]], sort=False)
    }
    order = list(names.drop_duplicates())
    with _figure(path, heading, size=(7.4, 1.6 + 0.3 * len(order))) as ((axis,),):
        for failed, colour, label, shift in (
            (False, _SKY, "no failure", -0.19),
            (True, _VERMILION, "failure", 0.19),
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
                medianprops={"color": _INK, "linewidth": 1.4},
                whiskerprops={"linewidth": 0.8},
                capprops={"linewidth": 0.8},
                flierprops={"markersize": 2, "alpha": 0.35},
            )
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.set_xlabel("mean entropy over the tokens of a trace (nats)")
        axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return path


def _settings(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the sweeps of the hysteresis k and of the threshold tau."""
    heading = _titled(results, "One setting of the controller at a time", title)
    styles: Mapping[str, tuple[str, str]] = {
        "reduction": (_BLUE, "o"),
        "false_positive_rate": (_VERMILION, "s"),
        "kv_saved": (_GREEN, "^"),
    }
    labels = {"hysteresis": "k: tokens in a row to escalate", "thresholds": "tau: the threshold"}
    with _figure(path, heading, (1, 2), sharey=True) as (axes,):
        for axis, (table, label) in zip(axes, labels.items(), strict=True):
            for name, (colour, marker) in styles.items():
                found = metric(results, table, name)
                x = [float(subject) for subject in found.index]
                _line_with_band(axis, x, found, colour, marker=marker, markersize=4, label=_LABELS[name])
            axis.set_xlabel(label)
        axes[0].set_ylabel("share")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return path


def state_machine(path: Path) -> Path:
    """Draw the controller's states and what moves a row between them."""
    with _figure(path, "The controller", size=(9.2, 3.6)) as ((axis,),):
        axis.set(xlim=(0, 9.2), ylim=(0, 3.3), aspect="equal")
        axis.axis("off")
        places = {State.NORMAL: 1.1, State.ALERT: 4.6, State.SAFE: 8.1}
        roles = {
            State.NORMAL: "decode with\nthe compressed cache",
            State.ALERT: "hazard has risen:\nwatch",
            State.SAFE: "act: restore the cache,\nor rewind and restore",
        }
        for state, x in places.items():
            axis.add_patch(
                FancyBboxPatch(
                    (x - 0.85, 1.2), 1.7, 0.95, boxstyle="round,pad=0.08",
                    facecolor={State.NORMAL: "#e8eef4", State.ALERT: "#fbe6bf", State.SAFE: "#c9ebdf"}[state],
                    edgecolor=_INK, linewidth=1.2,
                )
            )  # fmt: skip
            axis.text(x, 1.9, state.name, ha="center", va="center", fontweight="bold", fontsize=11)
            axis.text(x, 1.5, roles[state], ha="center", va="center", fontsize=8)
        arrow = _arrows(axis)
        arrow((2.05, 1.85), (3.65, 1.85), "arc3,rad=0", (2.85, 2.0), "hazard ≥ tau_low\nfor k tokens", _INK)
        arrow((5.55, 1.85), (7.15, 1.85), "arc3,rad=0", (6.35, 2.0), "hazard ≥ tau_high\nfor k tokens", _INK)
        arrow((3.65, 1.45), (2.05, 1.45), "arc3,rad=0", (2.85, 1.02), "hazard < tau_low\nfor j tokens", _GREY)
        arrow((1.4, 2.25), (7.8, 2.25), "arc3,rad=-0.16", (4.6, 2.82), "hazard ≥ tau_high for k tokens", _INK)
        arrow((7.8, 1.1), (1.4, 1.1), "arc3,rad=-0.13", (4.6, 0.38), "hazard < tau_low for j tokens", _GREY)
    return path


def _arrows(axis: Axes) -> Callable[..., None]:
    def draw(
        start: tuple[float, float],
        end: tuple[float, float],
        bend: str,
        place: tuple[float, float],
        text: str,
        colour: str,
    ) -> None:
        axis.add_patch(
            FancyArrowPatch(
                start,
                end,
                connectionstyle=bend,
                arrowstyle="-|>",
                mutation_scale=14,
                color=colour,
                linewidth=1.5,
            )
        )
        axis.text(*place, text, ha="center", va="bottom", fontsize=8.5, color=_INK)

    return draw
