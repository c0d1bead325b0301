"""What a mistyped `-S model=...` comes to under DVC: it edits params.yaml and reproduces."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_dvc_gets_as_far_as_kvguards_list_of_known_names(tmp_path, monkeypatch):
    for name in ("pipeline", "src"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    params = (REPOSITORY / "params.yaml").read_text()
    assert "\nmodel: reference " in params
    (tmp_path / "params.yaml").write_text(params.replace("\nmodel: reference ", "\nmodel: foo "))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "unknown name 'foo' (known: reference, reference_llama, " in done.stderr
    assert not (tmp_path / "data").exists()
