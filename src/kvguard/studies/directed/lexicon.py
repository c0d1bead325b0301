"""What a data set's words say of its documents: which are a document's own, and which documents are alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

_SENTENCE = re.compile(r".+?[.!?…。！？](?=[\"'”’)\]]*(?:\s|$))[\"'”’)\]]*", re.DOTALL)
_ABBREVIATED = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|No|vs|etc|e\.g|i\.e|[Jj]r|[Ss]r))\.$")


class Lexicon:
    """Words weighted by TF-IDF over the documents of a data set."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = list(dict.fromkeys(documents))
        self._row = {document: row for row, document in enumerate(self._documents)}

    def keywords(self, document: str, n: int) -> list[str]:
        """Return the ``n`` words that tell a document best from others, or all that it has; best first."""
        row = self._weights[self._row[document]]
        best = np.lexsort((row.indices, -row.data))[:n]
        return [self._words[index] for index in row.indices[best]]

    def likeness(self, document: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the cosine between a document and each: 1 for itself, 0 without a common word. [D]"""
        return np.asarray((self._weights @ self._weights[self._row[document]].T).todense())[:, 0]

    def place(self, document: str) -> int:
        """Return the place of a document in :meth:`likeness`."""
        return self._row[document]

    @cached_property
    def _fitted(self) -> tuple[Any, list[str]]:
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

        vectorizer = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        try:
            weights = vectorizer.fit_transform(self._documents)
        except ValueError:  # nothing but common words: then these count
            vectorizer = TfidfVectorizer(analyzer="char")
            weights = vectorizer.fit_transform(self._documents)
        return weights.tocsr(), list(vectorizer.get_feature_names_out())

    @property
    def _weights(self) -> Any:
        return self._fitted[0]

    @property
    def _words(self) -> list[str]:
        return self._fitted[1]


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence; all of it where no sentence ends."""
    for found in _SENTENCE.finditer(text):
        if not _ABBREVIATED.search(text[: found.end()]):
            return text[: found.end()].strip()
    return text.strip()
