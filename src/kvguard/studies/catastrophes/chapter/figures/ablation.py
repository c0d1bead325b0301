"""The figures of the ``ablate`` and ``transfer`` stages."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kvguard.report.drawing import (
    BLUE,
    GREEN,
    VERMILION,
    bars,
    canvas,
    line_with_band,
    metric,
    titled,
)
from kvguard.studies.catastrophes.chapter.figures.labels import LABELS, labelled


def ablation_figures(results: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``ablate`` stage found: what features, controller parts and settings contribute."""
    return [
        bars(
            results,
            "features",
            labelled("auroc", "auprc", "reduction", "false_positive_rate"),
            titled(results, "Hazard models with fewer features", title),
            folder / "features.png",
            dark=["full"],
        ),
        bars(
            results,
            "controllers",
            labelled("reduction", "false_positive_rate", "kv_saved"),
            titled(results, "Ways to decide when to switch", title),
            folder / "controllers.png",
            dark=["hazard"],
        ),
        _settings(results, title, folder / "settings.png"),
    ]


def transfer_figures(results: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``transfer`` stage found: each way beside the target's own hazard model."""
    metrics = labelled("auroc", "auprc", "reduction", "false_positive_rate")
    at_home = [subject for subject in results["subject"].unique() if len(set(subject.split("->"))) == 1]
    heading = f"Trained on one model, tested on another (dark: on the same)\n{title}"
    return [bars(results, "transfer", metrics, heading, folder / "transfer.png", dark=at_home)]


def _settings(results: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the sweeps of the hysteresis k and of the threshold tau."""
    heading = titled(results, "One setting of the controller at a time", title)
    styles: Mapping[str, tuple[str, str]] = {
        "reduction": (BLUE, "o"),
        "false_positive_rate": (VERMILION, "s"),
        "kv_saved": (GREEN, "^"),
    }
    labels = {"hysteresis": "k: tokens in a row to escalate", "thresholds": "tau: the threshold"}
    with canvas(path, heading, (1, 2), sharey=True) as (axes,):
        for axis, (table, label) in zip(axes, labels.items(), strict=True):
            for name, (colour, marker) in styles.items():
                found = metric(results, table, name)
                x = [float(subject) for subject in found.index]
                line_with_band(axis, x, found, colour, marker=marker, markersize=4, label=LABELS[name])
            axis.set_xlabel(label)
        axes[0].set_ylabel("share")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return path
