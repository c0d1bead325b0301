"""Rows that a user brings: a file of JSON Lines, one object a line, in UTF-8."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kvguard.errors import KvguardError

_BOM = b"\xef\xbb\xbf"
_OTHERS = {  # how files begin that are something else
    b"\x1f\x8b": "is compressed (gzip): unpack it with gunzip",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it with unzstd",
    b"BZh": "is compressed (bzip2): unpack it with bunzip2",
    b"\xfd7zXZ": "is compressed (xz): unpack it with unxz",
    b"PAR1": "is a Parquet file: give JSON Lines",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
}


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    r"""Return the objects of a file, each with the number of its line.

    Lines end at ``\n`` or ``\r\n`` and nowhere else: U+2028, U+0085 and their like may stand in strings.
    A byte order mark and empty lines are passed over.

    Raises
    ------
    KvguardError
        The file cannot be read, is no UTF-8 text, or has no rows; or a line is no JSON object, repeats a
        key, or holds a number that is not finite or half of a surrogate pair. The line is named.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KvguardError(f"cannot read {path} ({reason}): give a file of JSON Lines") from None
    for start, what in _OTHERS.items():
        if data.startswith(start):
            raise KvguardError(f"{path} {what}")
    lines = data.removeprefix(_BOM).split(b"\n")
    rows = [
        (n, _row(line, f"{path}, line {n}")) for n, line in enumerate(lines, start=1) if line.strip(b" \t\r")
    ]
    if not rows:
        raise KvguardError(f"{path} holds no rows: write one JSON object on each line")
    return rows


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return the text under ``key`` of a row.

    Raises
    ------
    KvguardError
        It is missing, no string, or empty; ``where`` says of which row.
    """
    if key not in row:
        raise KvguardError(f"{where}: there is no {key!r} among its keys ({_listed(row)}): add it")
    value = row[key]
    if not isinstance(value, str):
        raise KvguardError(f"{where}: {key!r} is {_kind(value)}: write it as a string")
    if not value.strip():
        raise KvguardError(f"{where}: {key!r} is empty: write it, or leave the row out")
    return value


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite)
        if not isinstance(row, dict):
            raise KvguardError(f"it is {_kind(row)}: write one object, {{...}}, on each line")
        if "\\u" in text:  # what the escapes made must be text again
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except KvguardError as error:
        raise KvguardError(f"{where}: {error}") from None
    except UnicodeDecodeError as error:
        raise KvguardError(f"{where}: byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise KvguardError(
            f"{where}: {half} is half of a surrogate pair: write both halves, or the character itself"
        ) from None
    except json.JSONDecodeError as error:
        raise KvguardError(
            f"{where}: not JSON ({error.msg[0].lower()}{error.msg[1:]}, column {error.colno}): "
            "write one object, {...}, on each line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise KvguardError(f"{where}: not read ({str(error)[:80]}): write a simpler row") from None
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KvguardError(f"the key {key[:60]!r} stands twice: keep one")
        found[key] = value
    return found


def _not_finite(word: str) -> NoReturn:
    raise KvguardError(f"{word} is no JSON number: write a finite one, or null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise KvguardError(f"{text[:20]} is beyond any float: write a finite number")
    return value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:8])) or "none"
