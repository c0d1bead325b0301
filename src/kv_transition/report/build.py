"""The phase `report`: Markdown, a self-contained page, figures, tables and a summary."""

from __future__ import annotations

import base64
import json
import sqlite3
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from kv_transition.analysis.plots import draw
from kv_transition.analysis.power import QUIET, RISES
from kv_transition.analysis.queries import ALL, FIRST
from kv_transition.paths import Paths
from kv_transition.report import content as contents

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.6rem; }
img { max-width: 100%; }
blockquote { border-left: 3px solid #bbb; margin: 0.5rem 0 1.5rem; padding-left: 1rem; color: #444; }
"""


def report(connection: sqlite3.Connection, paths: Paths) -> Path:
    """Write the report of a group from its database and return the Markdown file."""
    content = contents.read(connection)
    group = content["experiment"]["id"]
    scope = ALL
    stats = content["stats"]
    title = f"{content['config']['kv']['policy']}, {content['manifest']['name']}: {group}"
    shown = content["zones"][content["zones"]["scope"] == scope]
    figures = draw(
        stats[stats["scope"] == scope], shown, content["bins"], content["headline"], title, paths.figures
    )
    _write_tables(content, paths.tables)
    summary = json.dumps(contents.summary(content), indent=1, allow_nan=False)
    paths.summary.write_text(summary + "\n", encoding="utf-8")
    text = _markdown(content, figures)
    paths.report.write_text(text, encoding="utf-8")
    paths.page.write_text(_page(text, group, paths.folder), encoding="utf-8")
    return paths.report


def _markdown(content: dict[str, Any], figures: list[Path]) -> str:
    environment = Environment(  # Markdown, of which excerpts are escaped by their filters
        loader=PackageLoader("kv_transition.report"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters |= {"excerpt": _excerpt, "quoted": _quoted}
    servers = [run["server"] for run in content["runs"]]
    requests = content["requests"]
    scopes = [one for one in (FIRST, ALL) if (content["stats"]["scope"] == one).any()]
    return environment.get_template("report.md.jinja").render(
        **content | {"power": _power(content["power"])},
        setup=_setup(content),
        model=", ".join(sorted({str(server.get("model")) for server in servers})),
        endpoint="`kvguard serve`, started for each budget" if content["config"]["engine"]["spawn"] else
        ", ".join(dict.fromkeys(str(server.get("base_url")) for server in servers)),
        incomplete=sum(row["planned"] - row["answered"] for row in requests),
        scopes=[_scope(content, scope, len(scopes) > 1) for scope in scopes],
        figures=figures,
        limits=_limits(content),
        rises=RISES,
        quiet=QUIET,
    )  # fmt: skip


def _setup(content: dict[str, Any]) -> str:
    return (
        "One model, one task, one policy: how accuracy, its spread and failures move with the length of "
        "the prompt, and whether they announce a collapse. Everything here is made from the database "
        "beside it."
    )


def _scope(content: dict[str, Any], scope: str, is_refined: bool) -> dict[str, Any]:
    title = {FIRST: "First stage", ALL: "All stages together" if is_refined else "Results"}[scope]
    note = ""
    if is_refined and scope == ALL:
        stages = "; ".join(
            f"{stage['n_per_bin']} examples in bin {', '.join(str(index + 1) for index in stage['bins'])}"
            for stage in content["manifest"]["stages"][1:]
        )
        note = (
            f"Examples were added where the first stage saw a zone ({stages}). That choice was adaptive: it "
            "was made by looking at the first answers, so intervals and p-values here are no longer those "
            "of a plan made beforehand. Those of the first stage stand above."
        )
    stats = content["stats"]
    budgets = sorted(stats[stats["scope"] == scope]["budget"].unique(), reverse=True)
    zones = content["zones"][content["zones"]["scope"] == scope]
    return {
        "title": title,
        "note": note,
        "findings": contents.findings(content, scope),
        "zones": [_zone(zone) for zone in zones.itertuples()],
        "budgets": [{"budget": one, "rows": contents.table(content, scope, one)} for one in budgets],
    }


def _zone(zone: Any) -> str:
    why = zone.rationale
    collapse = why.get("collapse_bin")
    then = (
        f"from bin {collapse + 1} on the score has collapsed"
        if collapse is not None
        else "no bin has collapsed"
    )
    if "why_not" in why:
        return f"Budget {zone.budget:g}: no zone can be told: {why['why_not']}; {then}."
    place = f"{zone.start_tokens:,.0f} to {zone.end_tokens:,.0f} tokens"
    signal = {"std": "the standard deviation", "failure_rate": "the failure rate"}[why["signal"]]
    start = int(zone.start_bin) + 1
    numbers = (
        f"largest contrast: {signal} from bin {start} on against before, {why['statistic']:.1f} of its "
        f"spread under {why['permutations']} permutations, p {why['p_permutation']:.3g}, {zone.p_value:.3g} "
        "over all budgets"
    )
    if zone.found:
        return f"Budget {zone.budget:g}: **a zone at {place}**; {then} ({numbers})."
    return f"Budget {zone.budget:g}: no zone at the level {why['alpha']:g}; {then} ({numbers})."


def _limits(content: dict[str, Any]) -> list[str]:
    config = content["config"]
    n = config["dataset"]["n_per_bin"]
    said = [
        f"With {n} examples in a bin, a rise is seen as often as the table below says, and one that was "
        f"not seen may be there.",
        "One model, one task, one policy, on one machine: nothing here is about others.",
        "Seconds and memory are of this endpoint on that day, with whatever else it did; they have no "
        "intervals.",
    ]
    if errors := sum(row["errors"] for row in content["requests"]):
        said.append(
            f"{errors} requests got no whole answer; they count as wrong and as failures, though it may be "
            "the endpoint that is at fault and not the model."
        )
    if content["headline"] != "f1":
        said.append(
            f"Where {content['headline']} is 0 or 1 the standard deviation follows from the mean: it rises "
            "as the mean falls towards one half, and says nothing beyond that."
        )
    if config["decoding"]["repeats"] == 1:
        said.append("One answer per example: how much answers to the same prompt vary was not measured.")
    if config["engine"]["concurrency"] > 1:
        said.append(
            "Requests overlapped: seconds hold waiting, and memory is that of all requests under way."
        )
    return said


def _power(curve: list[Any]) -> list[dict[str, Any]]:
    """Return one row for each number of examples."""
    return [
        {"n": size, "found": [point.found for point in points], "false": points[0].false}
        for size, group in groupby(curve, key=lambda point: point.n_per_bin)
        if (points := list(group))
    ]


def _write_tables(content: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content["stats"].to_csv(folder / "bin_stats.csv", index=False)
    content["bins"].to_csv(folder / "bins.csv")
    zones = content["zones"].assign(rationale=content["zones"]["rationale"].map(json.dumps))
    zones.to_csv(folder / "transition_summary.csv", index=False)
    pd.DataFrame(content["failures"], columns=["budget", "bin_index", "kind", "primary_", "n"]).rename(
        columns={"primary_": "primary"}
    ).to_csv(folder / "failures.csv", index=False)


def _excerpt(text: str, length: int) -> str:
    """Return the beginning of a text as one line in which nothing is Markdown."""
    flat = " ".join(str(text).split())
    cut = flat if len(flat) <= length else f"{flat[:length]} ..."
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#+-!|~$&" else character for character in cut)


def _quoted(text: str, length: int) -> str:
    """Return the beginning of a text as a quotation."""
    return f"> {_excerpt(text, length) or '(nothing)'}"


def _page(markdown: str, title: str, folder: Path) -> str:
    """Return a page that needs no other file: images stand in it."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(markdown)
    for path in sorted((folder / "figures").glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        body = body.replace(f'src="figures/{path.name}"', f'src="data:image/png;base64,{data}"')
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
