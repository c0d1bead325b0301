r"""The final answers that a text states, and whether one is right.

An answer stands after ``####``, in ``\boxed{}``, or in words ("the answer is 42", "Final answer: 42"). Marks
go before words, and a text that has neither is taken at its last number. An equation is worth its result. What
is no single number is an answer without a value: a range, a list, a time, an expression without its result, a
word like twelve. A line of ``####`` that is a heading states nothing.

Each problem of a text is read by itself, since a model that does not stop invents further ones.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from kvguard.tasks.notation import RUNNING, canonical, canonical_number, plain, value_of
from kvguard.tasks.statements import Statement, statements

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
_ENUMERATED = re.compile(r"(?P<number>[0-9]{1,2})[.)][*_]{0,2}[ ]+[*_]{0,2}[A-Za-z]")
_PART = re.compile(r"[0-9][:/.,–-]?\Z")  # before a number: 3:30, 3-5, 5/6/2024, 1.2.3


class Answer(NamedTuple):
    """One answer of a text.

    Attributes
    ----------
    value
        In canonical form, see :func:`~kvguard.tasks.notation.canonical_number`; None if it is no number.
    start, end
        Its place in the text.
    problem
        Which problem of the text it answers: 0 is the one that was asked.
    """

    value: str | None
    start: int
    end: int
    problem: int


def final_answers(text: str) -> list[Answer]:
    """Return the answers that ``text`` states, in order, problem by problem."""
    simple = plain(text)
    found = list(statements(simple))
    answers, at = [], 0
    for problem, (start, end) in enumerate(_problems(simple, found)):
        own = []
        while at < len(found) and found[at].start < end:
            own.append(found[at])
            at += 1
        answers += [
            Answer(None if one.value is None else canonical(one.value), one.start, one.end, problem)
            for one in _of_problem(simple, start, end, own)
        ]
    return answers


def parse_answer(text: str) -> str | None:
    """Return the last final answer to the first problem of ``text``, in canonical form, or None."""
    values = [answer.value for answer in final_answers(text) if answer.problem == 0]
    return values[-1] if values else None


def is_correct(predicted: str | None, answer: str) -> bool | None:
    """Judge a parsed answer: None (not scored) if the reference ``answer`` is no number.

    A missing prediction is wrong, not unscored: the model was asked and did not answer.
    """
    reference = canonical_number(answer)
    if reference is None:
        return None
    return predicted is not None and canonical_number(predicted) == reference


def _problems(text: str, found: list[Statement]) -> Iterator[tuple[int, int]]:
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
            if found[at].states:
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


def _of_problem(text: str, start: int, end: int, own: list[Statement]) -> list[Statement]:
    """Return the answers to one problem: those marked, else those said, else its last number."""
    marks = list(_without_headings(text, end, own))
    marked = [one for one in marks if one.states]
    said = [one for one in own if one.kind == "said"]
    if marked or said:
        return marked or said
    return [] if marks else list(_last_number(text, start, end))


def _without_headings(text: str, end: int, own: list[Statement]) -> Iterator[Statement]:
    """Yield the marks that are no headings: words, or 1., 2., 3., on a line that others follow."""
    number = 1
    for one in own:
        if one.kind == "said":
            continue
        line = text.find("\n", one.end, end)
        if line >= 0 and _SEEN.search(text, line, end):
            counted = _ENUMERATED.match(text, one.start, end) if one.kind == "mark" else None
            if counted is not None and int(counted["number"]) == number:
                number += 1
                continue
            if not one.states and _WORD.search(text, one.end, line):
                continue
        yield one


def _last_number(text: str, start: int, end: int) -> Iterator[Statement]:
    last = None
    for last in RUNNING.finditer(text, start, end):  # noqa: B007
        pass
    if last is not None:
        part = _PART.search(text, max(start, last.start() - 2), last.start())
        yield Statement("said", last.start(), last.end(), None if part else value_of(last))
