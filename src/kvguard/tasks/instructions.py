"""Instructions that a small model can follow, and that a rule can check, on texts of any length.

    Never use the word milk. Ana buys milk. The house is small. Ana buys rice. Ana buys silk.

    What does Ana buy?

    rice, silk

An instruction stands at the start of the text, in its middle, or at its end; two may be given at once.
Without one the answer names all that the person buys, in the order of the text, so an instruction that is
forgotten shows: every instruction is chosen such that this answer breaks it. Pure Python: the trainer of the
reference model and the suite of the instructions study share it.

A core is who is asked for, what they buy, and what is told. Its hash says whether it is trained on or held
out.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from random import Random
from typing import Any, Literal

Position = Literal["start", "middle", "end"]
Split = Literal["train", "evaluation"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIONS: tuple[Position, ...] = ("start", "middle", "end")
PEOPLE = _words(
    """
    Ana Ben Cora Dan Eva Finn Gina Hugo Ida Jack Kira Leo Mia Noah Olga Paul Rita Sam Tara Uma Vera Will
    """
)
THINGS = _words(
    """
    ash bread clay corn cream flour glass gold honey ink iron jam lace milk mint oil paper rice salt
    sand silk soap sugar tea wax wine wood wool zinc
    """
)
LETTERS = "aeilor"
_PLACES = _words(
    """
    house street garden river market school bridge tower field station
    """
)
_LOOKS = _words("old new small large quiet busy dark bright empty wide")
_TINTS = _words("red green blue white black grey brown pink")
_NOUNS = _words("moon stone cloud bird tree door boat hill lamp song")
_COUNTS = {1: "one thing", 2: "two things", 3: "three things", 4: "four things"}
_HELD_OUT = 10  # one core in so many

# The ways to say each instruction.
_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "form:one_word": ("Answer in one word.", "Give a single word.", "Use only one word."),
    "form:capitals": ("Answer in capitals.", "Use capital letters only.", "Write everything in capitals."),
    "list:count": ("List exactly {count}.", "Name exactly {count}.", "Give exactly {count}."),
    "list:alphabetical": (
        "Use alphabetical order.",
        "Sort the things by alphabet.",
        "Answer in alphabetical order.",
    ),
    "list:given": ("Keep this order: {order}.", "Use this order: {order}.", "Answer in this order: {order}."),
    "end:phrase": (
        "End with the words {phrase}.",
        "Finish with the words {phrase}.",
        "The last words are {phrase}.",
    ),
    "avoid:word": ("Never use the word {word}.", "Do not say {word}.", "Leave out the word {word}."),
    "avoid:letter": (
        "Never use the letter {letter}.",
        "Do not use the letter {letter}.",
        "Avoid the letter {letter}.",
    ),
    "repeat:question": (
        "First repeat the question.",
        "Repeat the question first.",
        "Begin with the question.",
    ),
}
KINDS = tuple(_WORDINGS)

# Which may be given together.
PAIRS: tuple[tuple[str, str], ...] = (
    ("form:one_word", "form:capitals"),
    ("form:one_word", "avoid:word"),
    ("form:capitals", "list:count"),
    ("form:capitals", "list:alphabetical"),
    ("form:capitals", "list:given"),
    ("form:capitals", "avoid:word"),
    ("list:count", "end:phrase"),
    ("list:count", "repeat:question"),
    ("list:count", "avoid:word"),
    ("list:alphabetical", "end:phrase"),
    ("list:alphabetical", "repeat:question"),
    ("list:given", "end:phrase"),
    ("list:given", "repeat:question"),
    ("end:phrase", "avoid:word"),
    ("end:phrase", "repeat:question"),
    ("avoid:word", "repeat:question"),
)


@dataclass(frozen=True)
class Told:
    """One instruction: its kind, what a rule has to know of it, and its words."""

    kind: str
    kwargs: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Asked:
    """A question about a text, with what is told and the answer that does it all.

    Attributes
    ----------
    sentences
        The text, without the instructions.
    person, things
        Who is asked for, and what they buy, in the order of the text.
    told
        The instructions, in the order in which they stand.
    position, place
        Where they stand; before which sentence.
    """

    sentences: tuple[str, ...]
    person: str
    things: tuple[str, ...]
    told: tuple[Told, ...]
    position: Position
    place: int
    answer: str

    @property
    def instruction(self) -> str:
        """All that is told, as it stands in the text."""
        return " ".join(one.text for one in self.told)

    @property
    def question(self) -> str:
        """What is asked."""
        return f"What does {self.person} buy?"

    @property
    def prompt(self) -> str:
        """The text with the instructions in their place, and the question."""
        middle = (self.instruction,) if self.told else ()
        text = " ".join((*self.sentences[: self.place], *middle, *self.sentences[self.place :]))
        return f"{text}\n\n{self.question}"

    @property
    def bare(self) -> str:
        """The text without the instructions, and the question."""
        return f"{' '.join(self.sentences)}\n\n{self.question}"


def sentences() -> Iterator[str]:
    """Yield every word of this world in sentences, as often as any other."""
    for person, thing in product(PEOPLE, THINGS):
        yield f"{person} buys {thing}."
        yield f"What does {person} buy?"
    for place, look in product(_PLACES, _LOOKS):
        yield f"The {place} is {look}."
    for tint, noun in product(_TINTS, _NOUNS):
        yield f"{tint} {noun}"
    for wording in chain.from_iterable(_WORDINGS.values()):
        for letter, count in product(LETTERS, _COUNTS.values()):
            yield wording.format(count=count, order="", phrase="", word="", letter=letter)


def split_of(person: str, things: Sequence[str], told: Sequence[Told]) -> Split:
    """Return the split of a core; the order and the words of the instructions do not matter."""
    rules = sorted(f"{one.kind} {sorted(one.kwargs.items())}" for one in told)
    core = "/".join((person, *things, *rules))
    return "evaluation" if hashlib.sha256(core.encode()).digest()[0] % _HELD_OUT == 0 else "train"


def sample(
    rng: Random, n_sentences: int, n_told: int, split: Split, position: Position | None = None
) -> Asked:
    """Return the next question of ``split`` about a text of ``n_sentences``, with ``n_told`` instructions."""
    while True:
        found = ask(rng, *world(rng, n_sentences), n_told, split, position)
        if found is not None:
            return found


def ask(
    rng: Random,
    sentences: tuple[str, ...],
    person: str,
    things: tuple[str, ...],
    n_told: int,
    split: Split,
    position: Position | None = None,
) -> Asked | None:
    """Return a question about a text, None if what was drawn is of the other split."""
    kinds: tuple[str, ...] = ()
    if n_told == 1:
        kinds = (rng.choice(KINDS),)
    elif n_told == 2:
        pair = rng.choice(PAIRS)
        kinds = pair if rng.random() < 0.5 else pair[::-1]
    told = [one for kind in kinds if (one := _tell(rng, kind, person, things, kinds)) is not None]
    if len(told) < len(kinds) or split_of(person, things, told) != split:
        return None
    at: Position = rng.choice(POSITIONS) if position is None else position
    last = len(sentences)
    middle = rng.randint(last // 3, 2 * last // 3)
    place = 0 if at == "start" else middle if at == "middle" else last
    return Asked(sentences, person, things, tuple(told), at, place, _answer(person, things, told))


def world(rng: Random, n_sentences: int) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return a text of ``n_sentences`` (five at least), its person, and the 3 to 5 things bought."""
    person, things = rng.choice(PEOPLE), tuple(rng.sample(THINGS, rng.randint(3, 5)))
    sentences = [f"The {rng.choice(_PLACES)} is {rng.choice(_LOOKS)}." for _ in range(n_sentences)]
    for place, thing in zip(sorted(rng.sample(range(n_sentences), len(things))), things, strict=True):
        sentences[place] = f"{person} buys {thing}."
    return tuple(sentences), person, things


