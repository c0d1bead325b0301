"""What docker/ has for operators: a dashboard that asks for metrics that are there, and what starts it."""

import itertools
import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
PROMETHEUS = shutil.which("prometheus")
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/kvguard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
TEXT = {"model": "reference", "prompt": list(range(20, 80)), "max_tokens": 40, "temperature": 0}


def compose():
    return yaml.safe_load((DOCKER / "compose.serve.yaml").read_text())


def test_the_dashboard_has_the_shape_that_grafana_reads():
    assert DASHBOARD["schemaVersion"] >= 36  # since then a data source is an object
    assert DASHBOARD["uid"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} <= {"row", "stat", "timeseries", "heatmap"}
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {"defaults", "overrides"} == set(panel["fieldConfig"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["model"]["type"] == "query"
    assert all('{model_name=~"$model"}' in expression for expression in EXPRESSIONS)


def test_no_panel_lies_on_another():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken
        taken |= cells


def test_every_metric_that_is_asked_for_is_there_and_every_one_of_ours_is_shown(server):
    httpx.post(f"{server.base}/v1/completions", json=TEXT, timeout=60)
    text = httpx.get(f"{server.base}/metrics").text
    there = set(
        re.findall(r"^(?:# TYPE )?(kvguard:\w+)", text, re.M)
    )  # without a policy drift has no samples
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"kvguard:\w+", expression)}
    assert asked <= there
    families = set(re.findall(r"^# TYPE (kvguard:\w+)", text, re.M))
    families = {name for name in families if not name.endswith("_created")}
    assert not [name for name in families if not any(one.startswith(name) for one in asked)]


def test_what_is_mounted_is_there_and_leads_where_it_is_looked_for():
    services = compose()["services"]
    mounts = {}
    for service in services.values():
        for mount in service.get("volumes", []):
            source, target, *_ = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")
            assert not source.startswith(".") or (DOCKER / source).exists(), source
            mounts[target] = source
    [provider] = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/kvguard.yml").read_text())[
        "providers"
    ]
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/kvguard.json"
    [source] = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [job] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/api-key"
    assert all("api-key" in services[name]["secrets"] for name in ("server", "prometheus"))
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_the_image_serves_by_default_is_taken(monkeypatch):
    import importlib

    from click.testing import CliRunner

    from kvguard.cli import main
    from kvguard.serve import start

    found = []
    monkeypatch.setattr(importlib.import_module("kvguard.cli.serve"), "_served", lambda _, how: how)
    monkeypatch.setattr(start, "run", lambda how, host, *_: found.append((how["bundle"], host)))
    monkeypatch.setenv("KVGUARD_API_KEY", "k")
    done = CliRunner().invoke(main, ["serve", "--config", str(DOCKER / "serve.yaml")])
    assert done.exit_code == 0, done.output
    assert found == [(Path("/opt/kvguard/models/reference"), "0.0.0.0")]
    monkeypatch.delenv("KVGUARD_API_KEY")
    done = CliRunner().invoke(main, ["serve", "--config", str(DOCKER / "serve.yaml")])
    assert "no API key is asked for" in done.output


@pytest.fixture
def prometheus(serving, guards, tmp_path):
    """A Prometheus as docker/ sets it up, that scrapes a server at work; the way to its API."""
    limits = {"rows": 1, "kv_bytes": 10**7}  # so that texts wait, and a share of the limit is counted
    server = serving(guard=guards["late"], keys=["the-key"], limits=limits)
    (tmp_path / "key").write_text("the-key\n")
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    [job] = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(tmp_path / "key")
    job["static_configs"] = [{"targets": [server.base.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen(
        [PROMETHEUS, *arguments, "--web.listen-address=127.0.0.1:0", "--log.format=json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = threading.Event()

    def ask(action):
        headers, body = {"Authorization": "Bearer the-key"}, {**TEXT, "kv": {"action": action}}
        while not ended.is_set():
            httpx.post(f"{server.base}/v1/completions", json=body, headers=headers, timeout=60)

    asking = [threading.Thread(target=ask, args=(action,)) for action in ("restore", "rollback", "none")]
    for thread in asking:
        thread.start()
    try:
        address = next(json.loads(line)["address"] for line in process.stderr if '"Listening on"' in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://{address}"
    finally:
        ended.set()
        process.terminate()
        process.wait()
        for thread in asking:
            thread.join()


@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus: on Debian, apt-get install prometheus")
def test_every_expression_has_an_answer_from_prometheus(prometheus):
    expressions = {each.replace("$__rate_interval", "10s").replace("$model", ".*") for each in EXPRESSIONS}
    deadline, empty = time.monotonic() + 60, expressions
    while empty and time.monotonic() < deadline:
        time.sleep(1)
        found = {}
        for expression in empty:
            answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=30)
            assert answer.status_code == 200, (expression, answer.text)
            found[expression] = answer.json()["data"]["result"]
        empty = {
            expression
            for expression, result in found.items()
            if not any(series["value"][1] not in ("NaN", "0") for series in result)
        }
    assert not empty
    [target] = httpx.get(f"{prometheus}/api/v1/targets").json()["data"]["activeTargets"]
    assert target["health"] == "up"
