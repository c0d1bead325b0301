"""How an answer failed: rules are data (failures.yaml), several may hold, the first is primary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import Field

from kv_transition.db.dao import Answered
from kvguard.config import Count, Section

KINDS = ("HTTP_ERROR", "TIMEOUT", "EMPTY_OUTPUT", "REFUSAL", "LOOPING", "TRUNCATED", "FORMAT_ERROR")
_SENTENCE = r"(?:^|[.!?:;\n]\s*)(?:(?:but|however|sadly|unfortunately|well),?\s+)?"


class RefusalRules(Section):
    """What a refusal begins with."""

    opening_characters: Count
    patterns: tuple[str, ...]


class LoopingRules(Section):
    """How often how much must come again."""

    max_period_words: Count
    min_repeats: Annotated[int, Field(ge=2)]
    min_words: Count
    max_period_characters: Count
    min_characters: Count


class Rules(Section):
    """All rules, as the file holds them."""

    order: tuple[str, ...]
    refusal: RefusalRules
    looping: LoopingRules


@dataclass(frozen=True)
class Failure:
    """One way in which an answer failed, and what shows it."""

    kind: str
    evidence: str


class Failures:
    """Finds the failures of answers by rules."""

    def __init__(self, rules: Rules) -> None:
        assert set(rules.order) == set(KINDS)
        self._rules = rules
        self._refusals = [re.compile(_SENTENCE + f"({one})", re.I) for one in rules.refusal.patterns]
        loop = rules.looping
        self._characters = re.compile(
            rf"(\S{{1,{loop.max_period_characters}}}?)\1{{{loop.min_repeats - 1},}}"
        )

    @classmethod
    def load(cls) -> Failures:
        """Return the rules of the package."""
        text = (files("kv_transition.eval") / "failures.yaml").read_text(encoding="utf-8")
        return cls(Rules.model_validate(yaml.safe_load(text)))

    def of(self, answered: Answered, parsed: str | None, cued: bool = False) -> list[Failure]:
        """Return the failures of an answer, the primary one first."""
        if answered.error is not None:
            return [Failure("TIMEOUT" if answered.timed_out else "HTTP_ERROR", answered.error)]
        if not answered.text.strip():
            return [Failure("EMPTY_OUTPUT", f"finish reason {answered.finish_reason}")]
        found = {
            "REFUSAL": self._refusal(answered.text, parsed),
            "LOOPING": self._loop(answered.text),
            "TRUNCATED": "the budget of tokens" if answered.finish_reason == "length" else None,
            "FORMAT_ERROR": None
            if cued or parsed is not None
            else f"no Answer: in {answered.text.strip()[:80]!r}",
        }
        return [Failure(kind, said) for kind in self._rules.order if (said := found.get(kind))]

    def _refusal(self, text: str, parsed: str | None) -> str | None:
        opening = (parsed or text.strip())[: self._rules.refusal.opening_characters].replace("\u2019", "'")
        found = [one for pattern in self._refusals if (one := pattern.search(opening))]
        return found[0][1] if found else None

    def _loop(self, text: str) -> str | None:
        """Return what comes again and again: words, or characters without a space."""
        rules, words = self._rules.looping, text.split()
        for period in range(1, rules.max_period_words + 1):
            least = max(rules.min_words, rules.min_repeats * period)
            run = period
            for word, before in zip(words[period:], words, strict=False):
                run = run + 1 if word == before else period
                if run >= least:
                    at = next(
                        i
                        for i in range(len(words))
                        if words[i : i + run - period] == words[i + period : i + run]
                    )
                    return " ".join(words[at : at + period])
        for found in self._characters.finditer(text):
            if len(found[0]) >= rules.min_characters and any(character.isalnum() for character in found[1]):
                return found[1]
        return None
