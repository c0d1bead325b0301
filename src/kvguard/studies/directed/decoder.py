"""The tracks of decoders: ``decoder``, how likely answers are; ``compression``, also what is written.

A document is read behind a condition's prefix, under a press or none, and its cache kept without the prefix;
the question is asked of that cache. What reads and asks is :mod:`kvguard.engine.surgery`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvguard.config import check_known
from kvguard.engine.presses import build_press
from kvguard.engine.surgery import Asked, Reading, answer_nll, generate, read
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import TraceTokens, onsets
from kvguard.store.journal import open_journal
from kvguard.store.parts import fingerprint, slices
from kvguard.studies.directed.conditions import CONDITIONS, Kit, Prefix, prefixes
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import PLAIN, Params
from kvguard.studies.directed.tokens import Tokens
from kvguard.studies.directed.tracks import Cell, Opening, Row
from kvguard.studies.directed.writer import Author, Prompt, Writer, endpoint
from kvguard.sweep.settings import parse_entry

if TYPE_CHECKING:
    from kvguard.models.load import LoadedModel


@dataclass(frozen=True)
class Item:
    """One example in one cell, ready to be read and asked."""

    example: Example
    cell: Cell
    prefix: Prefix
    reading: Reading
    asked: Asked


class DecoderBench:
    """A loaded decoder that reads, and is asked.

    Parameters
    ----------
    generates
        Whether it also writes its answers: accuracy and catastrophes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        kit: Kit,
        writer: Writer,
        params: Params,
        settings: Sequence[str],
        generates: bool,
    ) -> None:
        self.loaded, self.kit, self.writer, self.params = loaded, kit, writer, params
        self.tokens, self.generates = kit.tokens, generates
        self._specs = {setting: _spec(setting, params) for setting in settings if "@" in setting}
        self._separator = self.tokens.ids(params.scoring.separator)

    @property
    def fingerprint(self) -> str:
        """See :class:`~kvguard.studies.directed.tracks.Bench`."""
        scoring = self.params.scoring
        decoding = [scoring.max_new_tokens, self.params.catastrophes.model_dump()] if self.generates else []
        return fingerprint(
            {
                "model": self.loaded.fingerprint,
                "dtype": str(self.loaded.model.dtype),
                "dataset": self.kit.dataset.fingerprint,
                "seed": self.kit.seed,
                "framings": dict(self.kit.framings),
                "writer": self.writer.fingerprint,
                "separator": scoring.separator,
                "frame": [self.tokens.bos, self.tokens.head, self.tokens.tail],
                "presses": {name: [spec.model_dump(), ratio] for name, (spec, ratio) in self._specs.items()},
                "decoding": decoding,
            }
        )

    def length(self, example: Example) -> int:
        """Return the tokens of an example's document."""
        return len(self.tokens.ids(example.context))

    def room(self, example: Example) -> int:
        """Return how long a document may be beside a question, its answer, and the longest framing."""
        asked = self._asked(example)
        said = max(len(asked.answer), self.params.scoring.max_new_tokens if self.generates else 0)
        framed = max(len(self.tokens.ids(text)) for text in (example.question, *self.kit.framings.values()))
        around = len(self.tokens.head) + len(asked.context) + said + framed + len(self._separator)
        return self.loaded.window - 1 - around

    def cut(self, example: Example, n: int) -> Example:
        """Return the example with the text of its document's first ``n`` tokens."""
        ids = self.tokens.ids(example.context)[:n]
        return dataclasses.replace(example, context=self.tokens.text(ids).strip())

    def rows(self, examples: Sequence[Example], cells: Sequence[Cell]) -> list[Row]:
        """Score every example in every cell; those of a setting together."""
        names = list(dict.fromkeys(cell.condition for cell in cells))
        kinds = [kind for name in names if name != "bare" and (kind := CONDITIONS[name].written)]
        self.writer.prepare(kinds, examples)
        made = {example.id: prefixes(example, names, self.kit) for example in examples}
        rows: list[Row] = []
        for setting in dict.fromkeys(cell.setting for cell in cells):
            chosen = [cell for cell in cells if cell.setting == setting]
            items = []
            for example in examples:
                for cell in chosen:
                    prefix = made[example.id][cell.condition]
                    if prefix is None:
                        rows.append(Row(example.id, cell, {"nll": None}))
                    else:
                        items.append(self._item(example, cell, prefix))
            rows += self._scored(items, self.manner(setting, self.params))
        return rows

    @staticmethod
    def manner(setting: str, params: Params) -> dict[str, Any]:
        """Return how documents are read in a setting, as arguments of :func:`read`: under its press.

        Raises
        ------
        KvguardError
            There is no such setting.
        """
        return {} if setting == PLAIN else {"press": build_press(*_spec(setting, params))}

    def _item(self, example: Example, cell: Cell, prefix: Prefix) -> Item:
        document = [*self.tokens.head, *self.tokens.ids(example.context)]
        separator = self._separator if prefix.ids else ()
        reading = Reading(document, prefix.ids, separator, prefix.keep)
        return Item(example, cell, prefix, reading, self._asked(example))

    def _asked(self, example: Example) -> Asked:
        context = [
            *self._separator,
            *self.tokens.ids(example.question),
            *(self.tokens.tail or self._separator),
        ]
        return Asked(context, self.tokens.ids(example.target))

    def _scored(self, items: Sequence[Item], manner: Mapping[str, Any]) -> Iterator[Row]:
        """Read and ask items, those of like length in one pass."""
        size = self.params.scoring.batch_rows
        order = sorted(items, key=lambda item: len(item.reading.prefix) + len(item.reading.document))
        for start, stop in slices(len(order), size):
            batch = order[start:stop]
            kept = read(
                self.loaded.model,
                [item.reading for item in batch],
                bos=self.tokens.bos,
                batch_rows=size,
                **manner,
            )
            nll = answer_nll(self.loaded.model, kept, [item.asked for item in batch], batch_rows=size)
            found: list[dict[str, float]] = [
                {
                    "nll": float(tokens.mean()),
                    "answer_tokens": len(tokens),
                    "document_tokens": len(item.reading.document),
                    "prefix_tokens": len(item.prefix.ids),
                    "kept": cache.n_entries,
                }
                for item, tokens, cache in zip(batch, nll, kept, strict=True)
            ]
            texts = [{"prefix": self.tokens.text(item.prefix.ids)} for item in batch]
            if self.generates:
                for written, metrics, text in zip(self._written(batch, kept), found, texts, strict=True):
                    metrics |= written[0]
                    text["answer"] = written[1]
            for item, metrics, text in zip(batch, found, texts, strict=True):
                yield Row(item.example.id, item.cell, metrics, text)

    def _written(self, batch: Sequence[Item], kept: Sequence[Any]) -> list[tuple[dict[str, float], str]]:
        """Return accuracy and catastrophe of what the model writes, and the text."""
        most = self.params.scoring.max_new_tokens
        ends = {*self.tokens.end_ids, *(() if self.tokens.tail else self.tokens.line_ends)}
        contexts = [item.asked.context for item in batch]
        said = generate(self.loaded.model, kept, contexts, most, sorted(ends))
        traces = pd.DataFrame(
            {
                "token_ids": said,
                "stop_reason": ["eos" if ids and ids[-1] in ends else "length" for ids in said],
            }
        )
        found = onsets(TraceTokens.of(traces), self.params.catastrophes, most).values()
        failed = [any(at >= 0 for at in row) for row in zip(*found, strict=True)]
        texts = [self.tokens.text(ids) for ids in said]
        return [
            (
                {
                    "accuracy": float(self.kit.dataset.judge(text, item.example)),
                    "catastrophe": float(fails),
                    "generated_tokens": len(ids),
                },
                text,
            )
            for item, text, fails, ids in zip(batch, texts, failed, said, strict=True)
        ]


