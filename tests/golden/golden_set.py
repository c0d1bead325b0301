"""Whether generations are those of the golden set, and what to do if not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden.json"
NOT_EXACT = ("signals", "least_gap")
TOLERANCE = 1e-4  # nats, probabilities, cache entries; see test_golden.py
_MAKE = "run `python tests/golden/make.py` and look at the diff"


def read() -> dict[str, Any]:
    """Read the committed set."""
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    return golden


def outdated(golden: Mapping[str, Any], versions: Mapping[str, int]) -> str | None:
    """Say so if the set was made with another version of the engine or the guard."""
    if golden["versions"] == versions:
        return None
    return f"the golden set is of versions {golden['versions']}, this is {dict(versions)}: {_MAKE}"


def changed(golden: Mapping[str, Any], found: Mapping[str, Any], owner: str) -> str | None:
    """Say what to do if generations differ, and which.

    Parameters
    ----------
    golden, found
        By case, one record per prompt.
    owner
        Whose version to raise: ``engine`` or ``guard``.
    """
    differences = []
    if golden.keys() != found.keys():
        differences.append(f"cases {sorted(golden.keys() ^ found.keys())}")
    for case in golden.keys() & found.keys():
        if len(golden[case]) != len(found[case]):
            differences.append(f"{case}: {len(golden[case])} prompts were, {len(found[case])} are")
        for prompt, (was, now) in enumerate(zip(golden[case], found[case], strict=False)):
            differences += [f"{case}, prompt {prompt}: {what}" for what in _differences(was, now)]
    if not differences:
        return None
    raised = f"kvguard.{owner}.VERSION" + (
        "" if owner == "engine" else " (kvguard.engine.VERSION if the engine's changed too)"
    )
    return (
        f"generations changed; if that is meant, raise {raised}, {_MAKE}. {len(differences)} differences:\n"
        + "\n".join(sorted(differences)[:20])
    )


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key} was {_short(was.get(key))}, is {_short(now.get(key))}"
        for key in sorted(was.keys() | now.keys())
        if key not in NOT_EXACT and key != "tokens" and was.get(key) != now.get(key)
    ]
    if was["tokens"] != now["tokens"]:
        same = (a == b for a, b in zip(was["tokens"], now["tokens"], strict=False))
        first = next((t for t, equal in enumerate(same) if not equal), None)
        at = min(len(was["tokens"]), len(now["tokens"])) if first is None else first
        return [f"tokens differ from t = {at} on", *found]
    before, after = (np.array(record["signals"], dtype=float) for record in (was, now))
    if before.shape != after.shape:
        return [*found, f"signals were {before.shape}, are {after.shape}"]
    off = np.abs(before - after)
    if off.size and not off.max() <= TOLERANCE:
        place, column = np.unravel_index(off.argmax(), off.shape)
        found.append(f"signals differ by {off.max():.2g} (kept token {place}, column {column})")
    return found


def _short(value: object) -> str:
    return str(value)[:120]
