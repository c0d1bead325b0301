"""Which answer of a text is complete first: what a reader who stops there, or a stop string, would take.

An answer is complete once its line or its sentence has ended, or a further mark begins. Lines and sentences
are gone through from the first cue on, and the first up to whose end a number is stated decides, whatever
follows: a text that goes on keeps its first answer.
"""

import re
from collections.abc import Iterator

from kvguard.tasks.problems import counts, problems, uncounted
from kvguard.tasks.statements import REACH, Statement, first_cue, statements

_END = re.compile(r"""(?P<line>\n)|[.!?][*_"”')\]}$\\]{0,6}\s|(?P<mark>\#{4})""", re.VERBOSE)
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
    begin = first_cue(text)
    if begin is None:
        return None
    heading, counted = 1, begin
    for end in ends(text, begin):
        fresh = []
        for one in statements(text, begin, end, ended=False):
            counts_on = counts(text, one, heading, end) if one.start >= counted else False
            if counts_on:
                heading, counted = heading + 1, one.end
            elif counts_on is None and one.value is not None:
                fresh.append(one)
        if fresh:
            return earliest(text[:end], fresh, ended=False)
        begin = max(begin, end - REACH)
    return None


def earliest(text: str, found: list[Statement], ended: bool) -> Statement | None:
    """Return the first of statements that is a number and answers the first problem; a mark goes before words.

    Parameters
    ----------
    text, ended
        What all of ``found`` stand in, and whether it ends there.
    """
    every = list(uncounted(text, statements(text, ended=ended), ended))
    _, end = next(problems(text, every))
    own = [one for one in found if one.value is not None and one.start < end]
    return next((one for one in own if one.kind != "said"), own[0] if own else None)


def closed(text: str, at: int) -> int:
    """Return where what closes an answer that ends at ``at`` ends: brackets, emphasis, a full stop."""
    found = _CLOSING.match(text, at)
    return at if found is None else found.end()
