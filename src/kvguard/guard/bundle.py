"""The folder a guard is loaded from: hazard model, operating points, and a card that says what they are.

====================== ==============================================================
file                   holds
====================== ==============================================================
booster.json           the trees, in XGBoost's own format
hazard.json            the features they read, and the calibration
operating_points.json  the controller's settings by name
guard.json             :class:`Card`: the language model, the horizon, ..., a digest of the others
====================== ==============================================================

It is all that a guard needs, small enough for git, and text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kvguard.config import ControllerParams
from kvguard.errors import KvguardError
from kvguard.features import feature_columns
from kvguard.guard.operating_points import load_operating_point
from kvguard.hazard.train import HazardModel
from kvguard.layout import write_json, write_text

_CARD = "guard.json"
_FILES = ("booster.json", "hazard.json", "operating_points.json")
_AGAIN = "make it again with `dvc repro export`"


class Card(BaseModel):
    """What a hazard model was trained on.

    Attributes
    ----------
    model, source
        The language model's name in the params, and where it came from.
    weights
        See :func:`kvguard.models.identity.weights_digest`.
    horizon
        Tokens ahead within which the onset of a catastrophe counts.
    thinking_words
        Those of the feature ``is_thinking_token``.
    max_new_tokens
        The token budget of the traces.
    conditions
        Those of the traces, as ``compressor@ratio``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    source: str
    weights: str
    protocol: Literal["v2"] = "v2"
    horizon: int
    thinking_words: tuple[str, ...]
    max_new_tokens: int
    conditions: tuple[str, ...]


class _Signed(Card):
    """A card with the digest of the files beside it."""

    digest: str


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
    hazard.save(folder)
    write_text(folder / _FILES[-1], (evaluated / _FILES[-1]).read_text(encoding="utf-8"))
    write_json(folder / _CARD, _Signed(**card.model_dump(), digest=_digest(folder)).model_dump())


def load(folder: Path, point: str) -> tuple[HazardModel, ControllerParams, Card]:
    """Read what :func:`export` wrote.

    Raises
    ------
    KvguardError
        A file is missing, unreadable, or not the one that the card was written for; the operating point is
        unknown; the model wants a feature that there is not.
    """
    try:
        signed = _Signed.model_validate_json((folder / _CARD).read_text(encoding="utf-8"))
        digest = _digest(folder)
    except FileNotFoundError as error:
        raise KvguardError(
            f"{folder} holds no guard: {Path(error.filename).name} is missing; {_AGAIN}"
        ) from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise KvguardError(f"{folder / _CARD} cannot be read ({reason}); {_AGAIN}") from None
    if digest != signed.digest:
        raise KvguardError(f"{folder}: its files are not those that {_CARD} was written for; {_AGAIN}")
    hazard = HazardModel.load(folder)
    _check_features(hazard, folder)
    return hazard, load_operating_point(folder, point), Card(**signed.model_dump(exclude={"digest"}))


def _check_features(hazard: HazardModel, folder: Path) -> None:
    """Refuse a model that wants what is not known while decoding, or not as much as its card says."""
    known = feature_columns("v2")
    stray = [name for name in hazard.features if name not in known]
    if stray:
        raise KvguardError(
            f"{folder}: the hazard model reads {', '.join(stray)}, which no guard knows while it decodes; "
            "train one of protocol v2"
        )
    if hazard.booster.num_features() != len(hazard.features):
        raise KvguardError(
            f"{folder}: the trees read {hazard.booster.num_features()} features and hazard.json names "
            f"{len(hazard.features)}; {_AGAIN}"
        )


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for name in _FILES:
        content = (folder / name).read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
