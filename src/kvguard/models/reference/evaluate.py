"""Greedy accuracy on held-out problems: the progress report of a training run."""

from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kvguard.tasks import arithmetic
from kvguard.tasks.answers import given_answer, is_correct
from kvguard.tasks.prompts import build_prompt

_N_SHOTS = 3


@torch.no_grad()
def greedy_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    n: int,
    seed: int,
    max_new_tokens: int = 200,
) -> dict[str, float]:
    """Return accuracy over all families and over the main one, and the share that did not stop."""
    problems = list(islice(arithmetic.stream(seed, "evaluation"), n))
    prompts = [build_prompt(p.question, arithmetic.demonstrations(p.question, _N_SHOTS)) for p in problems]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[operator]
    answers = output[:, inputs["input_ids"].shape[1] :]
    stopped = (answers == tokenizer.eos_token_id).any(dim=1)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    correct = [
        bool(is_correct(given_answer(str(t)), p.references[0])) for t, p in zip(texts, problems, strict=True)
    ]
    main = [
        c for c, p in zip(correct, problems, strict=True) if p.metadata["family"] == arithmetic.MAIN_FAMILY
    ]
    return {
        "accuracy": sum(correct) / len(correct),
        "accuracy_main": sum(main) / max(1, len(main)),
        "not_stopped": 1.0 - float(stopped.float().mean()),
    }
