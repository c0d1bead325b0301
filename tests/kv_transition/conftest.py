from collections.abc import Iterator
from pathlib import Path

import pytest
from experiments import Experiment, Fake


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def experiment(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(tmp_path)
    return Experiment(tmp_path, fake)
