"""Metrics that tasks share: each takes the best over the references."""

import re
from collections.abc import Sequence

from kvguard.tasks.answers import is_correct

# Scripts that put no spaces between words, or hang endings on them: Thai to Khmer, kana, Han, Hangul.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def numeric_match(predicted: str | None, references: Sequence[str]) -> float | None:
    """Return 1 if the number given is one of the references, else 0; None if no reference is a number."""
    verdicts = [is_correct(predicted, reference) for reference in references]
    scored = [float(verdict) for verdict in verdicts if verdict is not None]
    return max(scored, default=None)


def exact_match(predicted: str, references: Sequence[str]) -> float | None:
    """Return 1 if the answer is a reference after SQuAD's normalisation, else 0; None without references."""
    from transformers.data.metrics.squad_metrics import compute_exact

    return max((float(compute_exact(reference, predicted)) for reference in references), default=None)


def token_f1(predicted: str, references: Sequence[str]) -> float | None:
    """Return the F1 of the answer's words after SQuAD's normalisation; None without references."""
    from transformers.data.metrics.squad_metrics import compute_f1

    return max((float(compute_f1(reference, predicted)) for reference in references), default=None)


def stands_in(reference: str, text: str) -> bool:
    """Tell whether an answer stands in a text, as whole words, in whatever case and spacing.

    A single letter, as of a choice, must have its case: "a" is no answer A.
    """
    words = r"\s+".join(map(re.escape, reference.split()))
    if not _UNSPACED.search(reference):
        words = rf"(?<![^\W_]){words}(?![^\W_])"
    return re.search(words, text, 0 if len(reference.strip()) == 1 else re.IGNORECASE) is not None
