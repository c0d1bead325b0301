"""What was found about answers, onsets, clocks and alarms, in sentences that follow the numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvguard.engine.presses import NONE
from kvguard.report.numbers import Cell, Kind, Numbers, fraction, known, percent
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.comparison import listed
from kvguard.studies.catastrophes.chapter.live_findings import verdict
from kvguard.studies.catastrophes.chapter.live_tables import STAGE
from kvguard.studies.catastrophes.chapter.onset_tables import KINDS, PRE_ONSET, RULES, answer_rates
from kvguard.studies.catastrophes.protocols import HEADLINE
from kvguard.studies.catastrophes.score.alarms import CLOSE

OVERALL = "overall"
MATCHED, DELAY = 0.90, CLOSE  # what the forecast is to reach: an AUROC; tokens
_SAME = 0.0005  # share: what percent with one decimal cannot show


def answers(numbers: Numbers, model: str) -> Iterator[str]:
    """Say what judging by the first complete answer changes."""
    first, last = answer_rates(numbers, model, OVERALL)
    if not known(first, last):
        return
    changes = {
        subject: one.value - other.value
        for subject in numbers.subjects("measure", model, "", "outcomes")
        if subject not in (NONE, OVERALL)
        for one, other in [answer_rates(numbers, model, subject)]
        if known(one, other)
    }
    changed = [subject for subject, change in changes.items() if abs(change) > _SAME]
    most = max(changed, key=lambda subject: abs(changes[subject]), default=None)
    where = f", most in {most} (by {Kind.PERCENT.write(changes[most])} points)" if most is not None else ""
    yield (
        f"Over all compressed conditions {percent(first)} of the first complete answers are right, and "
        f"{percent(last)} of the last ones; accuracy differs in {len(changed)} of {len(changes)} "
        f"conditions{where}."
    )


def onsets(numbers: Numbers, model: str) -> Iterator[str]:
    """Say where failures begin, and how many of them are timed by the proxy."""
    shares = {name: numbers.get("measure", model, "", "onsets", OVERALL, name) for name in RULES}
    found = [f"{percent(share)} {RULES[name]}" for name, share in shares.items() if known(share)]
    if found:
        yield f"Under compression, catastrophes begin so: {listed(found)}."


def clocks(numbers: Numbers, model: str, kinds: Collection[str] = tuple(KINDS)) -> Iterator[str]:
    """Say what the forecast is worth where no clock helps, and what clocks reach."""
    for kind in kinds:
        matched, weighted, plain, best, alone = (
            numbers.get("train", model, HEADLINE, "predictor", PRE_ONSET[kind], name)
            for name in (
                "matched_auroc", "matched_auroc_by_positives", "auroc", "auroc_best_clock",
                "auroc_position_only",
            )
        )  # fmt: skip
        if not known(matched):
            continue
        beside = f"; weighted by positives it is {fraction(weighted)}" if known(weighted) else ""
        beside += f", over all indices {fraction(plain)}" if known(plain) else ""
        if known(best, alone):
            beside += f", the position alone has {fraction(alone)}, the best clock {fraction(best)}"
        aim = verdict(matched, MATCHED, is_ceiling=False, written=f"{MATCHED:.2f}")
        of = "" if kind == OVERALL else f" of {KINDS[kind]}"
        yield (
            f"Among tokens of one index, where a clock has an AUROC of 0.5, the forecast{of} has "
            f"{fraction(matched)}: {aim}{beside}."
        )


def alarms(numbers: Numbers, model: str) -> Iterator[str]:
    """Say how long after the onset the alarm comes, simulated and live, and what is generated in vain."""
    for stage, protocol, table, said in (
        ("evaluate", HEADLINE, "alarms-balanced", "Simulated on test prompts"),
        (STAGE, "", "alarms-rollback", "On the fresh prompts of the live guard"),
    ):
        low, median, high, never, spent, free = (
            numbers.get(stage, model, protocol, table, OVERALL, metric)
            for metric in (
                "delay_q25", "delay_median", "delay_q75", "never", "share_in_vain", "share_in_vain_unguarded",
            )
        )  # fmt: skip
        if known(low, median, high, never):
            yield (
                f"{said}, the median alarm comes {_placed(median)}, the quartiles {_placed(low)} and "
                f"{_placed(high)}: {_in_time(median)}. {percent(never)} of the failing traces are never "
                "alarmed."
            )
        if known(spent, free):
            yield (
                f"{said}, {percent(free)} of all tokens are generated in vain without a guard, "
                f"{percent(spent)} up to the alarms."
            )


def _in_time(median: Interval) -> str:
    far = Interval(abs(median.value), float("nan"), max(abs(median.low), abs(median.high)))
    return verdict(far, DELAY, is_ceiling=True, written=f"{DELAY} tokens")


def _placed(delay: Interval) -> str:
    """Return where an alarm comes, with the interval of its delay."""
    cell = Cell(delay, Kind.COUNT)
    side = "after" if delay.value > 0 else "before"
    where = "at the onset" if cell.value == "0" else f"{cell.value.removeprefix('-')} tokens {side} the onset"
    return f"{where} {cell.interval}".rstrip()
