"""The figure of the ``certify`` stage: the memory saving that is certified, against the limit."""

from pathlib import Path

import pandas as pd

from kvguard.report.drawing import BLUE, GREEN, GREY, VERMILION, canvas, metric, titled

_STYLES = {  # by table and guard
    ("saving", "none"): (GREY, "-", "no guard"),
    ("saving", "simulated"): (BLUE, "--", "guard, simulated"),
    ("saving-live", "none"): (VERMILION, ":", "no guard, fresh prompts"),
    ("saving-live", "rollback"): (GREEN, "-.", "guard, live, fresh prompts"),
}


def certified_figures(results: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """Draw what the ``certify`` stage found: a panel for each compressor."""
    curves = _curves(results)
    names = list(dict.fromkeys(name for _, name, _ in curves))
    path = folder / "certified-saving.png"
    heading = titled(results, "Memory saving that is certified, with and without a guard", title)
    with canvas(path, heading, (1, len(names)), (2.9, 3.2), sharey=True) as (axes,):
        for axis, name in zip(axes, names, strict=True):
            for (table, guard), (colour, line, label) in _STYLES.items():
                found = curves.get((table, name, guard))
                if found is not None:
                    axis.step(
                        found.index, found.to_numpy(), where="post", color=colour, linestyle=line, label=label
                    )
            axis.set_title(name)
            axis.set_xlabel("alpha: added catastrophes allowed")
        axes[0].set_ylabel("KV memory saved")
        known = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        for axis in axes[1:]:
            known |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axes[0].figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4)
    return [path]


def _curves(results: pd.DataFrame) -> dict[tuple[str, str, str], "pd.Series[float]"]:
    """Return the saving by alpha of each (table, compressor, guard), all compressors together left out."""
    found: dict[tuple[str, str, str], dict[float, float]] = {}
    for table in dict.fromkeys(table for table, _ in _STYLES):
        for subject, value in metric(results, table, "kv_saved")["value"].items():
            name, guard, alpha = str(subject).split("/")
            if name != "all" and (table, guard) in _STYLES:
                found.setdefault((table, name, guard), {})[float(alpha)] = float(value)
    return {key: pd.Series(values).sort_index() for key, values in found.items()}
