"""Where each problem of a text begins, and which of its marks are headings.

A model that does not stop invents further problems: what they state answers nothing that was asked.
"""

import re
from collections.abc import Iterable, Iterator

from kvguard.tasks.statements import Statement

# A further problem begins, after an answer, with such a line or, after a mark, with a question that asks for
# a number. An empty line and "Q:" end the text of a model without a chat template, and so they do here.
_MAYBE = re.compile(r"\n|How|how|What|what|Which|which")  # literals, since they are found fast
_FURTHER = re.compile(
    r"""\n[ \t]{0,8}[#*_>]{0,8}[ ]?[*_]{0,3}
        (?:(?P<q>(?<=\n\n)Q:)
        | (?:(?:Next|New|Another|Follow-up)[ ])?(?:Q|[Qq]uestion|[Pp]roblem|Exercise|Example|Task)
            [ ]?\#?[0-9]{0,3}[*_]{0,3}(?:[.:)]|$)
        | Here(?:'s|[ ]is)[ ](?:another|a[ ]new|the[ ]next)\b
        | (?:User|Human|user|human)[ ]?(?::|$)
        | <\|?(?:im_start|start_of_turn|start_header_id|user)\b | \[INST\])
    | (?P<asked>(?<![A-Za-z])(?:[Hh]ow[ ](?:many|much|long|far|old|fast|tall|big|often|heavy|deep|high|wide)
        |[Ww]hat[ ](?:is|was|are|were|will|would|percent|fraction)|[Ww]hich)\b[^?\n]{0,300}\?)""",
    re.VERBOSE | re.MULTILINE,
)
_DIGIT, _SEEN, _WORD = re.compile("[0-9]"), re.compile(r"\S"), re.compile(r"\w")
_ALONE = re.compile(r"\n[ \t*_]*\Z")  # before what begins a line
_ENUMERATED = re.compile(r"(?P<number>[0-9]{1,2})[.)][*_]{0,2}[ ]+[*_]{0,2}(?P<word>[A-Za-z]|\Z)")
_NUMBER = re.compile(r"\b(?:no|nr|num|number)\.?\s?\Z", re.IGNORECASE)  # before that of a heading


def problems(text: str, found: list[Statement]) -> Iterator[tuple[int, int]]:
    """Yield where each problem of a text begins and ends."""
    start = at = 0
    latest: Statement | None = None
    marked = False
    digit = _DIGIT.search(text)
    for maybe in _MAYBE.finditer(text):
        further = _FURTHER.match(text, maybe.start())
        if further is None:
            continue
        while at < len(found) and found[at].start < further.start():
            if found[at].states or not is_heading(text, found[at], len(text)):
                latest, marked = found[at], marked or found[at].kind != "said"
            at += 1
        if further["asked"]:
            begins = marked
        elif further["q"] and digit is not None and digit.start() < further.start():
            begins = True
        else:
            begins = latest is not None
        if begins:
            end = latest.end if further["asked"] and latest else further.start()
            yield start, end
            start, latest, marked = end, None, False
            if digit is not None and digit.start() < start:
                digit = _DIGIT.search(text, start)
    yield start, len(text)


def _followed(text: str, one: Statement, end: int) -> bool:
    """Return whether lines with anything on them follow that of a statement."""
    line = text.find("\n", one.end, end)
    return line >= 0 and _SEEN.search(text, line, end) is not None


def is_heading(text: str, one: Statement, end: int) -> bool:
    """Return whether words follow a mark on its line, and lines with anything on them below."""
    line = text.find("\n", one.end, end)
    return _followed(text, one, end) and _WORD.search(text, one.end, line) is not None


def uncounted(text: str, found: Iterable[Statement], ended: bool = True) -> Iterator[Statement]:
    """Leave out what counts headings or steps: 1., 2., 3. and words after a mark or on a line of its own.

    Lines stand below them.
    Where the text may go on (``ended`` is False), such lines are taken as on their way.
    """
    number = 1
    for one in found:
        if counts(text, one, number, len(text)) is None or (ended and not _followed(text, one, len(text))):
            yield one
        else:
            number += 1


def counts(text: str, one: Statement, number: int, end: int) -> bool | None:
    """Return whether a statement counts heading or step ``number``: None if not, False if ``end`` cuts it."""
    if one.kind == "mark" and one.value == number and _NUMBER.search(text, max(0, one.start - 8), one.start):
        return True
    alone = one.kind == "mark" or _ALONE.search(text, max(0, one.start - 8), one.start)
    counted = _ENUMERATED.match(text, one.start, end) if alone and one.kind != "box" else None
    return None if counted is None or int(counted["number"]) != number else bool(counted["word"])
