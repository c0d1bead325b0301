r"""The final answers that a text states, and whether one is right.

An answer stands after ``####``, in ``\boxed{}``, or in words ("the answer is 42", "Final answer: 42"). Marks
go before words, and a text that has neither is taken at its last number. An equation is worth its result.
What is no single number is an answer without a value: a range, a list, a time, an expression without its
result, a word like twelve. A line of ``####`` that is a heading states nothing.

Each problem of a text is read by itself, since a model that does not stop invents further ones.
"""

import re
from collections.abc import Iterable, Iterator
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
    stated
        Whether it is marked or said; a last number is not.
    """

    value: str | None
    start: int
    end: int
    problem: int
    stated: bool


def final_answers(text: str) -> list[Answer]:
    """Return the answers that ``text`` states, in order, problem by problem."""
    simple = plain(text)
    found = list(_uncounted(simple, statements(simple)))
    answers, at = [], 0
    for problem, (start, end) in enumerate(_problems(simple, found)):
        own = []
        while at < len(found) and found[at].start < end:
            own.append(found[at])
            at += 1
        answers += [
            Answer(
                None if one.value is None else canonical(one.value), one.start, one.end, problem, one.states
            )
            for one in _of_problem(simple, start, end, own)
        ]
    return answers


def parse_answer(text: str) -> str | None:
    """Return the last final answer to the first problem of ``text``, in canonical form, or None."""
    values = [answer.value for answer in final_answers(text) if answer.problem == 0]
    return values[-1] if values else None


def stated_number(text: str) -> str | None:
    """Return the answer of a reference: what it states, or itself if it is a number; else None."""
    found = [answer.value for answer in final_answers(text) if answer.stated and answer.problem == 0]
    return found[-1] if found else canonical_number(text)


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
            if found[at].states or not _is_heading(text, found[at], len(text)):
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
    said = [one for one in own if one.kind == "said"]
    marked = [one for one in own if one.kind != "said" and one.states]
    failed = [one for one in own if not one.states and not _is_heading(text, one, end)]
    return marked or said or ([] if failed else list(_last_number(text, start, end)))


def _followed(text: str, one: Statement, end: int) -> bool:
    """Return whether lines with anything on them follow that of a statement."""
    line = text.find("\n", one.end, end)
    return line >= 0 and _SEEN.search(text, line, end) is not None


def _is_heading(text: str, one: Statement, end: int) -> bool:
    line = text.find("\n", one.end, end)
    return _followed(text, one, end) and _WORD.search(text, one.end, line) is not None


def _uncounted(text: str, found: Iterable[Statement]) -> Iterator[Statement]:
    """Leave out marks that count headings: 1., 2., 3. and words, with lines below them."""
    number = 1
    for one in found:
        counted = _ENUMERATED.match(text, one.start) if one.kind == "mark" else None
        if counted is not None and int(counted["number"]) == number and _followed(text, one, len(text)):
            number += 1
        else:
            yield one


def _last_number(text: str, start: int, end: int) -> Iterator[Statement]:
    last = None
    for last in RUNNING.finditer(text, start, end):  # noqa: B007
        pass
    if last is not None:
        part = _PART.search(text, max(start, last.start() - 2), last.start())
        yield Statement("said", last.start(), last.end(), None if part else value_of(last), states=False)
