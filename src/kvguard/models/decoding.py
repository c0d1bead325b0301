"""Tokens to text: the one place where a tokenizer, code that a user brought, writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvguard.errors import foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIX = "use the tokenizer that belongs to these weights, or fix it"


def text_of(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    *,
    special: bool = False,
    tidy: bool | None = None,
) -> str:
    """Return the text of tokens one after another.

    Parameters
    ----------
    special
        With special tokens, which are no text.
    tidy
        Whether spaces before punctuation go ("was ." to "was."); None: as the tokenizer has it.

    Raises
    ------
    KvguardError
        The tokenizer fails.
    """
    with foreign(_fails(tokenizer), _FIX):
        return str(
            tokenizer.decode(
                list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=tidy
            )
        )


def texts_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Return the text of each token by itself; raises as :func:`text_of` does."""
    with foreign(_fails(tokenizer), _FIX):
        return [str(text) for text in tokenizer.batch_decode([[token_id] for token_id in token_ids])]


def _fails(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} cannot write tokens as text"
