"""The numbers read off one step's logits."""

from __future__ import annotations

import torch
from torch import Tensor

N_LOGPROBS = 20


def signals(logits: Tensor, chosen: Tensor) -> Tensor:
    """Read the signals of one step, in float32, on the logits' device.

    Parameters
    ----------
    logits : Tensor
        [B, V], any floating dtype, finite.
    chosen : Tensor
        [B], the token ids drawn from these logits.

    Returns
    -------
    Tensor
        [B, 26] float32 in the order of ``kvguard.traces.SIGNALS``: entropy (nats), top1_prob, top5_prob,
        logprob_0 .. logprob_19, h_alts (entropy of the distribution renormalised without its top token),
        avg_logp (mean log-probability over the vocabulary), rank_of_chosen (0 = the most likely).
    """
    logits = logits.float()
    logp = torch.log_softmax(logits, dim=-1)
    top, top_ids = logp.topk(N_LOGPROBS, dim=-1)
    # Renormalised from the logits: 1 - p1 would cancel where the top token is nearly certain.
    others = torch.softmax(logits.scatter(1, top_ids[:, :1], float("-inf")), dim=-1)
    columns = [
        torch.special.entr(logp.exp()).sum(-1),
        top[:, 0].exp(),
        top[:, :5].exp().sum(-1).clamp(max=1.0),
        *top.unbind(-1),
        torch.special.entr(others).sum(-1),
        logp.mean(-1),
        (logits > logits.gather(1, chosen[:, None])).sum(-1).float(),
    ]
    return torch.stack(columns, dim=-1)
