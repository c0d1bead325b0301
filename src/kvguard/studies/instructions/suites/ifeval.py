"""IFEval: 541 prompts, 834 instructions with rules (Zhou et al. 2023, arXiv 2311.07911; Apache-2.0)."""

from collections.abc import Callable
from pathlib import Path

from kvguard.studies.instructions.examples import Example, Verdicts
from kvguard.studies.instructions.suites import rows
from kvguard.studies.instructions.suites.library import library


def load(path: Path | None, n: int | None, seed: int, placement: str) -> list[Example]:
    """Return IFEval's prompts."""
    return rows.load("ifeval", "google/IFEval", "train", path, n, seed, placement)


def verifier() -> Callable[[Example, str], Verdicts]:
    """Return IFEval's rules."""
    return library("ifeval")
