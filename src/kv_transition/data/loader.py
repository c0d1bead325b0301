"""Data sets: where examples come from. A made one has as many as are asked for, at any length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import ClassVar, Protocol

from kv_transition.data.example import Example
from kv_transition.data.normalize import read_longbench, read_questions
from kv_transition.data.tokenizer import Counter
from kv_transition.settings import Dataset
from kvguard.errors import KvguardError
from kvguard.tasks import longarith

_GOLDEN = (math.sqrt(5) - 1) / 2
_ASK = "Answer the question by the text above, in a few words, on a line that begins with Answer:"


class Source(Protocol):
    """A data set.

    Attributes
    ----------
    headline
        The metric that it is known by.
    template
        The prompt of a chat, with ``{context}`` and ``{question}``; plain text ends with a cue beyond it.
    """

    headline: ClassVar[str]
    template: ClassVar[str]

    def pool(self, n: int) -> Iterator[Example]:
        """Yield ``n`` candidates, uncounted, or all there are: the first of any larger ``n``."""


def open_source(settings: Dataset, counter: Counter) -> Source:
    """Return the data set that the settings name."""
    if settings.name == "longarith":
        return LongArith(settings, counter)
    if settings.name == "haystack":
        return Haystack(settings, counter)
    return Stored(settings)


def _length(settings: Dataset, index: int) -> float:
    """Return the length that the example ``index`` is made for: evenly spread, however many are made."""
    return settings.min_tokens + (settings.max_tokens - settings.min_tokens) * (index * _GOLDEN % 1.0)


class LongArith:
    """Sums of two facts of a long text, see :mod:`kvguard.tasks.longarith`."""

    headline: ClassVar[str] = "em"
    template: ClassVar[str] = "{context}\n\n{question}"
    _SAMPLE = 200  # sentences whose tokens are counted to know how many a length takes

    def __init__(self, settings: Dataset, counter: Counter) -> None:
        self._settings = settings
        short, long = (
            longarith.sample(Random(settings.seed), n).question
            for n in (longarith.MIN_SENTENCES, self._SAMPLE)
        )
        least, most = counter.count([short, long])
        self._per_sentence = (most - least) / (self._SAMPLE - longarith.MIN_SENTENCES)
        self._around = least - longarith.MIN_SENTENCES * self._per_sentence

    def pool(self, n: int) -> Iterator[Example]:
        """Yield ``n`` texts with their questions."""
        return map(self._example, range(n))

    def _example(self, index: int) -> Example:
        asked = (_length(self._settings, index) - self._around) / self._per_sentence
        made = longarith.sample(
            Random(f"longarith/{self._settings.seed}/{index}"), max(longarith.MIN_SENTENCES, round(asked))
        )
        context, _, question = made.question.rpartition("\n\n")
        return Example.of(question, context, made.references, dict(made.metadata))


class Haystack:
    """Real questions, each with its gold passage among passages of other questions.

    ``gold_position`` places it: 0 at the beginning, 1 at the end; null: evenly anywhere. No distractor
    holds an answer.
    """

    headline: ClassVar[str] = "substring_em"
    template: ClassVar[str] = "{context}\n\nQuestion: {question}\n" + _ASK

    def __init__(self, settings: Dataset, counter: Counter) -> None:
        assert settings.path is not None
        self._settings = settings
        self._asked = [one for one in read_questions(settings.path) if one.context]
        Random(f"haystack/{settings.seed}").shuffle(self._asked)
        if len(self._asked) < 2:
            raise KvguardError(f"dataset.path: {settings.path} holds too few questions with a context")
        self._passages = list(dict.fromkeys(one.context for one in self._asked))
        self._lower = [passage.casefold() for passage in self._passages]
        alone = counter.count([f"{passage}\n\n" for passage in self._passages])
        frame = counter.count(["\n\n"])[0]
        self._tokens = [n - frame + 1 for n in alone]

    def pool(self, n: int) -> Iterator[Example]:
        """Yield ``n`` questions with haystacks; after all of them they return, with other haystacks."""
        return map(self._example, range(n))

    def _example(self, index: int) -> Example:
        gold = self._asked[index % len(self._asked)]
        rng = Random(f"haystack/{self._settings.seed}/{index}")
        answers = [answer.casefold() for answer in gold.answers]
        room = _length(self._settings, index) - self._tokens[self._passages.index(gold.context)] - 60
        others: list[str] = []
        for at in rng.sample(range(len(self._passages)), len(self._passages)):
            if room < self._tokens[at] / 2:
                break
            if self._passages[at] != gold.context and not any(
                answer in self._lower[at] for answer in answers
            ):
                others.append(self._passages[at])
                room -= self._tokens[at]
        wanted = self._settings.gold_position
        position = round((rng.random() if wanted is None else wanted) * len(others))
        others.insert(position, gold.context)
        meta = {**gold.meta, "gold_passage": position, "passages": len(others)}
        return Example.of(gold.question, "\n\n".join(others), gold.answers, meta)


class Stored:
    """LongBench's items, or one's own in the same fields: as many and as long as they are."""

    headline: ClassVar[str] = "f1"
    template: ClassVar[str] = "{context}\n\nQuestion: {question}\n" + _ASK

    def __init__(self, settings: Dataset) -> None:
        found = read_longbench(settings.path, settings.task) if settings.name == "longbench" else None
        if found is None:
            assert settings.path is not None
            found = read_questions(settings.path)
        self._examples = list({one.example_id: one for one in found}.values())
        Random(f"stored/{settings.seed}").shuffle(self._examples)

    def pool(self, n: int) -> Iterator[Example]:
        """Yield all of them: bins are cut from what there is."""
        return iter(self._examples)


def rendering(template: str, api: str) -> tuple[str, bool]:
    """Return the template of a prompt, and whether it ends with the cue after which the answer stands.

    A model that completes texts is asked by the cue alone: it may go on with an instruction, or repeat it.
    """
    return (template, False) if api == "chat" else (template.removesuffix(f"\n{_ASK}") + "\n\nAnswer:", True)
