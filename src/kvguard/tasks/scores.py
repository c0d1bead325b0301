"""Metrics that tasks share: each takes the best over the references."""

from collections.abc import Sequence

from kvguard.tasks.answers import is_correct


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
