"""The OpenAPI schema: what ``protocol`` takes, what ``response_models`` say, and which errors there are."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from kvguard.serve.gate import OPEN
from kvguard.serve.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from kvguard.serve.response_models import Error

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_TAKEN = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)


def told(answer: type[BaseModel], asked: type[BaseModel] | None = None, streams: bool = False) -> Json:
    """Return what FastAPI is to know of a route: the arguments of its decorator.

    Parameters
    ----------
    answer, asked
        Of its answer, and of the body that it takes.
    streams
        The answer may also come as events.
    """
    good: Json = {"model": answer, "description": (answer.__doc__ or "").splitlines()[0]}
    if streams:
        good["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    bad = {name: {"model": Error, "description": f"{name[0]}xx, with its reason"} for name in ("4XX", "5XX")}
    known: Json = {"responses": {200: good, **bad}}
    if asked is not None:
        schema = {"$ref": _REF.format(model=asked.__name__)}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        known["openapi_extra"] = {"requestBody": body}
    return known


def described(app: FastAPI, model: str, locked: bool) -> Json:
    """Return the schema.

    Parameters
    ----------
    model
        The one that is served.
    locked
        A key is asked for.
    """
    version = importlib.metadata.version("kvguard")
    routes = [route for route in app.routes if getattr(route, "path", "/") != "/"]  # which is a page
    schema = get_openapi(title="kvguard", version=version, routes=routes, description=_ABOUT)
    components = schema.setdefault("components", {})
    taken = models_json_schema([(kind, "validation") for kind in _TAKEN], ref_template=_REF)[1]["$defs"]
    served = {"type": "string", "enum": [model]}
    for body in taken.values():
        if "model" in body.get("properties", {}):
            body["properties"]["model"] = served
    components["schemas"] = {**components.get("schemas", {}), **taken}
    for parameter in schema["paths"]["/v1/models/{name}"]["get"]["parameters"]:
        parameter["schema"] = served
    if locked:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN else [{"key": []}]
    return schema


_ABOUT = "Any compressed, guarded model behind the API that OpenAI's clients speak: docs/server.md."


def schema_of(app: FastAPI, model: str, locked: bool) -> None:
    """Serve the schema at ``/openapi.json``, made when it is first asked for."""
    made = cache(lambda: described(app, model, locked))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Json:
        return made()
