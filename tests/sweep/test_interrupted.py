"""A sweep that is interrupted ends at once, says what it keeps, and leaves nothing and nobody behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from kvguard.store.tables import read_metadata

AT_MOST = 60.0  # seconds by the clock, for a machine that does much else
SWEEP = "from kvguard.cli import main; main()"


@pytest.fixture
def settings(tmp_path: Path, tiny_params) -> Path:
    """The tiny settings, with more parts than are made before a test is over."""
    path = tmp_path / "params.yaml"
    data = tiny_params | {
        "generate": tiny_params["generate"] | {"prompts_per_part": 4},
        "sample": tiny_params["sample"] | {"n": 400},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def start(settings: Path, workers: int, out: Path, said: Path) -> subprocess.Popen[bytes]:
    data = yaml.safe_load(settings.read_text())
    data["generate"]["workers"] = workers
    settings.write_text(yaml.safe_dump(data))
    command = [sys.executable, "-c", SWEEP, "sweep", "--model", "tiny", "--out", out, "--params", settings]
    with said.open("wb") as stream:
        return subprocess.Popen(command, stderr=stream, start_new_session=True)


@pytest.mark.parametrize(
    ("workers", "send", "number"),
    [(2, os.killpg, signal.SIGINT), (1, os.kill, signal.SIGTERM)],
    ids=["Ctrl-C to a parent and its workers", "SIGTERM to one process"],
)
def test_it_ends_at_once_and_says_what_is_kept(settings, tmp_path, workers, send, number) -> None:
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    process = start(settings, workers, out, stderr)
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*.parquet"))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent = psutil.Process(process.pid)
    workers_there = parent.children(recursive=True)
    before = len(list(out.glob("part-*.parquet")))
    send(process.pid, number)
    assert process.wait(timeout=AT_MOST) == 128 + number
    said = stderr.read_text()
    _, still_there = psutil.wait_procs(workers_there, timeout=1)
    assert not [one for one in still_there if one.status() != psutil.STATUS_ZOMBIE]  # whom nobody waits for
    last = said.rstrip().splitlines()[-1]
    assert "Traceback" not in said
    assert "Warning" not in said
    kept = sorted(out.glob("part-*.parquet"))
    assert len(kept) <= before + workers, "they went on to the end of their units, five parts each"
    assert f"generate: interrupted: {len(kept)} of " in last
    assert str(out) in last
    assert last.endswith("run it again to go on")
    for path in kept:
        read_metadata(path)
    assert not [path for path in out.iterdir() if "tmp" in path.name]
    assert not (out / "traces.parquet").exists()
