"""All numbers of an experiment, from the tables of its data sets.

A table of the results is named by what it says, and of which examples: ``effects squad2 hard none nll``. Its
subjects are conditions. One such table is one family of tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvguard.config import check_known
from kvguard.stats.bootstrap import Floats, Interval
from kvguard.stats.effects import highest, interaction, quantile_groups, random_effects
from kvguard.stats.trends import trend
from kvguard.store.results import Results
from kvguard.studies.directed.analysis.effects import Effect, against, effect, family, levels, structure
from kvguard.studies.directed.analysis.values import Values
from kvguard.studies.directed.params import AnalysisParams, Protocol
from kvguard.studies.directed.tracks import Cell

STAGE = "directed"
ALL, HARD = "all", "hard"
NLL = "nll"


@dataclass(frozen=True)
class Sample:
    """The examples of one data set, or its hard ones, under one metric.

    Attributes
    ----------
    difficulty
        The baseline's NLL in the first setting, whatever the metric. [N]
    """

    dataset: str
    subset: str
    metric: str
    values: Values
    weights: Floats
    difficulty: Floats

    def name(self, kind: str, *more: str) -> str:
        """Return the name of a table of these examples."""
        return " ".join([kind, self.dataset, self.subset, *more, self.metric])


def analyse(
    table: pd.DataFrame, model: str, name: str, protocol: Protocol, params: AnalysisParams, seed: int
) -> Results:
    """Return the results of an experiment.

    Parameters
    ----------
    table
        The ``directed`` tables of its data sets, one after another.
    """
    results = Results(STAGE, model, name)
    pooled: dict[tuple[str, str, str, str], dict[str, Effect]] = {}
    for sample in samples(table, protocol, params, seed):
        for setting in protocol.settings:
            found = _of_setting(results, sample, setting, protocol, params, seed)
            for condition, one in found.items():
                pooled.setdefault((sample.subset, setting, sample.metric, condition), {})[sample.dataset] = (
                    one
                )
        _crossed(results, sample, protocol)
    _pool(results, pooled)
    return results


def headline(
    results: pd.DataFrame, subsets: Collection[str] = (ALL, HARD)
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the numbers of some subsets, groups left out: {table: {subject: {metric: interval}}}."""
    nested: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    columns = ["table", "subject", "metric", "value", "low", "high"]
    for name, subject, metric, value, low, high in results[columns].itertuples(index=False):
        kind, *parts = name.split(" ")
        if kind != "quantiles" and set(parts) & set(subsets):
            one = Interval(value, low, high).as_dict()
            nested.setdefault(name, {}).setdefault(subject, {})[metric] = one
    return nested


def samples(table: pd.DataFrame, protocol: Protocol, params: AnalysisParams, seed: int) -> Iterator[Sample]:
    """Yield every data set under every metric: all of its examples, then its hard ones.

    Hard are those of the highest NLL in the baseline, in the first setting, whatever the metric.
    """
    cells = [Cell(condition, setting) for setting in protocol.settings for condition in protocol.conditions]
    for dataset, rows in table.groupby("dataset", sort=False):
        difficulty = -Values.of(rows, cells, NLL, "lower").column(
            Cell(protocol.baseline, protocol.settings[0])
        )
        known = np.isfinite(difficulty)
        hard = np.zeros(len(difficulty), dtype=bool)
        hard[known] = highest(difficulty[known], params.hard)
        for metric, better in protocol.metrics.items():
            check_known("metrics", metric, sorted(set(rows["metric"])))
            values = Values.of(rows, cells, metric, better)
            for subset, chosen in ((ALL, np.ones(len(hard), dtype=bool)), (HARD, hard)):
                some = values.some(chosen)
                weights = some.weights(params.n_resamples, seed)
                yield Sample(str(dataset), subset, metric, some, weights, difficulty[chosen])


def _of_setting(
    results: Results, sample: Sample, setting: str, protocol: Protocol, params: AnalysisParams, seed: int
) -> dict[str, Effect]:
    """Add what one setting says, and return each condition's effect."""
    cells = [Cell(condition, setting) for condition in protocol.conditions]
    values, weights = sample.values, sample.weights
    baseline = Cell(protocol.baseline, setting)
    found = against(values, baseline, cells, weights)
    for table, rows in (
        ("levels", levels(values, cells, weights)),
        ("effects", family(found)),
    ):
        for condition, metrics in rows.items():
            results.add(sample.name(table, setting), condition, metrics)
    if protocol.reference:
        noise = Cell(protocol.reference, setting)
        others = [cell for cell in cells if cell not in (noise, baseline)]
        for condition, metrics in family(against(values, noise, others, weights)).items():
            results.add(sample.name("semantic", setting), condition, metrics)
        if protocol.oracle:
            oracle = Cell(protocol.oracle, setting)
            shares = structure(values, baseline, noise, oracle, weights)
            results.add(sample.name("structure", setting), protocol.oracle, shares)
    if len(protocol.gradient) > 2:
        _gradient(results, sample, setting, protocol, params, seed)
    if sample.subset == ALL:
        _quantiles(results, sample, setting, protocol, params)
    return found


