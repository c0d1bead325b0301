"""The suite that ``reference_instruct`` was trained for, of examples that it has never seen."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from random import Random

from kvguard.errors import KvguardError
from kvguard.studies.instructions.examples import Example, Instruction, Verdicts
from kvguard.studies.instructions.suites.loose import variants
from kvguard.tasks import instructions
from kvguard.tasks.instruction_rules import followed

_ALL = 1000
_SENTENCES = (16, 32, 48)  # some 90, 160 and 230 tokens


def load(path: Path | None, n: int | None, seed: int, placement: str) -> list[Example]:
    """Return ``n`` held-out examples: every position, every length, one instruction and two, in turns."""
    if path is not None:
        raise KvguardError(f"suite path {path}: the embedded suite makes its examples: leave the path out")
    return list(islice(_examples(seed, placement), _ALL if n is None else n))


def verifier() -> Callable[[Example, str], Verdicts]:
    """Return the rules of the small world; all of them can check."""
    return verdicts


def verdicts(example: Example, text: str) -> Verdicts:
    """Return whether ``text`` follows each instruction, as it is and without what may frame an answer."""
    loose = variants(text)
    told = example.instructions
    return Verdicts(
        strict=tuple(followed(one.id, one.kwargs, text) for one in told),
        loose=tuple(any(followed(one.id, one.kwargs, variant) for variant in loose) for one in told),
    )


def _examples(seed: int, placement: str) -> Iterator[Example]:
    rng = Random(f"instructions/embedded/{seed}")
    seen: set[str] = set()
    for index in count():
        moved = placement == "system"
        position = "start" if moved else instructions.POSITIONS[index % 3]
        while True:
            made = instructions.sample(
                rng, _SENTENCES[index // 3 % 3], 1 + index // 9 % 2, "evaluation", position
            )
            if made.prompt not in seen:
                break
        seen.add(made.prompt)
        yield Example(
            key=f"{seed}-{index}",
            suite="embedded",
            prompt=made.bare if moved else made.prompt,
            instructions=tuple(Instruction(one.kind, dict(one.kwargs), one.text) for one in made.told),
            system=made.instruction if moved else None,
            position=made.position,
            metadata={"answer": made.answer, "sentences": len(made.sentences)},
        )
