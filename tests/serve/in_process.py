"""A server in this process, on a port of its own."""

import contextlib
import threading
import time

import openai
import uvicorn

from kvguard.serve.app import create_app
from kvguard.serve.punctual import Punctual


class Running:
    """A server under way."""

    def __init__(self, app, port):
        self.app, self.base = app, f"http://127.0.0.1:{port}"
        self.scheduler = app.state.service.scheduler

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=60)

    def asynchronous(self):
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=60)

    def idle(self):
        """Wait until nothing is under way; tell whether that came to be."""
        for _ in range(500):
            if not self.scheduler._rows and not self.scheduler._waiting:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def running(served, keys=(), log_text=False):
    app = create_app(served, keys, log_text)
    how = {"http": Punctual, "ws": "none"}
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on", **how)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(app, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
