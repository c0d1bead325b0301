"""A small suite on a tiny byte model: instructions that random bytes follow now and then."""

from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.load import load_model
from kvguard.models.spec import ModelSpec
from kvguard.studies.instructions.arms import all_arms
from kvguard.studies.instructions.examples import Example, Instruction, Verdicts
from kvguard.studies.instructions.generation import How
from kvguard.studies.instructions.run import Study
from kvguard.studies.instructions.scoring import Scoring
from kvguard.sweep.settings import CompressorSpec

COMPRESSORS = {
    "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 8}),
    "pyramidkv": CompressorSpec(press="PyramidKVPress", params={"window_size": 4, "beta": 3}),
    "observed_attention": CompressorSpec(press="ObservedAttentionPress"),
    "kvzip": CompressorSpec(press="KVzipPress"),
}
NEW = 24


def examples(n=5):
    """Two instructions each, one at the start and one at the end of a text, at times in a system prompt."""
    found = []
    for number in range(n):
        first, second = f"Use no letter {chr(97 + number)}.", "Say it twice."
        body = "A fox ran over the hill and met a hen. " * (1 + number % 2)
        in_system = number % 2 == 0
        found.append(
            Example(
                key=f"e{number}",
                suite="made",
                prompt=f"{body}{second}" if in_system else f"{first} {body}{second}",
                instructions=(
                    Instruction("letters:none_of", {"letter": chr(97 + number)}, first),
                    Instruction("length:even", {}, second),
                ),
                system=f"You are a fox. {first}" if in_system else None,
                position=("start", "middle", "end")[number % 3],
            )
        )
    return found


def verify(example, text):
    """Rules that need no library."""
    letter = example.instructions[0].kwargs["letter"]
    followed = (letter not in text, len(text) % 2 == 0)
    return Verdicts(followed, (True, followed[1]))


def load(folder):
    return load_model("tiny", ModelSpec(source=f"path:{folder}", task="arithmetic"), "cpu")


def study(
    loaded,
    conditions=("streaming_llm@0.5", "random@0.5"),
    treatments=(),
    n=5,
    guard=None,
    rules=verify,
    **changes,
):
    how = How(loaded, COMPRESSORS, NEW, batch_size=8, seed=3, guard=guard)
    scoring = Scoring(
        rules, CatastropheParams(loop_window=4), NEW, changes.pop("judge", None), changes.pop("both", 0)
    )
    arms = all_arms(conditions, treatments, COMPRESSORS)
    return Study(examples(n), arms, how, scoring, **{"together": 2, **changes})
