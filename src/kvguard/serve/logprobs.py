"""Log-probabilities of tokens under the model's own distribution: before temperature, penalties and biases.

Those of a text are read from the logits that each token was drawn from. Those of a prompt are read from the
states that its prefill ends in, which has seen all of it, whatever its press then removes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from kvguard.engine.attention import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST = -9999.0  # what OpenAI writes for a probability of 0: JSON has no infinity
_LOGITS = 1 << 24  # that are there at once


@dataclass(frozen=True, slots=True)
class Said:
    """A token, and how likely it was.

    Attributes
    ----------
    logprob
        In nats; None for a prompt's first token, which nothing stands before.
    top
        The most likely tokens in its place and their log-probabilities, best first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def read(logits: Tensor, tokens: Tensor, n_top: int) -> list[Said]:
    """Read the log-probabilities of tokens [B] from the logits [B, V] of their places."""
    logits = logits.float()
    best = logits.topk(min(n_top, logits.shape[1]), dim=-1)
    chosen = torch.cat([logits.gather(1, tokens.long()[:, None]), best.values], dim=1)
    known = (chosen - logits.logsumexp(-1, keepdim=True)).nan_to_num(nan=_LEAST, neginf=_LEAST)
    return [
        Said(token, own, tuple(zip(ids, values, strict=True)))
        for token, ids, (own, *values) in zip(
            tokens.tolist(), best.indices.tolist(), known.tolist(), strict=True
        )
    ]


def read_some(logits: Tensor, tokens: NDArray[Any], asked: Mapping[int, int]) -> dict[int, Said]:
    """Read, by slot, the log-probabilities of some slots' tokens, each with so many of the likeliest.

    Parameters
    ----------
    logits, tokens
        [n, V], [n]
    asked
        How many of the likeliest tokens go with a slot's.
    """
    slots = list(asked)
    found = read(logits[slots], torch.from_numpy(tokens[slots]).to(logits.device), max(asked.values()))
    return {slot: replace(said, top=said.top[: asked[slot]]) for slot, said in zip(slots, found, strict=True)}


class PromptReader:
    """A context for a prompt's pass, or for each piece of it, that reads the log-probabilities of its tokens.

    Attributes
    ----------
    said : list of Said
        Of the tokens that are known so far.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, n_top: int) -> None:
        self._model, self._ids, self._n_top = model, ids, n_top
        self._states: list[Tensor] = []
        self.said = [Said(int(ids[0]), None)]

    def __enter__(self) -> PromptReader:
        self._hook = self._model.base_model.register_forward_hook(self._see)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._hook.remove()
        if kind is None:
            with torch.inference_mode(), attention(self._model, "sdpa"):
                for states in self._states:
                    self._read(states)
        self._states.clear()

    def _see(self, _: Any, __: Any, output: Any) -> None:
        self._states.append(output[0][0])

    def _read(self, states: Tensor) -> None:
        """Read what follows some of the prompt's tokens from their states [P, hidden], but for the last."""
        piece = max(1, _LOGITS // self._model.config.get_text_config().vocab_size)
        for some in states.split(piece):
            following = self._ids[len(self.said) :][: len(some)]
            if len(following):  # a press may run the prompt a second time
                self.said += read(_head(self._model, some[: len(following)]), following, self._n_top)


def _head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits [P, V] that a model makes of the states [P, hidden] that its layers end in.

    By a pass over one token whose states are replaced, since some models do more to them than multiply.
    """

    def replaced(*_: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=states[None])  # type: ignore[arg-type]

    hook = model.base_model.register_forward_hook(replaced)
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=states.device)
        logits: Tensor = model(input_ids=token, use_cache=False).logits
        return logits[0]
    finally:
        hook.remove()
