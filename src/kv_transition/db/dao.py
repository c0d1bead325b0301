"""What is written to the database, and what phases read back from it; analysis has queries of its own."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kv_transition.data.example import Example
from kvguard.errors import KvguardError

# What may change between two calls: it decides neither what is asked nor what is answered.
_ENGINE = ("base_url", "endpoints", "concurrency", "request", "retries", "api_key_env")
FREE = ("analysis", "output", "db", *(f"engine.{name}" for name in _ENGINE))


def now() -> str:
    """Return the time as the database holds it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 10**6 % 1000:03}Z"


def enter_experiment(
    connection: sqlite3.Connection, group: str, snapshot: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Make the row of an experiment, or check that its settings are those that it was begun with.

    Raises
    ------
    KvguardError
        They are not: the keys that differ.
    """
    row = connection.execute("SELECT id, config FROM experiments").fetchone()
    if row is not None:
        _check_fits(row, group, snapshot)
    values = (json.dumps(snapshot, sort_keys=True), origin["digest"], origin["revision"], origin["dirty"])
    with connection:
        if row is None:
            connection.execute(
                "INSERT INTO experiments (config, config_digest, git_revision, git_dirty, package_version, "
                "id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*values, origin["version"], group, now()),
            )
        else:
            connection.execute("UPDATE experiments SET config = ? WHERE id = ?", (values[0], group))


def check_group(connection: sqlite3.Connection, group: str) -> None:
    """Reject a database that is of another group.

    Raises
    ------
    KvguardError
        It is.
    """
    row = connection.execute("SELECT id FROM experiments").fetchone()
    if row is not None and row["id"] != group:
        raise KvguardError(
            f"db.path: the database is of group {row['id']!r}, not of {group!r}: name another file"
        )


def _check_fits(row: sqlite3.Row, group: str, snapshot: Mapping[str, Any]) -> None:
    before, after = flat(json.loads(row["config"])), flat(snapshot)
    differ = [
        f"{key} ({before.get(key)!r} there, {after.get(key)!r} here)"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE)
    ]
    if differ:
        raise KvguardError(
            f"settings do not fit the database of group {group!r}: {', '.join(differ)}: put them back, or "
            "name another output.exp_group_id"
        )


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


@dataclass(frozen=True)
class DatasetRow:
    """A prepared data set as the tables know it."""

    id: str
    headline: str
    manifest: dict[str, Any]


def dataset(connection: sqlite3.Connection) -> DatasetRow | None:
    """Return the prepared data set, None before `prepare`."""
    row = connection.execute("SELECT id, headline, manifest FROM datasets").fetchone()
    return None if row is None else DatasetRow(row["id"], row["headline"], json.loads(row["manifest"]))


def enter_dataset(
    connection: sqlite3.Connection,
    group: str,
    manifest: Mapping[str, Any],
    chosen: Sequence[Sequence[Example]],
) -> None:
    """Write a data set with the examples chosen for each bin, all or nothing."""
    with connection:
        connection.execute(
            "INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                manifest["dataset_id"],
                group,
                manifest["name"],
                manifest["task"],
                manifest["tokenizer"],
                manifest["template_hash"],
                manifest["headline"],
                json.dumps(manifest, sort_keys=True),
                now(),
            ),
        )
        edges = manifest["bins"]["edges"]
        for index, examples in enumerate(chosen):
            bin_id = connection.execute(
                "INSERT INTO bins (dataset_id, bin_index, low, high, n_pool) VALUES (?, ?, ?, ?, ?)",
                (
                    manifest["dataset_id"],
                    index,
                    edges[index],
                    edges[index + 1],
                    manifest["bins"]["n_pool"][index],
                ),
            ).lastrowid
            assert bin_id is not None
            _enter_entries(connection, manifest["dataset_id"], bin_id, examples, first=0, stage=1)


def add_examples(
    connection: sqlite3.Connection, manifest: Mapping[str, Any], added: Mapping[int, Sequence[Example]]
) -> None:
    """Add examples to some bins as a stage of their own, and keep the manifest that says so."""
    dataset_id, stage = manifest["dataset_id"], manifest["stages"][-1]["stage"]
    with connection:
        connection.execute(
            "UPDATE datasets SET manifest = ? WHERE id = ?",
            (json.dumps(manifest, sort_keys=True), dataset_id),
        )
        for index, examples in added.items():
            bin_id, first = connection.execute(
                "SELECT bins.id, count(manifest_entries.id) FROM bins LEFT JOIN manifest_entries ON bin_id "
                "= bins.id WHERE bins.dataset_id = ? AND bin_index = ?",
                (dataset_id, index),
            ).fetchone()
            _enter_entries(connection, dataset_id, bin_id, examples, first, stage)


def _enter_entries(
    connection: sqlite3.Connection,
    dataset_id: str,
    bin_id: int,
    examples: Sequence[Example],
    first: int,
    stage: int,
) -> None:
    for position, example in enumerate(examples, first):
        row = (
            dataset_id,
            example.example_id,
            example.question,
            example.context,
            json.dumps(example.answers, ensure_ascii=False),
            json.dumps(example.meta, sort_keys=True, ensure_ascii=False),
            example.n_tokens,
        )
        reference = connection.execute(
            "INSERT INTO examples (dataset_id, example_id, question, context, answers, meta, n_tokens) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        ).lastrowid
        connection.execute(
            "INSERT INTO manifest_entries (dataset_id, example_ref, bin_id, position, stage) VALUES (?, ?, "
            "?, ?, ?)",
            (dataset_id, reference, bin_id, position, stage),
        )


def example_ids(connection: sqlite3.Connection) -> set[str]:
    """Return the ids of all examples that are asked."""
    return {row[0] for row in connection.execute("SELECT example_id FROM examples")}


def open_run(connection: sqlite3.Connection, group: str, budget: float, policy: str) -> int:
    """Return the run of a budget, made where there is none, with a request for every entry and repeat."""
    with connection:
        connection.execute(
            "INSERT INTO runs (experiment_id, budget, policy, status, started_at) VALUES (?, ?, ?, 'open', "
            "?) ON CONFLICT DO NOTHING",
            (group, budget, policy, now()),
        )
        row = connection.execute("SELECT id FROM runs WHERE budget = ?", (budget,)).fetchone()
    return int(row[0])


def plan_requests(connection: sqlite3.Connection, run_id: int, repeats: int, seed: int) -> None:
    """Make the requests of a run that are not there yet; a repeat's seed is the same at every budget."""
    with connection:
        for repeat in range(repeats):
            connection.execute(
                "INSERT INTO requests (run_id, entry_id, repeat, seed) SELECT ?, id, ?, ? + ? * 1000003 + "
                "id FROM manifest_entries WHERE true ON CONFLICT DO NOTHING",
                (run_id, repeat, seed, repeat),
            )


@dataclass(frozen=True)
class Open:
    """A request without a response."""

    id: int
    question: str
    context: str
    answers: tuple[str, ...]
    seed: int


def open_requests(connection: sqlite3.Connection, run_id: int) -> list[Open]:
    """Return what a run has not got an answer to, the bins in turns: drift of a machine is not length."""
    rows = connection.execute(
        "SELECT requests.id, question, context, answers, seed FROM requests "
        "JOIN manifest_entries ON manifest_entries.id = entry_id "
        "JOIN examples ON examples.id = example_ref JOIN bins ON bins.id = bin_id "
        "WHERE run_id = ? AND NOT EXISTS (SELECT 1 FROM responses WHERE request_id = requests.id) "
        "ORDER BY repeat, position, (bin_index + position) % (SELECT count(*) FROM bins)",
        (run_id,),
    )
    return [Open(row[0], row[1], row[2], tuple(json.loads(row[3])), row[4]) for row in rows]


@dataclass(frozen=True)
class Answered:
    """A response as it is stored, whatever became of its request."""

    text: str
    finish_reason: str | None = None
    http_status: int | None = None
    error: str | None = None
    timed_out: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1
    retries: tuple[str, ...] = ()
    started_at: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)


