"""What an answer is found to be: which instructions it followed, by rules first, and how it failed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvguard.judging.catastrophes import NO_ONSET, CatastropheParams, TraceTokens, onsets
from kvguard.studies.instructions.examples import Example, Instruction, Verdicts

Verifier = Callable[[Example, str], Verdicts]


class Judges(Protocol):
    """What answers for instructions that no rule can check; blind to how an answer came about."""

    def judge(self, example: Example, instruction: Instruction, text: str) -> bool | None:
        """Tell whether an answer follows an instruction; None where it got no verdict."""

    @property
    def summary(self) -> dict[str, float | None]:
        """How often what came of asking, and the cost so far in dollars."""


@dataclass(frozen=True)
class Scoring:
    """How answers are scored.

    Parameters
    ----------
    verify : callable
        The suite's rules.
    judge : Judges, optional
        Asked where there is no rule; and, beside the rule, of a share ``both`` of the answers.
    """

    verify: Verifier
    catastrophes: CatastropheParams
    max_new_tokens: int
    judge: Judges | None = None
    both: float = 0.0

    def score(
        self, example: Example, arm: str, text: str, token_ids: Sequence[int], stop_reason: str
    ) -> dict[str, Any]:
        """Return verdicts and failures of an answer, as its result holds them.

        ``judged`` is the judge's verdict on each instruction; where it was not asked, or gave none, null.
        """
        n = len(example.instructions)
        if stop_reason == "invalid":  # logits that are NaN: no answer of the model's
            blank: list[bool | None] = [None] * n
            return {"strict": blank, "loose": blank, "judged": blank, "catastrophes": []}
        found = self.verify(example, text)
        judged: list[bool | None] = [None] * n
        if self.judge is not None:
            sampled = zlib.crc32(f"{example.key} {arm}".encode()) % 10_000 < self.both * 10_000
            for place, instruction in enumerate(example.instructions):
                if found.strict[place] is None or sampled:
                    judged[place] = self.judge.judge(example, instruction, text)
        return {
            "strict": _filled(found.strict, judged),
            "loose": _filled(found.loose, judged),
            "judged": judged,
            "ruled": [verdict is not None for verdict in found.strict],
            "catastrophes": self._failures(token_ids, stop_reason),
        }

    def _failures(self, token_ids: Sequence[int], stop_reason: str) -> list[str]:
        tokens = np.asarray(token_ids, dtype=np.int64)
        trace = TraceTokens(tokens, np.array([len(tokens)]), np.array([stop_reason]))
        found = onsets(trace, self.catastrophes, self.max_new_tokens)
        return [name for name, onset in found.items() if onset[0] != NO_ONSET]


def _filled(rules: Sequence[bool | None], judged: Sequence[bool | None]) -> list[bool | None]:
    return [other if rule is None else rule for rule, other in zip(rules, judged, strict=True)]


def prompt_level(verdicts: Sequence[bool | None]) -> bool | None:
    """Tell whether all instructions were followed; None where that is not known."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if any(verdict is None for verdict in verdicts) else True
