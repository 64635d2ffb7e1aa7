"""The endpoints as an OpenAPI description, which /openapi.json publishes."""

import re
from collections.abc import Callable, Iterable

from pyllama.server.endpoint import JSON, Endpoint
from pyllama.server.errors import ApiError, anthropic_body, body_of, ollama_body, openai_body
from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import STRING, obj
from pyllama.server.validate import Schema
from pyllama.version import __version__

_OR_NULL: Schema = {"type": ["string", "null"]}
_ERRORS: dict[Callable[[ApiError], JsonObject], Schema] = {
    openai_body: obj(
        {"error": obj({"message": STRING, "type": STRING, "param": _OR_NULL, "code": _OR_NULL}, ("message", "type"))},
        ("error",),
    ),
    anthropic_body: obj(
        {"type": {"const": "error"}, "error": obj({"type": STRING, "message": STRING})}, ("type", "error")
    ),
    ollama_body: obj({"error": STRING}, ("error",)),
}


def openapi(endpoints: Iterable[Endpoint], key_required: bool) -> Schema:
    """The OpenAPI 3.1 description of the endpoints."""
    paths: JsonObject = {}
    for one in endpoints:
        path = one.path.replace(":path}", "}")
        error = {"description": "an error", "content": {JSON: {"schema": _ERRORS[body_of(path)]}}}
        content = {kind: {"schema": {"type": "object"}} if kind == JSON else {} for kind in one.kinds}
        success = {"description": "done", "content": content}
        operation: JsonObject = {"summary": one.summary, "responses": {"200": success}}
        if one.schema is not None:
            content = {JSON: {"schema": _with_nulls(one.schema)}}
            operation["requestBody"] = {"required": True, "content": content}
            # 5xx is no answer to a request that fits the description, however odd it is.
            for other in ("400", "404", "408", "413", "415", "429", "503"):
                operation["responses"][other] = error
        names = re.findall(r"{(\w+)}", path)
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
            operation["responses"]["404"] = error
        if key_required and path != "/health":
            operation["responses"]["401"] = error
            operation["security"] = [{"key": []}]
        paths.setdefault(path, {})[one.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyllama", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _with_nulls(schema: Schema) -> Schema:
    """The schema as validate.py takes it: a field that may be absent may be null."""
    result = dict(schema)
    if "anyOf" in schema:
        result["anyOf"] = [_with_nulls(choice) for choice in schema["anyOf"]]
    if "items" in schema:
        result["items"] = _with_nulls(schema["items"])
    if "properties" in schema:
        required = schema.get("required", ())
        result["properties"] = {
            name: _with_nulls(field) if name in required else _or_null(_with_nulls(field))
            for name, field in schema["properties"].items()
        }
    return result


def _or_null(schema: Schema) -> Schema:
    result = dict(schema)
    if "anyOf" in schema:
        result["anyOf"] = [*schema["anyOf"], {"type": "null"}]
        return result
    result["type"] = [schema["type"], "null"]
    if "enum" in schema:
        result["enum"] = [*schema["enum"], None]
    return result
