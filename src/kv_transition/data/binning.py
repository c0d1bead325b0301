"""Cutting lengths into bins, and choosing examples for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from kv_transition.data.example import Example
from kv_transition.settings import Binning
from kvguard.errors import KvguardError


def edges_of(settings: Binning, lengths: Sequence[int]) -> list[int]:
    """Return ``n_bins + 1`` rising edges in tokens; a bin holds its lower edge and not its upper one.

    Raises
    ------
    KvguardError
        So many lengths are equal that a bin would be empty.
    """
    if settings.by != "quantiles":
        return list(settings.by)
    if not lengths:
        raise KvguardError("dataset: holds no example: name another")
    cuts = np.quantile(np.asarray(lengths), np.linspace(0, 1, settings.n_bins + 1)[1:-1])
    edges = [min(lengths), *(int(np.ceil(cut)) for cut in cuts), max(lengths) + 1]
    if any(high <= low for low, high in pairwise(edges)):
        raise KvguardError(
            f"binning.n_bins: {len(lengths)} examples have too few different lengths for {settings.n_bins} "
            "bins: lower it, or give edges in binning.by"
        )
    return edges


def by_bin(examples: Iterable[Example], edges: Sequence[int]) -> list[list[Example]]:
    """Sort examples into bins; those outside the edges are left out."""
    bins: list[list[Example]] = [[] for _ in edges[1:]]
    for example in examples:
        index = int(np.searchsorted(edges, example.n_tokens, side="right")) - 1
        if 0 <= index < len(bins):
            bins[index].append(example)
    return bins


def choose(
    candidates: Sequence[Sequence[Example]], edges: Sequence[int], n: int, seed: int
) -> list[list[Example]]:
    """Return ``n`` examples of each bin: drawn by chance that depends on the seed and the examples alone.

    Raises
    ------
    KvguardError
        A bin has too few: which, and what would help.
    """
    few = [
        f"{len(found)} from {low} to {high - 1} tokens"
        for found, low, high in zip(candidates, edges, edges[1:], strict=False)
        if len(found) < n
    ]
    if few:
        raise KvguardError(
            f"dataset.n_per_bin: {n} are asked for, there are only {'; '.join(few)}: lower it or "
            "binning.n_bins, widen the edges in binning.by, or bring more examples"
        )
    return [ranked(found, seed)[:n] for found in candidates]


def ranked(examples: Iterable[Example], seed: int) -> list[Example]:
    """Return examples in the order in which they are drawn."""
    return sorted(examples, key=lambda one: hashlib.sha256(f"{seed}/{one.example_id}".encode()).hexdigest())
