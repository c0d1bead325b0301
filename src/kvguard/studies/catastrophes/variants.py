"""Forecasters that are held against a hazard model: what ``ablate`` and ``transfer`` fit and choose.

Each is stored as a folder of a ``hazards`` table, its scores of the test tokens, and the controller's setting
that was chosen for it on tune prompts; ``intervals`` measures them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from kvguard.store.files import write_json
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.train.rows import Rows

RISK_SCORE = "risk_score"  # among those of ablate; the others are its feature sets
OWN, OTHER = "own", "other"  # those of transfer: the target's hazard model, and the source's
_SETTINGS, _FOLDER = "settings.json", "hazards"


@dataclass(frozen=True)
class Variant:
    """A forecaster's ``hazards`` table of the test tokens, and its setting."""

    hazards: pd.DataFrame
    setting: ControllerParams

    @classmethod
    def of(cls, rows: Rows, scores: np.ndarray, setting: ControllerParams) -> "Variant":
        """Store the scores of the test tokens ``rows``. [N]"""
        table = pd.DataFrame({"trace_id": rows.trace_id, "t": rows.t, "hazard": scores})
        return cls(conform("hazards", table), setting)


def write_variants(variants: Mapping[str, Variant], folder: Path) -> None:
    """Store variants by name in the folder of a stage."""
    for name, variant in variants.items():
        write_table("hazards", variant.hazards, folder / _FOLDER / f"{name}.parquet")
    settings = {name: variant.setting.model_dump() for name, variant in variants.items()}
    write_json(folder / _SETTINGS, settings)


def read_variants(folder: Path) -> dict[str, Variant]:
    """Read the variants of a stage by name.

    Raises
    ------
    KvguardError
        There are none.
    """
    path = folder / _SETTINGS
    if not path.is_file():
        raise KvguardError(f"{path} does not exist: run `dvc repro {folder.parent.name}`")
    return {
        name: Variant(
            read_table("hazards", folder / _FOLDER / f"{name}.parquet"), ControllerParams(**setting)
        )
        for name, setting in json.loads(path.read_text(encoding="utf-8")).items()
    }
