"""A server that speaks as Anthropic and OpenAI do, and misbehaves as it is told."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Double(ThreadingHTTPServer):
    """Answers with ``says(question)``: a text, or the name of a failure (``timeout``, ``limit``)."""

    daemon_threads = True

    def __init__(self, says):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says = says
        self.seen = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def openai(self):
        return f"{self.url}/v1"

    @property
    def anthropic(self):
        return f"anthropic:{self.url}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(body)
        said = self.server.says(body["messages"][-1]["content"])
        status = {"limit": 429, "broken": 500, "key": 401, "model": 404}.get(said, 200)
        with contextlib.suppress(OSError):  # who asked may have gone
            if said == "timeout":
                time.sleep(1.5)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("retry-after", "0")
            self.end_headers()
            answer = _reply(self.path, said) if status == 200 else {"error": {"message": said, "type": said}}
            self.wfile.write(b"{" if said == "cut" else json.dumps(answer).encode())

    def log_message(self, *_):
        pass


def _reply(path, said):
    if said == "empty":
        return {}
    refused, text = said == "refusal", "" if said == "refusal" else said
    if path.endswith("/messages"):
        return {
            "id": "m", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "refusal" if refused else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1000, "output_tokens": 10},
        }  # fmt: skip
    message = {"role": "assistant", "content": text, "refusal": "no" if refused else None}
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010},
    }  # fmt: skip


@contextlib.contextmanager
def double(says):
    server = Double(says)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
