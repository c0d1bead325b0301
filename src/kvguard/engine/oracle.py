"""kvpress as its users run it, one prompt at a time: what kvguard's batches must agree with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from kvpress import DecodingPress, PrefillDecodingPress
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.attention import attention
from kvguard.engine.layers import clear_head_masks
from kvguard.engine.press_code import compressing
from kvguard.engine.presses import attention_for, presses_in
from kvguard.engine.stops import StopStrings

if TYPE_CHECKING:
    from kvpress import BasePress

_WHILE_DECODING = (DecodingPress, PrefillDecodingPress)

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
    """Generate greedily as kvpress does: the prompt in the press's context, the answer from what it left.

    A press that compresses what is generated has the answer in its context too. Sliding-window layers are
    not compressed, see :func:`~kvguard.engine.press_code.compressing`.

    Parameters
    ----------
    input_ids : Tensor
        [T], one prompt.
    press : BasePress or None
        None generates without compression.
    stops : StopStrings, optional
        What ends the text besides the end tokens.

    Raises
    ------
    KvguardError
        If kvpress itself fails.
    """
    try:
        with attention(model, attention_for(press)), ExitStack() as context:
            if press is not None:
                who = f"{type(press).__name__}: kvpress itself"
                context.enter_context(compressing(model, press, who))
            cache = DynamicCache(config=model.config)
            logits = model(input_ids=input_ids[None], past_key_values=cache, logits_to_keep=1).logits
            if not any(isinstance(inner, _WHILE_DECODING) for inner in presses_in(press)):
                context.close()  # and some compress only now
            return _greedy(model, cache, len(input_ids), logits[0, -1], max_new_tokens, eos_ids, stops)
    finally:
        clear_head_masks(model)


def _greedy(
    model: PreTrainedModel,
    cache: DynamicCache,
    n_prompt: int,
    logits: Tensor,
    max_new_tokens: int,
    eos_ids: list[int],
    stops: StopStrings | None,
) -> Reference:
    """Go on from a prompt's last logits [V]; positions are those of an uncompressed text."""
    test = stops.start() if stops is not None else None
    tokens: list[int] = []
    gaps: list[float] = []
    while True:
        top = logits.float().topk(2)
        tokens.append(int(logits.argmax()))
        gaps.append(float(top.values[0] - top.values[1]))
        stopped = test is not None and test.push(tokens[-1])
        if stopped or tokens[-1] in eos_ids or len(tokens) == max_new_tokens:
            return Reference(tokens, gaps)
        position = torch.tensor([n_prompt + len(tokens) - 1], device=logits.device)
        logits = model(
            input_ids=position.new_tensor([tokens[-1:]]),
            past_key_values=cache,
            position_ids=position[None],
            cache_position=position,
        ).logits[0, -1]
