"""The phases of an experiment, each by itself: what it needs is in the database, and so is what it makes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kv_transition import paths as places
from kv_transition import settings as configuration
from kv_transition.db import dao
from kv_transition.db.connect import held
from kv_transition.paths import Paths
from kv_transition.settings import Settings
from kvguard.errors import KvguardError


@dataclass(frozen=True)
class Group:
    """An experiment group under work: its settings, its files, its database."""

    settings: Settings
    paths: Paths
    connection: sqlite3.Connection


@contextlib.contextmanager
def opened(config: Path, fresh: bool = False, force: str | None = None) -> Iterator[Group]:
    """Open the group of a settings file, alone.

    Parameters
    ----------
    fresh
        Whether the group may begin here.
    force
        The phase from which on everything is forgotten first.

    Raises
    ------
    KvguardError
        It is not there, another harness works on it, or the settings do not fit it.
    """
    settings = configuration.load(config)
    paths = places.of(settings)
    if not fresh and not paths.database.is_file():
        raise KvguardError(
            f"{paths.database}: no such database: run `kv-transition prepare -c {config}` first"
        )
    paths.folder.mkdir(parents=True, exist_ok=True)
    with held(paths) as connection:
        dao.check_group(connection, paths.group)
        if force == "prepare":
            dao.forget(connection, force)
        dao.enter_experiment(connection, paths.group, settings.snapshot(), _origin(settings))
        if force in ("run", "score", "analyze"):
            dao.forget(connection, force)
        yield Group(settings, paths, connection)


def _origin(settings: Settings) -> dict[str, Any]:
    from kvguard.tracking.origin import origin

    tags = origin()
    dirty = tags.get("git.dirty")
    return {
        "digest": settings.digest(),
        "revision": tags.get("git.revision"),
        "dirty": None if dirty is None else dirty == "true",
        "version": version("kvguard"),
    }


def prepare(group: Group) -> str:
    """Make the data set, unless it is there."""
    from kv_transition.data.prepare import prepare as make

    row = dao.dataset(group.connection)
    manifest = row.manifest if row else make(group.connection, group.settings, group.paths)
    edges = ", ".join(f"{edge:,}" for edge in manifest["bins"]["edges"])
    n = sum(len(chosen) for chosen in manifest["chosen"])
    return f"{manifest['dataset_id']}: {n} examples, bin edges at {edges} tokens"


def run(group: Group) -> str:
    """Ask what is missing."""
    from kv_transition.run.orchestrate import run as ask

    return f"{ask(group.connection, group.settings, group.paths)} requests answered"


def score(group: Group) -> str:
    """Score what is not scored."""
    from kv_transition.eval.score import score as judge

    return f"{judge(group.connection, group.settings)} responses scored"


def analyze(group: Group) -> str:
    """Analyze anew."""
    from kv_transition.analysis.analyze import analyze as examine

    zones = examine(group.connection, group.settings, group.paths.group)
    found = [f"budget {zone.budget:g} (p {zone.p_adjusted:.3g})" for zone in zones if zone.found]
    return f"transition zone at {', '.join(found)}" if found else "no transition zone"


def report(group: Group) -> str:
    """Write the report, and track the run where the settings say so."""
    from kv_transition.report.build import report as write

    written = write(group.connection, group.paths)
    if group.settings.output.mlflow:
        from kv_transition.report.tracking import track

        track(group.connection, group.settings, group.paths)
    return str(written)


def refine(group: Group, n: int | None, bins: str | None) -> str:
    """Add examples to the bins of the zones, or to those that are named.

    Raises
    ------
    KvguardError
        No zone was found and no bin is named, or there is no such bin.
    """
    from kv_transition.data.prepare import refine as add

    row = dao.dataset(group.connection)
    if row is None:
        raise KvguardError("nothing is prepared: run `kv-transition all` first")
    n_bins = len(row.manifest["bins"]["edges"]) - 1
    why: dict[str, Any]
    if bins is not None:
        chosen, why = _named(bins, n_bins), {"named": bins}
    else:
        found = group.connection.execute(
            "SELECT budget, start_bin, end_bin, p_value FROM transition_summary WHERE found AND scope = 'all'"
        ).fetchall()
        if not found:
            raise KvguardError(
                "refine: no zone was found: name bins with --bins, or raise dataset.n_per_bin in a new group"
            )
        near = {index for zone in found for index in range(zone["start_bin"] - 1, zone["end_bin"] + 2)}
        chosen, why = sorted(near & set(range(n_bins))), {"zones": [dict(zone) for zone in found]}
    n = n or group.settings.dataset.n_per_bin
    add(group.connection, group.settings, group.paths, chosen, n, why)
    where = ", ".join(str(index + 1) for index in chosen)
    return f"refine: {n} examples more in bin {where}, chosen by what was seen"


def _named(bins: str, n_bins: int) -> list[int]:
    try:
        chosen = sorted({int(name) - 1 for name in bins.split(",")})
    except ValueError:
        chosen = []
    if not chosen or chosen[0] < 0 or chosen[-1] >= n_bins:
        raise KvguardError(
            f"--bins: {bins!r} names no bins: write numbers from 1 to {n_bins}, parted by commas"
        )
    return chosen


PHASES: dict[str, Callable[[Group], str]] = {
    "prepare": prepare,
    "run": run,
    "score": score,
    "analyze": analyze,
    "report": report,
}
