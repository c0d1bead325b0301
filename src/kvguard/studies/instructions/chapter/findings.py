"""What the numbers say, in sentences; where they cannot tell, that is said."""

from __future__ import annotations

from collections.abc import Iterator

from kvguard.report.numbers import Numbers, known, percent, points
from kvguard.stats.bootstrap import LEVEL, Interval
from kvguard.studies.instructions.arms import BASELINE, FAIR, PROTECTED, SYSTEM, TREATMENTS
from kvguard.studies.instructions.statistics.answers import Answers
from kvguard.studies.instructions.statistics.forgetting import ALL
from kvguard.studies.instructions.statistics.measure import STAGE

_ALPHA = 1 - LEVEL


def findings(answers: Answers, numbers: Numbers, model: str, suite: str) -> list[str]:
    """Return what was found, one sentence each."""
    said = _Said(answers, numbers, model, suite)
    return [*said.baseline(), *said.strategy(), *said.treatments(), *said.text_removal(), *said.foreseen()]


class _Said:
    def __init__(self, answers: Answers, numbers: Numbers, model: str, suite: str) -> None:
        self._answers, self._numbers, self._of = answers, numbers, (STAGE, model, suite)

    def _get(self, table: str, subject: str, name: str) -> Interval:
        return self._numbers.get(*self._of, table, subject, name)

    def _subjects(self, table: str) -> list[str]:
        return self._numbers.subjects(*self._of, table)

    def _clear(self, table: str, subjects: list[str]) -> list[str]:
        """Return the subjects whose difference is clear after Holm's correction."""
        return [one for one in subjects if self._get(table, one, "p_holm").value < _ALPHA]

    def baseline(self) -> Iterator[str]:
        strict = self._get("followed", BASELINE, "prompt_strict")
        if not known(strict):
            return
        yield f"Without compression all instructions are followed in {percent(strict)} of the prompts."
        subjects = self._subjects("against-baseline")
        clear = self._clear("against-baseline", subjects)
        changes = {one: self._get("against-baseline", one, "difference") for one in subjects}
        changes = {one: change for one, change in changes.items() if known(change)}
        if not changes:
            return
        worst = min(changes, key=lambda one: changes[one].value)
        yield (
            f"{len(clear)} of {len(subjects)} arms differ from it after Holm's correction; the lowest is "
            f"{worst}, by {points(changes[worst])}."
        )

    def strategy(self) -> Iterator[str]:
        subjects = self._subjects("strategy")
        for protected in (False, True):
            own = [
                one
                for one in subjects
                if any(f"+{name}" in one for name in (PROTECTED, SYSTEM, FAIR)) == protected
            ]
            if not own:
                continue
            clear = self._clear("strategy", own)
            better = [one for one in clear if self._get("strategy", one, "difference").value > 0]
            worse = [one for one in clear if one not in better]
            where = "Under protection or fair shares" if protected else "Unprotected"
            told = [
                f"{name} {', '.join(found)}"
                for name, found in (("better:", better), ("worse:", worse))
                if found
            ]
            yield (
                f"{where}, {len(clear)} of {len(own)} arms differ from random eviction of the same budget "
                "after Holm's correction"
                + (f" ({'; '.join(told)})." if told else ": the strategy does not show.")
            )

    def treatments(self) -> Iterator[str]:
        subjects = self._subjects("treatments")
        for treatment in TREATMENTS:
            own = [one for one in subjects if one.endswith(f"+{treatment}")]
            if not own:
                continue
            clear = self._clear("treatments", own)
            better = sum(self._get("treatments", one, "difference").value > 0 for one in clear)
            yield (
                f"{treatment}: of {len(own)} arms {better} follow more instructions with it and "
                f"{len(clear) - better} fewer, after Holm's correction; of the others that cannot be told."
            )

    def text_removal(self) -> Iterator[str]:
        for one in self._subjects("text-removal"):
            found, p = self._get("text-removal", one, "difference"), self._get("text-removal", one, "p_holm")
            told = "" if p.value < _ALPHA else "; that they differ cannot be told"
            yield f"{one} against the eviction of the same tokens: {points(found)}{told}."

    def foreseen(self) -> Iterator[str]:
        hazard, length = (self._get("foreseen", ALL, f"auroc_{name}") for name in ("hazard", "n_tokens"))
        if known(hazard, length):
            yield (
                f"The highest hazard of an answer tells a forgotten instruction with an AUROC of "
                f"{hazard.value:.3f} [{hazard.low:.3f}, {hazard.high:.3f}], the answer's length alone with "
                f"{length.value:.3f} [{length.low:.3f}, {length.high:.3f}]."
            )
