"""Whether an answer does what it was told: the rules of :mod:`kvguard.tasks.instructions`.

Only an answer can follow an instruction: a text that names no thing of that world follows none, since silence
avoids every word.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from kvguard.tasks.instructions import KINDS, THINGS

_WORD = re.compile(r"[^\W\d_]+")
_KNOWN = frozenset(THINGS)


def named(text: str) -> list[str]:
    """Return the things that a text names, in its order, in small letters."""
    return [word for word in words(text) if word in _KNOWN]


def words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return [word.lower() for word in _WORD.findall(text)]


def followed(kind: str, kwargs: Mapping[str, Any], text: str) -> bool:
    """Return whether ``text`` is an answer that follows the instruction."""
    return bool(named(text)) and _RULES[kind](text, **kwargs)


def _one_word(text: str) -> bool:
    return len(text.split()) == 1 and len(words(text)) == 1


def _capitals(text: str) -> bool:
    return text.isupper()


def _count(text: str, count: int) -> bool:
    return len(named(text)) == len(set(named(text))) == count


def _alphabetical(text: str) -> bool:
    return len(set(named(text))) >= 2 and named(text) == sorted(named(text))


def _given(text: str, order: list[str]) -> bool:
    return named(text) == list(order)


def _phrase(text: str, phrase: str) -> bool:
    return text.strip().rstrip(".!\"'").lower().endswith(phrase.lower())


def _word(text: str, word: str) -> bool:
    return word.lower() not in words(text)


def _letter(text: str, letter: str) -> bool:
    return letter.lower() not in text.lower()


def _question(text: str, question: str) -> bool:
    return text.strip().lower().startswith(question.lower())


_RULES: Mapping[str, Callable[..., bool]] = dict(
    zip(
        KINDS,
        (_one_word, _capitals, _count, _alphabetical, _given, _phrase, _word, _letter, _question),
        strict=True,
    )
)
