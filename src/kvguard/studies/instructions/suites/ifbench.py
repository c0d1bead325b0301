"""IFBench: 300 prompts with instructions of 58 kinds (Pyatkin et al. 2025; data ODC-BY 1.0)."""

from collections.abc import Callable
from pathlib import Path

from kvguard.studies.instructions.examples import Example, Verdicts
from kvguard.studies.instructions.suites import rows
from kvguard.studies.instructions.suites.library import library


def load(path: Path | None, n: int | None, seed: int, placement: str) -> list[Example]:
    """Return IFBench's prompts."""
    return rows.load("ifbench", "allenai/IFBench_test", "train", path, n, seed, placement)


def verifier() -> Callable[[Example, str], Verdicts]:
    """Return IFBench's rules."""
    return library("ifbench")