def _tell(
    rng: Random, kind: str, person: str, things: tuple[str, ...], kinds: tuple[str, ...]
) -> Told | None:
    """Return an instruction that the plain answer breaks, None if there is none of this kind."""
    kwargs: dict[str, Any] = {}
    words: dict[str, str] = {}
    if kind == "list:count":
        count = rng.randint(1, len(things) - 1)
        kwargs, words = {"count": count}, {"count": _COUNTS[count]}
    elif kind == "list:alphabetical" and list(things) == sorted(things):
        return None
    elif kind == "list:given":
        order = rng.sample(things, len(things))
        if order == list(things):
            return None
        kwargs, words = {"order": order}, {"order": ", ".join(order)}
    elif kind == "end:phrase":
        kwargs = words = {"phrase": f"{rng.choice(_TINTS)} {rng.choice(_NOUNS)}"}
    elif kind == "avoid:word":
        # An answer that is cut would avoid a later one anyway.
        first = {"list:count", "form:one_word"} & set(kinds)
        kwargs = words = {"word": things[0] if first else rng.choice(things)}
    elif kind == "avoid:letter":
        apt = [letter for letter in LETTERS if 0 < sum(letter in thing for thing in things) < len(things)]
        if not apt:
            return None
        kwargs = words = {"letter": rng.choice(apt)}
    elif kind == "repeat:question":
        kwargs = {"question": f"What does {person} buy?"}
    return Told(kind, kwargs, rng.choice(_WORDINGS[kind]).format(**words))


def _answer(person: str, things: tuple[str, ...], told: Sequence[Told]) -> str:
    """Return the answer that does all that is told."""
    rules = {one.kind: one.kwargs for one in told}
    named = list(rules["list:given"]["order"]) if "list:given" in rules else list(things)
    if "list:alphabetical" in rules:
        named.sort()
    if "avoid:word" in rules:
        named.remove(rules["avoid:word"]["word"])
    if "avoid:letter" in rules:
        named = [thing for thing in named if rules["avoid:letter"]["letter"] not in thing]
    if "form:one_word" in rules:
        named = named[:1]
    if "list:count" in rules:
        named = named[: rules["list:count"]["count"]]
    text = ", ".join(named)
    if "form:capitals" in rules:
        text = text.upper()
    if "repeat:question" in rules:
        text = f"{rules['repeat:question']['question']} {text}"
    if "end:phrase" in rules:
        text = f"{text}. {rules['end:phrase']['phrase']}"
    return text
