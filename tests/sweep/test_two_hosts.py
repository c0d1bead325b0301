"""A sweep over two hosts, one of them cut off midway: network namespaces of this machine, joined by a cable.

They share the file system, as hosts of a cluster share a folder, and nothing else that a network would carry.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_ray_cluster import longer
from test_sweep import digests, sweep_of, times

from kvguard.sweep.run import run_sweep

pytestmark = pytest.mark.slow
PORT = 6399
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}  # of this cluster alone
QUICK = {  # the seconds after which Ray takes a host for lost: minutes by default
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
DRIVER = """
import sys
from pathlib import Path
from test_ray_cluster import longer
from test_sweep import sweep_of
from kvguard.sweep.run import run_sweep
sweep = longer(sweep_of(Path(sys.argv[1]), n=24, workers=2, engine="ray"))
print(run_sweep(sweep, Path(sys.argv[2]), progress=False).n_made)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host:
    """A network namespace with one address."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address, self.folder = f"kvg{os.getpid()}-{number}", f"10.213.77.{number}", folder
        self.cable = f"kvg{os.getpid()}.{number}"

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
        known = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", **TOKEN, **QUICK, **environment}
        log = (self.folder / f"{self.name}-{Path(command[0]).name}.log").open("w")
        with log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env={**os.environ, **known},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def ray(self, *arguments: str) -> subprocess.Popen[str]:
        program = str(Path(sys.executable).parent / "ray")
        how = ("--node-ip-address", self.address, "--num-cpus", "1", "--object-store-memory", "100000000")
        return self.start(program, "start", *arguments, *how, "--block")

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of its processes that have this name, or all of them."""
        mine = Path(f"/run/netns/{self.name}").stat().st_ino
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(OSError, psutil.Error):
                space = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
                if space == mine and process.info["name"].startswith(name):
                    found.append(process)
        return found

    def remove(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        ip("netns", "delete", self.name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    pytest.importorskip("ray", reason="ray, the extra ray, is not installed")
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("hosts are network namespaces: needs root, and ip of iproute2")
    both = Host(1, tmp_path), Host(2, tmp_path)
    with contextlib.ExitStack() as made:
        for host in both:
            try:
                ip("netns", "add", host.name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr}")
            made.callback(host.remove)
        one, other = both
        ip("-n", one.name, "link", "add", one.cable, "type", "veth", "peer", other.cable, "netns", other.name)
        for host in both:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", host.cable, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield both


def until(what: str, true: Callable[[], object], needed: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert needed.poll() is None, f"ended before {what}"
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def test_a_host_cut_off_midway_changes_no_byte(
    hosts: tuple[Host, Host], model_folder: Path, tmp_path: Path
) -> None:
    head, other = hosts
    on_ray, local = tmp_path / "ray", tmp_path / "local"
    address = f"{head.address}:{PORT}"
    # Ray's sockets have names of at most 107 bytes, so its folder cannot lie in pytest's.
    folder = Path(f"/tmp/kvg{os.getpid()}")
    try:
        how = ("--port", str(PORT), "--include-dashboard", "false", "--temp-dir", str(folder))
        begun = head.ray("--head", *how)
        until("the head serves", lambda: head.processes("raylet"), begun)
        joined = other.ray("--address", address)
        until("the other host joins", lambda: other.processes("raylet"), joined)
        driver = head.start(sys.executable, "-c", DRIVER, str(model_folder), str(on_ray), RAY_ADDRESS=address)
        working = "ray::_Worker.make"
        until(
            "both hosts make parts",
            lambda: times(on_ray) and head.processes(working) and other.processes(working),
            driver,
        )
        before = times(on_ray)
        ip("-n", other.name, "link", "set", other.cable, "down")
        assert driver.poll() is None
        assert driver.wait(300) == 0
    finally:
        logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
        print(logs)  # pytest shows it where this fails
        shutil.rmtree(folder, ignore_errors=True)
    run_sweep(longer(sweep_of(model_folder, n=24, workers=2)), local, progress=False)
    assert 0 < len(before) < 36, "the host was cut off midway"
    assert digests(on_ray) == digests(local)
