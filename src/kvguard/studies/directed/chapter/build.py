"""The page of every experiment that was run, and its tables as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvguard.errors import KvguardError
from kvguard.report import markup, page
from kvguard.report.numbers import Cell, Kind, fraction, known
from kvguard.store.files import write_json, write_text
from kvguard.studies.directed import layout
from kvguard.studies.directed.analysis.analyse import ALL, HARD
from kvguard.studies.directed.chapter.figures import draw
from kvguard.studies.directed.chapter.found import Found
from kvguard.studies.directed.chapter.tables import tables
from kvguard.studies.directed.params import Params

_COMMAND = "kvguard directed report"
_LEAD = (
    "A document is read once, behind a prefix, and its KV cache is kept without the prefix. Answers to a "
    "question that comes later are scored from that cache: is it better for having been read so?"
)
_WORDS = {
    "prefix": "what stands before the document while it is read; cut from the cache, unless it says kept",
    "bare": "the document read without a prefix",
    "oracle": "the question itself as the prefix",
    "NLL": "the mean negative log-likelihood of the answer's tokens, in nats; lower is better",
    "hard": "the examples of a data set with the highest NLL in the baseline: 40 % by default",
    "d": "Cohen's d of the paired differences; above 0 the condition is better than the baseline",
}


def build(root: Path, params: Params) -> str:
    """Write the report of all models under ``root``; return where it lies and what it holds.

    Raises
    ------
    KvguardError
        Nothing was run.
    """
    found = list(_read(root, params))
    if not found:
        raise KvguardError(
            f"{root}: no experiment was run there: run `kvguard directed experiment NAME --out {root}`"
        )
    made = {(one.model, one.name): list(tables(one)) for one in found}
    for one in found:
        markup.write(made[one.model, one.name], one.layout.experiment(one.name) / "report")
    for model in layout.models(root):
        numbers = {one.name: one.headline() for one in found if one.layout == model}
        write_json(model.metrics, numbers)
    where = layout.page(root)
    write_text(
        where, page.render([_chapter(found, made)], command=_COMMAND, tables=f"{root}/MODEL/NAME/report")
    )
    return f"{where}: {len(found)} experiments, {where.stat().st_size / 1e6:.1f} MB"


def _read(root: Path, params: Params) -> Iterator[Found]:
    for model in layout.models(root):
        for name, protocol in params.experiments.items():
            if model.results(name).is_file():
                yield Found.read(model, name, protocol)


def _chapter(found: Sequence[Found], made: Mapping[tuple[str, str], Sequence[Any]]) -> page.Chapter:
    sections = [
        page.Section(
            f"{one.layout.folder.name}-{one.name}",
            f"{one.name}, {one.model}: {one.protocol.title}",
            one.protocol.about,
            pictures=[page.Picture.read(path, caption, one.model) for path, caption in draw(one)],
            tables=made[one.model, one.name],
        )
        for one in found
    ]
    words = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(term, meaning) for term, meaning in _WORDS.items()
    )
    return page.Chapter(
        "directed",
        "Directed KV caches",
        _LEAD,
        [_findings(one) for one in found],
        sections,
        words=words,
        appendices=[_examples(one) for one in found],
    )


def _findings(found: Found) -> page.Findings:
    metric = next(iter(found.protocol.metrics))
    sentences = []
    for dataset in found.datasets:
        for condition in found.others:
            d = found.get(("effects", dataset, ALL, found.first, metric), condition, "d")
            p = found.get(("effects", dataset, ALL, found.first, metric), condition, "p_holm").value
            hard = found.get(("effects", dataset, HARD, found.first, metric), condition, "d")
            if known(d) and p < 0.05:
                word = "better" if d.value > 0 else "worse"
                sentences.append(
                    f"{dataset}: {condition} is {word} than {found.protocol.baseline}: d {fraction(d)}, "
                    f"on hard examples {fraction(hard)}."
                )
        trend = ("gradient", dataset, ALL, found.first, metric)
        within, p = found.get(trend, "order", "within"), found.get(trend, "order", "p_within").value
        if known(within):
            word = "rises" if within.value > 0 else "falls"
            there = f"the benefit {word} along the semantic order" if p < 0.05 else "no semantic gradient"
            sentences.append(
                f"{dataset}: {there}: rho within examples {fraction(within)}, p {Kind.P.write(p)}."
            )
    if not sentences:
        sentences = ["No condition is distinguishable from the baseline."]
    tiles = []
    if found.protocol.oracle:
        for dataset in found.datasets:
            d = found.get(("effects", dataset, ALL, found.first, metric), found.protocol.oracle, "d")
            tiles.append(page.Tile(f"d of {found.protocol.oracle}, {dataset}", Cell(d, Kind.SMALL), ""))
    return page.Findings(f"{found.name}, {found.model}", sentences, tiles)


def _examples(found: Found) -> page.Appendix:
    parts = [
        _example(dataset, example) for dataset, examples in found.examples().items() for example in examples
    ]
    anchor = f"examples-{found.layout.folder.name}-{found.name}"
    return page.Appendix(anchor, f"Examples of {found.name}, {found.model}", Markup("").join(parts))


def _example(dataset: str, example: Mapping[str, Any]) -> Markup:
    rows = Markup("").join(
        Markup("<tr><th scope='row'>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            row["condition"] if row["setting"] == "none" else f"{row['condition']}, {row['setting']}",
            "–" if row["nll"] is None else f"{row['nll']:.3f}",
            row["prefix"],
            row["answer"],
        )
        for row in example["rows"]
    )
    return Markup(
        "<details><summary>{}, {} ({})</summary><p><strong>{}</strong> {}</p><blockquote>{}</blockquote>"
        "<div class='scroll'><table><thead><tr>"
        "<th>condition</th><th>NLL</th><th>prefix</th><th>answer</th></tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(
        dataset,
        example["id"],
        example["why"],
        example["question"],
        example["target"],
        example["document"],
        rows,
    )
