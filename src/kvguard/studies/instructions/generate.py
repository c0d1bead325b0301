"""More examples, written by a model: validated by the rules' own ids and arguments, and none twice.

The ids are drawn here, from the rules that can check and do not contradict one another; the model writes a
request, the sentence that tells each instruction, and its arguments. What is malformed, has arguments that
its rule rejects, does not say in its prompt what its arguments say, or repeats a prompt is counted and left
out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge import Asker, Failure, Reply
from kvguard.studies.instructions.suites.library import Library, library
from kvguard.studies.instructions.suites.rows import example_of
from kvguard.tasks.jsonl import read_jsonl

MODEL = "claude-sonnet-4-5-20250929"
MAX_TOKENS = 1024
_ATTEMPTS = 5  # for each example that is wanted, on average
_FAILURES = 5  # in a row, after which it ends
_TOPICS = (
    "a letter", "a recipe", "a product page", "a travel plan", "a news item", "a poem", "a speech",
    "a review", "an explanation for children", "a job advert", "a dialogue", "a diary entry",
)  # fmt: skip
_SYSTEM = (
    "You write prompts for a test of whether language models follow instructions. "
    "Reply with one JSON object and nothing else."
)


class Generator:
    """Writes examples to a file of JSON Lines in IFEval's form; ``provenance`` says how each row came about.

    Parameters
    ----------
    asker
        The model that writes.
    path
        The file; what it holds already stays, and is not repeated.
    report
        Takes a line for every row, and for every reply that is left out.

    Attributes
    ----------
    rows
        How many rows the file holds.
    counts
        How many were ``written``, how many replies ``left_out``, how many questions failed and how.

    Raises
    ------
    KvguardError
        The file is malformed, or the rules are not installed.
    """

    def __init__(
        self, asker: Asker, path: Path, seed: int, report: Callable[[str], None], suite: str = "ifeval"
    ) -> None:
        self._asker, self._path, self._seed, self._report, self._suite = asker, path, seed, report, suite
        self._rules = library(suite)
        held = read_jsonl(path) if path.exists() and path.stat().st_size else []
        self._seen = {
            _plain(example_of(row, f"{path}, line {line}", suite, self._rules).prompt) for line, row in held
        }
        self._start = 1 + max((_attempt(row) for _, row in held), default=-1)
        self._failures = 0
        self.rows = len(held)
        self.counts: Counter[str] = Counter()

    def fill(self, n: int) -> None:
        """Have rows written until the file holds ``n``.

        Raises
        ------
        KvguardError
            The endpoint fails again and again, or the model writes too little that is valid.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        attempts = range(self._start, self._start + _ATTEMPTS * max(0, n - self.rows))
        with self._path.open("a", encoding="utf-8") as out:
            for attempt in attempts:
                row = self._ask(attempt)
                if row is not None:
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                    out.flush()
                    self.rows += 1
                    self.counts["written"] += 1
                    self._report(f"[{self.rows}/{n}] {', '.join(row['instruction_id_list'])}")
                if self.rows >= n:
                    return
        if self.rows < n:
            raise KvguardError(
                f"{self._path} holds {self.rows} of {n} examples after {len(attempts)} questions "
                f"({self.counts['left_out']} replies left out): ask again, or name another model"
            )

    def _ask(self, attempt: int) -> dict[str, Any] | None:
        """Return the row of one question, None where there was no valid one."""
        rng = Random(f"instructions/generate/{self._seed}/{attempt}")
        ids = draw(rng, self._rules)
        try:
            reply = self._asker.ask(_SYSTEM, _question(rng, ids, self._rules))
        except Failure as failure:
            self.counts[failure.kind] += 1
            self._failures += 1
            if self._failures < _FAILURES:
                return None
            raise KvguardError(
                f"{self._asker.name} failed {_FAILURES} times in a row "
                f"({failure.kind}: {str(failure)[:150]}): "
                f"try again later; {self._path} keeps its {self.rows} examples"
            ) from None
        self._failures = 0
        key = f"{self._suite}-{self._seed}-{attempt}"
        try:
            return self._valid(reply, ids, key, attempt)
        except KvguardError as error:
            self.counts["left_out"] += 1
            self._report(f"left out: {error}")
            return None

    def _valid(self, reply: Reply, ids: Sequence[str], key: str, attempt: int) -> dict[str, Any]:
        """Return the row that a reply holds, or say what is wrong with it."""
        if reply.refused:
            raise KvguardError(f"{key}: the model refused")
        row = _row(reply.text, ids, key)
        prompt = _plain(example_of(row, key, self._suite, self._rules).prompt)
        _check_said(row, key)
        if prompt in self._seen:
            raise KvguardError(f"{key}: repeats a prompt")
        self._seen.add(prompt)
        row["provenance"] = {
            "model": self._asker.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self._seed,
            "attempt": attempt,
            "kvguard": version("kvguard"),
            "rules": f"if-verifiable {version('if-verifiable')}",
        }
        return row


