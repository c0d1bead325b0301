"""The suites: prompts with instructions that can be checked, and what checks them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from kvguard.config import check_known
from kvguard.errors import KvguardError
from kvguard.studies.instructions.examples import Example, Verdicts
from kvguard.studies.instructions.suites import embedded, ifbench, ifeval

__all__ = ["SUITES", "Placement", "load_suite", "verifier"]

Placement = Literal["user", "system"]


class _Suite(NamedTuple):
    load: Callable[[Path | None, int | None, int, Placement], list[Example]]
    verifier: Callable[[], Callable[[Example, str], Verdicts]]


SUITES: Mapping[str, _Suite] = {
    "embedded": _Suite(embedded.load, embedded.verifier),
    "ifeval": _Suite(ifeval.load, ifeval.verifier),
    "ifbench": _Suite(ifbench.load, ifbench.verifier),
}


def load_suite(name: str, path: Path | None, n: int | None, seed: int, placement: Placement) -> list[Example]:
    """Return examples of a suite, the first ``n`` in the order of ``seed``.

    Parameters
    ----------
    name
        One of :data:`SUITES`.
    path
        A file of JSON Lines in the suite's own form; the hub by default. The embedded suite makes its
        examples.
    n
        How many; all by default. The first ``n`` are the first of any larger ``n``.
    placement
        Whether instructions stand in the user's prompt, as the suite has them, or are moved to the system
        prompt: then only those examples come whose instructions can be told apart from the rest word by word.

    Raises
    ------
    KvguardError
        There is no such suite, its rules are not installed, its prompts cannot be had, a row is malformed
        (the line is named), or there are fewer than ``n``.
    """
    check_known("suites", name, SUITES)
    found = SUITES[name].load(path, n, seed, placement)
    if n is not None and len(found) < n:
        where = f"suite {name}" + (" with instructions in the system prompt" if placement == "system" else "")
        raise KvguardError(f"n is {n}, but {where} has {len(found)} examples: lower n")
    return found


def verifier(suite: str) -> Callable[[Example, str], Verdicts]:
    """Return what tells whether a text follows the instructions of an example of ``suite``.

    Raises
    ------
    KvguardError
        There is no such suite, or its rules are not installed.
    """
    check_known("suites", suite, SUITES)
    return SUITES[suite].verifier()
