"""Which tokens of a tokenizer are control tokens, which no text may give.

Those that it calls special, and those that end a text. Some tokenizers do not call special what frames a
chat, ``<|im_start|>`` say; so also what looks like a control token, and what the chat template writes. Not
the words that models write themselves, ``<think>`` or ``<tool_call>``, since earlier answers in a chat hold
them; and not ordinary words that were added to a vocabulary: lines' ends, runs of spaces, HTML's tags, names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BARRED = re.compile(r"<[|｜][^<>]*\w[^<>]*>|<[^<>]*\w[^<>]*[|｜]>")
_FRAME = re.compile(
    r"</?(?:bos|eos|pad|unk|mask|cls|sep|sos|eot|eod)>|<(?:start|end)_of_\w+>|<</?SYS>>"
    r"|\[/?(?:BOS|EOS|PAD|UNK|MASK|CLS|SEP|INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
_WRITTEN_BY_MODELS = re.compile(
    r"[<\[]/?(?:think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad|answer|solution|code"
    r"|tools?|function|function_call|tool_\w+|arg_\w+)[>\]]",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\w\s.,:'-]*")  # as anyone writes it


def control_ids(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int], written: str) -> frozenset[int]:
    """Return the token ids that no text may give.

    Parameters
    ----------
    end_ids
        Those that end a text.
    written
        What the chat template writes around texts, "" where there is none.
    """
    added = tokenizer.added_tokens_decoder
    flagged = {token for token, how in added.items() if how.special or token in end_ids}
    framing = {token for token, how in added.items() if _frames(how.content.strip(), written)}
    # One that came with the vocabulary, and was not added, is reached by merges.
    barred = {
        token for text, token in tokenizer.get_vocab().items() if text[:1] == "<" and _BARRED.fullmatch(text)
    }
    return frozenset(flagged | framing | barred | set(tokenizer.all_special_ids)) - {None}


def _frames(text: str, written: str) -> bool:
    if _FRAME.fullmatch(text) or _BARRED.fullmatch(text):
        return True
    return text in written and not _WORD.fullmatch(text) and not _WRITTEN_BY_MODELS.fullmatch(text)
