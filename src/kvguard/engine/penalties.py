"""Logits changed before a token is drawn: biases and penalties, as OpenAI and vLLM define them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvguard.engine.sampling import Draw, Past, Sampler, greedy


@dataclass(frozen=True)
class Adjusted:
    """A sampler that sees logits with biases and penalties; all others see them as they are.

    First ``bias`` is added; then the logits of tokens that the prompt or the text has are divided by
    ``repetition`` where they are positive, and multiplied where not (Keskar et al. 2019, arXiv 1909.05858);
    then those of tokens that the text alone has lose ``frequency`` for each time and ``presence`` once.

    Attributes
    ----------
    inner
        Draws the token.
    bias
        Pairs of a token id and what its logit gets.
    """

    inner: Sampler = greedy
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def reads_past(self) -> bool:
        """Whether it penalises, and so needs to know the rows' tokens."""
        return (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)

    def __call__(self, logits: Tensor, draw: Draw) -> Tensor:
        """Draw the tokens."""
        changed = logits.to(torch.float32, copy=True)
        if self.bias:
            ids, added = zip(*self.bias, strict=True)
            changed[:, list(ids)] += torch.tensor(added, device=changed.device)
        if draw.past is not None and self.reads_past:
            changed = self._penalised(changed, draw, draw.past)
        return self.inner(changed, draw)

    def _penalised(self, logits: Tensor, draw: Draw, past: Past) -> Tensor:
        counts = torch.zeros_like(logits)  # of each token in each text
        n_said = torch.from_numpy(draw.t).to(logits.device)
        said = torch.arange(past.generated.shape[1], device=logits.device) < n_said[:, None]
        counts.scatter_add_(1, past.generated.long(), said.float())
        if self.repetition != 1.0:
            seen = counts > 0
            for row, prompt in enumerate(past.prompts):
                seen[row, prompt] = True
            lowered = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits = torch.where(seen, lowered, logits)
        return logits - self.frequency * counts - self.presence * (counts > 0)
