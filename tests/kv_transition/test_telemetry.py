"""What a request took, as far as an endpoint tells."""

import time

import httpx

from kv_transition.run.telemetry import MemoryWatch


def watched(answers, seconds):
    """What a watch finds, in so many seconds at most, of an endpoint that answers /metrics so, in turn."""
    asked = []

    def answer(request):
        asked.append(request.url.path)
        given = answers[min(len(asked), len(answers)) - 1]
        if isinstance(given, Exception):
            raise given
        return httpx.Response(200, text=given)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    start = time.monotonic()
    with MemoryWatch(client, "http://server/v1") as watch:
        while watch.peak(start, time.monotonic()) is None and time.monotonic() < start + seconds:
            watch.look()
            time.sleep(0.01)
    assert set(asked) == {"/metrics"}
    return watch.peak(start, time.monotonic()), len(asked)


def test_an_endpoint_that_does_not_answer_in_time_is_asked_again():
    gauge = 'kvguard:kv_bytes{model_name="m"} 2048.0\n'
    assert watched([httpx.ReadTimeout("busy"), httpx.ConnectError("not yet"), gauge], 30)[0] == 2048


def test_an_endpoint_that_tells_no_memory_is_asked_once():
    assert watched(["vllm:something 1\n"], 0.5) == (None, 1)
