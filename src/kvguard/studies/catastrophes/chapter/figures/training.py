"""The figures of the ``train`` stage."""

from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    PALE,
    SKY,
    VERMILION,
    bars,
    canvas,
    metric,
    titled,
    whiskers,
)
from kvguard.studies.catastrophes.chapter.figures.labels import LABELS, labelled


def training_figures(results: pd.DataFrame, curve: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``train`` stage found.

    Parameters
    ----------
    results
        Its ``results`` table.
    curve
        The ``curve`` table of the pre-onset tokens of the test prompts.
    """
    return [
        _ranking(results, curve, title, folder / "pre-onset.png"),
        _reliability(results, title, folder / "reliability.png"),
        _importance(results, title, folder / "importance.png"),
        _horizons(results, title, folder / "horizons.png"),
        _left_out(results, title, folder / "cross-validation.png"),
    ]


def _ranking(results: pd.DataFrame, curve: pd.DataFrame, title: str, path: Path) -> Path:
    heading = titled(results, "Forecasting catastrophes before their onset", title)
    positive, negative = (int(curve[f"n_{kind}"].iloc[0]) for kind in ("positive", "negative"))
    chance = positive / max(positive + negative, 1)
    with canvas(path, heading, (1, 2)) as ((roc, pr),):
        roc.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="chance")
        roc.axvline(0.05, color=PALE, linewidth=1.2, label="5 % false positives")
        pr.axhline(chance, color=GREY, linestyle=":", linewidth=1.2, label="chance")
        if positive and negative:
            recall = curve["recall"]
            roc.plot(curve["fpr"], recall, color=BLUE, label=f"hazard: AUROC {_spelled(results, 'auroc')}")
            label = f"hazard: AUPRC {_spelled(results, 'auprc')}"
            pr.step(recall, curve["precision"], color=BLUE, label=label)
        roc.set(xlabel="false-positive rate (of tokens)", ylabel="recall (of tokens)")
        pr.set(xlabel="recall (of tokens)", ylabel="precision (of tokens)", ylim=(-0.03, 1.03))
        roc.legend(loc="lower right")
        pr.legend(loc="lower left")
    return path


def _spelled(results: pd.DataFrame, name: str) -> str:
    value, low, high = metric(results, "predictor", name).loc["pre_onset"]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _reliability(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = titled(results, "Is the hazard a probability?", title)
    predicted, observed, n_tokens = (
        metric(results, "reliability", name) for name in ("mean_hazard", "observed", "n_tokens")
    )
    with canvas(path, heading, (2, 1), (6.4, 2.3), sharex=True, height_ratios=[3, 1]) as (
        (curve,),
        (count,),
    ):
        curve.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="perfectly calibrated")
        curve.errorbar(
            predicted["value"],
            observed["value"],
            yerr=whiskers(observed),
            color=BLUE,
            marker="o",
            capsize=3,
            label="ten bins of hazard, 95 % interval",
        )
        curve.set(ylabel="share of tokens within\nthe horizon of an onset", ylim=(-0.04, 1.04))
        curve.legend(loc="upper left")
        count.bar(predicted["value"], n_tokens["value"], width=0.04, color=SKY)
        count.set(xlabel="mean hazard of the bin", ylabel="tokens", yscale="log", xlim=(-0.04, 1.04))
    return path


def _importance(results: pd.DataFrame, title: str, path: Path) -> Path:
    shap, gain = (metric(results, "importance", name)["value"] for name in ("mean_abs_shap", "gain"))
    top = shap.sort_values(ascending=False, kind="stable").index[:15]
    heading = titled(results, "What the hazard model reads (15 of its features)", title)
    with canvas(path, heading, (1, 2), (5.6, 4.6), sharey=True) as ((left, right),):
        left.barh(top, shap[top], color=BLUE)
        left.set(xlabel="mean |SHAP value| (log-odds)")
        right.barh(top, gain[top], color=SKY)
        right.set(xlabel="gain (mean loss reduction of a split)")
        left.invert_yaxis()
        for axis in (left, right):
            axis.grid(visible=False, axis="y")
    return path


def _horizons(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = titled(results, "How far ahead a catastrophe shows", title)
    styles = {"auroc": (BLUE, "o"), "auprc": (VERMILION, "s"), "recall_at_5pct_fpr": (GREEN, "^")}
    with canvas(path, heading, size=(6.8, 3.9)) as ((axis,),):
        for shift, (name, (colour, marker)) in zip((-0.08, 0, 0.08), styles.items(), strict=True):
            found = metric(results, "horizons", name)
            axis.errorbar(
                np.arange(len(found)) + shift,
                found["value"],
                yerr=whiskers(found),
                color=colour,
                marker=marker,
                capsize=3,
                linewidth=1.2,
                label=LABELS[name],
            )
        axis.set_xticks(range(len(found)), found.index)
        axis.set(xlabel="horizon H (tokens ahead of the onset)", ylabel="value", ylim=(0, 1.03))
        axis.legend(loc="lower right")
    return path


def _left_out(results: pd.DataFrame, title: str, path: Path) -> Path:
    heading = titled(results, "On a compressor never trained on", title)
    names = labelled("auroc", "auprc", "recall_at_5pct_fpr")
    return bars(results, "cross_validation", names, heading, path)
