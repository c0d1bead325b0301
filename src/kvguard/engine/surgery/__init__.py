"""Caches that are cut, moved and scored, exactly.

A text is read once, behind a prefix that is then cut away (:func:`read`); what it left is asked later, any
number of times (:func:`answer_nll`, :func:`generate`). Batched and ragged; who sees whom is decided by
positions alone.
"""

from kvguard.engine.surgery.asking import Asked, answer_nll, generate, score
from kvguard.engine.surgery.document_cache import DocumentCache, reposition, select, shift
from kvguard.engine.surgery.feeding import append
from kvguard.engine.surgery.reading import Reading, read

__all__ = [
    "Asked",
    "DocumentCache",
    "Reading",
    "answer_nll",
    "append",
    "generate",
    "read",
    "reposition",
    "score",
    "select",
    "shift",
]
