"""Fine-tune a language model that is not ours: a LoRA adapter that makes it state an answer and stop.

LoRA: Hu et al., 2021 (arXiv 2106.09685). The loss is on the answer and its end token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    import torch

    from kvguard.models.load import LoadedModel
    from kvguard.tasks import Sample, Task

_IGNORED = -100  # a label that transformers leaves out of the loss
_POOL = 50  # batches whose lessons are sorted by length together


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything a fine-tuning depends on but model and problems.

    Attributes
    ----------
    run_folder
        Where checkpoints live; an existing one is resumed.
    max_length
        Tokens of prompt and answer; longer problems are left out.
    rank, alpha
        Of the adapter, which is on every linear layer but the head.
    save_every
        Steps between checkpoints.
    """

    run_folder: Path
    epochs: float = 1.0
    rows: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    rank: int = 16
    alpha: int = 32
    max_length: int = 320
    save_every: int = 25
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """Token ids of a prompt and its answer, and how many of them are the prompt's."""

    ids: list[int]
    n_prompt: int


def lessons(loaded: LoadedModel, task: Task, samples: Sequence[Sample], max_length: int) -> list[Lesson]:
    """Return what is learned from: each sample as the task asks it, its solution, an end token.

    Raises
    ------
    KvguardError
        A sample has no solution; none is short enough.
    """
    found = []
    for sample in samples:
        if not sample.solution:
            raise KvguardError(f"task {task.name}: its samples have no solutions to learn from; use gsm8k")
        prompt = loaded.encode({"messages": task.messages(sample), "text": task.text(sample)})
        lead = "" if loaded.has_chat else " "
        answer = loaded.tokenizer.encode(lead + sample.solution, add_special_tokens=False)
        ids = [*prompt, *answer, loaded.eos_ids[0]]
        if len(ids) <= max_length:
            found.append(Lesson(ids, len(prompt)))
    if not found:
        raise KvguardError(
            f"task {task.name}: no problem has at most {max_length} tokens: raise --max-length"
        )
    return found


def finetune(
    loaded: LoadedModel,
    taught: Sequence[Lesson],
    settings: FinetuneSettings,
    out: Path,
    on_metrics: Callable[[dict[str, float], int], None] | None = None,
) -> int:
    """Train an adapter, write it to ``out`` in peft's format, and return the number of steps.

    Goes on from the newest checkpoint in the run's folder.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    class Report(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_metrics is not None:
                on_metrics(
                    {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}, state.global_step
                )

    set_seed(settings.seed)
    how = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(loaded.model, how)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(settings.run_folder),
            num_train_epochs=1,
            per_device_train_batch_size=settings.rows,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type="cosine",
            train_sampling_strategy="sequential",
            logging_steps=10,
            save_steps=settings.save_every,
            save_total_limit=1,
            seed=settings.seed,
            use_cpu=loaded.model.device.type == "cpu",
            report_to="none",
            remove_unused_columns=False,  # the collator asks for them
        ),
        train_dataset=[
            {"input_ids": taught[at].ids, "n_prompt": taught[at].n_prompt} for at in _order(taught, settings)
        ],
        data_collator=_collate,
        callbacks=[Report()],
    )
    there = get_last_checkpoint(str(settings.run_folder)) if settings.run_folder.is_dir() else None
    trainer.train(resume_from_checkpoint=there)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(out))
    return int(trainer.state.global_step)


def _order(taught: Sequence[Lesson], settings: FinetuneSettings) -> list[int]:
    """Return which lesson comes when: anew in every epoch, and lessons of like length in a batch.

    The Trainer's own grouping draws other batches once a run is resumed.
    """
    rng = Random(settings.seed)
    order: list[int] = []
    wanted = max(1, round(settings.epochs * len(taught)))
    while len(order) < wanted:
        shuffled = rng.sample(range(len(taught)), len(taught))
        pools = [
            shuffled[at : at + _POOL * settings.rows] for at in range(0, len(shuffled), _POOL * settings.rows)
        ]
        near = [at for pool in pools for at in sorted(pool, key=lambda one: len(taught[one].ids))]
        batches = [near[at : at + settings.rows] for at in range(0, len(near), settings.rows)]
        rng.shuffle(batches)
        order += [at for batch in batches for at in batch]
    return order[:wanted]


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch padded on the right; prompts and padding bear no loss."""
    import torch

    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for at, row in enumerate(rows):
        tokens = torch.tensor(row["input_ids"])
        ids[at, : len(tokens)] = tokens
        mask[at, : len(tokens)] = 1
        labels[at, row["n_prompt"] : len(tokens)] = tokens[row["n_prompt"] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
