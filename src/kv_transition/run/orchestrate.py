"""The phase `run`: budget by budget, what is missing alone, with a progress bar."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from tqdm import tqdm

from kv_transition.data.loader import rendering
from kv_transition.db import dao
from kv_transition.engines.endpoints import describe, serving
from kv_transition.engines.openai_compat import OpenAICompatible, client_of
from kv_transition.eval.failure_taxonomy import Failures
from kv_transition.eval.metrics import parse, scores_of
from kv_transition.paths import Paths
from kv_transition.run.runner import Runner
from kv_transition.run.telemetry import MemoryWatch
from kv_transition.settings import Settings
from kvguard.errors import KvguardError


def run(connection: sqlite3.Connection, settings: Settings, paths: Paths) -> int:
    """Ask every request that has no response; return how many were asked.

    Raises
    ------
    KvguardError
        Nothing is prepared, or an endpoint is gone: what was answered until then is kept.
    """
    dataset = dao.dataset(connection)
    if dataset is None:
        raise KvguardError(f"{paths.database}: no data set is in it: run `kv-transition prepare` first")
    asked = 0
    for budget in settings.kv.budgets:
        run_id = dao.open_run(connection, paths.group, budget, settings.kv.policy)
        dao.plan_requests(connection, run_id, settings.decoding.repeats, settings.decoding.seed)
        requests = dao.open_requests(connection, run_id)
        if requests:
            _run_budget(connection, settings, paths, dataset, budget, run_id, requests)
            asked += len(requests)
        dao.end_run(connection, run_id)
    return asked


def _run_budget(
    connection: sqlite3.Connection,
    settings: Settings,
    paths: Paths,
    dataset: dao.DatasetRow,
    budget: float,
    run_id: int,
    requests: Sequence[dao.Open],
) -> None:
    template, cued = rendering(dataset.manifest["template"], settings.engine.api)
    taxonomy = Failures.load()
    right, failed, done = 0.0, 0, 0
    with (
        serving(settings, budget, paths.logs) as endpoint,
        client_of(settings.engine) as client,
        MemoryWatch(client, endpoint.base_url) as memory,
        tqdm(total=len(requests), desc=f"budget {budget:g}", unit="answer", dynamic_ncols=True) as bar,
    ):
        server = describe(client, endpoint.base_url, settings.model.name)
        dao.describe_server(connection, run_id, server)
        engine = OpenAICompatible(client, endpoint.base_url, server["model"], settings.engine, endpoint.extra)
        for request, answered in Runner(engine, settings, template, memory).answers(requests):
            dao.enter_response(connection, request.id, answered)
            parsed = parse(answered.text, cued)
            found = taxonomy.of(answered, parsed, cued)
            done += 1
            right += scores_of(parsed, answered, request.answers)[dataset.headline]
            failed += bool(found)
            bar.set_postfix_str(f"{dataset.headline} {right / done:.2f}, failed {failed}")
            bar.update()
