"""Which tokens end a text, and what a user should know of them before a run.

A text ends at what ``generation_config.json`` names, as in transformers' ``generate``, and at the tokenizer's
own end token too: of some models only the tokenizer names the token that ends their turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EndTokens:
    """The token ids that end a text, and one line for each thing about them that is doubtful."""

    ids: tuple[int, ...]
    doubts: tuple[str, ...]


def end_tokens(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EndTokens:
    """Return what ends the texts of a model.

    Raises
    ------
    KvguardError
        What its ``generation_config.json`` names are no token ids.
    """
    size = model.config.get_text_config().vocab_size
    named, own = _named(name, model.generation_config), tokenizer.eos_token_id
    ids, doubts = [token for token in named if 0 <= token < size], []
    if own is not None and own not in named:
        if named and 0 <= own < size:
            doubts.append(
                f"model {name}: a text ends at its tokenizer's {tokenizer.eos_token!r} ({own}) too; its "
                f"generation_config.json names only {named}, so transformers' generate would go on: add "
                f"{own} to eos_token_id there and both agree"
            )
        named, ids = [*named, own], [*ids, own] if 0 <= own < size else ids
    for token in named:
        if token not in ids:
            doubts.append(
                f"model {name}: its end token {token} never comes, since its vocabulary has the tokens 0 to "
                f"{size - 1}: fix eos_token_id in its generation_config.json, or its tokenizer's eos_token"
            )
    if not ids:
        doubts.append(
            f"model {name}: it has no end token; only stop strings and max_new_tokens end its texts, and one "
            "that max_new_tokens ends counts as a catastrophe: set eos_token_id in its generation_config.json"
        )
    return EndTokens(tuple(ids), tuple(doubts))


def _named(name: str, generation_config: Any) -> list[int]:
    """Return what a generation config names as end tokens."""
    eos = getattr(generation_config, "eos_token_id", None)
    found: list[Any] = [] if eos is None else list(eos) if isinstance(eos, Iterable) else [eos]
    if isinstance(eos, str) or not all(isinstance(t, Integral) and not isinstance(t, bool) for t in found):
        raise KvguardError(
            f"model {name}: eos_token_id {eos!r} in its generation_config.json is no token id: give "
            "a whole number, or a list of them"
        )
    return [int(token) for token in found]
