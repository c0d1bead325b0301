"""Scoring cells by encoder-decoders: what is read before the document, and what the decoder is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from kvguard.config import check_known
from kvguard.errors import KvguardError
from kvguard.store.journal import open_journal
from kvguard.store.parts import fingerprint
from kvguard.studies.directed.conditions import CONDITIONS, PARAPHRASE, Kit, Prefix, prefixes
from kvguard.studies.directed.encdec.scoring import Metrics, Text, scored
from kvguard.studies.directed.encdec.setting import Setting
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import Params, option
from kvguard.studies.directed.tokens import Tokens
from kvguard.studies.directed.tracks import Cell, Opening, Row
from kvguard.studies.directed.writer import Author, Writer, endpoint

if TYPE_CHECKING:
    from kvguard.models.load import LoadedModel
    from kvguard.models.spec import ModelSpec
    from kvguard.studies.directed.params import Protocol

LONGEST = 8192  # tokens that are read by a model whose positions have no end


@dataclasses.dataclass(frozen=True)
class Reader:
    """A loaded encoder-decoder with its tokens, and those that open and close what its encoder reads."""

    loaded: LoadedModel
    kit: Kit
    opens: tuple[int, ...]
    closes: tuple[int, ...]

    @classmethod
    def of(cls, loaded: LoadedModel, kit: Kit) -> Reader:
        """Ask its tokenizer."""
        plain = loaded.tokenizer("a", add_special_tokens=False).input_ids
        whole = loaded.tokenizer("a").input_ids
        at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return cls(loaded, kit, tuple(whole[:at]), tuple(whole[at + len(plain) :]))

    @property
    def window(self) -> int:
        """Tokens that its encoder can read."""
        config = self.loaded.model.config
        for one in (config, getattr(config, "encoder", None)):
            if isinstance(found := getattr(one, "max_position_embeddings", None), int):
                return min(found, LONGEST)
        return LONGEST


class EncoderDecoderBench:
    """Loaded encoder-decoders that read, and are asked.

    Parameters
    ----------
    readers
        By the model's name in settings (``on:NAME``); that of the experiment under None.
    probed
        Whether attention is measured too.
    """

    def __init__(
        self, readers: Mapping[str | None, Reader], writer: Writer, params: Params, probed: bool
    ) -> None:
        self.readers, self.writer, self.params, self.probed = readers, writer, params, probed
        self.main = readers[None]

    @property
    def fingerprint(self) -> str:
        """See :class:`~kvguard.studies.directed.tracks.Bench`."""
        kit = self.main.kit
        return fingerprint(
            {
                "models": {str(name): reader.loaded.fingerprint for name, reader in self.readers.items()},
                "dtype": str(self.main.loaded.model.dtype),
                "dataset": kit.dataset.fingerprint,
                "seed": kit.seed,
                "framings": dict(kit.framings),
                "writer": self.writer.fingerprint,
                "separator": self.params.scoring.separator,
                "probed": self.probed,
            }
        )

    def length(self, example: Example) -> int:
        """Return the tokens of an example's document."""
        return len(self.main.kit.tokens.ids(example.context))

    def room(self, example: Example) -> int:
        """Return how long a document may be beside the longest prefix that is no text of its own."""
        tokens = self.main.kit.tokens
        framed = max(len(tokens.ids(text)) for text in (example.question, *self.main.kit.framings.values()))
        around = len(self.main.opens) + len(self.main.closes) + len(self._separator(self.main))
        return min(reader.window for reader in self.readers.values()) - framed - around

    def cut(self, example: Example, n: int) -> Example:
        """Return the example with the text of its document's first ``n`` tokens."""
        tokens = self.main.kit.tokens
        ids = tokens.ids(example.context)[:n]
        return dataclasses.replace(example, context=tokens.text(ids).strip())

    def rows(self, examples: Sequence[Example], cells: Sequence[Cell]) -> list[Row]:
        """Score every example in every cell; those of a setting together."""
        names = list(dict.fromkeys(cell.condition for cell in cells))
        kinds = [kind for name in names if name != "bare" and (kind := CONDITIONS[name].written)]
        self.writer.prepare(kinds, examples)
        rows: list[Row] = []
        for text in dict.fromkeys(cell.setting for cell in cells):
            setting = Setting.of(text)
            reader = self.readers[setting.model]
            batch: list[tuple[Example, Cell, Prefix, Text]] = []
            for example in examples:
                made = prefixes(example, names, reader.kit)
                for cell in (cell for cell in cells if cell.setting == text):
                    prefix = made[cell.condition]
                    read = None if prefix is None else self._text(reader, example, prefix, setting)
                    if prefix is None or read is None:
                        rows.append(Row(example.id, cell, {"nll": None}))
                    else:
                        batch.append((example, cell, prefix, read))
            rows += self._scored(reader, batch)
        return rows

    def _scored(self, reader: Reader, batch: list[tuple[Example, Cell, Prefix, Text]]) -> Iterator[Row]:
        order = sorted(batch, key=lambda one: len(one[3].read))
        size = self.params.scoring.batch_rows
        for group in _within(order, size):
            found = scored(reader.loaded.model, [text for *_, text in group], self.probed)
            for (example, cell, prefix, text), metrics in zip(group, found, strict=True):
                sizes: Metrics = {
                    "answer_tokens": text.n_answer,
                    "document_tokens": self.length(example),
                    "prefix_tokens": len(prefix.ids),
                }
                said = {"prefix": reader.kit.tokens.text(prefix.ids)}
                yield Row(example.id, cell, {**metrics, **sizes}, said)

    def _separator(self, reader: Reader) -> list[int]:
        return reader.kit.tokens.ids(self.params.scoring.separator)

    def _text(self, reader: Reader, example: Example, prefix: Prefix, setting: Setting) -> Text | None:
        """Return what is read and said; None where the setting has no such example."""
        tokens, separator = reader.kit.tokens, self._separator(reader)
        answer = tokens.ids(example.target)
        if setting.answers is not None:
            short = len(example.target) <= self._median
            if short != (setting.answers == "short"):
                return None
        document = tokens.ids(example.context)
        span = _found(answer, tokens.ids(" " + example.target), document)
        if setting.padded is not None:
            if len(document) > setting.padded:
                return None
            document = self._filled(reader, example, document, setting.padded)
        question = tokens.ids(example.question)
        if setting.asked == "noise":
            rng = reader.kit.rng("decoder_noise", example)
            question = rng.choices(tokens.ordinary, k=len(question))
        before = [] if setting.asked == "nothing" else [*question, *separator]
        ahead = [*prefix.ids, *separator] if prefix.ids else []
        first = len(reader.opens)
        start = first + len(ahead)
        read = [*reader.opens, *ahead, *document, *reader.closes]
        if len(read) > reader.window:
            raise KvguardError(
                f"example {example.id}: {len(read)} tokens to read, and {reader.loaded.name} reads "
                f"{reader.window}: lower max_tokens of the data set, or the number of padded@N"
            )
        return Text(
            read,
            (first, start),
            setting.kept or prefix.keep,
            [*before, *answer],
            len(answer),
            None if span is None else (start + span[0], start + span[1]),
        )

    def _filled(self, reader: Reader, example: Example, document: list[int], n: int) -> list[int]:
        """Return a document with others behind it, ``n`` tokens."""
        rng: Random = reader.kit.rng("padded", example)
        others = [text for text in reader.kit.by_document if text != example.context]
        if not others:
            raise KvguardError(
                "settings: padded@N needs documents to fill up with: add examples about others"
            )
        filled = list(document)
        while len(filled) < n:
            filled += reader.kit.tokens.ids(f" {rng.choice(others)}")
        return filled[:n]

    @cached_property
    def _median(self) -> float:
        """The median length of the data set's answers, in characters: whatever the model's tokens."""
        return median(len(example.target) for example in self.main.kit.dataset.examples)


