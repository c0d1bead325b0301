"""More examples, written by a model: validated by the rules' own ids and arguments, and none twice.

The ids are drawn here, from the rules that can check and do not contradict one another; the model writes a request, the
sentence that tells each instruction, and its arguments. What is malformed, has arguments that its rule rejects, does not
say in its prompt what its arguments say, or repeats a prompt is counted and left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from kvguard.errors import KvguardError
from kvguard.studies.instructions.judge import Asker, Failure
from kvguard.studies.instructions.suites.library import Library, library
from kvguard.studies.instructions.suites.rows import example_of
from kvguard.tasks.jsonl import read_jsonl

MODEL = "claude-sonnet-4-5-20250929"
MAX_TOKENS = 1024
_ATTEMPTS = 5  # for each example that is wanted, on average
_FAILURES = 5  # in a row, after which it ends
_TOPICS = (
    "a letter", "a recipe", "a product page", "a travel plan", "a news item", "a poem", "a speech", "a job advert",
    "an explanation for children", "a review", "a dialogue", "a plan for a lesson", "a diary entry", "a comparison",
)  # fmt: skip
_SYSTEM = (
    "You write prompts for a test of whether language models follow instructions. Reply with one JSON object and "
    "nothing else."
)


@dataclass(frozen=True)
class Written:
    """What came of it: how many rows the file holds, and how often what happened."""

    n: int
    counts: Mapping[str, int]


def generate(
    asker: Asker,
    path: Path,
    n: int,
    seed: int,
    report: Callable[[str], None],
    suite: str = "ifeval",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Written:
    """Write examples to ``path`` until it holds ``n``; what it holds already stays, and is not repeated.

    Parameters
    ----------
    asker
        The model that writes.
    path
        A file of JSON Lines in IFEval's form; ``provenance`` says how each row came about.
    report
        Takes a line for every row and every reply that is left out.

    Raises
    ------
    KvguardError
        The file is malformed, the endpoint fails again and again, or the model writes too little that is valid.
    """
    rules = library(suite)
    held = read_jsonl(path) if path.exists() and path.stat().st_size else []
    seen = {_plain(example_of(row, f"{path}, line {line}", suite, rules).prompt) for line, row in held}
    rows, counts, failures = len(held), Counter[str](), 0
    start = max((int(row.get("provenance", {}).get("attempt", -1)) for _, row in held), default=-1) + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        for attempt in range(start, start + _ATTEMPTS * max(1, n - rows)):
            if rows >= n:
                break
            rng = Random(f"instructions/generate/{seed}/{attempt}")
            ids = draw(rng, rules)
            question = _question(rng, ids, rules)
            try:
                reply = asker.ask(_SYSTEM, question)
            except Failure as failure:
                counts[failure.kind] += 1
                failures += 1
                if failures == _FAILURES:
                    raise KvguardError(
                        f"{asker.name} failed {failures} times in a row ({failure.kind}: {str(failure)[:150]}): "
                        f"try again later; {path} keeps its {rows} examples"
                    ) from None
                continue
            failures = 0
            key = f"{suite}-{seed}-{attempt}"
            try:
                if reply.refused:
                    raise KvguardError("the model refused")
                row = _row(reply.text, ids, key)
                prompt = _plain(example_of(row, key, suite, rules).prompt)
                _said(row, key)
                if prompt in seen:
                    raise KvguardError(f"{key}: repeats a prompt")
            except KvguardError as error:
                counts["left_out"] += 1
                report(f"left out: {error}")
                continue
            seen.add(prompt)
            row["provenance"] = {
                "model": asker.name, "written": now().isoformat(timespec="seconds"), "seed": seed, "attempt": attempt,
                "kvguard": version("kvguard"), "rules": f"if-verifiable {version('if-verifiable')}",
            }  # fmt: skip
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            rows += 1
            counts["written"] += 1
            report(f"[{rows}/{n}] {', '.join(ids)}")
    if rows < n:
        raise KvguardError(
            f"{path} holds {rows} of {n} examples after {sum(counts.values())} replies "
            f"({counts['left_out']} left out): ask again, or name another model"
        )
    return Written(rows, dict(counts))


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
        f"{place}. {id}; arguments: {', '.join(rules.arguments(id)) or 'none'}; for example: {rules.example(id, rng)}"
        for place, id in enumerate(ids, start=1)
    ]
    return (
        f"Write a prompt that asks for {rng.choice(_TOPICS)} on a subject of your choice, and then tells these "
        "instructions, each in a sentence of its own in your own words:\n"
        + "\n".join(told)
        + "\n\nChoose the values of the arguments; the prompt states every value exactly. JSON: "
        '{"prompt": "...", "kwargs": [{...}, ...]}, with one object of arguments for each instruction, in this order.'
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


def _said(row: Mapping[str, Any], key: str) -> None:
    """Reject a row whose prompt does not say what its arguments say: no model could follow what it is not told."""
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


def _plain(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.lower()))
