"""Phase B: what documents left is asked: how likely an answer is, or what the model would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.surgery.document_cache import DocumentCache


@dataclass(frozen=True)
class Asked:
    """What is fed after a document, as token ids.

    Parameters
    ----------
    context : sequence of int
        Separator, query, separator: at least one token, since it predicts the first of the answer.
    answer : sequence of int
        The tokens that are scored, at least one.
    """

    context: Sequence[int]
    answer: Sequence[int]


def answer_nll(
    model: PreTrainedModel, kept: Sequence[DocumentCache], asked: Sequence[Asked], *, batch_rows: int = 32
) -> list[Tensor]:
    """Return the NLL of every token of each answer, given its document and context.

    Parameters
    ----------
    kept : sequence of DocumentCache
        One per question; the same may stand there many times. They are not changed.
    asked : sequence of Asked
        Fed from position ``kept.end`` on.
    batch_rows : int
        Questions of one forward pass at most.

    Returns
    -------
    list of Tensor
        Each [len(answer)] float32 on the host, in nats, in the order of ``asked``.

    Raises
    ------
    KvguardError
        A context or an answer is empty, or the text grows too long for the model.
    """
    raise NotImplementedError


def generate(
    model: PreTrainedModel,
    kept: Sequence[DocumentCache],
    contexts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Sequence[int],
    *,
    batch_rows: int = 32,
) -> list[list[int]]:
    """Return what the model greedily says after each document and context: token ids, the end token included.

    Arguments as in :func:`answer_nll`; ``max_new_tokens`` bounds each answer, ``eos_ids`` end it.

    Raises
    ------
    KvguardError
        A context is empty, or the text grows too long for the model.
    """
    raise NotImplementedError
