"""What a report says, read from the database: tables, zones, findings, excerpts."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pandas as pd

from kv_transition.analysis import queries
from kv_transition.analysis.aggregate import DIFFERENCE, EFFECTIVE, FAILURES, MEAN, STD
from kv_transition.analysis.power import power_curve
from kv_transition.settings import FULL
from kvguard.errors import KvguardError

_SHOWN = (MEAN, STD, FAILURES, DIFFERENCE)


def read(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return everything that a report is made of.

    Raises
    ------
    KvguardError
        Nothing was analyzed.
    """
    experiment = connection.execute("SELECT * FROM experiments").fetchone()
    stats = _frame(
        connection, "SELECT scope, budget, bin_index, metric, value, low, high FROM bin_stats ORDER BY id"
    )
    if experiment is None or stats.empty:
        raise KvguardError("nothing was analyzed: run `kv-transition analyze` first")
    config = json.loads(experiment["config"])
    dataset = connection.execute("SELECT * FROM datasets").fetchone()
    manifest = json.loads(dataset["manifest"])
    zones = _frame(connection, "SELECT * FROM transition_summary ORDER BY scope, budget DESC")
    zones["rationale"] = zones["rationale"].map(json.loads)
    runs = [dict(row) for row in connection.execute("SELECT * FROM runs ORDER BY budget DESC")]
    for run in runs:
        run["server"] = json.loads(run["server"])
    bins = _frame(
        connection,
        "SELECT bin_index, low, high, n_pool, count(manifest_entries.id) AS n, avg(n_tokens) AS "
        "mean_tokens FROM bins JOIN manifest_entries ON bin_id = bins.id JOIN examples ON examples.id = "
        "example_ref GROUP BY bins.id ORDER BY bin_index",
    ).set_index("bin_index")
    return {
        "experiment": {key: experiment[key] for key in experiment.keys() if key != "config"},  # noqa: SIM118
        "config": config,
        "manifest": {key: value for key, value in manifest.items() if key != "chosen"},
        "headline": dataset["headline"],
        "bins": bins,
        "runs": runs,
        "requests": queries.request_counts(connection),
        "stats": stats,
        "zones": zones,
        "failures": queries.failure_counts(connection),
        "excerpts": queries.excerpts(connection),
        "miscounted": _miscounted(connection),
        "power": power_curve(),
    }


def _frame(connection: sqlite3.Connection, query: str) -> pd.DataFrame:
    return pd.DataFrame([dict(row) for row in connection.execute(query)])


def _miscounted(connection: sqlite3.Connection) -> float | None:
    """Return the most tokens by which the server's count of a prompt differs from ours."""
    found = connection.execute(
        "SELECT max(abs(prompt_tokens - n_tokens)) FROM responses JOIN requests ON requests.id = request_id "
        "JOIN manifest_entries ON manifest_entries.id = entry_id JOIN examples ON examples.id = example_ref "
        "WHERE prompt_tokens IS NOT NULL"
    ).fetchone()[0]
    return None if found is None else float(found)


