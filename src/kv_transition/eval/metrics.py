"""Scores of an answer against references: SQuAD's normalisation, the best over the references."""

from __future__ import annotations

import ast
import collections
import functools
import importlib.util
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kv_transition.db.dao import Answered
from kvguard.errors import KvguardError

_MARK = re.compile(
    r"^[\s>*_#-]*(?:the\s+|final\s+)?answer\b[*_]*\s*(?::|is\b:?)[*_]*[ \t]*(?P<said>.*)", re.I | re.M
)
_INLINE = re.compile(r"\banswer[*_]*\s*:[*_]*[ \t]*(?P<said>.*)", re.I)
_ADORNED = re.compile(r"^[*_`\"']+|[*_`\"']+$")
METRICS = ("em", "f1", "substring_em")


@dataclass(frozen=True)
class Squad:
    """SQuAD's own normalisation, exact match and F1, as transformers has them."""

    normalize: Callable[[str], str]
    exact: Callable[[str, str], int]
    f1: Callable[[str, str], float]


@functools.cache
def squad() -> Squad:
    """Return transformers' functions out of its source: importing its module would import torch.

    Raises
    ------
    KvguardError
        The installed transformers has none of them.
    """
    found = importlib.util.find_spec("transformers")
    folder = Path(next(iter(found.submodule_search_locations or [])) if found else "")
    file = folder / "data" / "metrics" / "squad_metrics.py"
    names = {"normalize_answer", "get_tokens", "compute_exact", "compute_f1"}
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError:
        raise KvguardError(
            f"{file}: SQuAD's metrics are not there: pip install 'transformers>=5.2,<5.3'"
        ) from None
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space: dict[str, Callable[..., float]] = {}
    exec(compile(tree, str(file), "exec"), {"re": re, "string": string, "collections": collections}, space)
    if set(space) != names:
        raise KvguardError(f"{file}: has other functions than SQuAD's: pip install 'transformers>=5.2,<5.3'")
    space["compute_f1"].__globals__.update(space)
    return Squad(space["normalize_answer"], space["compute_exact"], space["compute_f1"])  # type: ignore[arg-type]


def parse(text: str, cued: bool = False) -> str | None:
    """Return the answer that a text gives, None if it gives none in the form that was asked for.

    It stands after the first ``Answer:`` at the beginning of a line, else after the first anywhere; on the
    next line where nothing follows. Where the prompt ended with that cue, it is the text's first line.
    """
    if cued:
        return _plain(text.strip().partition("\n")[0])
    found = _MARK.search(text) or _INLINE.search(text)
    if found is None:
        return None
    return _plain(found["said"]) or _plain(text[found.end() :].strip().partition("\n")[0])


def _plain(said: str) -> str | None:
    return _ADORNED.sub("", said.strip()).strip() or None


def scores_of(parsed: str | None, answered: Answered, references: Sequence[str]) -> dict[str, float]:
    """Return every metric; a text without the form that was asked for is scored whole, an error is 0."""
    said = parsed if parsed is not None else answered.text.strip()
    if answered.error is not None or not said:
        return dict.fromkeys(METRICS, 0.0)
    ruler = squad()
    words = f" {ruler.normalize(said)} "
    return {
        "em": max(float(ruler.exact(reference, said)) for reference in references),
        "f1": max(float(ruler.f1(reference, said)) for reference in references),
        "substring_em": max(float(_stands_in(ruler.normalize(one), words)) for one in references),
    }


def _stands_in(reference: str, words: str) -> bool:
    return bool(reference) and f" {reference} " in words
