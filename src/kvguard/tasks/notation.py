r"""How texts write numbers, and what they are worth.

``1,250`` ``1 250`` ``9\,500``
    Groups of three, by spaces of any width, ``'``, ``_``, or what LaTeX writes for them; ``1,00,000`` too.
``1.250,50`` ``3,5``
    Points that group and a comma that divides. One point alone divides: ``1.250`` is 1.25.
``1/2`` ``2 1/2`` ``½`` ``\frac{1}{2}``
    Fractions and mixed numbers.
``1.5e3`` ``2 * 10^6`` ``$5 million`` ``5k``
    Powers of ten and words of scale.
``50%``
    50: the percent sign is a unit like any other.
"""

import re
from fractions import Fraction
from unicodedata import numeric

_MOST_DIGITS = 1000  # of a number that is read: one with more is a text that runs on
_LARGEST_POWER = 100  # of ten

# One character for one, so that places in a text stay.
_PLAIN: dict[int, str | int] = {
    **dict.fromkeys([*range(0x2002, 0x200B), 0x202F, 0x205F, 0x3000, ord("~")], "\u00a0"),
    **str.maketrans("−﹣－＋⁄∕÷×·∙⋅’ʼ，．＝％＄：", "---+///****'',.=%$:"),
    **{0xFF10 + digit: str(digit) for digit in range(10)},
}
Number = int | Fraction

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "k": 3,
    "million": 6,
    "m": 6,
    "billion": 9,
    "b": 9,
    "bn": 9,
    "trillion": 12,
}

_CURRENCY = (
    r"(?:\\?[$€£¥₹₩₽¢]|(?<![A-Za-z])(?:USD|EUR|GBP|INR|CAD|AUD|US|Rs\.?)"
    r"(?=[\s$0-9\u00a0])|\\(?:pounds|euro)\b)"
)
_SIGN = r"(?:[-+–]|(?<![A-Za-z])(?:[Mm]inus|[Nn]egative)(?=\s))"
_SPACE = r"[ \t\u00a0]"
_LATEX_GROUP = r",\\!|\{,\}|\\[,;:! ]"


def _pattern(
    grouping: str, decimal_comma: bool, sign: str = rf"(?P<sign>{_SIGN}{_SPACE}*)?+"
) -> re.Pattern[str]:
    """Build the pattern of a number; no part of it can match a stretch of text in two ways."""
    whole = (
        rf"[1-9][0-9]{{0,2}}(?:(?P<by>,|{_LATEX_GROUP}|{grouping})[0-9]{{3}}(?:(?P=by)[0-9]{{3}})*+)(?![0-9])"
        r"|[1-9][0-9]?(?:,[0-9]{2}(?=,))++,[0-9]{3}(?![0-9])|[0-9]++"
    )
    european = (
        r"(?P<european>[1-9][0-9]{0,2}(?:\.[0-9]{3})++,[0-9]++(?![.,]?[0-9])"
        r"|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}+(?![.,]?[0-9])"
        rf"|[1-9][0-9]{{0,2}}(?:(?:{grouping})[0-9]{{3}})++,[0-9]{{1,2}}+(?![.,]?[0-9])"
        r"|[0-9]++,[0-9]{1,2}+(?![.,]?[0-9])|0,[0-9]++(?![.,]?[0-9]))"
    )
    digits = (
        rf"(?:{european + '|' if decimal_comma else ''}(?P<english>(?:{whole})(?:\.[0-9]++)?+|\.[0-9]++))"
    )
    frac = (
        r"\\[dtc]?frac\s*(?:\{\s*(?P<inner>-?)\s*(?P<over>[0-9]++)\s*\}\s*\{\s*(?P<under>[0-9]++)\s*\}"
        r"|(?P<over1>[0-9])\s*(?P<under1>[0-9]))"
    )
    vulgar = rf"(?P<vulgar>[{_VULGAR}])"
    part = (
        rf"{_SPACE}*(?:{frac}|{vulgar})"
        rf"|{_SPACE}+(?P<part>[0-9]++)/(?P<of>[0-9]++)(?!/?[0-9])"
        rf"|{_SPACE}*/{_SPACE}*(?P<divisor>[0-9]++)(?![.,/][0-9])"
    )
    power = (
        r"(?:[eE](?P<e>[-+]?[0-9]++)(?![0-9A-Za-z])"
        rf"|{_SPACE}*(?:[*x]|\\times|\\cdot){_SPACE}*10(?:(?:\^|\*\*)\{{?\s*(?P<power>-?[0-9]++)\s*\}}?|(?P<raised>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)))"
    )
    scale = (
        rf"(?:{_SPACE}+(?P<scale>hundred|thousand|million|billion|trillion)\b"
        r"|(?P<k>k)(?![A-Za-z0-9/])|(?P<short>[KMB]|bn)(?![A-Za-z0-9/]))"
    )
    ten = r"10(?:(?:\^|\*\*)\{?\s*(?P<tenth>-?[0-9]++)\s*\}?|(?P<tenth_raised>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))"
    alone = frac.replace("?P<", "?P<alone_") + "|" + vulgar.replace("?P<", "?P<alone_")
    return re.compile(
        rf"{sign}(?:(?P<currency>(?:{_CURRENCY}{_SPACE}*){{1,2}}+)(?P<second>[-+]{_SPACE}*)?+)?+"
        rf"(?:{alone}|{ten}|{digits}(?:{part}|{power})?(?:{scale})?)"
    )


