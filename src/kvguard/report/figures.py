"""The figures of the pipeline: PNG files whose bytes depend on nothing but their data.

Every function draws one figure and returns the path that it was written to. Colours are those of Okabe and
Ito, told apart under every common colour blindness, and compressors differ in their markers too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kvguard.compressors import NONE, Condition
from kvguard.config import ControllerParams
from kvguard.guard.simulate import ALL, NEVER, Evaluation
from kvguard.hazard.labels import Bools
from kvguard.hazard.metrics import MAX_FPR, Curve
from kvguard.hazard.rows import load_rows
from kvguard.hazard.train import Training

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


def training_figures(training: Training, title: str, folder: Path) -> list[Path]:
    """Draw what the ``train`` stage found on the test prompts."""
    early = training.test.pre_onset
    scores = {"hazard model": (training.test_hazard[early], training.test.label[early])}
    return [ranking_curves(scores, title, folder / "pre-onset.png")]


def evaluation_figures(
    evaluation: Evaluation,
    features_path: Path,
    traces: pd.DataFrame,
    params: ControllerParams,
    title: str,
    folder: Path,
) -> list[Path]:
    """Draw what the ``evaluate`` stage found: outcomes, an example trace, entropies.

    The example is the foreseen catastrophe of median lead time; without any, the first trace.

    Parameters
    ----------
    traces
        Judged traces, for the onset.
    """
    tested = evaluation.per_trace
    rows = load_rows(features_path, ["entropy"], tested["trace_id"].to_numpy())
    entropy = rows.features[:, 0]
    lead = tested["lead_time"].dropna().sort_values(kind="stable")
    example = tested.loc[lead.index[len(lead) // 2] if len(lead) else tested.index[0]]
    its_tokens = rows.trace_id == example["trace_id"]
    onset = traces.set_index("trace_id")["onset"][example["trace_id"]]
    condition = Condition(example["compressor"], example["ratio"])
    means = pd.Series(entropy).groupby(rows.trace_id).mean().reindex(tested["trace_id"]).to_numpy()
    by_condition = {
        str(Condition(name, ratio)): means[tested.index.get_indexer(group.index)]
        for (name, ratio), group in tested.groupby(["compressor", "ratio"], sort=False)
    }
    return [
        outcome_by_ratio(evaluation.summary, title, folder / "outcome-by-ratio.png"),
        hazard_over_time(
            evaluation.hazard[its_tokens],
            entropy[its_tokens],
            None if pd.isna(onset) else int(onset),
            int(example["safe_at"]),
            params,
            f"Trace {example['trace_id']}, {condition}: {title}",
            folder / "hazard-example.png",
        ),
        entropy_by_condition(by_condition, title, folder / "entropy-by-condition.png"),
    ]


def model_title(model: str, is_reference: bool) -> str:
    """Return how figures name a model."""
    return f"{model} (reference model)" if is_reference else model


@contextmanager
def _figure(path: Path, title: str, n_panels: int = 1, height: float = 3.8) -> Iterator[list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4 * n_panels, height), layout="constrained")
        axes = [figure.add_subplot(1, n_panels, panel + 1) for panel in range(n_panels)]
        figure.suptitle(title, fontsize=12)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})


def outcome_by_ratio(summary: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw CBR and accuracy against the ratio, per compressor, without (solid) and with control (dashed).

    Parameters
    ----------
    summary
        A ``summary`` table; the ``none`` row is the dotted line.
    """
    with _figure(path, f"What compression costs: {title}", n_panels=2) as axes:
        compressed = summary[~summary["compressor"].isin([NONE, ALL])]
        for axis, metric, label in zip(axes, ("cbr", "accuracy"), ("CBR", "accuracy"), strict=True):
            for number, (name, rows) in enumerate(compressed.groupby("compressor", sort=False)):
                rows = rows.sort_values("ratio")
                style: dict[str, Any] = {
                    "color": _COLOURS[number % 8],
                    "marker": _MARKERS[number % 8],
                    "markersize": 5,
                }
                axis.plot(rows["ratio"], rows[f"{metric}_uncontrolled"], label=str(name), **style)
                axis.plot(rows["ratio"], rows[f"{metric}_controlled"], linestyle="--", alpha=0.7, **style)
            for value in summary.loc[summary["compressor"] == NONE, f"{metric}_uncontrolled"]:
                axis.axhline(value, color="0.4", linestyle=":", label="uncompressed")
            axis.set(xlabel="compression ratio (share of KV pairs removed)", ylabel=label, ylim=(-0.03, 1.03))
        for linestyle, name in (("-", "no guard"), ("--", "guard (simulated)")):
            axes[0].plot([], [], color="0.4", linestyle=linestyle, label=name)
        axes[0].legend(fontsize=8, loc="upper left")
    return path


