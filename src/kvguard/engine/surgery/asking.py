"""Phase B: what documents left is asked: how likely an answer is, or what the model would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.loop import decode
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.surgery.document_cache import DocumentCache
from kvguard.engine.surgery.feeding import append, feed, in_batches
from kvguard.engine.surgery.rope import Rope
from kvguard.errors import KvguardError


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


@torch.inference_mode()
def score(model: PreTrainedModel, cache: DocumentCache, ids: Sequence[int]) -> Tensor:
    """Return the NLL of every token of a text behind a cache, [T] float32 on the host, in nats.

    The first is NaN: nothing in the text predicts it, and a cache holds no logits.

    Raises
    ------
    KvguardError
        If the text is empty, or grows too long for the model.
    """
    if len(ids) < 2:
        raise KvguardError(
            f"score: {len(ids)} tokens, and a token is predicted by those before it: pass two or more"
        )
    rest = answer_nll(model, [cache], [Asked(ids[:1], ids[1:])])[0]
    return torch.cat([rest.new_tensor([float("nan")]), rest])


@torch.inference_mode()
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
    for number, one in enumerate(asked):
        _nonempty(one.context, number, "context")
        _nonempty(one.answer, number, "answer")
    texts = [[*one.context, *one.answer[:-1]] for one in asked]  # what follows the answer is not asked
    sizes = [(max(c.lengths), len(text)) for c, text in zip(kept, texts, strict=True)]
    results: dict[int, Tensor] = {}
    for batch in in_batches(sizes, batch_rows):
        lengths = [len(asked[i].answer) for i in batch]
        logits = feed(model, [kept[i] for i in batch], [texts[i] for i in batch], lengths).float()
        told = torch.tensor([token for i in batch for token in asked[i].answer], device=logits.device)
        nll = logits.logsumexp(-1) - logits.gather(1, told[:, None])[:, 0]
        results.update(zip(batch, nll.cpu().split(lengths), strict=True))
    return [results[i] for i in range(len(asked))]


@torch.inference_mode()
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
    rope = Rope.of(model)
    for number, (cache, context) in enumerate(zip(kept, contexts, strict=True)):
        _nonempty(context, number, "context")
        rope.check(cache.end + len(context) + max_new_tokens, f"question {number}")
    sizes = [(max(c.lengths), len(context)) for c, context in zip(kept, contexts, strict=True)]
    results: dict[int, list[int]] = {}
    for batch in in_batches(sizes, batch_rows):
        fed = append(model, [kept[i] for i in batch], [contexts[i] for i in batch])
        rows = [
            # Of its ids the engine reads their number alone.
            Row(torch.zeros(cache.end, dtype=torch.long), logits, cache.kept())
            for logits, cache in zip(fed.logits, fed.caches, strict=True)
        ]
        said = decode(model, rows, Decoding(max_new_tokens, eos_ids), batch_size=len(rows))
        for i, tokens, n in zip(batch, said.token_ids, said.lengths, strict=True):
            results[i] = tokens[:n].tolist()
    return [results[i] for i in range(len(contexts))]


def _nonempty(ids: Sequence[int], number: int, what: str) -> None:
    if not ids:
        raise KvguardError(f"question {number}: its {what} is empty; leave the question out, or give it one")
