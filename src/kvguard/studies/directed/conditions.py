"""The conditions of a decoder: what stands before a document while it is read.

A matched prefix has exactly as many tokens as the example's question: it is cut, or begins again from its
start. A condition without a prefix for an example (a language model wrote nothing, say) gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from kvguard.config import check_known
from kvguard.errors import KvguardError
from kvguard.studies.directed.lexicon import Lexicon, first_sentence

if TYPE_CHECKING:
    from kvguard.studies.directed.examples import Example
    from kvguard.studies.directed.sources import Dataset
    from kvguard.studies.directed.tokens import Tokens

EXTRACT, QUESTION, SUMMARIZE, PARAPHRASE = "llm_extract", "llm_question", "llm_summarize", "paraphrase"
WRITTEN = (EXTRACT, QUESTION, SUMMARIZE, PARAPHRASE)


@dataclass(frozen=True)
class Prefix:
    """Token ids that stand before a document; ``keep``: they stay in its cache."""

    ids: tuple[int, ...] = ()
    keep: bool = False


@dataclass(frozen=True)
class Kit:
    """What prefixes are made of.

    Attributes
    ----------
    framings
        Texts by name: universal, extractor, adversarial.
    written
        What a language model wrote: kind and example id -> text.
    """

    tokens: Tokens
    dataset: Dataset
    framings: Mapping[str, str]
    written: Callable[[str, Example], str]
    seed: int

    @cached_property
    def lexicon(self) -> Lexicon:
        """The words of the data set."""
        return Lexicon([example.context for example in self.dataset.examples])

    @cached_property
    def by_document(self) -> dict[str, list[Example]]:
        """The examples of each document, by its text."""
        found: dict[str, list[Example]] = {}
        for example in self.dataset.examples:
            found.setdefault(example.context, []).append(example)
        return found

    def rng(self, condition: str, example: Example) -> Random:
        """Return the chance of one example's condition: that of no other, whatever else is drawn."""
        return Random(f"{condition}/{self.seed}/{example.id}")

    def framing(self, name: str) -> str:
        """Return a framing's text."""
        check_known("framings", name, self.framings)
        return self.framings[name]


@dataclass(frozen=True)
class Condition:
    """How a prefix is made.

    Attributes
    ----------
    make
        The token ids before they are matched; empty: there are none.
    matched
        As many tokens as the question.
    keep
        The prefix stays in the cache.
    written
        The kind of text that a language model writes for it.
    """

    make: Callable[[Example, Kit], list[int]]
    matched: bool = True
    keep: bool = False
    written: str | None = None

    def prefix(self, example: Example, kit: Kit) -> Prefix | None:
        """Return the prefix of an example, None where there is none."""
        ids = self.make(example, kit)
        if self.matched:
            fitted = fit(ids, len(kit.tokens.ids(example.question)))
            return None if fitted is None else Prefix(tuple(fitted), self.keep)
        return Prefix(tuple(ids), self.keep) if ids else None


def fit(ids: Sequence[int], n: int) -> list[int] | None:
    """Return exactly ``n`` token ids: the first of these, begun again as often as it takes; None of none."""
    if not ids:
        return None
    return [ids[place % len(ids)] for place in range(n)]


def prefixes(example: Example, names: Sequence[str], kit: Kit) -> dict[str, Prefix | None]:
    """Return the prefix of an example under each of the conditions called ``names``."""
    return {name: BARE if name == "bare" else condition(name).prefix(example, kit) for name in names}


def condition(name: str) -> Condition:
    """Return the condition called ``name``; ``bare`` has none.

    Raises
    ------
    KvguardError
        There is no such condition.
    """
    check_known("conditions", name, ["bare", *CONDITIONS])
    return CONDITIONS[name]


def _random_tokens(example: Example, kit: Kit) -> list[int]:
    length = len(kit.tokens.ids(example.question))
    return kit.rng("random_tokens", example).choices(kit.tokens.ordinary, k=length)


def _repeat_token(example: Example, kit: Kit) -> list[int]:
    return kit.tokens.ids(" the")[-1:]


def _scrambled_oracle(example: Example, kit: Kit) -> list[int]:
    ids = kit.tokens.ids(example.question)
    kit.rng("scrambled_oracle", example).shuffle(ids)
    return ids