def _gradient(
    results: Results, sample: Sample, setting: str, protocol: Protocol, params: AnalysisParams, seed: int
) -> None:
    columns = np.stack([sample.values.column(Cell(name, setting)) for name in protocol.gradient], axis=1)
    whole = np.isfinite(columns).all(axis=1)
    found = trend(columns[whole], sample.weights[:, whole], params.n_permutations, seed)
    results.add(
        sample.name("gradient", setting),
        "order",
        {
            "n": float(whole.sum()),
            "rho": found.rho,
            "p": found.p,
            "within": found.within,
            "p_within": found.p_within,
        },
    )


def _quantiles(
    results: Results, sample: Sample, setting: str, protocol: Protocol, params: AnalysisParams
) -> None:
    """Add each condition's effect in every group of examples of like difficulty, hardest last."""
    values = sample.values
    known = np.isfinite(sample.difficulty)
    groups = np.full(len(known), -1)
    groups[known] = quantile_groups(sample.difficulty[known], params.quantiles)
    for condition in protocol.conditions:
        if condition == protocol.baseline:
            continue
        for group in range(params.quantiles):
            chosen = groups == group
            weights = sample.weights[:, chosen]
            column = values.column(Cell(condition, setting))[chosen]
            metrics = effect(
                column - values.column(Cell(protocol.baseline, setting))[chosen], weights
            ).metrics
            if protocol.reference and condition != protocol.reference:
                noise = values.column(Cell(protocol.reference, setting))[chosen]
                metrics["d_semantic"] = effect(column - noise, weights).metrics["d"]
            results.add(sample.name("quantiles", setting), f"{condition} {group + 1}", metrics)


def _crossed(results: Results, sample: Sample, protocol: Protocol) -> None:
    """Add interactions: of the grids' factors, and of each condition with each setting."""
    first = protocol.settings[0]
    column = sample.values.column
    for name, grid in protocol.grids.items():
        at = [[column(_cell(cell, first)) for cell in row] for row in grid.cells]
        found = {
            f"{name}: {grid.rows[r]} x {grid.columns[c]}": effect(
                interaction(at[0][0], at[0][c], at[r][0], at[r][c]), sample.weights
            )
            for r in range(1, len(grid.rows))
            for c in range(1, len(grid.columns))
        }
        _add_family(results, sample.name("grid", name), found)
    for setting in protocol.settings[1:]:
        bare = [column(Cell(protocol.baseline, one)) for one in (first, setting)]
        found = {}
        for condition in protocol.conditions:
            if condition != protocol.baseline:
                own = [column(Cell(condition, one)) for one in (first, setting)]
                found[condition] = effect(interaction(bare[0], own[0], bare[1], own[1]), sample.weights)
        _add_family(results, sample.name("survival", setting), found)


def _cell(text: str, first: str) -> Cell:
    condition, _, setting = text.partition("|")
    return Cell(condition, setting or first)


def _add_family(results: Results, table: str, effects: Mapping[str, Effect]) -> None:
    for subject, metrics in family(effects).items():
        results.add(table, subject, metrics)


def _pool(results: Results, pooled: Mapping[tuple[str, str, str, str], Mapping[str, Effect]]) -> None:
    """Add each condition's effect over data sets, and whether its sign is the same in all."""
    for (subset, setting, metric, condition), by_dataset in pooled.items():
        found = list(by_dataset.values())
        metrics: dict[str, Interval | float] = {}
        for name in ("benefit", "d"):
            numbers = [one.metrics[name].value for one in found]  # type: ignore[union-attr]
            over = random_effects(numbers, [one.variances[name] for one in found])
            metrics |= {name: over.effect, f"{name}_tau": over.tau, f"{name}_i2": over.heterogeneity}
        signs = [np.sign(one.metrics["benefit"].value) for one in found]  # type: ignore[union-attr]
        known = [sign for sign in signs if np.isfinite(sign)]
        metrics |= {
            "datasets": float(len(known)),
            "positive": float(sum(sign > 0 for sign in known)),
            "consistent": float(len(set(known)) == 1) if known else float("nan"),
        }
        results.add(f"pooled {subset} {setting} {metric}", condition, metrics)
