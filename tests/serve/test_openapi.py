"""The schema that the server tells of itself, tried with what is generated from it."""

from dataclasses import replace

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from in_process import running
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

GENERATING = ("/v1/completions", "/v1/chat/completions")
OPENED = {"/", "/openapi.json"}
# A body may have the right shape and ask for too much: what the window takes, and which tokens there are, no
# schema tells.
NOT_HELD = [positive_data_acceptance]


@pytest.fixture(scope="module")
def small(calm):
    """A server whose texts are short, so that no generated budget takes long."""
    with running(replace(calm, window=120)) as found:
        yield found


@pytest.fixture(scope="module")
def described(small):
    return schemathesis.openapi.from_url(f"{small.base}/openapi.json")


def answers(operation, mode):
    """Hold the answers to generated requests against the schema, and return their statuses."""
    told = []

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def holds(case):
        response = case.call(timeout=60)
        told.append(response.status_code)
        assert response.status_code < 500
        case.validate_response(response, excluded_checks=NOT_HELD)

    holds()
    return set(told)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", [*GENERATING, "others"])
def test_no_generated_request_breaks_the_server_or_the_schema(described, path, mode):
    right = mode is GenerationMode.POSITIVE
    for operation in (found.ok() for found in described.get_all_operations()):
        asked = path == operation.path or (path == "others" and operation.path not in GENERATING)
        if asked and (right or operation.body):
            assert (200 in answers(operation, mode)) == right, operation.path


def test_the_schema_has_every_route_and_asks_for_a_key(serving):
    locked = serving(keys=["a-key"])
    assert httpx.get(f"{locked.base}/openapi.json").status_code == 401
    told = httpx.get(f"{locked.base}/openapi.json", headers={"Authorization": "Bearer a-key"}).json()
    routes = {route.path_format for route in locked.app.routes if isinstance(route, APIRoute)}
    assert set(told["paths"]) == routes - OPENED
    for path, operations in told["paths"].items():
        for operation in operations.values():
            assert operation["security"] == ([] if path == "/health" else [{"key": []}])
            assert "422" not in operation["responses"]
    body = told["components"]["schemas"]["CompletionRequest"]
    assert body["additionalProperties"] is False
    assert body["properties"]["model"]["enum"] == ["reference"]
    assert {"logprobs", "echo", "logit_bias", "kv", "top_k"} <= set(body["properties"])
    assert body["properties"]["suffix"]["enum"] == [None, ""]
