"""A sweep on a Ray cluster: the bytes of a local one, whoever is killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_sweep import digests, sweep_of, times

from kvguard.errors import KvguardError
from kvguard.sweep import plan
from kvguard.sweep import ray_cluster as ray_engine
from kvguard.sweep import run as sweep_module
from kvguard.sweep.make import generate_parts
from kvguard.sweep.plan import Plan, Sweep, SweepPart, compile_sweep, cut_by_compressor
from kvguard.sweep.run import run_sweep
from kvguard.sweep.workers import Work, make_missing


@pytest.fixture
def needs_ray() -> None:
    pytest.importorskip("ray", reason="ray, the extra ray, is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on which two workers have room, whatever the machine."""
    ray = pytest.importorskip("ray", reason="ray, the extra ray, is not installed")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def longer(sweep: Sweep) -> Sweep:
    return replace(sweep, task=sweep.task.model_copy(update={"max_new_tokens": 128}))


def kill_a_worker(out: Path) -> None:
    """Kill one of the two workers once a part is finished and both are at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        workers = [p for p in psutil.Process().children(recursive=True) if p.name() == "ray::_Worker.make"]
        if times(out) and len(workers) == 2:
            os.kill(workers[0].pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def die(*_: object) -> None:
    os._exit(1)


@pytest.mark.usefixtures("needs_ray")
def test_ray_goes_on_where_a_local_run_stopped(model_folder: Path, tmp_path: Path) -> None:
    import ray

    both, local = tmp_path / "both", tmp_path / "local"
    run_sweep(sweep_of(model_folder, n=2), both, progress=False)
    result = run_sweep(sweep_of(model_folder, n=6, engine="ray"), both, progress=False)
    assert (result.n_kept, result.n_made) == (3, 6)
    assert not ray.is_initialized()
    run_sweep(sweep_of(model_folder, n=6), local, progress=False)
    assert digests(both) == digests(local)


@pytest.mark.usefixtures("needs_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_one_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        KvguardError, match=r"^generate: no Ray cluster can be had \([^\n]+\); try again, or fix RAY_ADDRESS"
    ):
        run_sweep(sweep_of(model_folder, n=2, engine="ray"), tmp_path, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_workers_parts_are_taken_over(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ray, local = tmp_path / "ray", tmp_path / "local"
    lost: list[int] = []
    finished: dict[str, int] = {}
    replace_worker = ray_engine._Crew._replace

    def spy(crew: ray_engine._Crew, shift: ray_engine._Shift, error: Exception) -> None:
        finished.update(times(on_ray))
        lost.append(len(shift.unit))
        replace_worker(crew, shift, error)

    monkeypatch.setattr(ray_engine._Crew, "_replace", spy)
    killer = threading.Thread(target=kill_a_worker, args=(on_ray,))
    killer.start()
    result = run_sweep(longer(sweep_of(model_folder, n=16, workers=2, engine="ray")), on_ray, progress=False)
    killer.join()
    assert lost == [3]
    assert 0 < len(finished) < result.n_made == 24
    assert finished.items() <= times(on_ray).items(), "a finished part was made again"
    sweep = longer(sweep_of(model_folder, n=16, workers=2))
    run_sweep(sweep, local, progress=False)
    assert digests(on_ray) == digests(local)
    assert run_sweep(sweep, on_ray, progress=False).n_made == 0


@pytest.mark.usefixtures("cluster")
def test_a_unit_that_loses_every_worker_is_given_up(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    monkeypatch.setattr(sweep_module, "generate_parts", die)
    monkeypatch.setattr(ray_engine, "_MOST_LOSSES", 2)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    with pytest.raises(
        KvguardError, match=r"part 0000-none of model tiny lost its worker 2 times .*batch_size"
    ):
        run_sweep(sweep_of(model_folder, n=2, engine="ray"), tmp_path, progress=False)


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_cannot_do_is_one_line_here_too(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "part-0000-random.parquet").mkdir()
    with pytest.raises(KvguardError, match=r"^cannot write \S+part-0000-random.parquet: [^\n]+$") as caught:
        run_sweep(sweep_of(model_folder, n=2, engine="ray"), tmp_path, progress=False)
    assert type(caught.value) is KvguardError


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_finds_no_room_is_rejected(model_folder: Path, tmp_path: Path) -> None:
    sweep = sweep_of(model_folder, n=2, engine="ray", batch_size=8)
    loaded = sweep_module.load_model(sweep.name, sweep.spec, "cpu")
    plan = replace(plan_of(sweep, tmp_path), threads=999)
    with pytest.raises(KvguardError, match=r"^generate: no machine of the Ray cluster has 999 CPU"):
        make_missing(Work("generate", plan, generate_parts, tmp_path), loaded, progress=False)


def test_without_ray_nothing_is_written(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(
        KvguardError, match=r"generate.engine: ray is not installed: pip install 'kvguard\[ray\]'"
    ):
        run_sweep(sweep_of(model_folder, n=2, engine="ray"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "message"),
    [(".", r"has another model tiny, kvguard"), ("/nowhere", r"has no folder /nowhere; share it")],
)
def test_a_machine_that_differs_is_rejected(
    model_folder: Path, tmp_path: Path, folder: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(sweep_of(model_folder, n=2, batch_size=8), tmp_path)
    worker = ray_engine._Worker(
        Work("generate", plan, generate_parts, tmp_path), "cpu", "another", Path(folder)
    )
    assert list(worker.make([])) == []
    with pytest.raises(KvguardError, match=message):
        next(worker.make(plan.parts))
    assert not list(tmp_path.iterdir())


def plan_of(sweep: Sweep, out: Path) -> Plan[SweepPart]:
    loaded = sweep_module.load_model(sweep.name, sweep.spec, sweep.device)
    return compile_sweep(sweep, loaded, out, cut_by_compressor)
