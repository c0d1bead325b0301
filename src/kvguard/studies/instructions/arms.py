"""What is compared: a press at a budget, and what is done about it. Each combination is an arm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from kvguard.config import check_known
from kvguard.errors import KvguardError

BASELINE, STREAMING, RANDOM, TEXT_REMOVAL = "baseline", "streaming_llm", "random", "text_removal"
OWN = (BASELINE, STREAMING, RANDOM, TEXT_REMOVAL)  # names of ours, beside those of the compressors
Treatment = Literal["protected:instructions", "protected:system", "fair", "guard:restore", "guard:rollback"]
PLAIN = ""
TREATMENTS: tuple[str, ...] = get_args(Treatment)
PROTECTED, SYSTEM, FAIR, RESTORE, ROLLBACK = TREATMENTS
DEFAULT_RATIO = 0.5  # of StreamingLLM: the share removed

_FORM = re.compile(
    r"(?P<press>\w+)(?:@(?P<ratio>[^+:]+)|:(?P<tokens>\d+)(?:\+(?P<recent>\d+))?)?(?:\+(?P<treatment>[a-z].*))?"
)
_EXAMPLES = "snapkv@0.5, streaming_llm:100+100, random@0.5+protected:instructions"


@dataclass(frozen=True, order=True)
class Arm:
    """A press at a budget, under a treatment.

    Parameters
    ----------
    press : str
        A compressor, or one of :data:`OWN`.
    ratio : float, optional
        The share of the prompt's entries that is removed.
    tokens : int, optional
        The budget in entries, where it is not a share; as many are kept of any prompt that has more.
    initial : int, optional
        How many of those StreamingLLM keeps at the beginning; half of the budget by default.
    treatment : str
        ``""`` or one of :data:`TREATMENTS`.
    """

    press: str
    ratio: float | None = None
    tokens: int | None = None
    initial: int | None = None
    treatment: str = PLAIN

    def __str__(self) -> str:
        budget = f"@{self.ratio:g}" if self.ratio is not None else ""
        if self.tokens is not None:
            budget = f":{self.tokens}"
            if self.initial is not None:
                budget = f":{self.initial}+{self.tokens - self.initial}"
        return f"{self.press}{budget}" + (f"+{self.treatment}" if self.treatment else "")

    @property
    def evicts(self) -> bool:
        """Whether entries are evicted from a cache that a whole prompt was read into."""
        return self.press not in (BASELINE, TEXT_REMOVAL)

    @property
    def guarded(self) -> bool:
        """Whether the guard acts."""
        return self.treatment.startswith("guard:")

    def under(self, treatment: str) -> Arm:
        """Return the arm under another treatment."""
        return replace(self, treatment=treatment)

    def of(self, press: str) -> Arm:
        """Return the arm of another press with the same budget and treatment."""
        return replace(self, press=press, initial=None)

    def ratio_of(self, n_tokens: int) -> float:
        """Return the share removed of a prompt of ``n_tokens``, such that the budget comes out exactly."""
        if self.ratio is not None:
            return self.ratio
        if self.tokens is None or self.tokens >= n_tokens:
            return 0.0
        return 1 - (self.tokens + 0.5) / n_tokens


def parse_arm(text: str, compressors: Iterable[str]) -> Arm:
    """Read an arm as it is written, ``snapkv@0.5+fair`` say.

    Raises
    ------
    KvguardError
        It is written otherwise, or names a press or a treatment that there is not.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise KvguardError(f"conditions: {text!r} is none: write {_EXAMPLES}, say")
    press, treatment = found["press"], found["treatment"] or PLAIN
    check_known("conditions", press, [*OWN, *(name for name in compressors if name not in OWN)])
    if treatment:
        check_known(f"conditions: {text!r}: treatment", treatment, TREATMENTS)
    if press == BASELINE:
        if text.strip() != BASELINE:
            raise KvguardError(
                f"conditions: {text!r}: nothing is evicted from the baseline: write {BASELINE}"
            )
        return Arm(BASELINE)
    if press == TEXT_REMOVAL and treatment:
        raise KvguardError(f"conditions: {text!r}: it evicts nothing: write it without +{treatment}")
    if found["recent"] and press not in (STREAMING, TEXT_REMOVAL):
        raise KvguardError(f"conditions: {text!r}: only {STREAMING} keeps both ends: write {press}:200, say")
    if found["tokens"]:
        initial = int(found["tokens"]) if found["recent"] else None
        tokens = int(found["tokens"]) + int(found["recent"] or 0)
        if not tokens:
            raise KvguardError(f"conditions: {text!r} keeps nothing: keep at least one token")
        return Arm(press, tokens=tokens, initial=initial, treatment=treatment)
    return Arm(press, ratio=_ratio(text, press, found["ratio"]), treatment=treatment)


def _ratio(text: str, press: str, written: str | None) -> float:
    if written is None:
        if press in (STREAMING, TEXT_REMOVAL):
            return DEFAULT_RATIO
        raise KvguardError(
            f"conditions: {text!r} has no budget: write {press}@0.5, or {press}:200 for tokens"
        )
    try:
        ratio = float(written)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise KvguardError(
            f"conditions: {text!r}: {written} is no share to remove: write one between 0 and 1, {press}@0.5"
        )
    return ratio


def all_arms(
    written: Sequence[str], treatments: Sequence[str], compressors: Iterable[str]
) -> tuple[Arm, ...]:
    """Return the baseline, and each arm as it is written and under each of ``treatments``; each once.

    Raises
    ------
    KvguardError
        An arm cannot be read.
    """
    names = list(compressors)
    arms = [Arm(BASELINE)]
    for text in written:
        arm = parse_arm(text, names)
        arms.append(arm)
        if arm.evicts and not arm.treatment:
            arms += [arm.under(treatment) for treatment in treatments]
    return tuple(dict.fromkeys(arms))
