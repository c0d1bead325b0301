"""The run: block by block, each result on disk before the next, until the end or until it is clear enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvguard.engine.memory import enough_memory
from kvguard.errors import KvguardError
from kvguard.stats.bootstrap import LEVEL, Interval
from kvguard.stats.sequential import RunningMean
from kvguard.studies.instructions.arms import BASELINE, Arm
from kvguard.studies.instructions.examples import Example
from kvguard.studies.instructions.generation import Asked, How, decoded, prefilled
from kvguard.studies.instructions.journal import Block, Journal, Key
from kvguard.studies.instructions.places import Encoded, encode
from kvguard.studies.instructions.scoring import Scoring, prompt_level

Show = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What is asked of whom.

    Parameters
    ----------
    examples : sequence of Example
        In the order in which they are asked.
    arms : sequence of Arm
        The baseline first.
    together : int
        Examples of a block.
    stop_when : float, optional
        How wide the interval of any arm's difference to the baseline may be at the end.
    """

    examples: Sequence[Example]
    arms: Sequence[Arm]
    how: How
    scoring: Scoring
    together: int
    stop_when: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended: results that were made and kept, and whether it was clear before the last example."""

    n_made: int
    n_kept: int
    stopped_after: int | None


def run(study: Study, folder: Path, settings: Mapping[str, Any], show: Show) -> Ended:
    """Ask every example under every arm, going on where an earlier run of these settings stopped.

    Parameters
    ----------
    settings
        What a result depends on, beside its example and arm.
    show
        Takes a line for each result.

    Raises
    ------
    KvguardError
        The folder holds results of other settings, an example does not fit the model, or memory runs out.
    """
    encoded = _encoded(study)
    with Journal(folder, settings) as journal, enough_memory(study.how.loaded.name):
        _check_unchanged(study, journal)
        kept = len(journal.rows)
        try:
            stopped = _go_on(study, encoded, journal, show)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {len(journal.rows)} results are kept in {folder}: run it again to go on"
            ) from None
        return Ended(len(journal.rows) - kept, kept, stopped)


def _go_on(study: Study, encoded: Mapping[str, Encoded], journal: Journal, show: Show) -> int | None:
    """Make what is missing; return after how many examples it was clear, None if it came to the end."""
    progress = Progress(study, journal.rows)
    for block in _blocks(study, journal):
        if study.stop_when is not None and progress.widest() <= study.stop_when:
            return progress.n_complete
        journal.begin(block)
        for row in _results(study, encoded, block, journal.rows):
            journal.add(row)
            show(progress.line(row))
        if study.scoring.judge is not None:
            journal.note(study.scoring.judge.summary)
    return None


def _encoded(study: Study) -> dict[str, Encoded]:
    found: dict[str, Encoded] = {}
    loaded = study.how.loaded
    for example in study.examples:
        if example.key in found:
            raise KvguardError(f"example {example.key}: there are two of this key: rename one")
        try:
            encoded = encode(loaded, example)
        except KvguardError as error:
            raise KvguardError(f"example {example.key}: {error}") from None
        n, most = len(encoded.ids), study.how.max_new_tokens
        if n + most > loaded.window:
            raise KvguardError(
                f"example {example.key}: {n} tokens and {most} new ones exceed the window of {loaded.window} "
                f"of model {loaded.name}: leave it out, or use a smaller --max-new-tokens"
            )
        found[example.key] = encoded
    return found


def _blocks(study: Study, journal: Journal) -> Iterator[Block]:
    """Yield what is left to do: blocks that were cut short as they were begun, then the rest in order.

    Rows of a block share its steps, so its composition may show in the last bits of a logit: a block is made
    again as a whole, to end with the same tokens.
    """
    wanted = {(example.key, str(arm)) for example in study.examples for arm in study.arms}
    yield from (block for block in journal.unfinished if wanted.issuperset(block))
    left = [
        missing
        for example in study.examples
        if (
            missing := [
                (example.key, str(arm)) for arm in study.arms if (example.key, str(arm)) not in journal.rows
            ]
        )
    ]
    for start in range(0, len(left), study.together):
        yield tuple(key for missing in left[start : start + study.together] for key in missing)


def _results(
    study: Study, encoded: Mapping[str, Encoded], block: Block, stored: Container[Key]
) -> Iterator[dict[str, Any]]:
    """Make a block; yield the results that are not stored yet, from before it was cut short."""
    arms = {str(arm): arm for arm in study.arms}
    wanted: dict[str, list[Arm]] = {}
    for key, name in block:
        wanted.setdefault(key, []).append(arms[name])
    asked: list[Asked] = []
    for key, own in wanted.items():
        for found in prefilled(study.how, encoded[key], own):
            if isinstance(found, Asked):
                asked.append(found)
                continue
            arm, why = found
            if (key, str(arm)) not in stored:
                yield {"key": key, "arm": str(arm), "example": _digest(encoded[key].example), "unfit": why}
    for one, answer in decoded(study.how, asked) if asked else ():
        tokens, name = answer.pop("token_ids"), str(one.arm)
        if (one.key, name) in stored:
            continue
        text = study.how.text(tokens)
        example = encoded[one.key].example
        scores = study.scoring.score(example, name, text, tokens, answer["stop_reason"])
        facts = {**_facts(encoded[one.key]), **one.facts, "n_tokens": len(tokens)}
        yield {"key": one.key, "arm": name, **facts, **scores, **answer, "text": text}


def _facts(encoded: Encoded) -> dict[str, Any]:
    """Return what statistics need of an example: ``starts`` are the first tokens of its instructions."""
    example = encoded.example
    return {
        "example": _digest(example),
        "instructions": [one.id for one in example.instructions],
        "starts": [places[0] if places else None for places in encoded.instructions],
        "position": example.position,
    }


def _digest(example: Example) -> str:
    """Digest what an example asks, to tell whether it has changed since."""
    made_of = [example.messages, [[one.id, dict(one.kwargs), one.text] for one in example.instructions]]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_unchanged(study: Study, journal: Journal) -> None:
    """Reject results of examples that were others when they were asked."""
    examples = {example.key: example for example in study.examples}
    for (key, _), row in journal.rows.items():
        if key in examples and row.get("example") != _digest(examples[key]):
            raise KvguardError(
                f"{journal.path}: example {key} is not the one that was asked then: name another folder with "
                "--out"
            )


class Progress:
    """What is known so far: means of all instructions followed, with intervals that may be looked at anytime.

    Differences to the baseline count examples in their order, as far as all arms are done; their intervals
    hold for all arms at once (Bonferroni).
    """

    def __init__(self, study: Study, rows: Mapping[Key, Mapping[str, Any]]) -> None:
        self._keys = [example.key for example in study.examples]
        self._arms = [str(arm) for arm in study.arms]
        others = [arm for arm in self._arms if arm != BASELINE]
        alpha = (1 - LEVEL) / max(1, len(others))
        self._means = {arm: RunningMean() for arm in self._arms}
        self._differences = {arm: RunningMean(-1, 1, alpha) for arm in others}
        self._rows, self._total = rows, len(self._keys) * len(self._arms)
        self._done = {key for key in rows if key[0] in set(self._keys) and key[1] in self._means}
        self.n_complete = 0
        for key, arm in sorted(self._done):
            self._count(rows[key, arm])

    def line(self, row: Mapping[str, Any]) -> str:
        """Count a result, and tell of it."""
        self._done.add((row["key"], row["arm"]))
        self._count(row)
        n = len(str(self._total))
        head = f"[{len(self._done):{n}}/{self._total}] {row['key']} {row['arm']}: "
        if "unfit" in row:
            return f"{head}does not apply: {row['unfit']}"
        known = [verdict for verdict in row["strict"] if verdict is not None]
        running = self._means[row["arm"]]
        return (
            f"{head}{sum(known)} of {len(row['strict'])} followed; all followed so far: "
            f"{_interval(running.interval)} of {running.n}"
        )

    def widest(self) -> float:
        """Return the width of the widest interval of a difference to the baseline."""
        self._compare()
        widths = [found.interval.high - found.interval.low for found in self._differences.values()]
        return max((width if width == width else 2.0 for width in widths), default=0.0)

    def _count(self, row: Mapping[str, Any]) -> None:
        outcome = _outcome(row)
        if outcome is not None:
            self._means[row["arm"]].add(outcome)

    def _compare(self) -> None:
        """Take the examples that have become complete into the differences."""
        while self.n_complete < len(self._keys):
            key = self._keys[self.n_complete]
            if any((key, arm) not in self._done for arm in self._arms):
                return
            self.n_complete += 1
            base = _outcome(self._rows[key, BASELINE])
            for arm, found in self._differences.items():
                other = _outcome(self._rows[key, arm])
                if base is not None and other is not None:
                    found.add(float(other) - float(base))


def _outcome(row: Mapping[str, Any]) -> bool | None:
    return None if "unfit" in row else prompt_level(row["strict"])


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.value == found.value else "-"