def _unrelated_query(example: Example, kit: Kit) -> list[int]:
    """Return a question about a document that is less like this one than most are."""
    others = _others(example, kit)
    likeness = kit.lexicon.likeness(example.context)
    alike = np.array([likeness[kit.lexicon.place(document)] for document in others])
    far = [document for document, value in zip(others, alike) if value <= np.median(alike)]
    rng = kit.rng("unrelated_query", example)
    return kit.tokens.ids(rng.choice(kit.by_document[rng.choice(far)]).question)


def _same_topic(example: Example, kit: Kit) -> list[int]:
    """Return another question about the document, or one about the document that is most like it."""
    rng = kit.rng("same_topic", example)
    about = [other for other in kit.by_document[example.context] if other.question != example.question]
    if not about:
        likeness = kit.lexicon.likeness(example.context)
        nearest = max(_others(example, kit), key=lambda document: likeness[kit.lexicon.place(document)])
        about = kit.by_document[nearest]
    return kit.tokens.ids(rng.choice(about).question)


def _others(example: Example, kit: Kit) -> list[str]:
    found = [document for document in kit.by_document if document != example.context]
    if not found:
        raise KvguardError(
            f"data set {kit.dataset.name}: all examples are about one document, so there is no unrelated "
            "question: add examples, or leave out unrelated_query and same_topic"
        )
    return found


def _paraphrase(example: Example, kit: Kit) -> list[int]:
    return kit.tokens.ids(example.paraphrase or kit.written(PARAPHRASE, example))


def _oracle(example: Example, kit: Kit) -> list[int]:
    return kit.tokens.ids(example.question)


def _passage(own: bool, shuffled: bool) -> Condition:
    """Return tokens of a text before the document: its own or another's, in order or not."""
    name = f"{'same' if own else 'other'}_{'shuffled' if shuffled else 'coherent'}"

    def make(example: Example, kit: Kit) -> list[int]:
        rng = kit.rng(name, example)
        text = example.context if own else rng.choice(_others(example, kit))
        ids = kit.tokens.ids(text)[: len(kit.tokens.ids(example.question))]
        if shuffled:
            rng.shuffle(ids)
        return ids

    return Condition(make)


def _written(kind: str) -> Condition:
    return Condition(lambda example, kit: kit.tokens.ids(kit.written(kind, example)), written=kind)


def _framed(name: str, matched: bool) -> Condition:
    return Condition(lambda _, kit: kit.tokens.ids(kit.framing(name)), matched)


def _keywords(n: int) -> Condition:
    def make(example: Example, kit: Kit) -> list[int]:
        return kit.tokens.ids(" ".join(kit.lexicon.keywords(example.context, n)))

    return Condition(make, matched=False)


BARE = Prefix()
CONDITIONS: dict[str, Condition] = {
    "random_tokens": Condition(_random_tokens),
    "repeat_token": Condition(_repeat_token),
    "scrambled_oracle": Condition(_scrambled_oracle),
    "unrelated_query": Condition(_unrelated_query),
    "same_topic": Condition(_same_topic),
    "paraphrase": Condition(_paraphrase, written=PARAPHRASE),
    "oracle": Condition(_oracle),
    EXTRACT: _written(EXTRACT),
    QUESTION: _written(QUESTION),
    SUMMARIZE: _written(SUMMARIZE),
    "extractor_matched": _framed("extractor", True),
    "adversarial_matched": _framed("adversarial", True),
    "universal": _framed("universal", False),
    "adv_instruct": _framed("adversarial", False),
    "surr_extractor": _framed("extractor", False),
    "oracle_full": Condition(_oracle, keep=True),
    **{f"keywords_{n}": _keywords(n) for n in (5, 10, 20)},
    "same_coherent": _passage(own=True, shuffled=False),
    "same_shuffled": _passage(own=True, shuffled=True),
    "other_coherent": _passage(own=False, shuffled=False),
    "other_shuffled": _passage(own=False, shuffled=True),
    "first_sentence": Condition(
        lambda example, kit: kit.tokens.ids(first_sentence(example.context)), matched=False
    ),
}