STATED = _pattern(r"[ \u00a0'_]", decimal_comma=True)
BOXED = _pattern(r"[ \u00a0'_]", decimal_comma=False)  # (3,5) and 3,5 are pairs in mathematics
# In a sentence a space may stand between two numbers, a sign may be an operator or a hyphen, and a digit may
# be part of a name (m2, m^2, x_1).
RUNNING = _pattern(
    r"[\u00a0'_]",
    True,
    r"(?:(?:(?<![\w)\s])|(?<=\s))(?P<sign>[-–](?=[$€£¥0-9.]))|(?<![A-Za-z0-9_^])(?<!\^\{))",
)


def plain(text: str) -> str:
    """Return ``text`` with the simplest sign for each of one kind, place by place."""
    return text if text.isascii() and "~" not in text else text.translate(_PLAIN)


def value_of(match: re.Match[str]) -> Number | None:
    """Return what a number is worth; None if it is not finite or beyond what is read."""
    if match.end() - match.start() > _MOST_DIGITS:
        return None
    if match[0].removeprefix("-").isdecimal():  # nearly all
        return int(match[0])
    found = match.groupdict()
    try:
        value = _size(found)
    except ZeroDivisionError:
        return None
    if value is None:
        return None
    signs = f"{found['sign'] or ''}{found['second'] or ''}{found['alone_inner'] or ''}"
    negative = sum(signs.lower().count(sign) for sign in ("-", "–", "minus", "negative"))
    return -value if negative % 2 else value


def _size(found: dict[str, str | None]) -> Fraction | None:
    if vulgar := found["alone_vulgar"]:
        return _vulgar(vulgar)
    if over := found["alone_over"] or found["alone_over1"]:
        return Fraction(int(over), int(found["alone_under"] or found["alone_under1"] or 0))
    power = found["tenth"] or found["tenth_raised"]
    value = Fraction(1) if power else _decimal(found)
    power = power or found["e"] or found["power"] or found["raised"] or "0"
    exponent = int(power.translate(_SUPERSCRIPTS))
    if abs(exponent) > _LARGEST_POWER:
        return None
    if word := found["scale"] or found["k"] or (found["currency"] and found["short"]):
        exponent += _SCALES[word.lower()]
    return _with_part(value, found) * Fraction(10) ** exponent


def _with_part(value: Fraction, found: dict[str, str | None]) -> Fraction:
    if vulgar := found["vulgar"]:
        return value + _vulgar(vulgar)
    if over := found["over"] or found["over1"] or found["part"]:
        return value + Fraction(int(over), int(found["under"] or found["under1"] or found["of"] or 0))
    return value / int(found["divisor"]) if found["divisor"] else value


def _vulgar(sign: str) -> Fraction:
    return Fraction(numeric(sign)).limit_denominator(10)


def _decimal(found: dict[str, str | None]) -> Fraction:
    if text := found.get("european"):
        return Fraction(re.sub(r"[^0-9,]", "", text).replace(",", "."))
    return Fraction(re.sub(r"[^0-9.]", "", found["english"] or ""))


def canonical(value: Number) -> str:
    """Return a value as a plain decimal number, or as a fraction where its decimals do not end."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        times = 0
        while rest % prime == 0:
            rest, times = rest // prime, times + 1
        places = max(places, times)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    point = len(digits) - places
    return f"{'-' if value < 0 else ''}{digits[:point]}{'.' if places else ''}{digits[point:]}"


def canonical_number(text: str) -> str | None:
    """Return ``text`` in its canonical form, or None if it is not one number.

    Grouping, a currency, a percent sign, a leading plus and zeros that carry nothing go: ``$1,200.50`` is
    ``1200.5``. A fraction is a decimal number where it ends: ``1/2`` is ``0.5``, ``1/3`` is ``1/3``.
    """
    stripped = plain(text).strip()
    match = STATED.match(stripped)
    if match is None or not re.fullmatch(r"\s*\\?%?\.?", stripped[match.end() :]):
        return None
    value = value_of(match)
    return None if value is None else canonical(value)