def ranking_curves(scores: Mapping[str, tuple[NDArray[np.floating], Bools]], title: str, path: Path) -> Path:
    """Draw the ROC and the precision-recall curve of pre-onset tokens.

    Parameters
    ----------
    scores
        Per line of the legend: hazards and labels of the tokens. {name: ([N], [N])}
    """
    with _figure(path, f"Forecasting catastrophes before their onset: {title}", n_panels=2) as (roc, pr):
        roc.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
        roc.axvline(MAX_FPR, color="0.8")
        for number, (name, (hazard, label)) in enumerate(scores.items()):
            curve = Curve.of(hazard, label)
            if not curve.has_both_classes:
                continue
            auroc = np.trapezoid(curve.recall, curve.fpr)
            auprc = np.sum(np.diff(curve.recall) * curve.precision[1:])
            colour = _COLOURS[number % 8]
            roc.plot(*_thin(curve.fpr, curve.recall), color=colour, label=f"{name}: AUROC {auroc:.3f}")
            pr.step(
                *_thin(curve.recall, curve.precision),
                color=colour,
                where="pre",
                label=f"{name}: AUPRC {auprc:.3f}",
            )
            pr.axhline(label.mean(), color=colour, linestyle=":", linewidth=1)
        roc.set(xlabel="false-positive rate (tokens)", ylabel="recall (tokens)")
        pr.set(xlabel="recall (tokens)", ylabel="precision (tokens)", ylim=(-0.03, 1.03))
        roc.legend(fontsize=8, loc="lower right")
        pr.legend(fontsize=8, loc="lower left")
    return path


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], n: int = 2000) -> tuple[NDArray[np.float64], ...]:
    """Return at most about n points of a curve, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, n).astype(np.int64))
    return x[kept], y[kept]


def hazard_over_time(
    hazard: NDArray[np.floating],
    entropy: NDArray[np.floating],
    onset: int | None,
    safe_at: int,
    params: ControllerParams,
    title: str,
    path: Path,
) -> Path:
    """Draw the hazard and the entropy of one trace, with its onset and the token at which SAFE fires.

    Parameters
    ----------
    hazard, entropy
        Per token. [T]
    onset, safe_at
        None, and ``NEVER``, where there is none.
    """
    with _figure(path, title, height=4.2) as (axis,):
        t = np.arange(len(hazard))
        axis.plot(t, hazard, color=_COLOURS[1], label="hazard")
        for tau, name in ((params.tau_low, "tau_low"), (params.tau_high, "tau_high")):
            axis.axhline(tau, color="0.5", linestyle=":", linewidth=1)
            axis.annotate(name, (0, tau), fontsize=8, color="0.4", va="bottom")
        if onset is not None:
            axis.axvline(onset, color=_COLOURS[6], label=f"onset: token {onset}")
        if safe_at != NEVER:
            axis.axvline(safe_at, color=_COLOURS[2], linestyle="--", label=f"SAFE: token {safe_at}")
        axis.set(xlabel="generated token", ylabel="hazard", ylim=(-0.03, 1.03))
        other = axis.twinx()
        other.plot(t, entropy, color=_COLOURS[0], alpha=0.5, linewidth=1, label="entropy")
        other.set_ylabel("entropy (nats)")
        other.grid(visible=False)
        lines = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        axis.legend(handles=lines, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    return path


def entropy_by_condition(entropy: Mapping[str, NDArray[np.floating]], title: str, path: Path) -> Path:
    """Draw how the mean entropy of a trace is spread, per condition.

    Parameters
    ----------
    entropy
        Per condition the mean entropies of its traces. {condition: [T]}
    """
    names = list(entropy)
    with _figure(path, f"Mean entropy of a trace: {title}", height=1.4 + 0.24 * len(names)) as (axis,):
        axis.boxplot(
            [entropy[name] for name in names],
            orientation="horizontal",
            tick_labels=names,
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": _COLOURS[5], "alpha": 0.6},
            medianprops={"color": _COLOURS[1], "linewidth": 2},
            flierprops={"markersize": 2, "alpha": 0.4},
        )
        axis.invert_yaxis()
        axis.set_xlabel("mean entropy of a trace (nats)")
    return path
