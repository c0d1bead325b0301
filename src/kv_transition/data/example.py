"""One example in the form that every data set is brought into, and the prompt that it becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One thing that is asked.

    Attributes
    ----------
    example_id
        A digest of what is asked: the same wherever it stands.
    question, context
        What is asked, and the text that it is asked of.
    answers
        Every answer that counts as right.
    meta
        What else is known of it.
    n_tokens
        Of the whole prompt, as the served model's tokenizer counts; 0 before it was counted.
    """

    example_id: str
    question: str
    context: str
    answers: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    n_tokens: int = 0

    @classmethod
    def of(cls, question: str, context: str, answers: tuple[str, ...], meta: Mapping[str, Any]) -> Example:
        """Return an example under the digest of what it asks."""
        asked = json.dumps([question, context, answers], ensure_ascii=False)
        return cls(
            hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()[:16],
            question,
            context,
            answers,
            meta,
        )


def render(template: str, question: str, context: str) -> str:
    """Return the prompt of a question about a context; braces in them stand for themselves."""
    parts = template.split("{context}")
    return context.join(part.replace("{question}", question) for part in parts)
