"""The report's tables as Markdown and as LaTeX."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from kvguard.report.numbers import Cell, Table
from kvguard.store.files import write_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "→": r"$\to$",
    "Δ": r"$\Delta$",
    "∞": r"$\infty$",
    "–": "--",
}


def escape_latex(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def as_markdown(table: Table) -> str:
    """Return a table with its title and note."""
    lines = [
        f"# {table.title}",
        "",
        table.note,
        "",
        _pipes(("model", *table.heads)),
        _pipes(("---",) * (table.n_labels + 1) + ("---:",) * (len(table.heads) - table.n_labels)),
    ]
    for group in table.groups:
        for row in group.rows:
            lines.append(_pipes((group.label, *(_flat(cell) for cell in row))))
        if group.command:
            lines.append(
                _pipes((group.label, f"not measured: `{group.command}`", *[""] * (len(table.heads) - 1)))
            )
    return "\n".join(lines) + "\n"


def as_latex(table: Table) -> str:
    """Return a booktabs ``tabular``; its models are headings, and where it is wide intervals stand below."""
    n = len(table.heads)
    lines = [
        f"% {table.title}: written by the report, do not edit",
        rf"\begin{{tabular}}{{{'l' * table.n_labels}{'r' * (n - table.n_labels)}}}",
        r"\toprule",
        " & ".join(_stacked(map(escape_latex, textwrap.wrap(head, 13))) for head in table.heads) + r" \\",
    ]
    for group in table.groups:
        lines.append(r"\midrule")
        heading = rf"\textit{{{escape_latex(group.label)}}}"
        if group.command:
            heading += rf": not measured, \texttt{{{escape_latex(group.command)}}}"
        lines.append(rf"\multicolumn{{{n}}}{{l}}{{{heading}}} \\")
        lines += [" & ".join(_latex_cell(cell, n > 5) for cell in row) + r" \\" for row in group.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _pipes(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _flat(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell.value} {cell.interval}".rstrip()


def _latex_cell(cell: str | Cell, is_narrow: bool) -> str:
    if isinstance(cell, str):
        return escape_latex(cell)
    if not is_narrow or not cell.interval:
        return escape_latex(_flat(cell))
    return _stacked([escape_latex(cell.value), rf"{{\scriptsize {escape_latex(cell.interval)}}}"])


def _stacked(lines: Iterable[str]) -> str:
    """Return lines of LaTeX one above the other, as one cell."""
    first, *rest = lines
    return rf"\shortstack[r]{{{first}" + "".join(rf"\\ {line}" for line in rest) + "}" if rest else first


def write(tables: Iterable[Table], folder: Path) -> None:
    """Write each table to ``folder`` as Markdown and as LaTeX."""
    for table in tables:
        write_text(folder / f"{table.name}.md", as_markdown(table))
        write_text(folder / f"{table.name}.tex", as_latex(table))
