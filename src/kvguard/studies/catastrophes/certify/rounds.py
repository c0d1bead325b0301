"""Ratios in rounds: a severe one is generated only where all milder ones may still be certified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from kvguard.engine.presses import NONE
from kvguard.stats.certify import fixed_sequence
from kvguard.studies.catastrophes.certify.losses import Losses, losses_of, outcomes_of
from kvguard.studies.catastrophes.certify.recommend import Limits, p_values
from kvguard.sweep.settings import Preset


def in_rounds(
    preset: Preset, limits: Limits, make: Callable[[Preset, Path], pd.DataFrame], out: Path
) -> pd.DataFrame:
    """Return the traces of the settings that a recommendation looks at, see :func:`.recommend.recommend`.

    A sequence of ratios ends at the first that is not certified, and most of the work lies beyond it: texts
    that loop are the longest. So each compressor's mildest ratio comes first, then its next two, four, ...

    Parameters
    ----------
    make
        Returns the judged traces of some settings, uncompressed ones among them, and keeps them in a folder.
    """
    ratios: dict[str, list[float]] = {}
    for name, ratio in sorted(preset.pairs()[1:], key=lambda pair: pair[1]):
        ratios.setdefault(name, []).append(ratio)
    alive = list(dict.fromkeys(name for name, _ in preset.pairs()[1:]))
    found: list[pd.DataFrame] = []
    begin, count = 0, 1
    while entries := [f"{name}@{ratio!r}" for name in alive for ratio in ratios[name][begin : begin + count]]:
        traces = make(Preset(compressors=tuple(entries)), out / f"round-{len(found) + 1}")
        found.append(traces if not found else traces[traces["compressor"] != NONE])
        losses = losses_of(outcomes_of(pd.concat(found, ignore_index=True)))
        alive = [name for name in alive if _may_go_on(losses, limits, name)]
        begin, count = begin + count, 2 * count
    return pd.concat(found, ignore_index=True)


def _may_go_on(losses: Losses, limits: Limits, compressor: str) -> bool:
    """Tell whether a policy of the compressor would be certified so far, had it all of the level."""
    p = p_values(np.ones((1, len(losses.prompt_ids))), losses, limits)[0]
    return any(
        fixed_sequence(p[places], limits.delta) == len(places)
        for (name, _), places in losses.policies.items()
        if name == compressor
    )
