"""The numbers read off one step's logits."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvguard.engine.compiled import compiled

N_LOGPROBS = 20
N_SIGNALS = N_LOGPROBS + 6

Floats = NDArray[np.float32]

_FAR = 87.0  # nats: exp of less is nothing in float32
_LANES = 64  # logits that are compared at once


def signals(logits: Tensor, chosen: Tensor) -> Tensor:
    """Read the signals of one step, in float32, on the logits' device.

    Parameters
    ----------
    logits : Tensor
        [B, V], any floating dtype, V >= 20. A row that holds NaN or +inf has signals that are NaN.
    chosen : Tensor
        [B], the token ids drawn from these logits.

    Returns
    -------
    Tensor
        [B, 26] float32 in the order of ``SIGNALS``: entropy (nats), top1_prob, top5_prob,
        logprob_0 .. logprob_19, h_alts (entropy of the distribution renormalised without its top token),
        avg_logp (mean log-probability over the vocabulary), rank_of_chosen (0 = the most likely).

    Raises
    ------
    IndexError
        A chosen token is not in the vocabulary.
    """
    logits = logits.float()
    if logits.device.type != "cpu":
        return by_kernels(logits, chosen)
    read = np.empty((len(logits), N_SIGNALS), dtype=np.float32)
    _read(logits.contiguous().numpy(), chosen.numpy(), read)
    return torch.from_numpy(read)


def by_kernels(logits: Tensor, chosen: Tensor) -> Tensor:
    """Read the signals as accelerators do, in whole tensors; see :func:`signals`."""
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
        (logits > logits.gather(1, chosen[:, None])).sum(-1, keepdim=True, dtype=torch.float32),
    ]
    return torch.cat(columns, dim=-1)


@compiled()
def _read(logits: Floats, chosen: NDArray[np.int64], read: Floats) -> None:
    """Write the signals of each row, by the formulas of :func:`by_kernels`. [B, V], [B] -> [B, 26]"""
    top, lanes = np.empty(N_LOGPROBS, np.float32), np.empty(_LANES, np.float32)
    one = np.float32(1)
    for row in range(len(logits)):
        if not 0 <= chosen[row] < logits.shape[1]:
            raise IndexError("a chosen token is outside the vocabulary")
        _largest(logits[row], lanes, top)
        best, second = top[0], top[1]
        total, moment, mean, above = _sums(logits[row], second, logits[row, chosen[row]])
        if np.isnan(mean):  # no comparison has seen it
            best = mean
        total -= one
        h_alts = np.float32(math.log(total)) - moment / total
        odds = total * np.float32(math.exp(second - best))
        log_sum = np.float32(math.log1p(odds))
        out = read[row]
        logp = out[3 : 3 + N_LOGPROBS]
        for place in range(N_LOGPROBS):
            logp[place] = (top[place] - best) - log_sum
        top5 = np.float32(0)
        for place in range(5):
            top5 += np.float32(math.exp(logp[place]))
        p_best, p_others = np.float32(math.exp(logp[0])), odds / (one + odds)
        surprise = -p_others * np.float32(math.log(p_others)) if p_others > 0 else p_others
        out[0] = p_others * h_alts - p_best * logp[0] + surprise
        out[1] = p_best
        out[2] = min(top5, one)
        out[23] = h_alts
        out[24] = (mean - best) - log_sum
        out[25] = above


@compiled()
def _largest(logits: Floats, lanes: Floats, top: Floats) -> None:
    """Write the largest logits to ``top``, best first. [V] -> [20]"""
    size = len(logits)
    whole = size - size % _LANES
    lanes[:] = -np.inf
    for begin in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], logits[begin + lane])
    for lane in range(size - whole):
        lanes[lane] = max(lanes[lane], logits[whole + lane])
    top[:] = -np.inf
    for lane in range(_LANES):
        _insert(top, lanes[lane])
    least = top[-1]  # the 20th of the lanes' maxima: no smaller logit is among the largest
    top[:] = -np.inf
    for begin in range(0, size, _LANES):
        end = min(begin + _LANES, size)
        found = 0
        for place in range(begin, end):
            found += logits[place] >= least
        if found:
            for place in range(begin, end):
                if logits[place] >= least:
                    _insert(top, logits[place])


@compiled()
def _insert(top: Floats, logit: np.float32) -> None:
    """Put a logit in its place among the sorted ``top``; the last one falls out."""
    if not logit > top[-1]:
        return
    place = len(top) - 1
    while place > 0 and top[place - 1] < logit:
        top[place] = top[place - 1]
        place -= 1
    top[place] = logit


@compiled(any_order=True)
def _sums(
    logits: Floats, second: np.float32, own: np.float32
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Return total weight and moment beneath ``second``, the mean logit, and how many are above ``own``."""
    total = moment = summed = np.float32(0)
    above = np.int32(0)
    far = np.float32(-_FAR)
    for place in range(len(logits)):
        beneath = min(max(logits[place] - second, far), np.float32(0))
        weight = _exp(beneath)
        total += weight
        moment += weight * beneath
        summed += logits[place]
        above += np.int32(logits[place] > own)
    return total, moment, summed / np.float32(len(logits)), np.float32(above)


@compiled(any_order=True)
def _exp(x: np.float32) -> np.float32:
    """Return exp(x) for x in [-87, 0]: 2^n from its bits times Cephes' polynomial (expf, S. L. Moshier).

    Unlike the C library's it is computed for many x at once.
    """
    n = np.float32(math.floor(x * np.float32(1.44269504) + np.float32(0.5)))  # log2(e)
    rest = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # less n ln 2, in two parts
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (series * rest * rest + rest + np.float32(1)) * power