def summary(content: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the analysis as one nested object: by scope, budget, bin and metric."""
    found: dict[str, Any] = {}
    for row in content["stats"].itertuples():
        scope = found.setdefault(row.scope, {}).setdefault(f"budget-{row.budget:g}", {})
        place = scope if row.bin_index < 0 else scope.setdefault(f"bin-{row.bin_index + 1}", {})
        known = {"value": row.value, "low": row.low, "high": row.high}
        place[row.metric] = {key: None if pd.isna(value) else value for key, value in known.items()}
    for zone in content["zones"].itertuples():
        place = found[zone.scope][f"budget-{zone.budget:g}"]
        place["transition"] = {
            "found": bool(zone.found),
            "start_tokens": _none(zone.start_tokens),
            "end_tokens": _none(zone.end_tokens),
            "p_value": _none(zone.p_value),
        }
    bins = {
        f"bin-{index + 1}": {
            "low": row.low,
            "high": row.high - 1,
            "mean_tokens": row.mean_tokens,
            "n": int(row.n),
        }
        for index, row in content["bins"].iterrows()
    }
    requests = {f"budget-{row['budget']:g}": row for row in content["requests"]}
    return {"headline": content["headline"], "bins": bins, "requests": requests, **found}


def _none(value: Any) -> Any:
    return None if pd.isna(value) else value


def findings(content: dict[str, Any], scope: str) -> list[str]:
    """Return what the numbers say, one sentence each; what they cannot say is not among them."""
    stats = content["stats"]
    stats = stats[stats["scope"] == scope]
    bins, headline = content["bins"], content["headline"]
    budgets = sorted(stats["budget"].unique(), reverse=True)
    said = []
    for budget in budgets:
        rows = stats[(stats["budget"] == budget)]
        score = rows[rows["metric"] == MEAN].set_index("bin_index")
        first, last = score.index.min(), score.index.max()
        said.append(
            f"At budget {budget:g} mean {headline} is {_number(score.loc[first])} at "
            f"{bins.loc[first, 'mean_tokens']:,.0f} tokens and {_number(score.loc[last])} at "
            f"{bins.loc[last, 'mean_tokens']:,.0f}: {_moved(score.loc[first], score.loc[last])}."
        )
        effective = rows[rows["metric"] == EFFECTIVE]
        if len(effective) and pd.notna(effective.iloc[0]["value"]):
            one = effective.iloc[0]
            said.append(
                f"Its effective length is {one['value']:,.0f} tokens [{one['low']:,.0f}, "
                f"{one['high']:,.0f}]: the longest bin with at least "
                f"{content['config']['analysis']['effective']:.0%} of the shortest's score."
            )
        worse = rows[(rows["metric"] == DIFFERENCE) & (rows["high"] < 0)]
        if budget < FULL and not rows[rows["metric"] == DIFFERENCE].empty:
            where = ", ".join(f"{bins.loc[index, 'mean_tokens']:,.0f}" for index in worse["bin_index"])
            said.append(
                f"It scores below budget 1 on the same examples in the bins around {where} tokens."
                if where
                else "In no bin does its interval of the difference to budget 1 lie below 0."
            )
    return said


def _moved(first: Any, last: Any) -> str:
    if last["high"] < first["low"]:
        return "it falls"
    return "it rises" if last["low"] > first["high"] else "the intervals overlap"


def _number(row: Any) -> str:
    if pd.isna(row["value"]):
        return "not known"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def table(content: dict[str, Any], scope: str, budget: float) -> list[dict[str, str]]:
    """Return one row for each bin at a budget, as the report shows it."""
    stats = content["stats"]
    rows = stats[(stats["scope"] == scope) & (stats["budget"] == budget)]
    by_bin = {key: group.set_index("metric") for key, group in rows.groupby("bin_index") if key >= 0}
    found = []
    for index, group in sorted(by_bin.items()):
        known = {metric: _number(group.loc[metric]) for metric in _SHOWN if metric in group.index}
        plain = {metric: group.loc[metric, "value"] for metric in group.index}
        low, high = content["bins"].loc[index, ["low", "high"]]
        found.append(
            {
                "bin": f"{index + 1}",
                "tokens": f"{low:,.0f} to {high - 1:,.0f}",
                "n": f"{plain['n']:.0f}",
                **{metric: known.get(metric, "") for metric in _SHOWN},
                "latency": _pair(plain, "latency_s"),
                "ttft": _pair(plain, "ttft_s"),
                "memory": _plain(plain.get("memory_bytes_p95"), 2**20, ".2f"),
                "kept": _plain(plain.get("kv_kept_share"), 1, ".3f"),
            }
        )
    return found


def _pair(plain: dict[str, float], name: str) -> str:
    return " / ".join(_plain(plain.get(f"{name}_p{percent}"), 1, ".2f") for percent in (50, 95))


def _plain(value: float | None, unit: float, form: str) -> str:
    return "not told" if value is None or pd.isna(value) else f"{value / unit:{form}}"
