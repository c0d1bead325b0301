"""The numbers read off one step's logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

N_LOGPROBS = 20
_FAR = 200.0  # nats: exp of less is nothing in float32
_GROUPS = 8  # of logits, that compete before the best are sorted


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
    top = _largest(logits)
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
    above = torch.empty_like(logits)  # 1.0 or 0.0: a sum of bools is slower
    torch.gt(logits, logits.gather(1, chosen[:, None]), out=above)
    columns = [
        p_others * h_alts - p_best * logp[:, :1] + torch.special.entr(p_others),
        p_best,
        logp[:, :5].exp().sum(-1, keepdim=True).clamp(max=1.0),
        logp,
        h_alts,
        (logits.mean(-1, keepdim=True) - best) - log_sum,
        above.sum(-1, keepdim=True),
    ]
    return torch.cat(columns, dim=-1)


def _largest(logits: Tensor) -> Tensor:
    """Return the ``N_LOGPROBS`` largest logits, best first. [B, V] -> [B, 20]"""
    n_whole = logits.shape[1] - logits.shape[1] % _GROUPS
    if logits.device.type != "cpu" or n_whole <= N_LOGPROBS * _GROUPS:
        return logits.topk(N_LOGPROBS, dim=-1).values
    # They are all in those 20 columns of _GROUPS logits whose maxima are the largest. NumPy selects and sorts
    # many short rows with vector instructions: a quarter of topk's time over a vocabulary of 1024.
    columns = logits[:, :n_whole].unflatten(1, (_GROUPS, -1))  # [B, 8, V / 8]
    best = np.argpartition(columns.amax(1).numpy(), -N_LOGPROBS, axis=1)[:, -N_LOGPROBS:]
    candidates = columns.gather(2, torch.from_numpy(best)[:, None].expand(-1, _GROUPS, -1)).flatten(1)
    candidates = torch.cat([candidates, logits[:, n_whole:]], dim=-1)
    ordered = np.sort(candidates.numpy(), axis=1)
    return torch.from_numpy(ordered[:, : -N_LOGPROBS - 1 : -1].copy())
