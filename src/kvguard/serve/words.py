"""Log-probabilities in OpenAI's shapes, and what single tokens are there: as text, and as bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from kvguard.engine.stops import Pieces
from kvguard.guard.text import Unfolding
from kvguard.serve.logprobs import Said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Json = dict[str, Any]
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # what a tokenizer that falls back to bytes calls one


class Words:
    """What the tokens of one tokenizer stand for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._added = tokenizer.added_tokens_decoder
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.dumps(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
        self._falls_back = '"ByteFallback"' in decoder
        spelled = '"ByteLevel"' in decoder
        self._letters = {letter: byte for byte, letter in bytes_to_unicode().items()} if spelled else {}
        self.word = cache(self._word)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token; none for one that the tokenizer does not know."""
        written, added = self.tokenizer.convert_ids_to_tokens([token])[0], self._added.get(token)
        if written is None or (added is not None and added.special):  # which is no text: its name then
            return str(written or "").encode()
        if added is None and self._letters and all(letter in self._letters for letter in written):
            return bytes(self._letters[letter] for letter in written)
        found = _BYTE.fullmatch(written) if added is None and self._falls_back else None
        if found is not None:
            return bytes([int(found[1], 16)])
        return (self._pieces(token) or str(self.tokenizer.convert_tokens_to_string([written]))).encode()

    def _word(self, token: int) -> tuple[str, list[int]]:
        """Return a token as text, and its bytes; text that is no valid UTF-8 is written as bytes."""
        raw = self.bytes_of(token)
        try:
            return raw.decode() or f"token_id:{token}", list(raw)
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


class ChatLogprobs:
    """How a chat's log-probabilities are told."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def told(self, said: Sequence[Said]) -> Json:
        """Return those of the next tokens."""
        content = [
            {
                **self._entry(one.token, one.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in one.top],
            }
            for one in said
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> Json:
        text, raw = self._words.word(token)
        return {"token": text, "logprob": logprob, "bytes": raw}


class TextLogprobs:
    """How a completion's log-probabilities are told, with where in the text each token begins.

    Parameters
    ----------
    echo
        The prompt, where the text begins with it.
    n_echoed
        Its tokens.
    """

    def __init__(self, words: Words, echo: str, n_echoed: int) -> None:
        self._words, self._offset = words, 0
        self._echo, self._left = echo, n_echoed
        self._text = Unfolding(words.tokenizer)

    def told(self, said: Sequence[Said]) -> Json:
        """Return those of the next tokens."""
        return {
            "tokens": [self._words.word(one.token)[0] for one in said],
            "token_logprobs": [one.logprob for one in said],
            "top_logprobs": [self._top(one) for one in said],
            "text_offset": [self._begins(one.token) for one in said],
        }

    def _top(self, said: Said) -> Json | None:
        """Return the likeliest tokens, and this one; of two that are written alike the likelier."""
        if said.logprob is None:
            return None
        found: Json = {}
        for token, logprob in (*said.top, (said.token, said.logprob)):
            found.setdefault(self._words.word(token)[0], logprob)
        return found

    def _begins(self, token: int) -> int:
        offset = self._offset
        self._offset += len(self._text.add(token))
        if self._left:
            self._left -= 1
            self._offset = min(self._offset, len(self._echo))
            if not self._left:  # what a prompt's normalisation has changed is no matter for the rest
                self._offset, self._text = len(self._echo), Unfolding(self._words.tokenizer)
        return offset
