r"""The final answers that a text states, and whether one is right.

An answer stands after ``####``, in ``\boxed{}``, or in words ("the answer is 42", "Final answer: 42"). Marks
go before words, and a text that has neither is taken at its last number. An equation is worth its result.
What is no single number is an answer without a value: a range, a list, a time, an expression without its
result, a word like twelve. A line of ``####`` that is a heading states nothing.

Each problem of a text is read by itself, since a model that does not stop invents further ones. A text that
states several answers gives its first complete one, see :mod:`kvguard.tasks.complete`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from kvguard.tasks.complete import closed, earliest, ends, first_complete
from kvguard.tasks.notation import RUNNING, canonical, canonical_number, plain, value_of
from kvguard.tasks.problems import is_heading, problems, uncounted
from kvguard.tasks.statements import Statement, statements

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


def final_answers(text: str, ended: bool = True) -> list[Answer]:
    """Return the answers that ``text`` states, in order, problem by problem.

    Where it may go on (``ended`` is False), headings that may be under way and open boxes state nothing.
    """
    simple = plain(text)
    found = list(uncounted(simple, statements(simple, ended=ended), ended))
    answers, at = [], 0
    for problem, (start, end) in enumerate(problems(simple, found)):
        own = []
        while at < len(found) and found[at].start < end:
            own.append(found[at])
            at += 1
        answers += [_answer(one, problem) for one in _of_problem(simple, start, end, own)]
    return answers


def first_answer(text: str, ended: bool = True) -> Answer | None:
    """Return the first complete answer to the first problem of ``text``, None if it states none.

    It is complete, and stays what it is whatever follows, once it has a value and its line or its sentence
    has ended: what a reader who stops there, or a stop string, would take. Where the text is over (``ended``)
    its end is an end too, and an answer without a value is taken if there is none with one.
    """
    simple = plain(text)
    complete = first_complete(simple)
    found = complete[0] if complete else earliest(simple) if ended else None
    return None if found is None else _answer(found, 0)


def answer_end(text: str) -> int | None:
    """Return where the first complete answer of a text that may go on ends, with what closes it."""
    complete = first_complete(plain(text))
    return None if complete is None else closed(text[: complete[1]], complete[0].end)


def last_answer_end(text: str) -> int | None:
    """Return where the last complete answer to the first problem ends: the first, or what corrects it."""
    first = answer_end(text)
    if first is None:
        return None
    whole = text[: max(ends(plain(text)))]
    found = [
        one.end for one in final_answers(whole, ended=False) if one.problem == 0 and one.stated and one.value
    ]
    return max(first, closed(whole, found[-1]) if found else 0)


def parse_answer(text: str) -> str | None:
    """Return the last final answer to the first problem of ``text``, in canonical form, or None."""
    values = [answer.value for answer in final_answers(text) if answer.problem == 0]
    return values[-1] if values else None


def last_answer(text: str) -> str | None:
    """Return the last answer of ``text`` to whatever problem, in canonical form, or None."""
    found = final_answers(text)
    return found[-1].value if found else None


def given_answer(text: str) -> str | None:
    """Return the value of the first complete answer; where none is stated, that of :func:`parse_answer`."""
    found = first_answer(text)
    return parse_answer(text) if found is None else found.value


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


def _answer(one: Statement, problem: int) -> Answer:
    value = None if one.value is None else canonical(one.value)
    return Answer(value, one.start, one.end, problem, one.states)


def _of_problem(text: str, start: int, end: int, own: list[Statement]) -> list[Statement]:
    """Return the answers to one problem: those marked, else those said, else its last number."""
    said = [one for one in own if one.kind == "said"]
    marked = [one for one in own if one.kind != "said" and one.states]
    failed = [one for one in own if not one.states and not is_heading(text, one, end)]
    return marked or said or ([] if failed else list(_last_number(text, start, end)))


def _last_number(text: str, start: int, end: int) -> Iterator[Statement]:
    last = None
    for last in RUNNING.finditer(text, start, end):  # noqa: B007
        pass
    if last is not None:
        part = _PART.search(text, max(start, last.start() - 2), last.start())
        yield Statement("said", last.start(), last.end(), None if part else value_of(last), states=False)
