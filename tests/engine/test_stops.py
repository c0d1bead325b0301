"""Stop strings end a text at the token where transformers' ``stop_strings`` do."""

import random

import pytest
import torch
from transformers import AutoTokenizer
from transformers.generation import StopStringCriteria

from kvguard.engine.loop import decode
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.models.load import load_model
from kvguard.models.reference import WEIGHTS
from kvguard.models.spec import ModelSpec
from kvguard.tasks import sample_prompts

SETS = (("\n\nQ:",), ("\n\nQ:", "\n\nQuestion", "###"), ("aa", "aaa"), (".",), (" the", "he c"), ("é", "12"))


@pytest.fixture(params=["reference", "bytes", pytest.param("smollm2", marks=pytest.mark.real_model)])
def tokenizer(request, model_folder, real_model):
    if request.param == "smollm2":
        return AutoTokenizer.from_pretrained(real_model("smollm2"))
    return AutoTokenizer.from_pretrained(WEIGHTS / "qwen2" if request.param == "reference" else model_folder)


def texts(strings, rng):
    """Texts that hold a stop string whole, cut short, doubled, and inside words."""
    filler = [
        "Ana has 12 pens.",
        " the cat",
        "\n",
        "\n\n",
        "Q",
        ":",
        "a",
        " ",
        "é",
        "#",
        "so",
        "\n\nQ",
        "he c",
    ]
    for _ in range(40):
        parts = [
            rng.choice([*filler, *strings, *(s[:-1] for s in strings)]) for _ in range(rng.randint(1, 12))
        ]
        yield "".join(parts)


def sequences(tokenizer, strings, rng):
    """Token ids as texts give them, and as a model may: in any order, most of a stop string's letters."""
    near = [
        i
        for token, i in tokenizer.get_vocab().items()
        if len(token) < 4 and set("\n\\ĊQ:#a.Ġéhe12") & set(token)
    ]
    for text in texts(strings, rng):
        yield tokenizer.encode(text, add_special_tokens=False)
    for _ in range(40):
        some = [rng.choice(near) for _ in range(24)] + [rng.randrange(len(tokenizer)) for _ in range(8)]
        rng.shuffle(some)
        yield some


@pytest.mark.parametrize("strings", SETS)
def test_they_stop_where_those_of_transformers_stop(tokenizer, strings):
    rng = random.Random(str(strings))
    theirs, stops = StopStringCriteria(tokenizer, list(strings)), StopStrings(tokenizer, strings)
    n_stops = 0
    for token_ids in sequences(tokenizer, strings, rng):
        state = stops.start()
        for n, token in enumerate(token_ids, start=1):
            said = bool(theirs(torch.tensor([token_ids[:n]]), None))
            assert state.push(token) == said, (token_ids[:n], stops.piece(token))
            n_stops += said
    assert n_stops >= 10


@pytest.mark.parametrize("strings", SETS[:3])
def test_a_rewound_text_is_as_if_it_had_never_gone_on(tokenizer, strings):
    rng = random.Random(0)
    stops = StopStrings(tokenizer, strings)
    for token_ids in sequences(tokenizer, strings, rng):
        state, kept = stops.start(), rng.randint(0, len(token_ids))
        before = [state.push(token) for token in token_ids]
        state.rewind(kept)
        assert [state.push(token) for token in token_ids[kept:]] == before[kept:]


def test_a_text_is_cut_before_the_first_stop_string_in_it(model_folder):
    stops = StopStrings(AutoTokenizer.from_pretrained(model_folder), ("\n\nQ:", "###"))
    assert stops.cut("A: 5\n\nQ: and") == "A: 5"
    assert stops.cut("5 ### 6\n\nQ:") == "5 "
    assert stops.cut("5\n\nQ") == "5\n\nQ"


@pytest.mark.parametrize("strings", [(), ("a", "")])
def test_an_empty_stop_string_is_rejected(model_folder, strings):
    with pytest.raises(KvguardError, match="at least one character"):
        StopStrings(AutoTokenizer.from_pretrained(model_folder), strings)


def test_decoding_ends_rows_where_generate_does():
    """Rows end at different steps, and transformers generates each on its own."""
    loaded = load_model("reference", ModelSpec(source="embedded:qwen2", task="arithmetic"), "cpu")
    prompts = [
        torch.tensor(loaded.encode(p)) for p in sample_prompts("arithmetic", 4, 0, n_shots=1)["prompt"]
    ]
    stops, condition, rows = StopStrings(loaded.tokenizer, (" left", "####")), Condition("none", 0.0), []
    how = {"max_new_tokens": 160, "do_sample": False, "pad_token_id": 0, "tokenizer": loaded.tokenizer}
    for prompt in prompts:
        done = prefill(loaded.model, prompt, {condition: None}, "sdpa")
        rows.append(Row(prompt, done.logits, done.kept[condition]))
    made = decode(loaded.model, rows, Decoding(160, loaded.eos_ids, stops=stops), batch_size=2)
    for row, prompt in enumerate(prompts):
        out = loaded.model.generate(prompt[None], stop_strings=list(stops.strings), **how)
        assert made.token_ids[row, : made.lengths[row]].tolist() == out[0, len(prompt) :].tolist()
    assert made.stopped[made.lengths < 160].all()
    assert len(set(made.lengths.tolist())) > 2
    ended = loaded.tokenizer.batch_decode([made.token_ids[r, :n] for r, n in enumerate(made.lengths)])
    assert any("####" in text for text in ended)
    assert not any("####" in stops.cut(text) for text in ended)
