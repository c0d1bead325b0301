"""The tables of the chapter."""

from __future__ import annotations

from collections.abc import Sequence

from kvguard.report.numbers import Cell, Group, Kind, Numbers, Table
from kvguard.studies.instructions.statistics.judged import CALLS
from kvguard.studies.instructions.statistics.measure import STAGE

Column = tuple[str, str, Kind]  # head, metric, how it is written

_PAIRED: tuple[Column, ...] = (
    ("examples", "n", Kind.COUNT),
    ("difference, points", "difference", Kind.PERCENT),
    ("only this arm", "more", Kind.COUNT),
    ("only the other", "less", Kind.COUNT),
    ("odds ratio", "odds_ratio", Kind.SMALL),
    ("p, McNemar", "p", Kind.P),
    ("p, Holm", "p_holm", Kind.P),
)
_SPECS: dict[str, tuple[str, str, tuple[Column, ...]]] = {
    "followed": (
        "Instructions followed, by arm",
        "Prompt level: all instructions of a prompt; instruction level: each. Strict: of the text as it is; "
        "loose: without what chat models put around an answer. Forgotten: of the instructions that are "
        "followed uncompressed, those that are not. CBR: looping or non-termination. Removed and protected "
        "are shares of the prompt's entries. In brackets: 95 % intervals over prompts. An arm that does not "
        "apply to some examples is of the others: the paired tables compare like with like.",
        (
            ("examples", "n", Kind.COUNT),
            ("prompt, strict %", "prompt_strict", Kind.PERCENT),
            ("prompt, loose %", "prompt_loose", Kind.PERCENT),
            ("instruction, strict %", "instruction_strict", Kind.PERCENT),
            ("instruction, loose %", "instruction_loose", Kind.PERCENT),
            ("forgotten %", "forgotten", Kind.PERCENT),
            ("CBR %", "cbr", Kind.PERCENT),
            ("removed %", "removed", Kind.PERCENT),
            ("protected %", "protected", Kind.PERCENT),
            ("tokens", "tokens", Kind.TENTH),
            ("does not apply", "unfit", Kind.COUNT),
            ("not scored", "unscored", Kind.COUNT),
        ),
    ),
    "against-baseline": (
        "Against no compression",
        "Are all instructions of a prompt followed (strict)? Each arm against the baseline on the same "
        "examples.",
        _PAIRED,
    ),
    "strategy": (
        "Does the strategy matter?",
        "Each press against random eviction of the same budget, under the same treatment, on the same "
        "examples: what is left of a difference is what the press chose to evict.",
        _PAIRED,
    ),
    "treatments": (
        "Do the treatments help?",
        "Each treatment against the same press at the same budget without it.",
        _PAIRED,
    ),
    "text-removal": (
        "Text removal is not cache eviction",
        "The text of the tokens that StreamingLLM evicts, removed before the model reads the prompt, against "
        "their eviction after it has read all of it.",
        _PAIRED,
    ),
    "positions": (
        "By the position of the instruction",
        "Share of instructions followed, strict, by where in the text they stand.",
        (("instructions", "n", Kind.COUNT), ("followed %", "instruction_strict", Kind.PERCENT)),
    ),
    "types": (
        "By type of instruction",
        "Share of instructions followed, strict.",
        (("instructions", "n", Kind.COUNT), ("followed %", "instruction_strict", Kind.PERCENT)),
    ),
    "first-forgotten": (
        "Which of two instructions is forgotten first?",
        "Of examples with two instructions, both followed uncompressed: which of them was not followed under "
        "the arm. The test asks whether both are forgotten equally often.",
        (
            ("examples", "n", Kind.COUNT),
            ("only the first", "first_only", Kind.COUNT),
            ("only the second", "second_only", Kind.COUNT),
            ("both", "both", Kind.COUNT),
            ("p", "p", Kind.P),
        ),
    ),
    "foreseen": (
        "Does the hazard foresee a forgotten instruction?",
        "AUROC of what is known of an answer for whether it forgot an instruction that is followed "
        "uncompressed. The hazard was trained to foresee loops and texts that do not end, not this; the "
        "length is what a clock would say, and a catastrophe is known only afterwards.",
        (
            ("answers", "n", Kind.COUNT),
            ("with a forgotten one", "n_forgotten", Kind.COUNT),
            ("highest hazard", "auroc_hazard", Kind.FRACTION),
            ("mean hazard", "auroc_hazard_mean", Kind.FRACTION),
            ("length", "auroc_n_tokens", Kind.FRACTION),
            ("catastrophe", "auroc_catastrophe", Kind.FRACTION),
        ),
    ),
    "judge": (
        "Rules and judge",
        "Verdicts that both gave, and how far they agree (Cohen's kappa); verdicts of the judge alone, and "
        "instructions that nobody could score.",
        (
            ("both", "n_both", Kind.COUNT),
            ("judge alone", "n_alone", Kind.COUNT),
            ("not scored", "n_unscored", Kind.COUNT),
            ("kappa", "kappa", Kind.FRACTION),
            ("agreement %", "agreement", Kind.PERCENT),
        ),
    ),
    "judge-calls": (
        "What came of asking the judge",
        "Calls, replies that were kept from before, verdicts, and what was no verdict and never became one.",
        tuple((name.replace("_", " "), name, Kind.SMALL if name == "cost" else Kind.COUNT) for name in CALLS),
    ),
}


def tables(numbers: Numbers, model: str, suite: str) -> dict[str, Table]:
    """Return the tables that the run has numbers for, by name."""
    found = {}
    for name, (title, note, columns) in _SPECS.items():
        subjects = numbers.subjects(STAGE, model, suite, name)
        if not subjects:
            continue
        split = any("/" in subject for subject in subjects)
        rows: tuple[tuple[str | Cell, ...], ...] = tuple(
            (
                *(subject.split("/", 1) if split else [subject]),
                *_cells(numbers, model, suite, name, subject, columns),
            )
            for subject in subjects
        )
        labels = ("arm", name.removesuffix("s")) if split else ("arm",)
        heads = (*labels, *(head for head, _, _ in columns))
        found[name] = Table(name, title, note, heads, len(labels), (Group(model, rows),))
    return found


def _cells(
    numbers: Numbers, model: str, suite: str, table: str, subject: str, columns: Sequence[Column]
) -> list[Cell]:
    return [Cell(numbers.get(STAGE, model, suite, table, subject, name), kind) for _, name, kind in columns]
