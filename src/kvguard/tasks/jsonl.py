"""JSON Lines, as people bring them."""

import json
from pathlib import Path
from typing import Any

from kvguard.errors import KvguardError


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a JSON object from each line that is not blank, with the number of its line.

    Raises
    ------
    KvguardError
        The file cannot be read, or a line holds no object.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KvguardError(f"cannot read {path} ({error}): give a JSONL file in UTF-8") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise KvguardError(f"cannot read {path}: line {number}: {error}: fix that line") from None
        if not isinstance(row, dict):
            raise KvguardError(f"{path}: line {number} holds no object: write {{...}} in that line")
        rows.append((number, row))
    return rows
