"""What an encoder-decoder makes of texts: the NLL of answers, and where it attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Text:
    """What the encoder reads and the decoder says, as token ids.

    Parameters
    ----------
    read
        Of the encoder, with the tokens that open and close its texts.
    prefix
        (first, last) of the prefix and its separator in ``read``.
    kept
        The decoder sees the prefix.
    said
        Of the decoder, behind its start token: what it is asked, then the answer.
    n_answer
        Tokens of the answer, the last of ``said``: these are scored.
    span
        (first, last) of the sentence's answer in ``read``, where it stands there.
    """

    read: Sequence[int]
    prefix: tuple[int, int]
    kept: bool
    said: Sequence[int]
    n_answer: int
    span: tuple[int, int] | None = None


@torch.inference_mode()
def scored(model: PreTrainedModel, texts: Sequence[Text], probed: bool) -> list[Metrics]:
    """Return of each text its mean NLL in nats and, if ``probed``, its shares of attention."""
    padding, start = _padding(model), _start(model)
    ids, there = _padded([text.read for text in texts], padding, model.device)
    column = torch.arange(ids.shape[1], device=model.device)
    first, last = torch.tensor([text.prefix for text in texts], device=model.device).T
    before = (column >= first[:, None]) & (column < last[:, None])
    kept = torch.tensor([text.kept for text in texts], device=model.device)
    shown = there & (kept[:, None] | ~before)
    encoded = model.get_encoder()(
        input_ids=ids, attention_mask=there.long(), output_attentions=probed, return_dict=True
    )
    said, _ = _padded([[start, *text.said[:-1]] for text in texts], padding, model.device)
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
        attention_mask=shown.long(),
        decoder_input_ids=said,
        output_attentions=probed,
        use_cache=False,
        return_dict=True,
    )
    results: list[Metrics] = []
    for row, text in enumerate(texts):
        stop = len(text.said)
        logits = output.logits[row, stop - text.n_answer : stop].float()
        answer = torch.tensor(text.said[-text.n_answer :], device=logits.device)
        nll = logits.logsumexp(-1) - logits.gather(1, answer[:, None])[:, 0]
        results.append({"nll": float(nll.mean())})
        if probed:
            answering = slice(stop - text.n_answer, stop)
            cross = torch.stack([layer[row] for layer in output.cross_attentions])[:, :, answering]
            own = torch.stack([layer[row] for layer in encoded.attentions])
            results[-1] |= _shares(text, cross.float(), own.float())
    return results


def _shares(text: Text, cross: Tensor, own: Tensor) -> Metrics:
    """Return where the decoder's answer and the encoder's document attend.

    Parameters
    ----------
    cross
        [L, H, answer, read], of the decoder on what was read.
    own
        [L, H, read, read], of the encoder on itself.
    """
    first, last = text.prefix
    entropy = -(cross * cross.clamp_min(1e-12).log()).sum(-1).mean()
    shares: Metrics = {
        "cross_entropy": float(entropy),
        "self_prefix": float(own[:, :, last:, first:last].sum(-1).mean()) if last > first else None,
        "cross_answer": None,
        "self_answer": None,
    }
    if text.span is not None:
        start, stop = text.span
        shares["cross_answer"] = float(cross[..., start:stop].sum(-1).mean())
        shares["self_answer"] = (
            float(own[:, :, start:stop, first:last].sum(-1).mean()) if last > first else None
        )
    return shares


def _padded(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def _padding(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "pad_token_id", None) or 0)


def _start(model: PreTrainedModel) -> int:
    for config in (model.config, model.generation_config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(config, name, None)
            if found is not None:
                return int(found)
    return _padding(model)
