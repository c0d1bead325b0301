"""Texts as a model's token ids, in the parts that the study puts together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from kvguard.errors import KvguardError
from kvguard.models.decoding import text_of
from kvguard.models.encoding import Encoder

if TYPE_CHECKING:
    from kvguard.models.load import LoadedModel

Frame = Literal["auto", "chat", "plain"]
_LINE_ENDS = ("\n", "\n\n", "\n\n\n", " \n", "\r\n")


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer, asked for plain text.

    Attributes
    ----------
    encoder
        Of plain text: no chat template, and text never becomes a control token.
    bos
        What prompts open with; None where the tokenizer, or the chat template, writes none.
    head, tail
        What the chat template writes before a message, BOS apart, and after it; empty in plain text.
    end_ids
        What ends a text.
    """

    encoder: Encoder
    bos: int | None
    head: tuple[int, ...]
    tail: tuple[int, ...]
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, loaded: LoadedModel, frame: Frame = "auto") -> Tokens:
        """Return the tokens of a loaded model.

        Parameters
        ----------
        frame
            ``chat``: documents and questions stand in a user's message; ``plain``: nothing frames them;
            ``auto``: as the model has a chat template, or not.

        Raises
        ------
        KvguardError
            The model has no chat template and the frame is ``chat``; or its template or tokenizer fails.
        """
        has_chat = loaded.tokenizer.chat_template is not None
        if frame == "chat" and not has_chat:
            raise KvguardError(
                f"model {loaded.name}: it has no chat template: set frame to plain, or to auto"
            )
        size = int(loaded.model.config.get_text_config().vocab_size)
        ends = tuple(loaded.eos_ids)
        bare = copy.copy(loaded.tokenizer)
        bare.chat_template = None
        encoder = Encoder(loaded.name, bare, ends, size)
        if has_chat and frame != "plain":
            before, after = Encoder(loaded.name, loaded.tokenizer, ends, size).around()
        else:
            before, after = encoder.encode("a")[:1], []
        opens = bool(before) and before[0] == loaded.tokenizer.bos_token_id
        head = before[opens:] if has_chat and frame != "plain" else []
        return cls(encoder, before[0] if opens else None, tuple(head), tuple(after), ends)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, with nothing around it; empty for an empty one.

        Raises
        ------
        KvguardError
            The tokenizer fails.
        """
        return self.encoder.encode(text, special=False) if text else []

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return text_of(self.encoder.tokenizer, ids)

    @cached_property
    def ordinary(self) -> list[int]:
        """Token ids that are text: none that was added to the vocabulary, and no control token."""
        tokenizer = self.encoder.tokenizer
        added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids, *self.end_ids}
        known = min(len(tokenizer), self.encoder.vocabulary)
        return [token for token in range(known) if token not in added]

    @cached_property
    def line_ends(self) -> frozenset[int]:
        """Token ids that are the end of a line: a text of a model without a chat template stops there."""
        encoded = (self.ids(text) for text in _LINE_ENDS)
        return frozenset(ids[-1] for ids in encoded if ids and not self.text(ids[-1:]).strip())
