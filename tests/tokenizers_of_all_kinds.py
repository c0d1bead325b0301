"""Small tokenizers of the kinds that people bring, with and without BOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CONTROLS = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
# Added to a vocabulary, and ordinary.
WORDS = ("<think>", "</think>", "<tool_call>", "<table>", "\n\n", "    ", "[Ana]", "Nia", "user")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "How many pens does Ana have now? 3 + 4 = 7, she said.",
    "a <b> c|d _im_ end start eos bos pad\n\n",
] * 3


def _bytes() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        backend, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )


def _pieces(scheme: str) -> Tokenizer:
    """As SentencePiece: a space is a letter, merges cross words, bytes stand for what is unknown."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=bytes_, show_progress=False)
    made = json.loads(_trained(backend, trainer).to_str())
    return Tokenizer.from_str(json.dumps({**made, "added_tokens": []}))  # the bytes are ordinary tokens


def _words() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(backend, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))


def _lower() -> Tokenizer:
    backend = _bytes()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return backend


def _unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    return _trained(backend, trainer)


def _trained(backend: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    backend.train_from_iterator(TEXTS, trainer)
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": _bytes,
    "pieces, a space first": lambda: _pieces("first"),
    "pieces, a space always": lambda: _pieces("always"),
    "pieces, no space": lambda: _pieces("never"),
    "words": _words,
    "lower case": _lower,
    "unigram": _unigram,
}


@cache
def make(
    kind: str,
    bos: bool = True,
    normalized: bool = False,
    stripping: bool = False,
    eos: bool = False,
    flagged: bool = True,
) -> PreTrainedTokenizerBase:
    """Return a tokenizer; its special tokens may be matched after normalization, or eat space.

    With ``eos`` it ends every text with one. Its controls may be added as if they were words (``flagged``).
    """
    backend = KINDS[kind]()
    how = {"normalized": normalized, "lstrip": stripping, "rstrip": stripping}
    if flagged:
        backend.add_special_tokens([AddedToken(token, special=True, **how) for token in CONTROLS])
    else:
        backend.add_tokens([AddedToken(token, **how) for token in CONTROLS])
        backend.add_tokens([AddedToken(token, normalized=False) for token in WORDS])
    if bos or eos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> " * bos + "$A" + " <eos>" * eos,
            special_tokens=[(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")],
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token=_unknown(backend))
    assert made.pad_token is None
    return made


def _unknown(backend: Tokenizer) -> str | None:
    return "<unk>" if backend.token_to_id("<unk>") is not None else None
