"""What the live guard did, in sentences: each aim is said to be met or not to be, as the numbers have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvguard.report.numbers import Cell, Kind, Numbers, known, percent, points
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter.comparison import listed
from kvguard.studies.catastrophes.chapter.figures.live import (
    ACTIONS,
    BASELINE,
    GUARD,
    POLICIES,
    REGIMES,
    policies_table,
)
from kvguard.studies.catastrophes.chapter.live_tables import BASELINES, SPELLED, STAGE

RESTART, STOP, FITS = "restart", "stop", "rollback_fits"
# What the guard is to reach.
RESIDUAL, ANSWERS_LOST, FALSE_ALARMS, HEALTHY_SAVING, OVERHEAD = 0.10, 0.50, 0.05, 0.95, 0.05
_FITS = "These intervals are over prompts and over fits of the hazard, each with a seed of its own."
_ONE_FIT = (
    "Which trigger is better here cannot be told: the hazard was fitted once, and another seed or machine "
    "fits another one."
)
_NO_MEMORY = 1e-9  # share: a mixture of equal saving differs by rounding


def live_headline(numbers: Numbers, model: str) -> list[str]:
    """Return what the guard did to traces that were compressed once, in a few sentences."""
    told = (_rates, _rescue, _answers, _run_ons)
    return [sentence for about in told for sentence in about(numbers, model, "prefill")]


def live_sentences(numbers: Numbers, model: str) -> dict[str, list[str]]:
    """Return all that was found live on a model, under headings; without the stage, nothing."""
    found = {
        f"{name}: {spelled}": [
            sentence
            for about in (_rates, _rescue, _answers, _run_ons, _alarms, _unchanged, _saving, _baselines)
            for sentence in about(numbers, model, name)
        ]
        for name, spelled in REGIMES.items()
    }
    found["forecast, moment and time"] = [
        sentence for about in (_gap, _switch, _time, _left_out) for sentence in about(numbers, model)
    ]
    return {heading: lines for heading, lines in found.items() if lines}


def verdict(found: Interval, bar: float, is_ceiling: bool, written: str = "") -> str:
    """Say whether a number reaches a bar, by default a share: at most it (a ceiling) or at least it."""
    edge = found.high if is_ceiling else found.low
    met, surely = (number <= bar if is_ceiling else number >= bar for number in (found.value, edge))
    aim = f"the aim of at {'most' if is_ceiling else 'least'} {written or f'{bar * 100:.0f} %'}"
    if not met:
        return f"{aim} is not met"
    return f"{aim} is met" if surely else f"{aim} is met by the estimate, not by its whole interval"


def compared(found: Interval) -> str:
    """Say what the interval of a difference allows to say."""
    if found.low > 0:
        return "higher than"
    return "lower than" if found.high < 0 else "not distinguishable from"


def _get(numbers: Numbers, model: str, regime: str, policy: str, metric: str) -> Interval:
    return numbers.get(STAGE, model, "", policies_table(regime), policy, metric)


def _rates(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    def rate(policy: str) -> Interval:
        return _get(numbers, model, regime, policy, "cbr")

    guarded = [policy for policy in ("hold", "restore", GUARD, RESTART, STOP) if known(rate(policy))]
    if not guarded or not known(rate("uncompressed"), rate("static")):
        return
    actions = ", ".join(f"{percent(rate(action))} with {action}" for action in guarded)
    yield (
        f"Live, on fresh prompts, {REGIMES[regime]}: {percent(rate('uncompressed'))} of the traces end in a "
        f"catastrophe uncompressed, {percent(rate('static'))} compressed without a guard; guarded, {actions}."
        + (_beside(numbers, model) if regime == "prefill" else "")
    )


def _beside(numbers: Numbers, model: str) -> str:
    """Return the offline forecast for the same prompts, as the end of a sentence about live results."""
    said, gap = (numbers.get(STAGE, model, "", "gap", GUARD, name) for name in ("cbr_simulated", "gap"))
    if not known(said, gap):
        return ""
    return (
        f" The offline simulation of the same prompts says {percent(said)}; the live CBR with {GUARD} is "
        f"{compared(gap)} that (difference {points(gap)})."
    )


def _rescue(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    cbr = _get(numbers, model, regime, GUARD, "residual_cbr")
    without, plain = (_get(numbers, model, regime, policy, "cbr") for policy in ("static", "uncompressed"))
    if known(without, plain) and without.value <= plain.value:
        yield "Compression adds no catastrophes on these prompts, so there is nothing to rescue from."
    elif known(cbr):
        yield (
            f"Of the catastrophes that compression adds, {percent(cbr)} are left with {GUARD}: "
            f"{verdict(cbr, RESIDUAL, is_ceiling=True)}."
        )


def _answers(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    """Say what compression costs in right answers, and how much of that each action leaves lost."""
    for metric, judged in (("accuracy", "the first complete answer"), ("accuracy_last", "the last answer")):
        plain, without = (_get(numbers, model, regime, name, metric) for name in ("uncompressed", "static"))
        if not known(plain, without):
            continue
        right = (
            f"Judged by {judged}, {percent(plain)} are right uncompressed and {percent(without)} compressed "
            "without a guard"
        )
        if without.value >= plain.value:
            yield f"{right}: no right answers are lost on these prompts."
            continue
        left = {
            policy: _get(numbers, model, regime, policy, f"residual_{metric}")
            for policy in (GUARD, STOP, RESTART, BASELINE)
        }
        lost = [f"{percent(found)} with {SPELLED[policy]}" for policy, found in left.items() if known(found)]
        if lost:
            yield f"{right}; of this loss stay {listed(lost)}.{_half(left, metric)}"


def _half(left: Mapping[str, Interval], metric: str) -> str:
    """Say whether an action brings back half of what running on loses, which the last answer shows."""
    if metric != "accuracy_last":
        return ""
    said = [
        f"with {policy} {verdict(found, ANSWERS_LOST, is_ceiling=True)}"
        for policy, found in left.items()
        if policy in (GUARD, STOP) and known(found)
    ]
    return f" Half of it is to come back: {listed(said)}." if said else ""


def _run_ons(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    """Say whether the guard beats a stop string after the first answer, which needs no model."""
    ends = {
        policy: _get(numbers, model, regime, policy, "non_termination")
        for policy in ("static", GUARD, STOP, BASELINE)
    }
    if not known(ends["static"], ends[BASELINE]):
        return
    shares = [f"{percent(found)} with {SPELLED[name]}" for name, found in ends.items() if known(found)]
    yield f"Texts that do not end: {listed(shares)} (a stop string after the first answer, without a model)."
    differences = {  # the policy's CBR less the baseline's
        STOP: _get(numbers, model, regime, STOP, f"cbr_minus_{BASELINE}"),
        GUARD: _turned(_get(numbers, model, regime, BASELINE, f"cbr_minus_{GUARD}")),
    }
    fitted_once = not known(_get(numbers, model, regime, FITS, "cbr"))
    for policy, found in differences.items():
        if known(found):
            beaten = "beats it" if found.high < 0 else "does not beat it"
            fits = ", by one fit of the hazard" if fitted_once or policy == STOP else ""
            yield (
                f"The CBR with {policy} is {compared(found)} that of the stop string (difference "
                f"{points(found)}{fits}): {policy} {beaten}."
            )


def _turned(found: Interval) -> Interval:
    return Interval(-found.value, -found.high, -found.low)


def _alarms(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    alarms, kept = (
        _get(numbers, model, regime, GUARD, name) for name in ("false_alarm_rate", "healthy_saving_kept")
    )
    if known(alarms):
        yield (
            f"SAFE is seen in {percent(alarms)} of the traces that end without a catastrophe unguarded: "
            f"{verdict(alarms, FALSE_ALARMS, is_ceiling=True)}."
        )
    if known(kept):
        yield (
            f"On those traces {percent(kept)} of the memory saving is kept: "
            f"{verdict(kept, HEALTHY_SAVING, is_ceiling=False)}."
        )


def _unchanged(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    same = _get(numbers, model, regime, GUARD, "unchanged")
    if known(same):
        yield f"Without SAFE, {percent(same)} of the traces are those of no guard, token for token."


def _saving(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    kept, ideal = (_get(numbers, model, regime, policy, "saving_kept") for policy in (GUARD, "oracle"))
    if known(kept, ideal):
        yield (
            f"Over all traces {percent(kept)} of the saving is kept; an oracle that restores the failing "
            f"traces, and no others, at their onsets would keep {percent(ideal)}."
        )


def _baselines(numbers: Numbers, model: str, regime: str) -> Iterator[str]:
    differences = {
        policy: [
            _get(numbers, model, regime, policy, f"{name}_minus_{GUARD}") for name in ("cbr", "kv_saved")
        ]
        for policy in BASELINES
    }
    differences = {policy: pair for policy, pair in differences.items() if known(pair[0])}
    if not differences:
        return
    if not known(_get(numbers, model, regime, FITS, "cbr")):
        yield _ONE_FIT
        return
    for policy, (cbr, saved) in differences.items():
        yield f"Against {SPELLED[policy]}: {_beaten(cbr, saved)}."
    yield _FITS


def _beaten(cbr: Interval, saved: Interval) -> str:
    """Say whether the guard has fewer catastrophes than a baseline that saves no more memory, if it shows."""
    also = f", memory saved by {points(saved)}" if known(saved) else ""
    differences = f"the other's CBR differs by {points(cbr)}{also}"
    if cbr.high < 0:
        return f"{GUARD} has the higher CBR; {differences}"
    if not cbr.low > 0:
        return f"their CBR cannot be told apart; {differences}"
    if saved.low > _NO_MEMORY:
        return (
            f"{GUARD} has the lower CBR, but not at equal memory, since the other saves more; {differences}"
        )
    return f"{GUARD} has the lower CBR, and the other saves no more memory; {differences}"


def _gap(numbers: Numbers, model: str) -> Iterator[str]:
    for action in ACTIONS:
        found = {
            name: numbers.get(STAGE, model, "", "gap", action, name)
            for name in ("n_failed", "predicted", "prevented", "precision")
        }
        if not known(*found.values()):
            continue
        yield (
            f"Of the {Kind.COUNT.write(found['n_failed'].value)} traces that fail without a guard, the "
            f"simulation says that {action} prevents {percent(found['predicted'])}; live it prevents "
            f"{percent(found['prevented'])}. Of these promises {percent(found['precision'])} come true."
        )


def _switch(numbers: Numbers, model: str) -> Iterator[str]:
    recovered = {
        int(offset): numbers.get(STAGE, model, "", "switch", offset, "recovered")
        for offset in numbers.subjects(STAGE, model, "", "switch")
    }
    offsets = sorted((d for d, found in recovered.items() if known(found)), reverse=True)
    if not offsets:
        return
    shown = dict.fromkeys([offsets[0], *(d for d in offsets if d == 0), offsets[-1]])
    parts = ", ".join(f"{percent(recovered[d])} of them {_moment(d)}" for d in shown)
    yield f"Traces that fail without a guard recover when they are restored, for good, in time: {parts}."


def _moment(offset: int) -> str:
    if offset == 0:
        return "at the onset"
    return f"{abs(offset)} tokens {'before' if offset > 0 else 'after'} the onset"


def _time(numbers: Numbers, model: str) -> Iterator[str]:
    share = numbers.get(STAGE, model, "", "latency", "overhead", "share")
    restore = numbers.get(STAGE, model, "", "latency", "restore", "ms")
    if known(share):
        one = f" One restore takes {Cell(restore, Kind.TENTH).value} ms." if known(restore) else ""
        yield (
            f"While nothing fires, guarding adds {percent(share)} to the time of decoding: "
            f"{verdict(share, OVERHEAD, is_ceiling=True)}.{one}"
        )


def _left_out(numbers: Numbers, model: str) -> Iterator[str]:
    asked, used = (numbers.get(STAGE, model, "", "prompts", "all", name) for name in ("n_prompts", "n_used"))
    if used.value < asked.value:
        yield (
            f"{asked.value - used.value:.0f} of {asked.value:.0f} prompts are left out of all this: "
            "the logits of a generation were NaN, or its press cannot hold its budget while decoding."
        )


def live_tiles(numbers: Numbers, model: str) -> list[tuple[str, Interval]]:
    """Return the headline numbers, all of them shares, by what they are called."""
    return [
        (f"CBR live, {POLICIES[policy]}", _get(numbers, model, "prefill", policy, "cbr"))
        for policy in ("static", GUARD)
    ]
