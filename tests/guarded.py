"""What the tests of the front door compare with, and how they read what it gives."""

import torch

import bundles
from kvguard.engine.loop import decode
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.sampling import greedy

NEW = bundles.MAX_NEW_TOKENS


def static(reference, prompts, press, sampler=None):
    """The token ids that compression without any guard gives."""
    from kvguard.models.load import LoadedModel

    loaded = LoadedModel("reference", *reference, "")
    rows = []
    for prompt in prompts:
        ids = torch.tensor(loaded.encode(prompt) if isinstance(prompt, str) else prompt)
        done = prefill(loaded.model, ids, {Condition("c", 0.5): press}, "sdpa")
        rows.append(Row(ids, done.logits, done.kept[Condition("c", 0.5)]))
    how = Decoding(NEW, loaded.eos_ids, sampler=sampler or greedy)
    found = decode(loaded.model, rows, how, batch_size=8)
    return [ids[:n].tolist() for ids, n in zip(found.token_ids, found.lengths, strict=True)]


def encoded(reference, prompt):
    message = [{"role": "user", "content": prompt}]
    return reference[1].apply_chat_template(message, add_generation_prompt=True)["input_ids"]


def ids_of(outputs):
    return [output.token_ids.tolist() for output in outputs]


def eos(reference):
    eos = reference[0].generation_config.eos_token_id
    return eos if isinstance(eos, list) else [eos]