@contextmanager
def opened(
    opening: Opening, generates: bool, bench: type[DecoderBench] = DecoderBench
) -> Iterator[DecoderBench]:
    """Load a decoder, and keep the journal of what it writes open as long as it scores.

    Parameters
    ----------
    bench
        What settings are.

    Raises
    ------
    KvguardError
        The model cannot be loaded, a condition or a press is unknown, or another run writes there.
    """
    from kvguard.models.load import load_model

    params, protocol = opening.params, opening.protocol
    for name in protocol.conditions:
        check_known(f"experiments.{opening.name}.conditions", name, ["bare", *CONDITIONS])
    for setting in protocol.settings:
        bench.manner(setting, params)
    loaded = load_model(opening.model, opening.spec, params.device)
    tokens = Tokens.of(loaded, params.scoring.frame)
    author = endpoint(params.writer) if params.writer.base_url else itself(loaded, tokens, params)
    with open_journal(opening.folder / "written.jsonl") as journal:
        writer = Writer(author, params.writer.instructions, journal)
        kit = Kit(tokens, opening.dataset, params.framings, writer.text, params.seed)
        yield bench(loaded, kit, writer, params, protocol.settings, generates)


def itself(loaded: LoadedModel, tokens: Tokens, params: Params) -> Author:
    """Return the model as the author of its prefixes: it reads a text, and goes on after an instruction."""
    scoring, most = params.scoring, params.writer.max_new_tokens
    separator = tokens.ids(scoring.separator)

    def write(prompts: Sequence[Prompt]) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place].text), prompts[place].text))
        texts: dict[int, str] = {}
        for start, stop in slices(len(order), scoring.batch_rows):
            places = order[start:stop]
            batch = [prompts[place] for place in places]
            once = list(dict.fromkeys(prompt.text for prompt in batch))  # a text is asked several things
            readings = [Reading([*tokens.head, *tokens.ids(text)]) for text in once]
            caches = read(loaded.model, readings, bos=tokens.bos, batch_rows=scoring.batch_rows)
            kept = [dict(zip(once, caches, strict=True))[prompt.text] for prompt in batch]
            contexts = [[*separator, *tokens.ids(prompt.instruction), *tokens.tail] for prompt in batch]
            said = generate(loaded.model, kept, contexts, most, list(tokens.end_ids))
            texts |= {place: tokens.text(ids) for place, ids in zip(places, said, strict=True)}
        return [texts[place] for place in range(len(prompts))]

    frame = [tokens.bos, tokens.head, tokens.tail, scoring.separator, most]
    return Author(fingerprint({"model": loaded.fingerprint, "frame": frame}), write)


def _spec(setting: str, params: Params) -> tuple[Any, float]:
    """Return the press of a setting, ``name@ratio``, and its ratio.

    Raises
    ------
    KvguardError
        There is no such compressor, or the setting has no ratio.
    """
    try:
        name, ratio = parse_entry(setting)
    except ValueError as error:
        raise KvguardError(f"settings: {error}") from None
    check_known("settings", name, params.compressors)
    if ratio is None:
        raise KvguardError(f"settings: {setting!r} has no ratio: write {setting}@0.5")
    return params.compressors[name], ratio