MEASURED = ("latency_s", "ttft_s", "prefill_s", "decode_s", "kv_prompt", "kv_kept", "kv_peak", "memory_bytes")


def enter_response(connection: sqlite3.Connection, request_id: int, found: Answered) -> None:
    """Store a response with its telemetry: committed when this returns."""
    with connection:
        response = connection.execute(
            "INSERT INTO responses (request_id, text, finish_reason, http_status, error, timed_out, "
            "prompt_tokens, completion_tokens, attempts, retries, started_at, answered_at) VALUES (?, ?, "
            "?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                request_id,
                found.text,
                found.finish_reason,
                found.http_status,
                found.error,
                found.timed_out,
                found.prompt_tokens,
                found.completion_tokens,
                found.attempts,
                json.dumps(found.retries),
                found.started_at,
                now(),
            ),
        ).lastrowid
        connection.execute(
            f"INSERT INTO telemetry (response_id, {', '.join(MEASURED)}, raw) VALUES (?{', ?' * 9})",
            (
                response,
                *(found.measured.get(name) for name in MEASURED),
                json.dumps(found.measured.get("raw", {})),
            ),
        )


def end_run(connection: sqlite3.Connection, run_id: int) -> None:
    """Say that a run has an answer to every request."""
    with connection:
        connection.execute("UPDATE runs SET status = 'done', ended_at = ? WHERE id = ?", (now(), run_id))


def reopen_runs(connection: sqlite3.Connection) -> None:
    """Say that runs have more to ask."""
    with connection:
        connection.execute("UPDATE runs SET status = 'open', ended_at = NULL")


def describe_server(connection: sqlite3.Connection, run_id: int, server: Mapping[str, Any]) -> None:
    """Keep what a server said of itself."""
    with connection:
        connection.execute("UPDATE runs SET server = ? WHERE id = ?", (json.dumps(server), run_id))


def unscored(connection: sqlite3.Connection) -> list[sqlite3.Row]:
    """Return the responses without scores, each with its reference answers."""
    return connection.execute(
        "SELECT responses.*, answers FROM responses JOIN requests ON requests.id = request_id "
        "JOIN manifest_entries ON manifest_entries.id = entry_id JOIN examples ON examples.id = example_ref "
        "WHERE NOT EXISTS (SELECT 1 FROM scores WHERE response_id = responses.id) ORDER BY responses.id"
    ).fetchall()


def enter_scores(
    connection: sqlite3.Connection,
    scores: Iterable[tuple[Any, ...]],
    failures: Iterable[tuple[int, str, bool, str]],
) -> None:
    """Store scores and failures of responses, all or nothing."""
    with connection:
        connection.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", scores)
        connection.executemany(
            "INSERT INTO failures (response_id, kind, is_primary, evidence) VALUES (?, ?, ?, ?)", failures
        )


# What a phase made, in an order in which it can be deleted.
_MADE = {
    "analyze": ("transition_summary", "bin_stats"),
    "score": ("failures", "scores"),
    "run": ("telemetry", "responses", "requests", "runs"),
    "prepare": ("manifest_entries", "bins", "examples", "datasets", "experiments"),
}


def forget(connection: sqlite3.Connection, phase: str) -> None:
    """Delete what a phase made and what was made of it."""
    phases = list(_MADE)
    with connection:
        for name in phases[: phases.index(phase) + 1]:
            for table in _MADE[name]:
                connection.execute(f"DELETE FROM {table}")
