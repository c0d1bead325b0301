"""The report stage, as the command that DVC calls, at every state of the pipeline."""

import importlib.util
from pathlib import Path

import click.testing

from kvguard.store.results import Results
from kvguard.store.tables import write_table
from kvguard.studies.catastrophes import layout

SCRIPT = Path(__file__).parents[2] / "pipeline" / "report.py"
PAGE = Path("reports/report.html")


def report():
    spec = importlib.util.spec_from_file_location("stage_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return click.testing.CliRunner().invoke(module.main, [])


def test_before_any_stage_the_report_names_the_commands(workspace):
    result = report()
    assert result.exit_code == 0, result.output
    text = PAGE.read_text()
    for command in ("dvc repro measure", "dvc repro score", "dvc repro intervals", "dvc repro evaluate"):
        assert f"<code>{command}</code>" in text
    tables = {path.stem for path in Path("reports/tables").iterdir()}
    assert {"experiment-001", "protocols", "transfer"} <= tables
    assert Path("plots/report/state-machine.png").is_file()


def test_what_a_stage_found_is_in_page_and_tables(workspace):
    found = Results("measure", "tiny")
    found.add("outcomes", "none", {"n": 12, "cbr": 0.123})
    found.write(layout.results("measure", "tiny"))
    report()
    assert "12.3" in PAGE.read_text()
    for suffix in ("md", "tex"):
        assert "12.3" in Path(f"reports/tables/experiment-001.{suffix}").read_text()


def test_live_results_and_their_times_are_in_the_page(workspace):
    found, times = (Results("live-validate", "tiny", "v2") for _ in range(2))
    found.add("policies-prefill", "rollback", {"cbr": 0.0987})
    times.add("latency", "restore", {"ms": 41.7})
    path = layout.results("live-validate", "tiny")
    found.write(path)
    times.write(layout.live("tiny") / "latency.parquet")
    assert report().exit_code == 0
    text = PAGE.read_text()
    assert "9.9" in text
    assert "41.7" in text


def test_the_same_results_give_the_same_bytes(workspace):
    report()
    before = PAGE.read_bytes()
    report()
    assert PAGE.read_bytes() == before


def test_a_damaged_results_table_is_one_line(workspace):
    path = layout.results("measure", "tiny")
    write_table("results", Results("measure", "tiny").frame, path)
    path.write_bytes(path.read_bytes()[:40])
    result = report()
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(path) in result.stderr
    assert not PAGE.exists()
