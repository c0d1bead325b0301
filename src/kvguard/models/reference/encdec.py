"""The reference encoder-decoder: a small T5 that finds a fact in a text, trained on a CPU in minutes.

The encoder reads a text, perhaps behind a question, its own or another, or behind noise; the decoder is
asked, or has only what the encoder was told. What stands before the text is hidden from the decoder half of
the time. So every combination that the directed study asks about was met in training, and none of them more
than others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from kvguard.models.reference import WEIGHTS
from kvguard.tasks import facts

logger = logging.getLogger(__name__)

SEPARATOR = "\n"
SHAPES: dict[str, dict[str, int]] = {
    "t5": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16},
    "t5_narrow": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16},
}
_ROWS, _ASKED, _LONGEST = 24, 4, 8  # texts of a step, questions on each, facts of a text at last
_GROWING = 0.7  # texts grow over this share of a training
_IGNORED = -100


@dataclass(frozen=True)
class EncDecSettings:
    """Everything a training run depends on; ``shape`` is one of :data:`SHAPES`."""

    shape: str
    run_folder: Path
    steps: int = 1200
    seed: int = 0
    matrix_lr: float = 1e-2
    vector_lr: float = 3e-3
    warmup_steps: int = 50
    fall_share: float = 0.5
    save_every: int = 100


@dataclass(frozen=True)
class Pair:
    """What an encoder reads, of which the first ``hidden`` tokens are not shown to the decoder, and what is
    said.

    ``scored`` marks the tokens of ``said`` that are answers.
    """

    read: list[int]
    hidden: int
    said: list[int]
    scored: list[bool]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the reference models, for plain text."""
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "qwen2")
    found.chat_template = None
    found.padding_side = "right"
    return found