def draw(rng: Random, rules: Library) -> tuple[str, ...]:
    """Return one to three instructions that a rule can check and that do not contradict one another."""
    wanted = rng.choice((1, 1, 2, 2, 3))
    chosen: list[str] = []
    left = sorted(set(rules.ids) - set(rules.unchecked))
    while left and len(chosen) < wanted:
        chosen.append(rng.choice(left))
        left = [id for id in left if not any(rules.contradict(id, other) for other in chosen)]
    return tuple(chosen)


def _question(rng: Random, ids: Sequence[str], rules: Library) -> str:
    told = [
        f"{place}. {id}; arguments: {', '.join(rules.arguments(id)) or 'none'}; "
        f"for example: {rules.example(id, rng)}"
        for place, id in enumerate(ids, start=1)
    ]
    return (
        f"Write a prompt that asks for {rng.choice(_TOPICS)} on a subject of your choice, and then tells "
        "these instructions, each in a sentence of its own in your own words:\n"
        + "\n".join(told)
        + "\n\nChoose the values of the arguments; the prompt states every value exactly. JSON: "
        '{"prompt": "...", "kwargs": [{...}, ...]}, one object of arguments an instruction, in this order.'
    )


def _row(text: str, ids: Sequence[str], key: str) -> dict[str, Any]:
    """Return the row of a reply; a fence around the object is taken off."""
    bare = re.sub(r"\A\s*```(?:json)?\s*|\s*```\s*\Z", "", text)
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError) as error:
        raise KvguardError(f"{key}: no JSON ({str(error)[:60]})") from None
    if not isinstance(found, dict) or set(found) != {"prompt", "kwargs"}:
        raise KvguardError(f"{key}: no object of prompt and kwargs")
    return {
        "key": key,
        "prompt": found["prompt"],
        "instruction_id_list": list(ids),
        "kwargs": found["kwargs"],
    }


def _check_said(row: Mapping[str, Any], key: str) -> None:
    """Reject a row whose prompt does not say what its arguments say: nobody could follow it."""
    prompt = row["prompt"].lower()
    for kwargs in row["kwargs"]:
        for value in _texts(kwargs):
            if value.lower() not in prompt:
                raise KvguardError(f"{key}: the prompt does not say {value!r}")


def _texts(kwargs: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the texts among arguments that have to stand in a prompt word by word."""
    for name, value in (kwargs or {}).items():
        if name.endswith("relation") or name == "language":  # said in other words: "at most", "in German"
            continue
        values = value if isinstance(value, list) else [value]
        yield from (one for one in values if isinstance(one, str))


def _attempt(row: Mapping[str, Any]) -> int:
    """Return which question a row answered; one that was not written here answers none."""
    provenance = row.get("provenance")
    found = provenance.get("attempt") if isinstance(provenance, dict) else None
    return found if isinstance(found, int) else -1


def _plain(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.lower()))
