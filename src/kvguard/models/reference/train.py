"""Train a reference model: resumable, on a CPU or a GPU.

The learning rate warms up, stays, and falls linearly to zero over the last part of the token budget;
so a run can be resumed with another budget as long as the fall has not begun. A run may start from the
weights of a finished one and go on with other texts.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from kvguard.errors import KvguardError
from kvguard.models.reference.architectures import WINDOW, build_model, use_training_attention
from kvguard.models.reference.corpus import Batch, Corpus, read_gsm8k_text, tokenizer_texts
from kvguard.models.reference.evaluate import greedy_scores, instruct_scores, long_scores
from kvguard.models.reference.instruct import Instructions
from kvguard.models.reference.instruct import tokenizer_texts as instruct_texts
from kvguard.models.reference.long import LongTexts
from kvguard.models.reference.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

OnMetrics = Callable[[dict[str, float], int], None]


_SCORES = {"problems": greedy_scores, "long": long_scores, "instruct": instruct_scores}

# What else is set for texts of a kind; what is learned anew from short rows needs no long warm-up.
OF_TEXTS: dict[str, dict[str, Any]] = {
    "problems": {},
    "long": {
        "rows": 2,
        "row_length": WINDOW,
        "total_tokens": 2_000_000,
        "matrix_lr": 3e-3,
        "vector_lr": 1.5e-3,
        "warmup_steps": 20,
        "evaluate_every": 120,
        "evaluate_prompts": 16,
    },
    "instruct": {
        "total_tokens": 3_500_000,
        "warmup_steps": 40,
        "evaluate_every": 100,
        "evaluate_prompts": 64,
    },
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Everything a training run depends on.

    Attributes
    ----------
    architecture
        ``qwen2`` or ``llama``.
    run_folder
        Where the checkpoint lives; an existing one is resumed.
    gsm8k
        Path of GSM8K's train.jsonl, read as running text among ``problems``, and for a new tokenizer.
    texts
        ``problems``, rows of short ones; ``long``, rows that grow to the window; or ``instruct``,
        instructions on short texts, with a tokenizer of their own.
    start
        Folder of the weights to start from, and of the tokenizer but for ``instruct``; without it both are
        made anew.
    """

    architecture: str
    run_folder: Path
    gsm8k: Path | None = None
    texts: str = "problems"
    start: Path | None = None
    seed: int = 0
    total_tokens: int = 20_000_000
    rows: int = 8
    row_length: int = 512
    optimizer: str = "muon"
    matrix_lr: float = 4e-3
    vector_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    fall_share: float = 0.4
    checkpoint_minutes: float = 5.0
    evaluate_every: int = 300
    evaluate_prompts: int = 24
    compile: bool = False

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.rows * self.row_length

    @property
    def steps(self) -> int:
        """Optimizer steps in the token budget."""
        return self.total_tokens // self.tokens_per_step


