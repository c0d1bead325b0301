"""Settings as frozen, typed objects that reject what they do not know."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvguard.errors import KvguardError

Text = Annotated[str, Field(strict=True, min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Ratio = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Section(BaseModel):
    """Settings that are frozen and reject keys that they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_known(key: str, name: str, known: Iterable[str]) -> None:
    """Raise a one-line error naming ``key``, the nearest name and all names unless ``name`` is known."""
    names = list(known)
    if name not in names:
        raise KvguardError(f"{key}: unknown name {name!r}{_did_you_mean(name, names)} ({_listed(names)})")


def first_mistake(error: ValidationError, root: type[BaseModel], *section: str) -> str:
    """Say in one line what pydantic found wrong first; ``section`` is where in the file ``root`` stands."""
    mistake = error.errors()[0]
    location = (*section, *(str(part) for part in mistake["loc"]))
    key = ".".join(location)
    if mistake["type"] == "extra_forbidden":
        names = _fields_beside(root, mistake["loc"])
        return f"unknown key {key!r}{_did_you_mean(location[-1], names)} ({_listed(names)})"
    if mistake["type"] == "missing":
        return f"missing key {key!r}: add it"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {mistake['input']!r} does not fit: {message[0].lower()}{message[1:]}"


def _fields_beside(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed where the key at ``location`` was found."""
    kind: Any = root
    for part in location[:-1]:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = next(f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == part)
    return [field.alias or name for name, field in kind.model_fields.items()]


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(names: list[str]) -> str:
    return f"known: {', '.join(names)}" if names else "none are known here"
