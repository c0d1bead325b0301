"""Which answer of a text is complete first: what a reader who stops there, or a stop string, would take.

An answer is complete once its line or its sentence has ended, or a further mark begins. Lines and sentences
are gone through from the first cue on, and the first up to whose end a number is stated decides, whatever
follows: a text that goes on keeps its first answer.
"""

import re
from collections.abc import Iterator

from kvguard.tasks.problems import counts, problems, uncounted
from kvguard.tasks.statements import Statement, first_open, statements

_END = re.compile(r"""\n|[。！？।]|[.!?][*_"”')\]}$\\]{0,6}\s|(?P<mark>####+)""")
_CLOSING = re.compile(r"(?:[*_)\]}$%\"”'\\.!>|]|\s(?=\s{0,3}\}))*")


def ends(text: str) -> Iterator[int]:
    """Yield where lines and sentences of ``text`` have ended, the same whatever a longer text holds."""
    for found in _END.finditer(text):
        yield found.start() if found["mark"] else found.end()


def first_complete(text: str) -> tuple[Statement, int] | None:
    """Return the first complete answer to the first problem of a text that may go on, and where it is one.

    Parameters
    ----------
    text
        As :func:`kvguard.tasks.notation.plain` gives it.
    """
    heading, begin, counted = 1, 0, 0
    for end in ends(text):
        for one in statements(text, begin, end, ended=False):
            follows = counts(text, one, heading, end) if one.start >= counted else False
            if follows:
                heading, counted = heading + 1, one.end
            elif follows is None and one.value is not None:
                found = earliest(text[:end], ended=False)
                return None if found is None else (found, end)
        begin = first_open(text, begin, end)
    return None


def earliest(text: str, ended: bool = True) -> Statement | None:
    """Return the first answer to the first problem of a text, a mark before words.

    An answer that is no number counts where the text has ended, and has none that is one.
    """
    every = list(uncounted(text, statements(text, ended=ended), ended))
    _, end = next(problems(text, every))
    own = [one for one in every if one.states and one.start < end]
    numbers = [one for one in own if one.value is not None]
    found = numbers or (own if ended else [])
    return next((one for one in found if one.kind != "said"), found[0] if found else None)


def closed(text: str, at: int) -> int:
    """Return where what closes an answer that ends at ``at`` ends: brackets, emphasis, a full stop."""
    found = _CLOSING.match(text, at)
    return at if found is None else found.end()
