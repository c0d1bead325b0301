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
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel

CARD = "guard.json"
POINTS_FILE = "operating_points.json"
FILES = ("booster.json", "hazard.json", POINTS_FILE)
_AGAIN = "make it again with `dvc repro export`"


class Card(BaseModel):
    """What a hazard model was trained on.

    Attributes
    ----------
    model, source
        The language model's name in the params, and where it came from.
    weights
        See :func:`kvguard.models.identity.weights_digest`.
    protocol
        By which it was trained.
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
    protocol: str
    horizon: int
    thinking_words: tuple[str, ...]
    max_new_tokens: int
    conditions: tuple[str, ...]


class Signed(Card):
    """A card with the digest of the files beside it."""

    digest: str


def load(folder: Path, point: str) -> tuple[HazardModel, ControllerParams, Card]:
    """Read what :func:`export` wrote.

    Raises
    ------
    KvguardError
        A file is missing, unreadable, or not the one that the card was written for; the operating point is
        unknown; the model wants a feature that there is not.
    """
    try:
        signed = Signed.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
        digest = digest_of(folder)
    except FileNotFoundError as error:
        raise KvguardError(
            f"{folder} holds no guard: {Path(error.filename).name} is missing; {_AGAIN}"
        ) from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise KvguardError(f"{folder / CARD} cannot be read ({reason}); {_AGAIN}") from None
    if digest != signed.digest:
        raise KvguardError(f"{folder}: its files are not those that {CARD} was written for; {_AGAIN}")
    hazard = HazardModel.load(folder)
    _check_features(hazard, folder)
    return hazard, load_operating_point(folder, point), Card(**signed.model_dump(exclude={"digest"}))


def _check_features(hazard: HazardModel, folder: Path) -> None:
    """Reject a model that wants what is not known while decoding, or not as much as its card says."""
    stray = [name for name in hazard.features if name not in FEATURES]
    if stray:
        raise KvguardError(
            f"{folder}: the hazard model reads {', '.join(stray)}, which no guard knows while it decodes; "
            "train one of protocol v2 or later"
        )
    if hazard.booster.num_features() != len(hazard.features):
        raise KvguardError(
            f"{folder}: the trees read {hazard.booster.num_features()} features and hazard.json names "
            f"{len(hazard.features)}; {_AGAIN}"
        )


def digest_of(folder: Path) -> str:
    """Digest the files that a card signs."""
    total = hashlib.sha256()
    for name in FILES:
        content = (folder / name).read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def load_operating_point(folder: Path, name: str) -> ControllerParams:
    """Read the operating point ``name`` from the folder of ``evaluate``.

    Raises
    ------
    KvguardError
        The file is missing or unreadable, or has no such point.
    """
    points = load_operating_points(folder)
    if name not in points:
        raise KvguardError(f"{folder / POINTS_FILE}: no operating point {name!r}; it has {', '.join(points)}")
    return points[name]


def load_operating_points(folder: Path) -> dict[str, ControllerParams]:
    """Read all operating points, by name, from the folder of ``evaluate`` or of a guard.

    Raises
    ------
    KvguardError
        The file is missing or unreadable.
    """
    path = folder / POINTS_FILE
    again = "make it again with `dvc repro evaluate`"
    try:
        points = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: ControllerParams(**{field: point[field] for field in ControllerParams.model_fields})
            for name, point in points.items()
        }
    except FileNotFoundError:
        raise KvguardError(f"{path} does not exist; {again}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise KvguardError(f"{path} holds no operating points ({reason}); {again}") from error
