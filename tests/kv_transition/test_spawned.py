"""A server that the harness starts for each budget: the real one."""

import psutil


def test_each_budget_is_asked_of_a_server_of_its_own_that_ends_with_the_run(experiment):
    del experiment.settings["engine"]["endpoints"]
    experiment.change(
        dataset={"n_per_bin": 1},
        engine={"spawn": "kvguard", "spawn_model": "reference_long", "request": {"timeout_s": 120}},
        decoding={"max_tokens": 4},
    )
    experiment.done("prepare")
    experiment.done("run")
    told = experiment.query(
        "SELECT budget, count(*), sum(error IS NULL), avg(kv_kept * 1.0 / kv_prompt) FROM runs "
        "JOIN requests ON run_id = runs.id JOIN responses ON request_id = requests.id "
        "JOIN telemetry ON response_id = responses.id GROUP BY budget ORDER BY budget"
    )
    assert [row[:3] for row in told] == [(0.5, 3, 3), (1.0, 3, 3)]
    assert 0.45 < told[0][3] < 0.55
    assert told[1][3] == 1
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "serve" in child.cmdline()]
