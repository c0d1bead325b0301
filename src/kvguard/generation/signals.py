"""The numbers read off one step's logits."""

from __future__ import annotations

import torch
from torch import Tensor

N_LOGPROBS = 20
_FAR = 200.0  # nats: exp of less is nothing in float32


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
    top = logits.topk(N_LOGPROBS, dim=-1).values
    best, second = top[:, :1], top[:, 1:2]
    # Relative to the second most likely token, whose exp is 1, as is the top token's after the clamp: taking
    # that one away leaves the alternatives without cancellation, and the chain rule of entropy does the rest.
    beneath = (logits - second).clamp_(min=-_FAR, max=0.0)
    weights = beneath.exp()
    total = weights.sum(-1, keepdim=True) - 1.0
    h_alts = total.log() - torch.linalg.vecdot(weights, beneath)[:, None] / total
    odds = total * (second - best).exp()  # of any other token against the top one
    log_sum = odds.log1p()  # less the best logit, so that none of the digits below it are lost
    logp = (top - best) - log_sum
    p_best, p_others = logp[:, :1].exp(), odds / (1.0 + odds)
    columns = [
        p_others * h_alts - p_best * logp[:, :1] + torch.special.entr(p_others),
        p_best,
        logp[:, :5].exp().sum(-1, keepdim=True).clamp(max=1.0),
        logp,
        h_alts,
        (logits.mean(-1, keepdim=True) - best) - log_sum,
        (logits > logits.gather(1, chosen[:, None])).sum(-1, keepdim=True).float(),
    ]
    return torch.cat(columns, dim=-1)
