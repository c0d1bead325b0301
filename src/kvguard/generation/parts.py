"""The sweep's plan: closed sets of rows that are made, stored and found again on their own.

A part is a block of prompts under one compressor's ratios. It is decoded as a batch of its own, so its bytes
do not depend on which other parts were already there; its fingerprint names all that its bytes depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvguard.compressors import NONE, Condition
from kvguard.config import CompressorSpec
from kvguard.errors import KvguardError
from kvguard.traces import read_metadata, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

_CODE = ("attention", "cache", "decode", "parts", "prefill", "sampler", "signals", "../compressors")
_LIBRARIES = ("kvpress", "tokenizers", "torch", "transformers")
_KEY = "kvguard.fingerprint"
_IDS = "kvguard.trace_ids"


@dataclass(frozen=True)
class Part:
    """A block of prompts x one compressor's conditions.

    Parameters
    ----------
    start, stop : int
        The block's prompts, as positions in the prompts table.
    trace_ids : tuple of int
        One per row of the part: prompt by prompt, condition by condition.
    """

    block: int
    start: int
    stop: int
    compressor: str
    conditions: tuple[Condition, ...]
    trace_ids: tuple[int, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """What the part's files are called by."""
        return f"{self.block:04d}-{self.compressor}"

    @property
    def n_traces(self) -> int:
        """Traces in the part."""
        return len(self.trace_ids)

    @property
    def metadata(self) -> dict[str, str]:
        """What the part's files carry in their Parquet metadata."""
        return {_KEY: self.fingerprint, _IDS: _digest(self.trace_ids)}

    def path(self, folder: Path) -> Path:
        """File of the part's raw traces; the part exists when this file does."""
        return folder / f"part-{self.name}.parquet"

    def tokens_path(self, folder: Path) -> Path:
        """File of the part's tokens."""
        return folder / f"tokens-{self.name}.parquet"

    def is_made(self, folder: Path) -> bool:
        """Tell whether both files are there, whole, and of this fingerprint."""
        try:
            return all(
                read_metadata(path).get(_KEY) == self.fingerprint
                for path in (self.path(folder), self.tokens_path(folder))
            )
        except KvguardError:
            return False


def plan_parts(
    prompts: pd.DataFrame,
    conditions: Sequence[Condition],
    compressors: Mapping[str, CompressorSpec],
    prompts_per_part: int,
    depends_on: Mapping[str, Any],
) -> list[Part]:
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
    for block, start in enumerate(range(0, len(prompts), prompts_per_part)):
        stop = min(start + prompts_per_part, len(prompts))
        rows = prompts.iloc[start:stop]
        for compressor, own in by_compressor.items():
            spec = None if compressor == NONE else compressors[compressor].model_dump()
            fingerprint = _digest(
                {
                    "prompts": [rows["prompt_id"].tolist(), rows["prompt"].tolist()],
                    "compressor": [compressor, spec, [c.ratio for c in own]],
                    "code": _code_digest(),
                    "libraries": {name: version(name) for name in _LIBRARIES},
                    **depends_on,
                }
            )
            ids = tuple(i * len(conditions) + conditions.index(c) for i in range(start, stop) for c in own)
            parts.append(Part(block, start, stop, compressor, tuple(own), ids, fingerprint))
    return parts


def discard_strangers(folder: Path, parts: Sequence[Part]) -> None:
    """Delete the files of parts that are not in the plan, and what a killed write left behind."""
    planned = {path for part in parts for path in (part.path(folder), part.tokens_path(folder))}
    for path in [*folder.glob("part-*"), *folder.glob("tokens-*")]:
        if path not in planned:
            path.unlink(missing_ok=True)


def number_anew(folder: Path, parts: Sequence[Part]) -> None:
    """Give kept parts the trace ids of the present plan, which prompts or compressors may have joined."""
    for part in parts:
        for kind, path in (("tokens", part.tokens_path(folder)), ("parts", part.path(folder))):
            if read_metadata(path).get(_IDS) != part.metadata[_IDS]:
                frame = read_table(kind, path)
                nth = np.cumsum(np.diff(frame["trace_id"], prepend=frame["trace_id"].iloc[:1]) != 0)
                frame["trace_id"] = np.array(part.trace_ids, dtype=np.int32)[nth]
                write_table(kind, frame, path, part.metadata)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code_digest() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in _CODE)).hexdigest()
