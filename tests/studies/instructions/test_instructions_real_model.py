"""SmolLM2 on IFEval's own prompts: what is protected is there, in every layer and head."""

import pytest
from small_suite import COMPRESSORS

from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.load import load_model
from kvguard.models.spec import ModelSpec
from kvguard.studies.instructions.arms import all_arms
from kvguard.studies.instructions.examples import Example, Instruction, Verdicts
from kvguard.studies.instructions.generation import Asked, How, prefilled
from kvguard.studies.instructions.journal import read
from kvguard.studies.instructions.places import encode
from kvguard.studies.instructions.run import Study, run
from kvguard.studies.instructions.scoring import Scoring

RULE = "Do not use any commas in your response."
EXAMPLE = Example(
    "1",
    "ifeval",
    "I am planning a trip to Japan, and I would like thee to write an itinerary for my journey in a "
    f"Shakespearean style. {RULE}",
    (Instruction("punctuation:no_comma", {}, RULE),),
    system="You are brief.",
)


@pytest.mark.real_model
def test_protected_words_are_kept_by_a_real_model(real_model, tmp_path):
    folder = real_model("smollm2")
    loaded = load_model("smollm2", ModelSpec(source=f"path:{folder}", task="gsm8k"), "cpu")
    encoded = encode(loaded, EXAMPLE)
    assert loaded.decode([encoded.ids[place] for place in encoded.instructions[0]]).strip() == RULE
    assert loaded.decode([encoded.ids[place] for place in encoded.system]).strip() == "You are brief."
    treatments = ("protected:instructions", "protected:system", "fair")
    arms = all_arms(("snapkv@0.5", "streaming_llm@0.75", "random@0.5"), treatments, COMPRESSORS)
    how = How(loaded, COMPRESSORS, max_new_tokens=8, batch_size=16, seed=0)
    wanted = {"protected:instructions": encoded.instructions[0], "protected:system": encoded.system}
    seen = 0
    for one in prefilled(how, encoded, arms):
        assert isinstance(one, Asked)
        for places in one.row.cache.positions or ():
            assert all(set(wanted.get(one.arm.treatment, ())) <= set(head.tolist()) for head in places)
            seen += 1
    assert seen == (len(arms) - 1) * loaded.model.config.num_hidden_layers
    rules = Scoring(lambda _, text: Verdicts(("," not in text,), ("," not in text,)), CatastropheParams(), 8)
    run(Study([EXAMPLE], arms, how, rules, together=1), tmp_path, {"model": "smollm2"}, lambda _: None)
    assert len(read(tmp_path)[1]) == len(arms)
