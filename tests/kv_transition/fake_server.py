"""A small server of OpenAI's API that answers longarith: worse the longer, and the smaller its budget.

Its behaviour is told by POST /control: a list of moods, one for each generating request, the last one for
all further
ones. Addresses are /BUDGET/v1/...; it answers the same question at the same budget in the same way.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FACT = re.compile(r"(\w+) has (\d+) ")
ASKED = re.compile(r"How many things do (\w+) and (\w+) have together")


def answer_to(prompt: str, budget: float) -> str:
    """The right answer, or a wrong, truncated or formless one: a function of the prompt and the budget."""
    asked = ASKED.search(prompt)
    if asked is None:
        return "Answer: Paris"
    facts = dict(FACT.findall(prompt))
    a, b = (int(facts[name]) for name in asked.groups())
    luck = hashlib.sha256(f"{prompt}".encode()).digest()[0] / 256
    lost = (1 - budget) * len(prompt.split()) / 600
    if luck >= lost:
        return f"So {a} + {b} = {a + b}.\nAnswer: {a + b}"
    return "I do not know" if luck < lost / 2 else f"Answer: {a + b + 1}"


class State:
    """What the server has seen, and how it behaves."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.moods: list[str] = ["ok"]
        self.delay = 0.0
        self.seen: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()
        self.stop: list[str] | None = None  # of the newest request

    def mood(self) -> str:
        with self.lock:
            return self.moods.pop(0) if len(self.moods) > 1 else self.moods[0]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    state = State()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.endswith("/models"):
            self._json({"data": [{"id": "fake"}]})
        elif self.path == "/state":
            self._json({"seen": self.state.seen, "completed": self.state.completed, "stop": self.state.stop})
        elif self.path.endswith("/metrics"):
            self._whole(200, b'# HELP x\nkvguard:kv_bytes{model_name="fake"} 1048576.0\n', "text/plain")
        else:
            self._json({"error": "no such route"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/control":
            for name, value in body.items():
                setattr(self.state, name, value)
            self._json({})
        elif self.path.endswith("/tokenize"):
            text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
            self._json({"count": len(text.split()), "tokens": []})
        else:
            self._generate(body)

    def _generate(self, body: dict) -> None:
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        budget = float(self.path.split("/")[1])
        key = f"{budget}/{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"
        with self.state.lock:
            self.state.seen[key] += 1
            self.state.stop = body.get("stop")
        mood = self.state.mood()
        if self.state.delay:
            time.sleep(self.state.delay)
        if mood.isdigit():
            headers = {"Retry-After": "0"} if mood == "429" else {}
            return self._whole(int(mood), b'{"error": {"message": "not now"}}', "application/json", headers)
        if mood == "garbage":
            return self._whole(200, b"data: {no json\n\n", "text/event-stream")
        if mood == "html":
            return self._whole(200, b"<html>hello</html>", "text/html")
        if mood == "strict" and "stream_options" in body:
            return self._whole(
                400, b'{"error": {"message": "stream_options: unknown field"}}', "application/json"
            )
        if mood == "drop":
            self.close_connection = True
            return None
        return self._stream(prompt, budget, chat, key, mood)

    def _stream(self, prompt: str, budget: float, chat: bool, key: str, mood: str) -> None:
        text = "" if mood == "empty" else answer_to(prompt, budget)
        pieces = text.split(" ")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, piece in enumerate(pieces):
            if mood == "cut" and number == len(pieces) // 2:
                return
            if mood == "drip":
                time.sleep(0.2)
            said = piece if number == 0 else f" {piece}"
            self._event({"choices": [{"delta": {"content": said}} if chat else {"text": said}]})
        reason = "length" if mood == "length" else "stop"
        n = len(prompt.split())
        kept = {"kv_tokens": {"prompt": n, "kept": n * budget, "peak": n * budget + len(pieces)}}
        self._event({"choices": [{"delta": {}, "text": "", "finish_reason": reason}], "kvguard": kept})
        self._event({"choices": [], "usage": {"prompt_tokens": n, "completion_tokens": len(pieces)}})
        with self.state.lock:
            self.state.completed[key] += 1
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def _json(self, data: object, status: int = 200) -> None:
        self._whole(status, json.dumps(data).encode(), "application/json")

    def _whole(self, status: int, data: bytes, kind: str, headers: dict | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """The server; a client that leaves is no error."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
