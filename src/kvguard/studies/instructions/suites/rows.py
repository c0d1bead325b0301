"""Rows of IFEval's form: a prompt, the ids of its instructions, and the arguments of each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from kvguard.errors import KvguardError, foreign
from kvguard.studies.instructions.examples import Example, Instruction
from kvguard.studies.instructions.suites.library import Library, library
from kvguard.studies.instructions.suites.wording import moved, words_of
from kvguard.tasks.jsonl import read_jsonl, text_of

logger = logging.getLogger(__name__)

_PROMPTS = ("prompt", "instruction")  # under which of these a row has its prompt
_KEYS = ("key", "id")


def load(
    suite: str, hub: str, split: str, path: Path | None, n: int | None, seed: int, placement: str
) -> list[Example]:
    """Return the examples of a file, or of the hub, in the order of ``seed``, see :func:`load_suite`."""
    rules = library(suite)
    found = [example_of(row, where, suite, rules) for where, row in _rows(hub, split, path)]
    first: dict[str, str] = {}
    for example in found:
        where = example.metadata["where"]
        if first.setdefault(example.key, where) != where:
            raise KvguardError(f"{where}: the key {example.key!r} stands twice: make keys unique")
    Random(f"instructions/{suite}/{seed}").shuffle(found)
    if placement == "system":
        apart = [one for one in map(moved, found) if one is not None]
        logger.warning(
            "%s: %d of %d prompts have instructions that can be told apart and moved to the system prompt; "
            "the others are left out",
            suite,
            len(apart),
            len(found),
        )
        found = apart
    _warn(suite, rules, found)
    return found[:n]


def example_of(row: Mapping[str, Any], where: str, suite: str, rules: Library) -> Example:
    """Return the example of a row; every instruction of it has a rule, and that rule its arguments.

    Raises
    ------
    KvguardError
        What is wrong with the row, and ``where`` it stands.
    """
    prompt = text_of(row, next((name for name in _PROMPTS if name in row), "prompt"), where)
    key = next((row[name] for name in _KEYS if name in row), None)
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise KvguardError(f"{where}: its key is no name: write a string or a number under key")
    ids, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
        raise KvguardError(f"{where}: instruction_id_list is no list of ids: write at least one")
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise KvguardError(
            f"{where}: kwargs is no list of {len(ids)} objects: write one for each instruction"
        )
    told = []
    for id, given in zip(ids, arguments, strict=True):
        if not isinstance(given, dict | None):
            raise KvguardError(f"{where}: kwargs of {id} is no object: write {{...}}")
        kwargs = {name: value for name, value in (given or {}).items() if value is not None}
        try:
            rules.check(id, kwargs)
        except KvguardError as error:
            raise KvguardError(f"{where}: {error}") from None
        told.append(Instruction(id, kwargs, words_of(prompt, id, kwargs)))
    return Example(str(key), suite, prompt, tuple(told), metadata={"where": where})


def _rows(hub: str, split: str, path: Path | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path is not None:
        for number, row in read_jsonl(path):
            yield f"{path}, line {number}", row
        return
    with foreign(f"cannot read {hub} from the hub", "give its file with --suite-path"):
        from datasets import load_dataset

        rows = list(load_dataset(hub, split=split))
    for number, row in enumerate(rows, start=1):
        yield f"{hub}, row {number}", row


def _warn(suite: str, rules: Library, found: list[Example]) -> None:
    """Say which instructions no rule can check here, and why."""
    told = [one for example in found for one in example.instructions]
    reasons = Counter(reason for one in told if (reason := rules.why_not(one.id, one.kwargs)) is not None)
    for reason, n in sorted(reasons.items()):
        logger.warning("%s: %d of %d instructions are not scored by rules: %s", suite, n, len(told), reason)
    if any(reason.startswith("NLTK") for reason in reasons):
        logger.warning("python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng stopwords")
