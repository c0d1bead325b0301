r"""Where a text states an answer, and what that is worth: after ``####``, in ``\boxed{}``, or in words."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from kvguard.tasks.notation import BOXED, STATED, Number, value_of

Kind = Literal["mark", "box", "said"]

_LONGEST = 300  # characters of a statement; it bounds the work at each of a text's cues
_LONGEST_CUE = 150

_MAYBE = re.compile(
    r"####|\\boxed|\\fbox|answer|Answer|ANSWER|Ans|ans"
)  # literals, since they are found fast
_CUE = re.compile(
    r"""(?P<mark>\#{4,}+)
    | (?P<box>\\(?:boxed|fbox)[ ]{0,4}(?:\{|(?=[0-9])))
    | (?P<said>(?<![A-Za-z])(?:[Aa]nswer|ANSWER|[Aa]ns\.?)(?![A-Za-z])
        (?:[ ](?:to|for)[ ](?:the|this|your|that)(?:[ ]\w{1,20}){1,4}?(?=[ ]is\b|:))?+
        [*_"”)\s]{0,8}+
        (?:(?:is|was|(?:will|would|should|must)[ ]be|equals|becomes|comes[ ](?:out[ ])?to)\b
          | [:=≈→] | [-=]> | [-–—](?=\s)))
    | (?P<heading>(?:^|(?<=^[#*])|(?<=[#*][ ])|(?<=\*\*)|(?<=[Ff]inal[ ]))[Aa]nswer[*_:]{0,4}[ ]{0,4}$)""",
    re.VERBOSE | re.MULTILINE,
)
# Before a number: emphasis, brackets, tags, what LaTeX wraps it in, a variable and its "=", its "No.", words
# that add nothing. But not GSM8K's notes of a calculation, <<2*3=6>>.
_DRESS = re.compile(
    r"""(?:[\s\u00a0*_`"“”':≈>→(\[{]
    | (?<=\n)[-–•][ ] | \#(?=[0-9$]) | (?<!\n)\#[ ](?=[0-9$]) | [-=]{1,3}>
    | </?(?:h[1-6]|[A-Za-z|][^<>\n0-9]{0,40})> | <(?=[^<>\n]{0,40}[0-9][^<>\n]{0,40}>)
    | <<(?=[^<>\n=]{0,40}[0-9][^<>\n=]{0,40}>>)
    | \|{1,2}+[ ]?(?=[$€£¥]?[0-9][^|\n]{0,40}\|{1,2}+[ ]{0,4}+(?![0-9$€£¥]))
    | (?<![A-Za-z])(?:no|nr|num|number|n[°º])\.?[ \u00a0]?
      (?=[0-9][0-9,]{0,20}+(?:\.[0-9]{1,20}+)?[*_)\]]{0,6}+(?:[ ]{0,4}(?:\n|\Z)|[.!](?:\s|\Z)))
    | [^\w\s\x00-\x7f–€£¥₹₩₽¢√±≤≥∞]
    | \\[()\[\],;:!{ ]
    | \\(?:text|mathrm|mathbf|textbf|mathit|boxed|fbox|displaystyle|left|langle|approx|quad|qquad)(?![A-Za-z])
    | \$(?=[\s\\$*(]|[A-Za-z]\s?=)
    | (?<![A-Za-z])[A-Z]\)(?=[\s*}])
    | (?<![A-Za-z])[A-Za-z](?:_\{?\w{1,8}\}?)?\s{0,4}(?:=|≈|\\approx(?![A-Za-z]))
    | (?<![A-Za-z])(?:therefore|thus|then|so|hence|approximately|approx\.?|about|around|roughly|nearly|almost
        |exactly        |precisely|just|simply|only|indeed|still|now|clearly|equal[ ]to|a[ ]total[ ]of
        |at[ ]least|at[ ]most|the|an?
        )(?![A-Za-z]),?)*+""",
    re.VERBOSE | re.IGNORECASE,
)
_STOP = re.compile(r"(?:\.(?!\s?of\b)|[!?;])(?=[\s*_\"”')\]}$]|\Z)|\n|####")
_LINE = re.compile("\n|####")
_LABELLED = re.compile(
    r"(?:[:=]|\b(?:is|are|was|be|equals?|answer|between|from))[\s*_(\[$\\{<≈]*$", re.IGNORECASE
)
_NUMBERED = re.compile(
    r"\b(?:step|part|question|problem|case|section|method|option|phase|stage|example|exercise|approach|solution"
    r"|day|q|no\.?|number)\s*\#?\s*$",
    re.IGNORECASE,
)
# What follows tells of the answer, and is none: found by adding 3, not 5, how many 3 of them have.
_ABOUT = re.compile(
    r"(?:not|never|found|obtained|calculated|computed|determined|derived|given|reached|how|what|when|where|why)\b",
    re.IGNORECASE,
)
_NO_NUMBER = re.compile(
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven"
    r"|eigh|nine)ty(?:-\w+)?|half|hundred|unknown|undefined|impossible|infinit\w+|indeterminate|unclear|none|not|no(?!\.?\s?(?:[0-9#]|of\b)))\b",
    re.IGNORECASE,
)
_UNIT = r"""(?:\s*(?:\\?%|°|\^\{?\\circ\}?|\\(?:text|mathrm|textbf)\s*\{[^{}\n]{0,40}\}(?:\^\{?[0-9]\}?)?
    |(?!(?:and|or|to|of|x|because|since|as|for|if|when|while|in|on|at|by|with|from|per|than|out|after|before|over|minus
    |plus|times)\b)[A-Za-z][A-Za-z.'²³]*+(?:\^\{?[0-9]\}?)?)){0,3}?"""
_BEGINS = r"(?=[-+$€£¥(.0-9½¼¾]|\\[dt]?frac|\\\$)"  # a number
_NEXT = re.compile(
    rf"""(?:(?:\^|\((?=[0-9]))[({{]{{0,2}}
    | {_UNIT}[*_)\]}}$\s]{{0,4}}?
      (?:(?P<equals>=>?|≈|\\approx|->|→)[\s*_$\\({{\[]{{0,6}}?(?:[A-Za-z]\s?=\s?)?
      | \s*(?:[-+/–]|\*(?!\*)|\\times|\\cdot|\\div|x(?=\s?[0-9$])|(?P<share>of)\b|(?:minus|plus|times)\b)
        [\s({{]{{0,4}}))
    {_BEGINS}""",
    re.VERBOSE,
)
# What makes something else of a number: a time, a ratio, a date, algebra, an inequality, a root.
_ELSE = re.compile(
    r"[ ]?:[ ]?[0-9]|(?:[.,/']|\{,\}|\\[,;:! ])[0-9]|[eE][-+]?[0-9]|\^(?!\{?\\circ)"
    r"|\s?(?:[xyz](?![A-Za-z])|\\pi\b|π|\\sqrt|√|\\frac|<(?!/?[A-Za-z|][^<>\s]{0,40}>)|[>≤≥±]|\\[lg]eq?\b|\\pm\b)"
)
_OPENED = re.compile(r"<(?P<words>[^<>\n]{0,40})\Z")  # before a number: a bracket, or less than it
_SHUT, _SHUT_AT_ONCE = re.compile(r"[^<>\n0-9]{0,40}>"), re.compile(r"[ ]?>{1,3}")
_EMPHASIS = re.compile(r"\*{1,3}")
_SHARE = re.compile("[%/]|percent")  # 30% of 40, but not 5 of 12
_FORMULA = re.compile(r"\\(?!(?:text|math|left|,|;|\s|\$))|[<>≤≥^+/]")
_DIGIT = re.compile(r"[0-9½¼¾]")
_BRACE = re.compile(r"(?<!\\)[{}]")
_SEPARATOR = re.compile(rf"{_UNIT}\s*(?P<by>,?\s*(?:and|or|to|through)\b|[,;&])?\s*<?{_BEGINS}", re.VERBOSE)
_CLOSING = re.compile(rf"{_UNIT}[\s\u00a0*_.)\]}}$\\>]*(?:\Z|(?=,|;|\b(?:and|or)\b))", re.VERBOSE)


class Statement(NamedTuple):
    """One statement of an answer.

    Attributes
    ----------
    start, end
        The place of what is stated; of the mark, where it states nothing.
    value
        None where what is stated is no number, and where nothing is.
    states
        False for a mark without an answer.
    """

    kind: Kind
    start: int
    end: int
    value: Number | None
    states: bool = True


def statements(text: str, start: int = 0, end: int | None = None, ended: bool = True) -> Iterator[Statement]:
    """Yield what ``text``, as :func:`kvguard.tasks.notation.plain` gives it, states as answers, in order.

    Parameters
    ----------
    start, end
        The part that is read; nothing behind ``end`` is looked at.
    ended
        Whether the text ends there. If it may go on, a box that is still open states nothing yet.
    """
    reached, end = 0, len(text) if end is None else end
    for maybe in _MAYBE.finditer(text, start, end):
        cue = _CUE.match(text, maybe.start(), end) if maybe.start() >= reached else None
        if cue is not None:
            reached = cue.end()
            found = _read(text, cue, end, ended)
            if found is not None:
                reached = max(reached, found.end)
                yield found


def first_open(text: str, start: int, end: int) -> int:
    """Return where the first statement of a part begins that what follows ``end`` may change, else ``end``.

    One is settled where a line with anything of it has ended, or a mark follows; a box, where it is closed.
    """
    for maybe in _MAYBE.finditer(text, start, end):
        cue = _CUE.match(text, maybe.start(), end)
        if cue is None:
            settled = end - maybe.start() > _LONGEST_CUE
        elif end - cue.end() > _LONGEST:
            settled = True
        elif text[cue.end() - 1] == "{":
            settled = _closing_brace(text, cue.end(), end) is not None
        else:
            settled = _LINE.search(text, _past(_DRESS, text, cue.end(), end), end) is not None
        if not settled:
            return maybe.start()
    return end


def _read(text: str, cue: re.Match[str], end: int, ended: bool) -> Statement | None:
    kind: Kind = "mark" if cue["mark"] else "box" if cue["box"] else "said"
    limit = min(end, cue.end() + _LONGEST)
    inside = text[cue.end() - 1] == "{"
    if inside:
        closed = _closing_brace(text, cue.end(), limit)
        if closed is None and limit == end and not ended:
            return Statement(kind, cue.start(), cue.end(), None, states=False)
        limit = _line_end(text, cue.end(), limit) if closed is None else closed
    at = _past(_DRESS, text, cue.end(), limit)
    number = _match(text, at, limit, inside)
    stop = limit if inside else _end(text, at if number is None else number.end(), limit)
    if number is None and "\n" not in text[cue.end() : at]:
        number = _later(text, at, stop, inside, kind)
    if number is not None:
        return Statement(kind, *_worth(text, number, stop, inside))
    if _NO_NUMBER.match(text, at, limit) and not _DIGIT.search(text, at, stop):
        return Statement(kind, at, stop, None)
    return None if kind == "said" else Statement(kind, cue.start(), cue.end(), None, states=False)


def _past(pattern: re.Pattern[str], text: str, at: int, stop: int) -> int:
    found = pattern.match(text, at, stop)
    return at if found is None else found.end()


def _end(text: str, at: int, limit: int) -> int:
    """Return where the sentence or line that holds ``at`` ends."""
    found = _STOP.search(text, at, limit)
    return limit if found is None else found.start()


def _closing_brace(text: str, at: int, limit: int) -> int | None:
    """Return where the brace that opened before ``at`` closes."""
    depth = 1
    for brace in _BRACE.finditer(text, at, limit):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def _line_end(text: str, at: int, limit: int) -> int:
    line = text.find("\n", at, limit)
    return limit if line < 0 else line


def _match(text: str, at: int, stop: int, inside: bool) -> re.Match[str] | None:
    """Return the number that begins at ``at``; a comma divides no number in brackets."""
    grammar = BOXED if inside or text[at - 1] in "([{" else STATED
    return grammar.match(text, at, stop)


def _later(text: str, at: int, stop: int, inside: bool, kind: Kind) -> re.Match[str] | None:
    """Return the number that words lead up to: behind a label, as a last result, or alone in its sentence."""
    grammar = BOXED if inside else STATED
    number = grammar.search(text, at, stop) if _DIGIT.search(text, at, stop) else None
    if number is None or (kind == "mark" and _NUMBERED.search(text, at, number.start())):
        return None
    if inside and _FORMULA.search(text, at, number.start()):
        return None
    about = _ABOUT.match(text, at, stop)
    label = _LABELLED.search(text, at, number.start())
    if label and not (about and label[0].startswith("from")):
        return number
    sign = max(text.rfind(sign, at, stop) for sign in "=:")
    if sign > number.start():
        result = _match(text, _past(_DRESS, text, sign + 1, stop), stop, inside)
        if result is not None and _CLOSING.match(text, result.end(), stop):
            return result
    if about:
        return None
    whole = kind != "mark" or text.startswith((".", "!"), stop)  # a heading is no sentence
    return number if whole and not _DIGIT.search(text, number.end(), stop) else None


def _worth(text: str, number: re.Match[str], stop: int, inside: bool) -> tuple[int, int, Number | None]:
    """Return (start, end, value) of what begins with ``number``: itself, or an equation's result."""
    sides, at = [[number]], number.end()
    if text[number.start() - 1] == "*":
        at = _past(_EMPHASIS, text, at, stop)  # it closes, and does not multiply
    while following := _NEXT.match(text, at, stop):
        operand = _match(text, following.end(), stop, inside)
        if operand is None or (
            following["share"] and not _SHARE.search(text, number.start(), following.end())
        ):
            break
        if following["equals"]:
            sides.append([operand])
        else:
            sides[-1].append(operand)
        at = operand.end()
    last = sides[-1][-1]
    results = [side[0] for side in (sides[-1], sides[0]) if len(side) == 1]
    after = text[last.end() : last.end() + 1]
    cut = after.isdigit() or (inside and after == "!")  # by the longest statement that is read; a factorial
    end = _out_of_angles(text, number.start(), last.end(), stop)
    if not results or cut or end is None or _ELSE.match(text, end, stop) or _is_list(text, end, stop, inside):
        return number.start(), last.end(), None
    return results[0].start(), results[0].end(), value_of(results[0])


def _out_of_angles(text: str, start: int, at: int, stop: int) -> int | None:
    """Return where an angle bracket around a number closes, if at once; None where it means less than."""
    opened = _OPENED.search(text, max(0, start - 41), start)
    if opened is None:
        return at
    if not opened["words"].strip() and not _SHUT.match(text, at, stop):
        return None  # less than
    shut = _SHUT_AT_ONCE.match(text, at, stop)
    return at if shut is None else shut.end()


def _is_list(text: str, at: int, stop: int, inside: bool) -> bool:
    """Return whether other numbers follow, and nothing else: several answers, a range, hours and minutes."""
    separator = _SEPARATOR.match(text, at, stop)
    if separator is None or (separator["by"] is None and not separator[0].strip()):
        return False
    other = _match(text, separator.end(), stop, inside)
    return other is not None and _CLOSING.match(text, other.end(), stop) is not None
