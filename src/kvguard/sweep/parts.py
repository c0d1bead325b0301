"""The parts of a sweep: a block of prompts x one compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvguard.engine.presses import NONE, Condition
from kvguard.store.parts import Part, blocks, fingerprint
from kvguard.sweep.settings import CompressorSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepPart(Part):
    """A block of prompts x one compressor's conditions.

    Parameters
    ----------
    start, stop : int
        The block's prompts, as positions in the prompts table.
    """

    block: int
    start: int
    stop: int
    compressor: str
    conditions: tuple[Condition, ...]

    kinds: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "parts": "part"}


def plan_parts(
    prompts: pd.DataFrame,
    conditions: Sequence[Condition],
    compressors: Mapping[str, CompressorSpec],
    prompts_per_part: int,
    depends_on: Mapping[str, Any],
) -> list[SweepPart]:
    """Cut a sweep into parts, block by block.

    Parameters
    ----------
    prompts : DataFrame
        The prompts table.
    depends_on : mapping
        What every part's bytes depend on besides its prompts and its compressor: weights, batch plan, ...
    """
    by_compressor: dict[str, list[Condition]] = {}
    for condition in conditions:
        by_compressor.setdefault(condition.compressor, []).append(condition)
    parts = []
    for block, (start, stop) in enumerate(blocks(len(prompts), prompts_per_part)):
        for compressor, own in by_compressor.items():
            made_of = describe(prompts.iloc[start:stop], own, compressors)
            ids = tuple(i * len(conditions) + conditions.index(c) for i in range(start, stop) for c in own)
            parts.append(
                SweepPart(
                    name=f"{block:04d}-{compressor}",
                    trace_ids=ids,
                    fingerprint=fingerprint({**made_of, **depends_on}),
                    block=block,
                    start=start,
                    stop=stop,
                    compressor=compressor,
                    conditions=tuple(own),
                )
            )
    return parts


def describe(
    prompts: pd.DataFrame, conditions: Sequence[Condition], compressors: Mapping[str, CompressorSpec]
) -> dict[str, Any]:
    """Return what the prompts and conditions of a part give to its fingerprint."""
    specs = {c.compressor: compressors[c.compressor] for c in conditions if c.compressor != NONE}
    return {
        "prompts": [prompts["prompt_id"].tolist(), prompts["prompt"].tolist()],
        "conditions": [str(condition) for condition in conditions],
        "presses": {name: spec.model_dump() for name, spec in specs.items()},
    }
