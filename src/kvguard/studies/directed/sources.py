"""Data sets by name: of the hub, of local files, or made here for the embedded models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from kvguard.config import check_known
from kvguard.errors import KvguardError, foreign
from kvguard.store.parts import digest
from kvguard.studies.directed.examples import Example, examples_of, read_examples
from kvguard.tasks import facts, longarith
from kvguard.tasks.longarith import LongArith
from kvguard.tasks.scores import stands_in

if TYPE_CHECKING:
    from kvguard.studies.directed.params import DatasetParams

Row = Mapping[str, Any]
_MADE = 600  # examples of the reading task


@dataclass(frozen=True)
class Dataset:
    """Examples, in an order that the seed sets.

    Attributes
    ----------
    examples
        All of them: conditions take other examples' questions from here, whatever number is asked.
    judge
        A generated text and its example -> whether it answers.
    """

    name: str
    examples: Sequence[Example]
    judge: Callable[[str, Example], bool]

    @property
    def fingerprint(self) -> str:
        """Names all that the data set holds."""
        return digest([vars(example) for example in self.examples])


def open_dataset(name: str, params: DatasetParams, seed: int) -> Dataset:
    """Read a data set.

    Parameters
    ----------
    params
        Where it comes from: ``path:FILE``, ``hub:NAME``, ``embedded:reading`` or ``embedded:facts``.

    Raises
    ------
    KvguardError
        It cannot be read, or a row of it is wrong: which, where, how to fix it.
    """
    kind, _, rest = params.source.partition(":")
    if kind == "path":
        found, judge = read_examples(Path(rest).expanduser()), _says
    elif kind == "hub":
        check_known(f"datasets.{name}.source", rest, HUB)
        found, judge = examples_of(list(islice(HUB[rest](params.split), params.pool))), _says
    elif params.source == "embedded:reading":
        return Dataset(name, _reading(params.sentences, seed), _adds_up)
    elif params.source == "embedded:facts":
        return Dataset(name, _facts(params.sentences, seed), _says)
    else:
        raise KvguardError(
            f"datasets.{name}.source: {params.source!r} is no source: write path:FILE, "
            f"hub:NAME ({', '.join(HUB)}), embedded:reading or embedded:facts"
        )
    Random(f"directed/{seed}").shuffle(found)
    return Dataset(name, found, judge)


def _says(text: str, example: Example) -> bool:
    """Tell whether the first line of a text holds an answer."""
    lines = text.strip().splitlines()
    return bool(lines) and any(stands_in(answer, lines[0]) for answer in example.answers)


def _adds_up(text: str, example: Example) -> bool:
    return LongArith().score(text, longarith.Sample("", example.answers))["accuracy"] == 1


def _facts(sentences: int, seed: int) -> list[Example]:
    """Return texts of the task that the reference encoder-decoder reads, see :mod:`kvguard.tasks.facts`."""
    rng = Random(f"directed/facts/{seed}")
    made = []
    for nth in range(_MADE):
        stated = facts.facts(rng, sentences)
        asked = rng.choice(stated)
        made.append(
            Example(
                f"facts-{nth}",
                asked.question,
                facts.text(stated),
                (asked.answer,),
                asked.answer,
                asked.paraphrase,
            )
        )
    return made


def _reading(sentences: int, seed: int) -> list[Example]:
    """Return short texts of the task that ``reference_long`` reads, see :mod:`kvguard.tasks.longarith`."""
    rng = Random(f"directed/reading/{seed}")
    made = []
    for nth in range(_MADE):
        sample = longarith.sample(rng, sentences)
        context, _, question = sample.question.rpartition("\n\n")
        asked = question.removesuffix(longarith.CUE).strip()
        people = asked.removeprefix("How many things do ").removesuffix(" have together?")
        other = f"What is the sum of the things of {people}? {longarith.CUE}"
        made.append(Example(f"reading-{nth}", question, context, sample.references, sample.solution, other))
    return made


def _rows(path: str, name: str | None, split: str) -> Iterator[tuple[str, Row]]:
    with foreign(f"hub data set {path}", "check the network, or give the data as path:FILE"):
        from datasets import load_dataset

        for number, row in enumerate(load_dataset(path, name, split=split)):
            yield f"{path}, row {number}", row


def _ms_marco(split: str) -> Iterator[tuple[str, Row]]:
    """Yield MS MARCO's questions with the passage that their annotator chose."""
    for where, row in _rows("microsoft/ms_marco", "v2.1", split):
        passages = row["passages"]
        chosen = [
            text
            for text, is_chosen in zip(passages["passage_text"], passages["is_selected"], strict=True)
            if is_chosen
        ]
        answers = [answer for answer in row["answers"] if answer and answer != "No Answer Present."]
        if chosen and answers:
            yield (
                where,
                {"id": row["query_id"], "question": row["query"], "context": chosen[0], "answers": answers},
            )


def _squad2(split: str) -> Iterator[tuple[str, Row]]:
    for where, row in _rows("rajpurkar/squad_v2", None, split):
        if row["answers"]["text"]:
            yield (
                where,
                {
                    "id": row["id"],
                    "question": row["question"],
                    "context": row["context"],
                    "answers": list(row["answers"]["text"]),
                },
            )


def _triviaqa(split: str) -> Iterator[tuple[str, Row]]:
    """Yield TriviaQA's questions with the first paragraph of their Wikipedia pages that holds an answer."""
    for where, row in _rows("mandarjoshi/trivia_qa", "rc.wikipedia", split):
        answers = [row["answer"]["value"], *row["answer"]["aliases"]]
        paragraphs = (
            paragraph for page in row["entity_pages"]["wiki_context"] for paragraph in page.split("\n")
        )
        for paragraph in paragraphs:
            if any(stands_in(answer, paragraph) for answer in answers):
                asked = {"id": row["question_id"], "question": row["question"]}
                yield where, {**asked, "context": paragraph, "answers": answers}
                break


def _hotpotqa(split: str) -> Iterator[tuple[str, Row]]:
    for where, row in _rows("hotpotqa/hotpot_qa", "distractor", split):
        paragraphs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
        text = "\n".join(f"{title}: {''.join(sentences)}" for title, sentences in paragraphs)
        yield (
            where,
            {"id": row["id"], "question": row["question"], "context": text, "answers": [row["answer"]]},
        )


HUB: dict[str, Callable[[str], Iterator[tuple[str, Row]]]] = {
    "ms_marco": _ms_marco,
    "squad2": _squad2,
    "triviaqa": _triviaqa,
    "hotpotqa": _hotpotqa,
}
