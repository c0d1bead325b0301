"""Instructions are found among a prompt's tokens, by their words."""

import pytest
from transformers import AutoTokenizer

from imports import SRC
from kvguard.models.load import LoadedModel
from kvguard.studies.instructions.examples import Example, Instruction
from kvguard.studies.instructions.places import encode

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def ask(prompt, *texts, system=None):
    return Example("k", "s", prompt, tuple(Instruction("a:b", {}, text) for text in texts), system=system)


def words(loaded, ids, places):
    return loaded.decode([ids[place] for place in places])


def test_the_tokens_of_each_instruction_are_those_of_its_words(loaded):
    example = ask(
        "Answer in one word.  What is a fox?\n\nNever say hen. ", "Answer in one word.", "Never say hen."
    )
    found = encode(loaded, example)
    assert [words(loaded, found.ids, places) for places in found.instructions] == [
        "Answer in one word.",
        "Never say hen.",
    ]
    assert found.system is None


def test_words_that_are_not_there_have_no_tokens(loaded):
    assert encode(loaded, ask("A fox.", "A hen.", None)).instructions == (None, None)


def test_characters_of_several_tokens_have_all_of_them(loaded):
    found = encode(loaded, ask("Füchse: 狐 — sag «狐».", "狐 — sag"))
    (places,) = found.instructions
    assert words(loaded, found.ids, places) == "狐 — sag"
    assert places == tuple(range(places[0], places[-1] + 1))


def test_an_instruction_is_sought_in_the_system_prompt_first(loaded):
    found = encode(loaded, ask("Be brief. A fox.", "Be brief.", system="You are a hen. Be brief."))
    assert words(loaded, found.ids, found.system) == "You are a hen. Be brief."
    assert set(found.instructions[0]) < set(found.system)


@pytest.mark.parametrize("folder", ["weights", "weights_long"])
def test_a_trained_tokenizer_gives_the_words_and_at_most_what_sticks_to_them(loaded, folder):
    root = SRC / "kvguard/models/reference" / folder
    for config in sorted(root.rglob("tokenizer.json")):
        tokenizer = AutoTokenizer.from_pretrained(config.parent)
        tokenizer.chat_template = TEMPLATE
        model = LoadedModel("m", loaded.model, tokenizer, "")
        text = "Tom has 3 apples. Answer with a number only!"
        found = encode(
            LoadedModel("m", _Wide(loaded.model, len(tokenizer)), tokenizer, ""),
            ask(f"{text} How many apples has Tom?", "Answer with a number only!", system="Be kind to Tom."),
        )
        said = words(model, found.ids, found.instructions[0]).strip()
        assert "Answer with a number only!" in said
        assert len(said) <= len("Answer with a number only!") + 8
        assert "Be kind to Tom." in words(model, found.ids, found.system)


class _Wide:
    """A model that knows as many tokens as a tokenizer."""

    def __init__(self, model, size):
        self.config = type(model.config)(**{**model.config.to_dict(), "vocab_size": size})
        self.generation_config = model.generation_config