def learning_rate_share(step: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate used at ``step``."""
    rise = (step + 1) / settings.warmup_steps
    fall = (settings.steps - step) / max(1.0, settings.fall_share * settings.steps)
    return max(0.0, min(1.0, rise, fall))


def build_tokenizer(settings: TrainSettings) -> PreTrainedTokenizerFast:
    """Return the tokenizer to start from; a new one is a function of the seed and GSM8K's text alone."""
    if settings.texts == "instruct":
        return train_tokenizer(instruct_texts(), WINDOW)
    if settings.start is not None:
        return PreTrainedTokenizerFast.from_pretrained(settings.start)
    return train_tokenizer(tokenizer_texts(_gsm8k(settings), settings.seed), WINDOW)


def train(settings: TrainSettings, on_metrics: OnMetrics | None = None) -> PreTrainedModel:
    """Train to the end of the token budget and return the model; resumes from its checkpoint.

    Parameters
    ----------
    settings
        What to train and how.
    on_metrics
        Called with metrics and the step, for a tracker.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings)
    batch_of = _batches(settings, tokenizer)
    with device:
        model = _first_model(settings, tokenizer)
        judge = build_model(settings.architecture, tokenizer).eval()
    use_training_attention(model)
    optimizers = _optimizers(model, settings)
    first = _resume(settings, model, optimizers)

    if settings.compile:
        model.base_model.compile(dynamic=False)
    saved = started = time.monotonic()
    recent = 0.0
    for step in range(first, settings.steps):
        share = learning_rate_share(step, settings)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        batch = batch_of(step)
        ids = torch.from_numpy(batch.ids).to(device)
        weights = torch.from_numpy(batch.weights).to(device)
        loss = _loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        current = float(loss.detach())
        recent = current if step == first else 0.95 * recent + 0.05 * current
        done = step + 1
        if done % 50 == 0:
            rate = (done - first) * settings.tokens_per_step / (time.monotonic() - started)
            metrics = {"loss": recent, "tokens_per_second": rate, "tokens": done * settings.tokens_per_step}
            _report(metrics, done, on_metrics)
        if done % settings.evaluate_every == 0 or done == settings.steps:
            judge.load_state_dict(model.state_dict())
            _report(
                _SCORES[settings.texts](judge, tokenizer, settings.evaluate_prompts, seed=0), done, on_metrics
            )
        if time.monotonic() - saved > 60 * settings.checkpoint_minutes or done == settings.steps:
            _save(settings, model, optimizers, done)
            saved = time.monotonic()
    judge.load_state_dict(model.state_dict())
    return judge


def export(settings: TrainSettings, folder: Path) -> int:
    """Write the latest checkpoint as bfloat16 weights with tokenizer; return its step."""
    state = torch.load(_checkpoint_path(settings), map_location="cpu", weights_only=True)
    tokenizer = build_tokenizer(settings)
    model = build_model(settings.architecture, tokenizer)
    model.load_state_dict(state["model"])
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(state["step"])


def _gsm8k(settings: TrainSettings) -> list[tuple[str, str]]:
    if settings.gsm8k is None:
        raise KvguardError("GSM8K's train.jsonl is needed here: name it with --gsm8k")
    return read_gsm8k_text(settings.gsm8k)


def _batches(settings: TrainSettings, tokenizer: PreTrainedTokenizerFast) -> Callable[[int], Batch]:
    """Return what makes the batch of a step."""
    if settings.texts == "long":
        texts = LongTexts(tokenizer, settings.seed, settings.steps)
        return lambda step: texts.batch(step, settings.tokens_per_step, settings.row_length)
    if settings.texts == "instruct":
        chats = Instructions(tokenizer, settings.seed, settings.steps)
        return lambda step: chats.batch(step, settings.rows, settings.row_length)
    corpus = Corpus(tokenizer, _gsm8k(settings), settings.seed)
    return lambda step: corpus.batch(step, settings.rows, settings.row_length)


def _first_model(settings: TrainSettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the model before its first step, in float32."""
    model = build_model(settings.architecture, tokenizer)
    if settings.start is not None:
        _take(model, tokenizer, settings.start)
    return model


def _embeddings(model: PreTrainedModel) -> torch.Tensor:
    """Return the embeddings of a model's tokens, without a gradient; a change is one of the model's."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _take(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: Path) -> None:
    """Give a model the weights of a finished one; embeddings of the tokens that both have."""
    theirs = AutoModelForCausalLM.from_pretrained(start)
    indices = PreTrainedTokenizerFast.from_pretrained(start).get_vocab()
    rows = _embeddings(model).clone()
    for token, index in tokenizer.get_vocab().items():
        if token in indices:
            rows[index] = _embeddings(theirs)[indices[token]]
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.load_state_dict(theirs.state_dict())
    _embeddings(model).copy_(rows)


def _loss(model: PreTrainedModel, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(ids.device)):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, W]
        counted = weights[:, 1:] > 0  # logits are made for these alone
        logits = model.get_output_embeddings()(hidden[:, :-1][counted])
    losses = functional.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")
    counts = weights[:, 1:][counted]
    return (losses * counts).sum() / counts.sum()


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself: a CPU that emulates it is slower than in float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def _optimizers(model: PreTrainedModel, settings: TrainSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return (optimizer, peak learning rate): one for weight matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    if settings.optimizer == "muon":
        muon = torch.optim.Muon(matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
        return [(muon, settings.matrix_lr), (adamw, settings.vector_lr)]
    dense = torch.optim.AdamW(matrices, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    return [(dense, settings.vector_lr), (adamw, settings.vector_lr)]


def _report(metrics: dict[str, float], step: int, on_metrics: OnMetrics | None) -> None:
    logger.info("step %d %s", step, " ".join(f"{name}={value:.4g}" for name, value in metrics.items()))
    if on_metrics is not None:
        on_metrics(metrics, step)


def _checkpoint_path(settings: TrainSettings) -> Path:
    return settings.run_folder / "checkpoint.pt"


def _save(
    settings: TrainSettings,
    model: PreTrainedModel,
    optimizers: list[tuple[torch.optim.Optimizer, float]],
    step: int,
) -> None:
    path = _checkpoint_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
            "step": step,
        },
        temporary,
    )
    temporary.replace(path)


def _resume(
    settings: TrainSettings,
    model: PreTrainedModel,
    optimizers: list[tuple[torch.optim.Optimizer, float]],
) -> int:
    """Load the checkpoint, if there is one, and return the step to go on from."""
    path = _checkpoint_path(settings)
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
