"""kvpress as its users run it, one prompt at a time: what kvguard's batches must agree with."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvguard.engine.attention import attention
from kvguard.engine.prefill import clear_head_masks
from kvguard.engine.presses import attention_for
from kvguard.engine.stops import StopStrings

if TYPE_CHECKING:
    from kvpress import BasePress

TIE = 1e-4  # from a step on where the top two logits are closer than this, two runs may part


@dataclass(frozen=True)
class Reference:
    """One generation by kvpress: its tokens, and the gap between the top two logits of each step."""

    token_ids: list[int]
    gaps: list[float]

    def agrees(self, token_ids: list[int]) -> bool:
        """Tell whether a generation is this one, up to the first step where the model hesitates (`TIE`)."""
        for t, gap in enumerate(self.gaps):
            if t >= len(token_ids) or token_ids[t] != self.token_ids[t]:
                return gap < TIE
            if gap < TIE:
                return True
        return len(token_ids) == len(self.token_ids)


@torch.inference_mode()
def kvpress_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: BasePress | None,
    max_new_tokens: int,
    eos_ids: list[int],
    stops: StopStrings | None = None,
) -> Reference:
    """Generate greedily with ``with press(model): model.generate(...)``.

    Parameters
    ----------
    input_ids : Tensor
        [T], one prompt.
    press : BasePress or None
        None generates without compression.
    stops : StopStrings, optional
        What ends the text besides the end tokens.
    """
    with attention(model, attention_for(press)), press(model) if press is not None else nullcontext():
        out = model.generate(  # type: ignore[operator]
            input_ids=input_ids[None],
            attention_mask=torch.ones_like(input_ids[None]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos_ids or None,
            pad_token_id=0,  # one prompt is never padded
            output_logits=True,
            return_dict_in_generate=True,
        )
    clear_head_masks(model)
    top = torch.stack(out.logits)[:, 0].float().topk(2, dim=-1).values
    token_ids, gaps = out.sequences[0, input_ids.shape[0] :].tolist(), (top[:, 0] - top[:, 1]).tolist()
    n = stops.count(token_ids) if stops is not None else len(token_ids)
    return Reference(token_ids[:n], gaps[:n])
