"""Arms against one another on the same examples: McNemar's exact test, Holm over each table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvguard.stats.paired import compare
from kvguard.store.results import Results
from kvguard.studies.instructions.arms import BASELINE, PLAIN, RANDOM, STREAMING, TEXT_REMOVAL, Arm
from kvguard.studies.instructions.statistics.answers import Answers


def add_comparisons(results: Results, answers: Answers) -> None:
    """Add a table for each question, of whether all instructions of a prompt were followed, strictly.

    ``against-baseline``: every arm; ``strategy``: does it matter what is evicted, or would chance do as well?
    Each press against random eviction of the same budget under the same treatment; ``treatments``: each
    treatment against the same press without it; ``text-removal``: removing the text that StreamingLLM evicts,
    against evicting it.
    """
    controls: dict[str, Callable[[Arm], Arm | None]] = {
        "against-baseline": lambda arm: Arm(BASELINE),
        "strategy": lambda arm: (
            arm.of(RANDOM) if arm.evicts and arm.press != RANDOM and not arm.guarded else None
        ),
        "treatments": lambda arm: arm.under(PLAIN) if arm.treatment else None,
        "text-removal": lambda arm: (
            Arm(STREAMING, arm.ratio, arm.tokens, arm.initial) if arm.press == TEXT_REMOVAL else None
        ),
    }
    values = answers.prompt["strict"]
    for table, control_of in controls.items():
        found = {arm: control_of(arm) for arm in answers.others}
        pairs = {arm: control for arm, control in found.items() if control is not None and control in values}
        for arm, numbers in compare(values, pairs, answers.weights).items():
            change = values[arm] - values[pairs[arm]]
            counts = {
                "n": int(np.isfinite(change).sum()),
                "more": int((change > 0).sum()),
                "less": int((change < 0).sum()),
            }
            results.add(table, str(arm), {**numbers, **counts})
