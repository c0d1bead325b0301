"""Read the final number out of a text and judge it."""

import re
from decimal import Decimal, InvalidOperation

_NUMBER = r"(?:\$\s?)?[-+]?\s?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
# What may stand before the number: Markdown's and LaTeX's brackets and emphasis, a variable and its "=".
_DRESS = r"(?:[\s*_(\[{]|\\(?:text|mathrm|mathbf)\b|\\[(\[,;! ]|[A-Za-z]\s*=)*"
_MARKED = re.compile(rf"(?:####|\\boxed\s*\{{){_DRESS}(?P<number>{_NUMBER})")
_SAID = re.compile(rf"\banswer(?:\s+is|:)?\s*:?\s*({_NUMBER})", re.IGNORECASE)
_MARK = re.compile(r"####|\\boxed")
# A sign counts only where it cannot be an operator or a hyphen: not right after a digit or a letter.
_ANY = re.compile(r"(?:(?<![\w)\s])|(?<=\s)|^)-\$?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")


def canonical_number(text: str) -> str | None:
    """Return ``text`` as a plain decimal number, or None if it is none.

    Commas, a dollar sign, a leading plus and zeros that carry nothing go: ``$1,200.50`` is ``1200.5``.
    """
    cleaned = re.sub(r"[\s,$+]", "", text)
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    plain = format(value, "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in ("-0", "") else plain


def parse_answer(text: str) -> str | None:
    r"""Return the final answer stated in ``text`` in canonical form, or None.

    The last ``#### N`` or ``\boxed{N}`` decides. Without either mark the last "answer is N" does, and
    without that the last number. A text that has a mark but no number after any mark has no answer:
    it began to state one and failed.
    """
    text = text.replace("{,}", ",").replace("\\$", "$").replace("−", "-")  # as LaTeX writes them
    marked = [match.group("number") for match in _MARKED.finditer(text)]
    if marked:
        return canonical_number(marked[-1])
    if _MARK.search(text):
        return None
    for pattern in (_SAID, _ANY):
        found = pattern.findall(text)
        if found:
            return canonical_number(found[-1])
    return None


def is_correct(predicted: str | None, answer: str) -> bool | None:
    """Judge a parsed answer: None (not scored) if the reference ``answer`` is no number.

    A missing prediction is wrong, not unscored: the model was asked and did not answer.
    """
    reference = canonical_number(answer)
    if reference is None:
        return None
    return predicted is not None and canonical_number(predicted) == reference
