"""The examples that a page shows: those in which conditions differ most, and one in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvguard.studies.directed.analysis.analyse import NLL
from kvguard.studies.directed.analysis.values import Values
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import Protocol
from kvguard.studies.directed.run import Scored, cells_of

_LONGEST = 1200  # characters of a document


def shown(examples: Sequence[Example], scored: Scored, protocol: Protocol) -> list[dict[str, Any]]:
    """Return some examples with every prefix and NLL: most helped by a prefix, most hurt, and in between."""
    cells = cells_of(protocol)
    nll = -Values.of(scored.table, cells, NLL, "lower").matrix  # [N, K]
    start = nll[:, cells.index(next(cell for cell in cells if cell.condition == protocol.baseline))]
    others = np.array([cell.condition != protocol.baseline for cell in cells])
    if not others.any():
        return []
    change = np.nanmean(
        np.where(np.isfinite(nll[:, others]), nll[:, others] - start[:, None], np.nan), axis=1
    )
    order = np.argsort(change, kind="stable")
    chosen = dict.fromkeys(
        [
            ("helped most", int(order[0])),
            ("in the middle", int(order[len(order) // 2])),
            ("hurt most", int(order[-1])),
        ]
    )
    return [_page(why, examples[row], nll[row], scored, protocol) for why, row in chosen]


def _page(
    why: str, example: Example, nll: np.ndarray[Any, Any], scored: Scored, protocol: Protocol
) -> dict[str, Any]:
    long = len(example.context) > _LONGEST
    return {
        "why": why,
        "id": example.id,
        "document": example.context[:_LONGEST] + " …" * long,
        "question": example.question,
        "target": example.target,
        "rows": [
            {
                "condition": cell.condition,
                "setting": cell.setting,
                "nll": float(value) if np.isfinite(value) else None,
                **{name: scored.texts[example.id, cell].get(name, "") for name in ("prefix", "answer")},
            }
            for cell, value in zip(cells_of(protocol), nll, strict=True)
        ],
    }