def _within(
    order: Sequence[tuple[Example, Cell, Prefix, Text]], rows: int
) -> Iterator[Sequence[tuple[Example, Cell, Prefix, Text]]]:
    """Yield what is scored together: at most so many rows, fewer of long texts (attention is quadratic)."""
    start = 0
    while start < len(order):
        longest = len(order[min(start + rows, len(order)) - 1][3].read)
        n = max(1, min(rows, (1 << 22) // (longest * longest)))
        yield order[start : start + n]
        start += n


def _found(answer: Sequence[int], spaced: Sequence[int], document: Sequence[int]) -> tuple[int, int] | None:
    """Return where an answer's tokens stand in a document, in the one form or the other."""
    for ids in (list(spaced), list(answer)):
        for start in range(len(document) - len(ids) + 1):
            if list(document[start : start + len(ids)]) == ids:
                return start, start + len(ids)
    return None


@contextmanager
def opened(opening: Opening) -> Iterator[EncoderDecoderBench]:
    """Load the encoder-decoders of an experiment.

    Raises
    ------
    KvguardError
        One cannot be loaded, or is none; a condition or a setting is unknown.
    """
    params, protocol = opening.params, opening.protocol
    for name in protocol.conditions:
        check_known(f"experiments.{opening.name}.conditions", name, ["bare", *CONDITIONS])
    probed = option(protocol, "attention", False)
    known = {None: opening.spec, **_others(protocol)}
    named = dict.fromkeys((None, *(Setting.of(text).model for text in protocol.settings)))
    for model in named:
        if model is not None:
            check_known("settings, on:MODEL", model, [one for one in known if one is not None])
    with open_journal(opening.folder / "written.jsonl") as journal:
        author = endpoint(params.writer) if params.writer.base_url else _nobody(protocol.conditions)
        writer = Writer(author, params.writer.instructions, journal)
        readers: dict[str | None, Reader] = {}
        for model in named:
            readers[model] = _reader(opening, model or opening.model, known[model], writer, probed)
        yield EncoderDecoderBench(readers, writer, params, probed)


def _others(protocol: Protocol) -> dict[str | None, ModelSpec]:
    """Return the models that settings may name, from the experiment's option ``models``: name -> source."""
    from kvguard.models.spec import ModelSpec

    sources: dict[str, str] = option(protocol, "models", {})
    return {
        name: ModelSpec(source=source, dtype="auto", task="longarith") for name, source in sources.items()
    }


def _reader(opening: Opening, name: str, spec: ModelSpec, writer: Writer, probed: bool) -> Reader:
    from kvguard.models.load import load_encoder_decoder

    loaded = load_encoder_decoder(name, spec, opening.params.device)
    if probed:
        loaded.model.set_attn_implementation("eager")
    tokens = Tokens.of(loaded, "plain")
    kit = Kit(tokens, opening.dataset, opening.params.framings, writer.text, opening.params.seed)
    return Reader.of(loaded, kit)


def _nobody(conditions: Sequence[str]) -> Author:
    """Return the author of an experiment whose model does not write on: of paraphrases it leaves none.

    Raises
    ------
    KvguardError
        A condition is nothing but what a language model writes.
    """
    for name in conditions:
        if name != "bare" and CONDITIONS[name].written not in (None, PARAPHRASE):
            raise KvguardError(
                f"conditions: {name}: an encoder-decoder writes no prefixes: set writer.base_url and "
                "writer.model, or leave it out"
            )
    return Author("nobody", lambda prompts: [""] * len(prompts))
