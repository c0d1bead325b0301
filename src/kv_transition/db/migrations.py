"""The schema as a numbered list of steps: a database of version ``n`` has gone the first ``n`` of them.

A step that was released is never edited; a change is a new step at the end.
"""

from __future__ import annotations

import sqlite3

_FIRST = """
CREATE TABLE experiments (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    config TEXT NOT NULL,
    config_digest TEXT NOT NULL,
    git_revision TEXT,
    git_dirty INTEGER,
    package_version TEXT NOT NULL
);
CREATE TABLE datasets (
    id TEXT PRIMARY KEY,
    experiment_id TEXT NOT NULL REFERENCES experiments (id),
    name TEXT NOT NULL,
    task TEXT,
    tokenizer TEXT NOT NULL,
    template_hash TEXT NOT NULL,
    headline TEXT NOT NULL,
    manifest TEXT NOT NULL,
    created_at TEXT NOT NULL
);
CREATE TABLE examples (
    id INTEGER PRIMARY KEY,
    dataset_id TEXT NOT NULL REFERENCES datasets (id),
    example_id TEXT NOT NULL,
    question TEXT NOT NULL,
    context TEXT NOT NULL,
    answers TEXT NOT NULL,
    meta TEXT NOT NULL,
    n_tokens INTEGER NOT NULL,
    UNIQUE (dataset_id, example_id)
);
CREATE TABLE bins (
    id INTEGER PRIMARY KEY,
    dataset_id TEXT NOT NULL REFERENCES datasets (id),
    bin_index INTEGER NOT NULL,
    low REAL NOT NULL,
    high REAL NOT NULL,
    n_pool INTEGER NOT NULL,
    UNIQUE (dataset_id, bin_index)
);
CREATE TABLE manifest_entries (
    id INTEGER PRIMARY KEY,
    dataset_id TEXT NOT NULL REFERENCES datasets (id),
    example_ref INTEGER NOT NULL UNIQUE REFERENCES examples (id),
    bin_id INTEGER NOT NULL REFERENCES bins (id),
    position INTEGER NOT NULL
);
CREATE INDEX manifest_by_bin ON manifest_entries (bin_id, position);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    experiment_id TEXT NOT NULL REFERENCES experiments (id),
    budget REAL NOT NULL,
    policy TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'done')),
    server TEXT NOT NULL DEFAULT '{}',
    started_at TEXT,
    ended_at TEXT,
    UNIQUE (experiment_id, budget)
);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id),
    entry_id INTEGER NOT NULL REFERENCES manifest_entries (id),
    repeat INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    UNIQUE (run_id, entry_id, repeat)
);
CREATE TABLE responses (
    id INTEGER PRIMARY KEY,
    request_id INTEGER NOT NULL UNIQUE REFERENCES requests (id),
    text TEXT NOT NULL,
    finish_reason TEXT,
    http_status INTEGER,
    error TEXT,
    timed_out INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    attempts INTEGER NOT NULL,
    retries TEXT NOT NULL DEFAULT '[]',
    started_at TEXT NOT NULL,
    answered_at TEXT NOT NULL
);
CREATE TABLE telemetry (
    response_id INTEGER PRIMARY KEY REFERENCES responses (id),
    latency_s REAL NOT NULL,
    ttft_s REAL,
    prefill_s REAL,
    decode_s REAL,
    kv_prompt REAL,
    kv_kept REAL,
    kv_peak REAL,
    memory_bytes REAL,
    raw TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE scores (
    response_id INTEGER PRIMARY KEY REFERENCES responses (id),
    parsed TEXT,
    em REAL NOT NULL,
    f1 REAL NOT NULL,
    substring_em REAL NOT NULL
);
CREATE TABLE failures (
    id INTEGER PRIMARY KEY,
    response_id INTEGER NOT NULL REFERENCES responses (id),
    kind TEXT NOT NULL,
    is_primary INTEGER NOT NULL,
    evidence TEXT NOT NULL,
    UNIQUE (response_id, kind)
);
CREATE TABLE bin_stats (
    id INTEGER PRIMARY KEY,
    experiment_id TEXT NOT NULL REFERENCES experiments (id),
    budget REAL NOT NULL,
    bin_index INTEGER NOT NULL,
    metric TEXT NOT NULL,
    value REAL,
    low REAL,
    high REAL
);
CREATE TABLE transition_summary (
    id INTEGER PRIMARY KEY,
    experiment_id TEXT NOT NULL REFERENCES experiments (id),
    budget REAL NOT NULL,
    found INTEGER NOT NULL,
    start_bin INTEGER,
    end_bin INTEGER,
    start_tokens REAL,
    end_tokens REAL,
    p_value REAL,
    rationale TEXT NOT NULL
);
"""

# Refinement: examples that were added later are told from the first ones, and numbers of both stand side by
# side.
_STAGES = """
ALTER TABLE manifest_entries ADD COLUMN stage INTEGER NOT NULL DEFAULT 1;
ALTER TABLE bin_stats ADD COLUMN scope TEXT NOT NULL DEFAULT 'all';
ALTER TABLE transition_summary ADD COLUMN scope TEXT NOT NULL DEFAULT 'all';
CREATE UNIQUE INDEX bin_stats_key ON bin_stats (experiment_id, scope, budget, bin_index, metric);
CREATE UNIQUE INDEX transition_key ON transition_summary (experiment_id, scope, budget);
"""

# What score and analyze ask for: the responses of a run, the failures of a response.
_LOOKUPS = """
CREATE INDEX requests_by_entry ON requests (entry_id);
CREATE INDEX failures_by_kind ON failures (kind, response_id);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _STAGES, _LOOKUPS)
NEWEST = len(MIGRATIONS)


def version(connection: sqlite3.Connection) -> int:
    """Return the version of a database, 0 for an empty file."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    return int(connection.execute("SELECT max(version) FROM schema_version").fetchone()[0]) if known else 0


def migrate(connection: sqlite3.Connection, upto: int = NEWEST) -> None:
    """Go the steps that a database has not gone, each in a transaction of its own."""
    for number in range(version(connection) + 1, upto + 1):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TEXT "
                "NOT NULL)"
            )
            for statement in MIGRATIONS[number - 1].split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_version VALUES (?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))", (number,)
            )
