"""The forecasts of test tokens that ``train`` stores: a ``hazards`` table for each model that it fits.

``horizon-H`` is by the model for that horizon, ``without-NAME`` by the model that never saw that compressor,
for the compressor's own traces. A table without rows says that its model could not be fitted.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from kvguard.store.tables import read_table, write_table

_HORIZON, _WITHOUT, _FOLDER = "horizon-", "without-", "hazards"


def of_horizon(horizon: int) -> str:
    """Return what the forecasts over ``horizon`` tokens are called."""
    return f"{_HORIZON}{horizon}"


def without(compressor: str) -> str:
    """Return what the forecasts of a compressor by a model that never saw it are called."""
    return f"{_WITHOUT}{compressor}"


def horizons_of(names: Iterable[str]) -> list[int]:
    """Return the horizons among the names of forecasts, rising."""
    return sorted(int(name.removeprefix(_HORIZON)) for name in names if name.startswith(_HORIZON))


def write_hazards(hazards: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Store forecasts in the folder of ``train``."""
    for name, table in hazards.items():
        write_table("hazards", table, folder / _FOLDER / f"{name}.parquet")


def read_hazards(folder: Path, name: str) -> pd.DataFrame:
    """Read one forecast from the folder of ``train``."""
    return read_table("hazards", folder / _FOLDER / f"{name}.parquet")


def read_all_hazards(folder: Path) -> dict[str, pd.DataFrame]:
    """Read every forecast from the folder of ``train``."""
    return {
        path.stem: read_hazards(folder, path.stem) for path in sorted((folder / _FOLDER).glob("*.parquet"))
    }
