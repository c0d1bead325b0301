"""What comes from outside: the process is killed under load, its disk is full."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

SHORT = {"model": "reference", "prompt": list(range(20, 80)), "temperature": 0, "max_tokens": 5}
LONG = {**SHORT, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


@contextlib.contextmanager
def server(port, folder, stderr=subprocess.DEVNULL):
    """A server as a process of its own, in a folder of its own."""
    command = [sys.executable, "-c", "from kvguard.cli import main; main()", "serve", "--model", "reference"]
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    started = subprocess.Popen(
        [*command, "--compressor", "snapkv", "--ratio", "0.5", "--port", str(port)],
        stderr=stderr,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        while True:
            assert started.poll() is None
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()


def test_a_server_killed_under_load_leaves_clean_errors_and_nothing_to_repair(port, tmp_path):
    url, ends, begun = f"http://127.0.0.1:{port}/v1/completions", [], threading.Semaphore(0)

    def ask(stream):
        try:
            with httpx.stream("POST", url, json={**LONG, "stream": stream}, timeout=60) as answer:
                for _ in answer.iter_lines():
                    begun.release()
            ends.append(answer.status_code)
        except httpx.HTTPError as error:
            ends.append(error)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False) * 3]
    with server(port, tmp_path) as process:
        before = httpx.post(url, json=SHORT, timeout=60).json()["choices"]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert begun.acquire(timeout=60)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)  # none waits for what will not come
    assert len(ends) == 6
    assert all(isinstance(end, httpx.TransportError) for end in ends), ends
    assert list(tmp_path.iterdir()) == []
    with server(port, tmp_path):  # at once, on the same port
        assert httpx.post(url, json=SHORT, timeout=60).json()["choices"] == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_drops_the_log_and_serving_goes_on(port, tmp_path):
    with Path("/dev/full").open("w") as full, server(port, tmp_path, stderr=full) as process:
        url = f"http://127.0.0.1:{port}/v1/completions"
        for body, status in ((SHORT, 200), ({**SHORT, "n": 99}, 400), (SHORT, 200)):
            assert httpx.post(url, json=body, timeout=60).status_code == status
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
