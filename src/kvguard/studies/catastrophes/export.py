"""What a live guard needs, gathered in one folder."""

from __future__ import annotations

from pathlib import Path

from kvguard.guard.bundle import CARD, POINTS_FILE, Card, Signed, digest_of, load_operating_point
from kvguard.guard.hazard_model import HazardModel
from kvguard.store.files import write_json, write_text


def save_hazard(model: HazardModel, folder: Path) -> None:
    """Write a hazard model's files to ``folder``; ``HazardModel.load`` reads them."""
    for name, text in model.texts().items():
        write_text(folder / name, text)


def export(trained: Path, evaluated: Path, card: Card, folder: Path) -> None:
    """Gather a guard's files in ``folder``.

    Parameters
    ----------
    trained, evaluated
        The folders of ``train`` and ``evaluate``.

    Raises
    ------
    KvguardError
        There is no readable hazard model, or no operating point.
    """
    hazard = HazardModel.load(trained)
    load_operating_point(evaluated, "balanced")
    save_hazard(hazard, folder)
    write_text(folder / POINTS_FILE, (evaluated / POINTS_FILE).read_text(encoding="utf-8"))
    write_json(folder / CARD, Signed(**card.model_dump(), digest=digest_of(folder)).model_dump())
