"""Biases, penalties and cuts, against their definitions; and what a rewound row has forgotten."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvguard.engine.batch import Batch
from kvguard.engine.loop import decode_steps
from kvguard.engine.penalties import Adjusted
from kvguard.engine.requests import Request
from kvguard.engine.sampling import Draw, Nucleus, Past, greedy
from tiny import build

V, NEW = 12, 16
tokens = st.lists(st.integers(0, V - 1), max_size=8)
row = st.tuples(
    tokens.filter(bool), tokens, st.lists(st.floats(-9, 9, width=32), min_size=V, max_size=V)
)  # prompt, text, logits
penalty = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 2.0])


def drawing(rows, longer=0):
    """The logits [B, V] of rows and what they draw; ``longer``: so many tokens that were rewound."""
    t = np.array([len(text) for _, text, _ in rows])
    generated = torch.full((len(rows), max(t) + longer), 3, dtype=torch.int32)
    for number, (_, text, _) in enumerate(rows):
        generated[number, : len(text)] = torch.tensor(text, dtype=torch.int32)
    past = Past([torch.tensor(prompt) for prompt, _, _ in rows], generated)
    draw = Draw(np.arange(len(rows)), t, np.zeros(len(rows), np.int64), past)
    return torch.tensor([logits for *_, logits in rows]), draw


def by_definition(prompt, text, logits, sampler):
    changed = [np.float32(x) for x in logits]
    for token, added in sampler.bias:
        changed[token] += np.float32(added)
    for token in range(V):
        if token in prompt or token in text:
            factor = np.float32(sampler.repetition)
            changed[token] = changed[token] / factor if changed[token] > 0 else changed[token] * factor
        changed[token] -= np.float32(sampler.frequency) * text.count(token)
        changed[token] -= np.float32(sampler.presence) * (token in text)
    return changed


@given(
    st.lists(row, min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 1.5]),
    penalty,
    penalty,
    st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=3),
    st.integers(0, 3),
)
def test_penalties_are_what_their_definitions_say(rows, repetition, presence, frequency, bias, longer):
    seen = []

    def inner(logits, draw):
        seen.append(logits)
        return greedy(logits, draw)

    sampler = Adjusted(inner, repetition, presence, frequency, tuple(bias.items()))
    logits, draw = drawing(rows, longer)
    before = logits.clone()
    sampler(logits, draw)
    assert (logits == before).all()  # signals and log-probabilities are of the raw ones
    wanted = [by_definition(*one, sampler) for one in rows]
    assert torch.allclose(seen[0], torch.tensor(np.array(wanted)), atol=1e-4)


def chosen(probabilities, top_k, min_p, top_p):
    """The tokens that may be drawn."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    order = [token for token in order if probabilities[token] >= min_p * probabilities[order[0]]]
    order = order[: top_k or None]
    whole, total, kept = sum(probabilities[token] for token in order), 0.0, []
    for token in order:
        if total / whole < top_p:
            kept.append(token)
        total += probabilities[token]
    return kept


@pytest.mark.parametrize(
    ("top_k", "min_p", "top_p"), [(2, 0, 1), (0, 0.25, 1), (3, 0, 0.6), (3, 0.15, 0.9), (1, 0, 1), (99, 0, 1)]
)
def test_sampled_tokens_are_those_that_the_cuts_leave_in_their_proportions(top_k, min_p, top_p):
    wanted = torch.tensor([0.3, 0.05, 0.4, 0.1, 0.15])
    n = 20_000
    draw = Draw(np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64))
    found = Nucleus(1.0, top_p, 1, top_k, min_p)(wanted.log().expand(n, 5), draw)
    shares = (torch.bincount(found, minlength=5) / n).tolist()
    kept = chosen(wanted.tolist(), top_k, min_p, top_p)
    total = sum(wanted[token].item() for token in kept)
    for token in range(5):
        share = wanted[token].item() / total if token in kept else 0
        assert shares[token] == pytest.approx(share, abs=0.02 if share else 0)


def test_the_most_likely_of_one_is_greedy():
    logits = torch.randint(0, 3, (400, 30), generator=torch.Generator().manual_seed(0)).float()  # many ties
    draw = Draw(np.arange(400), np.zeros(400, np.int64), np.zeros(400, np.int64))
    for sampler in (Nucleus(1.0, top_k=1), Nucleus(5.0, top_k=1, min_p=0.5, seed=4)):
        assert (sampler(logits, draw) == greedy(logits, draw)).all()


@pytest.fixture(scope="module")
def model():
    return build("llama")


def generated(model, requests, size, act=None):
    batch = Batch(model, size)
    for request in requests:
        batch.add(request)
    done = {}
    for step in decode_steps(batch):
        if act is not None:
            act(batch, step)
        done |= {one.row: one.token_ids.tolist() for one in batch.collect()}
    return done | {one.row: one.token_ids.tolist() for one in batch.collect()}


def requests_of(sampler):
    prompts = [torch.arange(20 + 3 * number) % 50 + number for number in range(3)]
    return [Request(prompt, NEW, (), sampler=sampler, key=0) for prompt in prompts]


@pytest.mark.parametrize("inner", [greedy, Nucleus(1.5, seed=2)])
def test_penalties_do_not_depend_on_the_batch_and_hold_for_whole_texts(model, inner):
    sampler = Adjusted(inner, frequency=1000.0)
    together = generated(model, requests_of(sampler), 3)
    assert all(len(set(text)) == NEW for text in together.values())  # no token twice
    for number, request in enumerate(requests_of(sampler)):
        assert generated(model, [request], 1) == {0: together[number]}
    mixed = [requests_of(sampler)[0], requests_of(greedy)[1], requests_of(Adjusted(inner, repetition=3.0))[2]]
    assert generated(model, mixed, 3)[0] == together[0]


def test_a_rewound_row_is_not_penalised_for_what_it_has_forgotten(model):
    sampler = Adjusted(frequency=1000.0, presence=1.0, repetition=1.3)
    wanted = generated(model, requests_of(sampler), 3)
    rewound = []

    def act(batch, step):
        for slot in np.flatnonzero((step.row == 1) & (step.t == 9)):
            if not rewound:
                batch.restore([int(slot)], [4])  # uncompressed as it is, it draws the same anew
                rewound.append(slot)

    assert generated(model, requests_of(sampler), 3, act) == wanted
    assert rewound
