"""How the texts of a request are drawn: from its fields to a sampler for each."""

from __future__ import annotations

import hashlib
import secrets

from kvguard.engine.penalties import Adjusted
from kvguard.engine.sampling import Nucleus, Sampler, greedy
from kvguard.serve.errors import Rejected
from kvguard.serve.protocol import Generation


def samplers(request: Generation, count: int, vocabulary: int) -> list[Sampler]:
    """Return the samplers of a request's texts: chance is a matter of its seed and of their places in it.

    The first text is that of its prompt alone with that seed in the library.

    Raises
    ------
    Rejected
        A bias is for a token that there is not.
    """
    drawn = _drawn(request, count)
    bias = tuple((int(token), added) for token, added in (request.logit_bias or {}).items())
    stray = next((token for token, _ in bias if token >= vocabulary), None)
    if stray is not None:
        message = f"logit_bias: the model knows no token {stray}, only 0 to {vocabulary - 1}"
        raise Rejected(message, param="logit_bias")
    repetition = 1.0 if request.repetition_penalty is None else request.repetition_penalty
    presence, frequency = request.presence_penalty or 0.0, request.frequency_penalty or 0.0
    if (repetition, presence, frequency, bias) == (1.0, 0.0, 0.0, ()):
        return drawn
    return [Adjusted(inner, repetition, presence, frequency, bias) for inner in drawn]


def _drawn(request: Generation, count: int) -> list[Sampler]:
    heat = 1.0 if request.temperature is None else request.temperature
    if heat == 0:
        return [greedy] * count
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
    share = 1.0 if request.top_p is None else request.top_p
    most, least = max(0, request.top_k or 0), request.min_p or 0.0
    seeds = [seed, *(_mixed(seed, place) for place in range(1, count))]
    return [Nucleus(heat, share, each, most, least) for each in seeds]


def _mixed(seed: int, place: int) -> int:
    """Return a seed that no neighbouring seed or place shares, as those of Nucleus and its rows would."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{place}".encode(), digest_size=8).digest(), "big")
