"""Greedy accuracy on held-out problems: the progress report of a training run."""

from collections import defaultdict
from itertools import islice
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kvguard.tasks import arithmetic, instructions, longarith
from kvguard.tasks.answers import given_answer, is_correct
from kvguard.tasks.instruction_rules import followed
from kvguard.tasks.prompts import build_prompt

_N_SHOTS = 3
_SENTENCES = (8, 16, 32, 48)  # some 50 to 230 tokens
_LONG_SENTENCES = (24, 72, 144, 216)  # some 240, 690, 1,300 and 1,950 tokens


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
    texts, stopped = _answers(model, tokenizer, prompts, max_new_tokens)
    correct = [
        bool(is_correct(given_answer(t), p.references[0])) for t, p in zip(texts, problems, strict=True)
    ]
    main = [
        c for c, p in zip(correct, problems, strict=True) if p.metadata["family"] == arithmetic.MAIN_FAMILY
    ]
    return {
        "accuracy": sum(correct) / len(correct),
        "accuracy_main": sum(main) / max(1, len(main)),
        "not_stopped": 1.0 - stopped,
    }


@torch.no_grad()
def long_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> dict[str, float]:
    """Return the accuracy on ``n`` held-out texts of each of four lengths, named by their sentences."""
    scores = {}
    for sentences in _LONG_SENTENCES:
        rng = Random(f"long/{sentences}/{seed}")
        asked = [longarith.sample(rng, sentences) for _ in range(n)]
        texts, _ = _answers(model, tokenizer, [a.question for a in asked], max_new_tokens=48)
        right = [is_correct(given_answer(t), a.references[0]) for t, a in zip(texts, asked, strict=True)]
        scores[f"accuracy_{sentences}"] = sum(map(bool, right)) / n
    return scores


@torch.no_grad()
def instruct_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> dict[str, float]:
    """Return the shares of instructions followed, in all and by kind, of right answers, and not stopped."""
    rng = Random(f"instruct/{seed}")
    asked = [
        instructions.sample(rng, _SENTENCES[i % len(_SENTENCES)], 1 + (i // 4) % 2, "evaluation")
        for i in range(n)
    ]
    texts, stopped = _answers(model, tokenizer, [a.prompt for a in asked], max_new_tokens=48)
    kinds = defaultdict(list)
    for one, text in zip(asked, texts, strict=True):
        for told in one.told:
            kinds[told.kind].append(followed(told.kind, told.kwargs, text))
    right = [text == one.answer for one, text in zip(asked, texts, strict=True)]
    done = [verdict for verdicts in kinds.values() for verdict in verdicts]
    return {
        "followed": sum(done) / len(done),
        "right": sum(right) / n,
        "not_stopped": 1.0 - stopped,
        **{f"followed_{kind.replace(':', '_')}": sum(v) / len(v) for kind, v in sorted(kinds.items())},
    }


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new_tokens: int
) -> tuple[list[str], float]:
    """Return the greedy answers to chats of one user message, and the share that stopped."""
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
    texts = [str(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return texts, float(stopped.float().mean())
