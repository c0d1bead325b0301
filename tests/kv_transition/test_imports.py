"""The harness speaks HTTP: it knows neither torch nor what serves, and of kvguard only its light rooms."""

import ast
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"
LIGHT = {"errors", "config", "stage", "stats", "tasks", "report.drawing", "tracking"}
EVERYTHING = """
import importlib, pkgutil, sys
import kv_transition
for module in pkgutil.walk_packages(kv_transition.__path__, "kv_transition."):
    if module.name != "kv_transition.__main__":
        importlib.import_module(module.name)
from kv_transition.db.dao import Answered
from kv_transition.eval.metrics import scores_of
assert scores_of("the cat", Answered("the cat"), ["Cat"])["em"] == 1
heavy = {"torch", "transformers", "kvpress", "xgboost", "mlflow", "kvguard.engine", "kvguard.serve"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_neither_torch_nor_an_engine_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING],
        env={"PYTHONPATH": str(SRC), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_of_kvguard_only_light_rooms_are_known():
    strays = []
    for path in (SRC / "kv_transition").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                room = str(name).removeprefix("kvguard.")
                if str(name).startswith("kvguard.") and not any(
                    room == one or room.startswith(f"{one}.") for one in LIGHT
                ):
                    strays.append(f"{path.name} imports {name}")
    assert not strays


def test_kvguard_does_not_know_the_harness():
    for path in (SRC / "kvguard").rglob("*.py"):
        assert "kv_transition" not in path.read_text(), path


def test_help_is_instant_since_heavy_imports_stand_inside_commands():
    slow = "{'pandas', 'httpx', 'matplotlib', 'numpy'}"
    code = f"import sys; import kv_transition.cli; assert not {slow} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