def build(shape: str, words: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Return the freshly initialised model of a shape, in float32."""
    config = T5Config(
        vocab_size=len(words),
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.bos_token_id,
        **SHAPES[shape],
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return model


def train(
    settings: EncDecSettings, on_metrics: Callable[[dict[str, float], int], None] | None = None
) -> T5ForConditionalGeneration:
    """Train to the end and return the model; goes on from its checkpoint as if it had not stopped."""
    torch.manual_seed(settings.seed)
    words = tokenizer()
    encode = _encoder(words)
    model = build(settings.shape, words)
    optimizers = _optimizers(model, settings)
    first = _resume(settings, model, optimizers)
    started = time.monotonic()
    for step in range(first, settings.steps):
        rise = (step + 1) / settings.warmup_steps
        fall = (settings.steps - step) / (settings.fall_share * settings.steps)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, rise, fall)
        rng = Random(f"facts/{settings.seed}/{step}")
        longest = 2 + (_LONGEST - 2) * min(1.0, step / (_GROWING * settings.steps))
        pairs = [_pair(rng, encode, words, rng.randint(2, round(longest))) for _ in range(_ROWS)]
        loss = loss_of(model, pairs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 25 == 0:
            metrics = {"loss": float(loss.detach()), "seconds": time.monotonic() - started}
            logger.info("step %d loss %.3f, %.0f s", done, metrics["loss"], metrics["seconds"])
            if on_metrics is not None:
                on_metrics(metrics, done)
        if done % settings.save_every == 0 or done == settings.steps:
            _save(settings, model, optimizers, done)
    return model.eval()


def export(settings: EncDecSettings, folder: Path) -> int:
    """Write the latest checkpoint as bfloat16 weights with tokenizer; return its step."""
    state = torch.load(_path(settings), map_location="cpu", weights_only=True)
    words = tokenizer()
    model = build(settings.shape, words)
    model.load_state_dict(state["model"])
    model.bfloat16().save_pretrained(folder)
    words.save_pretrained(folder)
    return int(state["step"])


def loss_of(model: T5ForConditionalGeneration, pairs: list[Pair]) -> Tensor:
    """Return the mean NLL of what is scored, in nats."""
    ids, there = _padded([pair.read for pair in pairs], model.config.pad_token_id)
    column = torch.arange(ids.shape[1])
    shown = there & (column >= torch.tensor([pair.hidden for pair in pairs])[:, None])
    states = model.encoder(input_ids=ids, attention_mask=there)
    start = int(model.config.decoder_start_token_id)
    said, _ = _padded([[start, *pair.said[:-1]] for pair in pairs], model.config.pad_token_id)
    labels, _ = _padded(
        [
            [token if scored else _IGNORED for token, scored in zip(pair.said, pair.scored, strict=True)]
            for pair in pairs
        ],
        _IGNORED,
    )
    logits = model(encoder_outputs=states, attention_mask=shown, decoder_input_ids=said).logits
    counted = labels != _IGNORED
    return functional.cross_entropy(logits[counted], labels[counted])


@torch.inference_mode()
def accuracy(model: T5ForConditionalGeneration, n: int, seed: int) -> dict[str, float]:
    """Return the share of texts of eight facts whose answer is written exactly, by who knows the question.

    ``decoder``: it stands in the decoder alone; ``encoder``: before the text, which is all that the decoder
    sees.
    """
    words = tokenizer()
    encode = _encoder(words)
    rng = Random(f"facts/evaluation/{seed}")
    made = [facts.facts(rng, _LONGEST) for _ in range(n)]
    asked = [rng.choice(stated) for stated in made]
    questions = [encode(fact.question + SEPARATOR) for fact in asked]
    texts = [encode(facts.text(stated)) for stated in made]
    start = int(model.config.decoder_start_token_id)
    shares = {}
    for where in ("decoder", "encoder"):
        right = 0
        for question, text, fact in zip(questions, texts, asked, strict=True):
            ahead = question if where == "encoder" else []
            ids = torch.tensor([[*ahead, *text]])
            shown = torch.tensor([[0] * len(ahead) + [1] * len(text)])
            states = model.encoder(input_ids=ids)
            said = torch.tensor([[start, *(question if where == "decoder" else [])]])
            written = model.generate(
                encoder_outputs=states,
                attention_mask=shown,
                decoder_input_ids=said,
                max_new_tokens=12,
                do_sample=False,
            )[0, said.shape[1] :]
            right += str(words.decode(written, skip_special_tokens=True)).strip() == fact.answer
        shares[f"accuracy_{where}"] = right / n
    return shares


def _pair(rng: Random, encode: Callable[[str], list[int]], words: PreTrainedTokenizerFast, n: int) -> Pair:
    made = facts.facts(rng, n)
    asked = rng.sample(made, min(_ASKED, n))
    before, blind = _before(rng, encode, asked)
    text = encode(facts.text(made))
    hidden = len(before) if rng.random() < 0.5 else 0
    said: list[int] = []
    scored: list[bool] = []
    for fact in asked[:1] if blind else asked:
        question = [] if blind else encode(rng.choice((fact.question, fact.paraphrase)) + SEPARATOR)
        answer = [*encode(fact.answer), words.eos_token_id]
        said += [*question, *answer]
        scored += [False] * len(question) + [True] * len(answer)
    return Pair([*before, *text], hidden, said, scored)


def _before(
    rng: Random, encode: Callable[[str], list[int]], asked: list[facts.Fact]
) -> tuple[list[int], bool]:
    """Return what the encoder reads before the text, and whether the decoder is asked nothing."""
    drawn = rng.random()
    if drawn < 0.4:
        return [], False
    if drawn < 0.8:
        question = rng.choice((asked[0].question, asked[0].paraphrase))
        return encode(question + SEPARATOR), rng.random() < 0.7
    other = facts.facts(rng, 1)[0].question if drawn < 0.9 else " ".join(rng.sample(facts.NAMES, 4))
    return encode(other + SEPARATOR), False


def _encoder(words: PreTrainedTokenizerFast) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        found: list[int] = words.encode(text, add_special_tokens=False)
        return found

    return encode


def _padded(rows: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths[:, None]


def _optimizers(
    model: T5ForConditionalGeneration, settings: EncDecSettings
) -> list[tuple[torch.optim.Optimizer, float]]:
    names = dict(model.named_parameters())
    matrices = [p for name, p in names.items() if p.ndim == 2 and not _is_table(name)]
    others = [p for name, p in names.items() if p.ndim != 2 or _is_table(name)]
    muon = torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, settings.matrix_lr), (adamw, settings.vector_lr)]


def _is_table(name: str) -> bool:
    return "shared" in name or "embed" in name or "relative_attention_bias" in name or "lm_head" in name


def _path(settings: EncDecSettings) -> Path:
    return settings.run_folder / "checkpoint.pt"


def _save(settings: EncDecSettings, model: Any, optimizers: list[Any], step: int) -> None:
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o, _ in optimizers], "step": step}
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(settings: EncDecSettings, model: Any, optimizers: list[Any]) -> int:
    """Load the checkpoint, if there is one, and return the step to go on from."""
    path = _path(settings)
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
