"""Which answer of a text is complete first: what a reader who stops there, or a stop string, would take.

An answer is complete once its line or its sentence has ended, or a further mark begins. Lines and sentences
are gone through from the first cue on, and the first up to whose end a number is stated decides, whatever
follows: a text that goes on keeps its first answer.
"""

import re
from collections.abc import Iterator

from kvguard.tasks.problems import counts, problems, uncounted
from kvguard.tasks.statements import Statement, first_open, statements

_END = re.compile(r"""(?P<line>\n)|[.!?][*_"”')\]}$\\]{0,6}\s|(?P<mark>\#{4,}+)""", re.VERBOSE)
# What a line that is no end ends with: a sum, a list.
_GOES_ON = re.compile(r"(?:[-=+/,≈→]|[-=]>|\s(?:\*|x|and|or|plus|minus|times))[ \t\r]*\Z")
_TAIL = 20  # characters at the end of a line that are looked at
_CLOSING = re.compile(r"[*_)\]}$%\"”'\\.!]*")


def ends(text: str, start: int = 0) -> Iterator[int]:
    """Yield behind where lines and sentences of ``text`` end, each known from what stands before it."""
    for found in _END.finditer(text, start):
        if found["mark"]:
            yield found.start()
        elif not found["line"] or not _GOES_ON.search(text, max(0, found.start() - _TAIL), found.start()):
            yield found.end()


def first_complete(text: str) -> Statement | None:
    """Return the number that a text which may go on states first, complete, for its first problem.

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
                return earliest(text[:end], ended=False)
        begin = first_open(text, begin, end)
    return None


def earliest(text: str, ended: bool = True) -> Statement | None:
    """Return the first answer to the first problem of a text; marks go before words, and numbers before both.

    An answer that is no number is one only where the text has ended.
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
