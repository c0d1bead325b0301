"""Instruction amnesia, a labelled heuristic: does a solution work on the question's numbers and names?

The rule. The items of a solution are its distinct numbers and its distinct names (capitalised words, except
days, months, and common words that open a sentence). An item is

- the question's own, if it stands in the question: names without regard to case or a final s; numbers also
  as words (five, twice, half, dozen), and beside a percentage p also p/100, 100 - p and 1 - p/100;
- of everyday use: 0, 1, 2, 7, 12, 24, 60, 100;
- derived, if it is a number that somewhere in the solution follows an ``=`` with a number before that
  ``=``, on the same line, which is itself own, of everyday use or derived; or that goes on with an even
  step from the two numbers before it, the first of which is so (the 9 of 3, 6, 9);
- foreign otherwise.

A solution is amnesic when more than the threshold of its items is foreign. One without items, or one that
calculates with letters (``5x + 3 = 18``), which these rules cannot follow, is not judged.

It is a heuristic: a solution may forget its question and reuse its numbers. It labels traces and never
counts as a catastrophe.
"""

import re
from decimal import Decimal

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_NUMBER_OR_EQUALS = re.compile(rf"=|{_NUMBER.pattern}")
_NAME = re.compile(r"(?P<opening>(?:^|[.!?:;>\"\n(*-])\s*)?\b(?P<name>[A-Z][a-z]+)\b")
_WORD = re.compile(r"[a-z]+")
_UNKNOWN = re.compile(r"(?<![A-Za-z'’])[A-Za-z]\s*[=+*]|[=+*]\s*[A-Za-z](?![A-Za-z'’])")

_EVERYDAY = frozenset(map(Decimal, (0, 1, 2, 7, 12, 24, 60, 100)))


def _words(text: str) -> list[str]:
    return text.split()


_UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBER_WORDS = {
    **{word: Decimal(value) for value, word in enumerate(_UNITS)},
    **{word: Decimal(10 * value) for value, word in enumerate(_TENS, start=2)},
    **dict.fromkeys(_words("twice double doubled doubles half halves pair couple both second"), Decimal(2)),
    **dict.fromkeys(_words("thrice triple tripled third thirds"), Decimal(3)),
    **dict.fromkeys(_words("quarter quarters fourth fourths quadruple"), Decimal(4)),
    **dict.fromkeys(_words("fifth fifths"), Decimal(5)),
    **dict.fromkeys(_words("dozen dozens"), Decimal(12)),
    **dict.fromkeys(_words("hundred percent"), Decimal(100)),
    "thousand": Decimal(1000),
}
_CALENDAR = frozenset(
    _words(
        "mon tue wed thu thur fri sat sun monday tuesday wednesday thursday friday saturday sunday jan feb "
        "mar apr jun jul aug sep sept oct nov dec january february march april may june july august "
        "september october november december"
    )
)
# Words that open sentences of solutions without being names.
_OPENERS = frozenset(
    _words(
        "a add adding after all also altogether an and answer as at because before being between both but "
        "by call combined combining convert converting cost counting currently day divide dividing during "
        "each every finally find first five for four from given half he hence her his how however i if in "
        "including initially it its knowing last let minus multiply multiplying my next no not now number "
        "of on one only originally our out over price q question second selling she similarly simplifying "
        "since six so solve solving start starting step substituting subtract subtracting ten that the "
        "their then there therefore these they third this those three thus to today together total twice "
        "two using we week what when which while with without working yes you your"
    )
)


def is_amnesic(question: str, solution: str, threshold: float) -> bool | None:
    """Return whether more than ``threshold`` of a solution's items are foreign; None if it is not judged."""
    share = foreign_share(question, solution)
    return None if share is None else share > threshold


def foreign_share(question: str, solution: str) -> float | None:
    """Return the share of the solution's items that are foreign; None if it is not judged."""
    if _UNKNOWN.search(solution):
        return None
    words = _WORD.findall(question.lower())
    own_names = {word.rstrip("s") for word in words}
    own_numbers = {_value(text) for text in _NUMBER.findall(question)} | _EVERYDAY
    own_numbers |= {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}
    if "%" in question or "percent" in words:
        own_numbers |= {n for p in own_numbers for n in (p / 100, 100 - p, 1 - p / 100)}
    names = _names(solution)
    numbers, foreign_numbers = _numbers(solution, own_numbers)
    n_items = len(names) + len(numbers)
    return (len(names - own_names) + len(foreign_numbers)) / n_items if n_items else None


def _names(text: str) -> set[str]:
    found = set()
    for match in _NAME.finditer(text):
        name = match.group("name").lower()
        common = name in _OPENERS and match.group("opening") is not None
        if not common and name.rstrip("s") not in _CALENDAR:
            found.add(name.rstrip("s"))
    return found


def _value(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _numbers(solution: str, own: set[Decimal]) -> tuple[set[Decimal], set[Decimal]]:
    """Return the solution's distinct numbers, and the foreign ones among them."""
    lines = [_NUMBER_OR_EQUALS.findall(line) for line in solution.splitlines()]
    values = [[None if found == "=" else _value(found) for found in line] for line in lines]
    numbers = {value for line in values for value in line if value is not None}
    known, before = set(own), -1
    while len(known) != before and not numbers <= known:
        before = len(known)
        for line in values:
            _derive(line, known)
    return numbers, numbers - known


def _derive(line: list[Decimal | None], known: set[Decimal]) -> None:
    """Add to ``known`` what one line derives; None stands for ``=``."""
    grounded = False
    for index, value in enumerate(line):
        if value is None:
            continue
        is_result = grounded and index > 0 and line[index - 1] is None
        if is_result or (index > 1 and _goes_on(line[index - 2], line[index - 1], value, known)):
            known.add(value)
        grounded = grounded or value in known


def _goes_on(first: Decimal | None, second: Decimal | None, third: Decimal, known: set[Decimal]) -> bool:
    """Return whether three numbers in a row make even steps from a known one."""
    if first is None or second is None or first not in known:
        return False
    return first != second and third - second == second - first
