"""Settings in YAML files as frozen, typed objects that reject what they do not know.

A study's file is a class of :class:`Settings` with a :class:`Key` for each setting. Whatever stands in the
file is checked when it is opened; a key that is not there is an error only for who reads it, so a stage runs
on the keys that it lists as its params and on no other.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, Self, TypeVar, get_args, get_origin, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kvguard.errors import KvguardError

T = TypeVar("T")

_ABSENT = object()

Text = Annotated[str, Field(strict=True, min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Ratio = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Section(BaseModel):
    """Settings that are frozen and reject keys that they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(Generic[T]):
    """One setting of a file: an attribute of :class:`Settings` that is read when it is asked for.

    Parameters
    ----------
    kind
        What pydantic checks the value against.
    name
        Its dotted key, where that is not the attribute's name.
    """

    def __init__(self, kind: Any, name: str = "") -> None:
        self.kind, self.name = kind, name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @overload
    def __get__(self, settings: None, owner: type) -> Self: ...

    @overload
    def __get__(self, settings: "Settings", owner: type) -> T: ...

    def __get__(self, settings: "Settings | None", owner: type) -> Any:
        return self if settings is None else settings.read(self.name, self.kind)

    def __set__(self, settings: "Settings", value: T) -> NoReturn:
        raise AttributeError(f"{self.name}: settings are frozen")


class Settings:
    """The settings of one file, checked as far as they are there.

    Raises
    ------
    KvguardError
        One line: the file, the key, the value, and how to fix it.
    """

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self._data, self._path = dict(data), path
        try:
            self._check_values()
            self.check_names()
        except KvguardError as error:
            raise KvguardError(f"{path}: {error}") from None

    @classmethod
    def load(cls, path: Path, defaults: Path | None = None) -> Self:
        """Open a file of settings.

        Parameters
        ----------
        defaults
            Settings that hold where the file says nothing: a section's by key, a registry's by name.
        """
        data = read_settings(path)
        return cls(_over(read_settings(defaults), data) if defaults is not None else data, path)

    @classmethod
    def keys(cls) -> dict[str, "Key[Any]"]:
        """Return the keys of the file by their dotted names."""
        return {key.name: key for key in vars(cls).values() if isinstance(key, Key)}

    def read(self, name: str, kind: Any) -> Any:
        """Return the setting ``name``, checked against ``kind``.

        Raises
        ------
        KvguardError
            It, or a key in it, is not in the file.
        """
        if not self.has(name):
            raise KvguardError(f"{self._path}: missing key {name!r}: add it")
        try:
            return TypeAdapter(kind).validate_python(self.value(name))
        except ValidationError as error:
            raise KvguardError(f"{self._path}: {first_mistake(error, kind, *name.split('.'))}") from None

    def has(self, name: str) -> bool:
        """Whether the file holds the key ``name``."""
        return self._find(name) is not _ABSENT

    def value(self, name: str) -> Any:
        """Return what stands in the file under a key that it has."""
        return self._find(name)

    def _find(self, name: str) -> Any:
        """Return what stands under a dotted name, the last key of which may have dots itself."""
        found: Any = self._data
        while name:
            if not isinstance(found, dict):
                return _ABSENT
            key = name if name in found else name.partition(".")[0]
            if key not in found:
                return _ABSENT
            found, name = found[key], name[len(key) + 1 :]
        return found

    def check_names(self) -> None:
        """Check names in some settings that others must hold; each study knows its own."""

    def with_value(self, name: str, value: Any) -> Self:
        """Return these settings with another value of one top-level key."""
        return type(self)({**self._data, name: value}, self._path)

    def _check_values(self) -> None:
        """Check all that is there; a section may be there in part."""
        keys = self.keys()
        roots = list(dict.fromkeys(name.partition(".")[0] for name in keys))
        for name in self._data:
            if name not in roots:
                raise KvguardError(f"unknown key {name!r}{_did_you_mean(name, roots)} ({_listed(roots)})")
        for name, key in keys.items():
            if not self.has(name):
                continue
            try:
                TypeAdapter(key.kind).validate_python(self.value(name))
            except ValidationError as error:
                wrong = [one for one in error.errors() if one["type"] != "missing" or len(one["loc"]) > 1]
                if wrong:
                    raise KvguardError(_said(wrong[0], key.kind, *name.split("."))) from None


def read_settings(path: Path, option: str = "--params") -> dict[str, Any]:
    """Read a file of settings, which ``option`` names, without a look at what they are.

    Raises
    ------
    KvguardError
        It is missing or unreadable, or holds no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KvguardError(f"{path}: no such file: run in the repository, or pass {option}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KvguardError(f"{path}: cannot be read ({error}): it must be a text file in UTF-8") from None
    except yaml.YAMLError as error:
        raise KvguardError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise KvguardError(f"{path}: holds no settings (name: value); fill it, or remove it")
    return data


def _over(defaults: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` over ``defaults``, two keys deep: what stands below belongs together."""
    merged = {**defaults, **data}
    for name, value in data.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = {**defaults[name], **value}
    return merged


def check_known(key: str, name: str, known: Iterable[str]) -> None:
    """Raise a one-line error naming ``key``, the nearest name and all names unless ``name`` is known."""
    names = list(known)
    if name not in names:
        raise KvguardError(f"{key}: unknown name {name!r}{_did_you_mean(name, names)} ({_listed(names)})")


def first_mistake(error: ValidationError, root: Any, *section: str) -> str:
    """Say in one line what pydantic found wrong first; ``section`` is where in the file ``root`` stands."""
    return _said(error.errors()[0], root, *section)


def _said(mistake: Any, root: Any, *section: str) -> str:
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


def _fields_beside(root: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed where the key at ``location`` was found."""
    kind = root
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
