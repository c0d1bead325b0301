"""Phase A: documents are read behind their prefixes, and what is kept of them moves to the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedModel

from kvguard.engine.surgery.document_cache import DocumentCache

if TYPE_CHECKING:
    from kvpress import BasePress

Attention = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class Reading:
    """A document to read, as token ids: ``[bos] + prefix + separator + document``.

    Parameters
    ----------
    document : sequence of int
        At least one token.
    prefix, separator : sequence of int
        Read before it, and then cut from the cache. Where the prefix is empty the separator is left out too.
    keep_prefix : bool
        Keep prefix and separator where they stand: nothing is cut or moved.
    """

    document: Sequence[int]
    prefix: Sequence[int] = ()
    separator: Sequence[int] = ()
    keep_prefix: bool = False


def read(
    model: PreTrainedModel,
    readings: Sequence[Reading],
    *,
    bos: int | None,
    press: BasePress | None = None,
    attention: Attention = "causal",
    batch_rows: int = 32,
) -> list[DocumentCache]:
    """Read documents behind their prefixes; keep BOS and the document's entries, moved to positions 1 to D.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM with rotary positions.
    readings : sequence of Reading
        Read in batches of like length; the result does not depend on their company.
    bos : int or None
        The token that opens every text, kept at position 0; None for models without one (the document then
        moves to 0 to D - 1).
    press : BasePress, optional
        Compresses what is kept: it sees the kept entries where they are moved to, and the hidden states that
        they were computed from, under the prefix. Without a prefix it keeps what kvpress keeps.
        Sliding-window layers are not compressed.
    attention : {"causal", "bidirectional"}
        Who sees whom while reading: the tokens before, or all of prefix and document (a prefix LM).
    batch_rows : int
        Documents of one forward pass at most.

    Returns
    -------
    list of DocumentCache
        In the order of ``readings``.

    Raises
    ------
    KvguardError
        The model's keys cannot be moved exactly, a document is empty or too long, or the press fails.
    """
    raise NotImplementedError
