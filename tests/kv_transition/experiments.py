"""A fake server in a process of its own, and an experiment that asks it."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml
from click.testing import CliRunner, Result

from kv_transition.cli import main

FAKE = Path(__file__).parent / "fake_server.py"


class Fake:
    """A fake server in a process of its own."""

    def __init__(self, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.root = f"http://127.0.0.1:{self.port}"

    def url(self, budget: float) -> str:
        return f"{self.root}/{budget:g}/v1"

    def control(self, **how: Any) -> None:
        httpx.post(f"{self.root}/control", json=how).raise_for_status()

    def state(self) -> dict[str, dict[str, int]]:
        return httpx.get(f"{self.root}/state").json()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Experiment:
    """A settings file in a folder of its own, and what is done with it."""

    def __init__(self, folder: Path, fake: Fake, **sections: dict[str, Any]) -> None:
        self.folder, self.config = folder, folder / "experiment.yaml"
        self.database = folder / "runs" / "test" / "kv_transition.sqlite"
        budgets = sections.get("kv", {}).get("budgets", [1.0, 0.5])
        self.settings: dict[str, Any] = {
            "dataset": {"name": "longarith", "n_per_bin": 3, "min_tokens": 120, "max_tokens": 600},
            "binning": {"n_bins": 3},
            "engine": {
                "endpoints": {budget: fake.url(budget) for budget in budgets},
                "concurrency": 2,
                "request": {"timeout_s": 10},
                "retries": {"attempts": 3, "wait_s": 0.01, "max_wait_s": 0.05},
            },
            "kv": {"budgets": budgets},
            "analysis": {"n_resamples": 100, "n_permutations": 199},
            "output": {"exp_group_id": "test"},
        }
        self.change(**sections)

    def change(self, **sections: dict[str, Any]) -> None:
        for name, values in sections.items():
            self.settings[name] = {**self.settings.get(name, {}), **values}
        self.config.write_text(yaml.safe_dump(self.settings))

    def invoke(self, command: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, [command, "-c", str(self.config), *arguments], catch_exceptions=False)

    def done(self, command: str, *arguments: str) -> str:
        result = self.invoke(command, *arguments)
        assert result.exit_code == 0, result.output
        return result.output

    def rejected(self, command: str, *arguments: str) -> str:
        result = self.invoke(command, *arguments)
        assert result.exit_code == 1, result.output
        last = result.output.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        return last

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=60)) as connection:
            return connection.execute(text).fetchall()
