"""What the last pipeline run found, from its metrics files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvguard.errors import KvguardError
from kvguard.report.terminal import table

NEXT = """\
Where to look next:
  mlflow ui           every run with its parameters, metrics, tables and models
  dvc metrics show    the same metrics, by file
  dvc plots show      the figures, as a page in dvc_plots/
  kvguard trace       one generation: its tokens, its entropy, its onset
  reports/report.html everything, with a trace explorer: open it in a browser"""


def summary_text(metrics: Path) -> str:
    """Lay out a row for each model and protocol that was evaluated, and one for each that was guarded live.

    What counts as a failure is each protocol's; live it is a catastrophe.

    Raises
    ------
    KvguardError
        If there are no metrics, or a file of them is not JSON.
    """
    found = sorted((metrics / "evaluate").glob("*.json"))
    if not found:
        raise KvguardError(f"{metrics}/evaluate holds no metrics: run `make repro` first")
    rows = []
    for path in found:
        train, evaluate = _read(metrics / "train" / path.name), _read(path)
        name, _, protocol = path.stem.rpartition("-")
        rows.append(
            [
                name,
                protocol,
                *(_pick(train, key) for key in TRAIN),
                *(_pick(evaluate, key) for key in EVALUATE),
            ]
        )
    heads = ["model", "protocol", *TRAIN.values(), *EVALUATE.values()]
    return "\n\n".join([table(heads, rows), *_live(metrics / "live-validate"), NEXT])


TRAIN = {
    "predictor.pre_onset.auroc.value": "AUROC pre-onset",
    "predictor.pre_onset.matched_auroc.value": "matched",
    "predictor.all.auroc.value": "AUROC all",
}
EVALUATE = {
    f"controller-balanced.overall.{metric}.value": head
    for metric, head in (
        ("accuracy_uncontrolled", "accuracy"),
        ("cbr_uncontrolled", "failures"),
        ("cbr_controlled", "guarded"),
        ("false_positive_rate", "false positives"),
    )
}


LIVE = {
    "policies-prefill.uncompressed.cbr.value": "uncompressed",
    "policies-prefill.static.cbr.value": "no guard",
    "gap.rollback.cbr_simulated.value": "simulated",
    "policies-prefill.rollback.cbr.value": "rollback",
    "policies-prefill.stop.cbr.value": "stop",
    "policies-prefill.stop_at_answer.cbr.value": "stop at answer",
    "policies-prefill.rollback.residual_cbr.value": "added CBR left",
    "policies-prefill.rollback.false_alarm_rate.value": "false alarms",
    "policies-prefill.rollback.saving_kept.value": "saving kept",
}


def _live(folder: Path) -> list[str]:
    """Return what the guard did live, with the offline forecast of the same prompts beside it."""
    rows = [[path.stem, *(_pick(_read(path), key) for key in LIVE)] for path in sorted(folder.glob("*.json"))]
    title = "Live, fresh prompts, balanced operating point, compressed once (CBR unless it says otherwise):"
    return [f"{title}\n\n{table(['model', *LIVE.values()], rows)}"] if rows else []


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise KvguardError(f"{path}: not JSON ({error}): make it again with `dvc repro`") from None


def _pick(values: Any, key: str) -> float | None:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, int | float) else None
