"""The results paper: every number in its text is a macro, filled from the results of the last run.

The text names numbers as they are called, ``\\percent{measure/main//outcomes/overall/cbr}`` say, and
``main`` and ``other`` stand for the pipeline's two models, ``headline`` and ``before`` for the protocol of
the guards and the one it is held against. A name that no result bears stops the build.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import DETECTORS
from kvguard.report import markup
from kvguard.report.numbers import Cell, Kind, Table
from kvguard.stats.bootstrap import LEVEL, Interval
from kvguard.store.files import write_text
from kvguard.studies.catastrophes.chapter import figures
from kvguard.studies.catastrophes.chapter.catalogue import tables
from kvguard.studies.catastrophes.chapter.live_findings import compared
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline
from kvguard.studies.catastrophes.protocols import BEFORE, HEADLINE, PROTOCOLS

TEXT = "paper.tex"
_TEX = "texlive-latex-base texlive-latex-recommended texlive-fonts-recommended"


def build_paper(pipeline: Pipeline, source: Path, folder: Path) -> Path:
    """Fill and compile the paper in ``folder``, which is emptied first, and return the PDF.

    Parameters
    ----------
    source
        The paper's text.

    Raises
    ------
    KvguardError
        The text names a number, a setting or a figure that is not there; or LaTeX is missing, or fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    text = source.read_text(encoding="utf-8")
    write_text(folder / "numbers.tex", numbers_tex(pipeline, text))
    found = tables(pipeline)
    markup.write([*found.values(), *_by_model(found["experiment-001"])], folder / "tables")
    figures.state_machine(folder / "state-machine.png")
    for kind, name in _MACRO.findall(text):
        if kind == "drawn":
            shutil.copy(_resolved(pipeline, name), folder / _figure(pipeline, name))
    shutil.copy(source, folder / TEXT)
    for _ in range(2):  # the second run knows the references of the first
        _compile(folder)
    return folder / TEXT.replace(".tex", ".pdf")


def _by_model(table: Table) -> list[Table]:
    """Cut a long table in two, one for each model of the pipeline."""
    groups = zip(("main", "other"), table.groups, strict=False)
    return [replace(table, name=f"{table.name}-{role}", groups=(group,)) for role, group in groups]


def numbers_tex(pipeline: Pipeline, text: str) -> str:
    """Return a definition for every number that ``text`` names."""
    lines = ["% Written from the results at every build: do not edit."]
    for kind, name in dict.fromkeys(_MACRO.findall(text)):
        lines.append(rf"\expandafter\def\csname kv:{kind}:{name}\endcsname{{{_KINDS[kind](pipeline, name)}}}")
    return "\n".join(lines) + "\n"


def _number(kind: Kind, unit: str) -> Callable[[Pipeline, str], str]:
    def write(pipeline: Pipeline, name: str) -> str:
        cell = Cell(_find(pipeline, name), kind)
        return markup.escape_latex(f"{cell.value}{unit} {cell.interval}".rstrip()).replace(" ", "~")

    return write


def _compared(pipeline: Pipeline, name: str) -> str:
    return compared(_find(pipeline, name))


def _find(pipeline: Pipeline, name: str) -> Interval:
    key = _resolved(pipeline, name)
    parts = tuple(key.split("/"))
    known = ["/".join(known) for known in pipeline.numbers.names()]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"the nearest is {near[0]}" if near else "nothing is measured"
        raise KvguardError(f"paper: no result is called {key} ({hint}): fix the text, or run `dvc repro`")
    return pipeline.numbers.get(*parts)


def _resolved(pipeline: Pipeline, name: str) -> str:
    """Put the names of models and protocols for what stands for them."""
    roles = _roles(pipeline)
    return re.sub(rf"\b({'|'.join(roles)})\b", lambda role: roles[role[0]], name)


def _roles(pipeline: Pipeline) -> dict[str, str]:
    main, other = pipeline.models
    return {"main": main, "other": other, "headline": HEADLINE, "before": BEFORE}


def _setting(pipeline: Pipeline, name: str) -> str:
    key = _resolved(pipeline, name)
    if not pipeline.params.has(key):
        raise KvguardError(f"paper: params.yaml has no setting {name}: fix the text")
    value = pipeline.params.value(key)
    return markup.escape_latex(f"{value:g}" if isinstance(value, int | float) else str(value))


def _fact(pipeline: Pipeline, name: str) -> str:
    params = pipeline.params
    pairs = params.preset.pairs()[1:]
    compressors, ratios = (list(dict.fromkeys(values)) for values in zip(*pairs, strict=True))
    budget = params.task(params.model).max_new_tokens
    facts = {
        "level": f"{LEVEL * 100:g}",
        "compressors": ", ".join(compressors),
        "ratios": ", ".join(f"{ratio:g}" for ratio in sorted(ratios)),
        "conditions": str(len(pairs)),
        "features": str(len(PROTOCOLS[HEADLINE].features)),
        "detectors": str(len(DETECTORS)),
        "max_new_tokens": str(budget),
        "onset": f"{params.catastrophes.nontermination_onset * budget:.0f}",
        "protocols": " ".join(PROTOCOLS[protocol].about for protocol in params.protocols),
        **_roles(pipeline),
    }
    if name not in facts:
        raise KvguardError(f"paper: no fact is called {name} (known: {', '.join(facts)}): fix the text")
    return markup.escape_latex(facts[name])


def _figure(pipeline: Pipeline, name: str) -> str:
    """Return what a figure is called in the paper's folder."""
    path = Path(_resolved(pipeline, name))
    if not path.is_file():
        raise KvguardError(f"paper: {path} does not exist: run `dvc repro`")
    return "-".join(path.parts)


_KINDS: dict[str, Callable[[Pipeline, str], str]] = {
    "percent": _number(Kind.PERCENT, " %"),
    "points": _number(Kind.PERCENT, " points"),
    "fraction": _number(Kind.FRACTION, ""),
    "decimal": _number(Kind.SMALL, ""),
    "whole": _number(Kind.COUNT, ""),
    "compared": _compared,
    "setting": _setting,
    "fact": _fact,
    "drawn": _figure,
}
_MACRO = re.compile(rf"\\({'|'.join(_KINDS)})(?:\[[^]]*\])?\{{([^{{}}#]+)\}}")


def _compile(folder: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", TEXT]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise KvguardError(f"paper: pdflatex is not installed: on Debian, apt-get install {_TEX}") from None
    if done.returncode:
        log = done.stdout.splitlines()
        mistake = next((line for line in log if re.match(r"(\./)?[\w.-]+:\d+:|!", line)), "see its log")
        raise KvguardError(f"paper: LaTeX stopped: {mistake}: fix {TEXT} ({folder}/paper.log has it all)")
