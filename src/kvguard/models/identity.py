"""Telling one language model from another by what its weights say, wherever it was loaded from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VALUES = 16  # of each parameter


def weights_digest(model: PreTrainedModel) -> str:
    """Digest a sample of every parameter, rounded to bfloat16: milliseconds, and the same in float32.

    A path or a name would not do: the same weights lie in many places, and others under the same name.
    """
    import torch

    digest = hashlib.sha256()
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _VALUES)][:_VALUES]
        digest.update(f"{tuple(parameter.shape)}\0".encode())
        digest.update(sample.to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
