"""The OpenAPI document of the shim, made from its routes, so that none can be missing.

Served without a signature at ``/shovey/openapi.json``; schemathesis checks in ``tests/rest`` that the shim does what it
says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shovey_trio import __version__
from shovey_trio.core.trust.authz import PERMITTED
from shovey_trio.http.messages import JSON
from shovey_trio.shovey.rest.routing import RestRoute

PATH: Final = "/shovey/openapi.json"

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}
_NAMES: Final = {"type": "array", "items": _TEXT}
_TIME: Final = {"type": "string", "format": "date-time"}
_BASE64: Final = {"type": "string", "contentEncoding": "base64"}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": sorted(required), "additionalProperties": False}


def _page(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_JOB: Final = _object(
    {
        "command": _TEXT,
        "created_at": _TIME,
        "id": _TEXT,
        "nodes": {"type": "object", "additionalProperties": _NAMES},
        "run_timeout": _NUMBER,
        "status": {"enum": ["running", "complete", "cancelled", "quorum_failed"]},
        "updated_at": _TIME,
    }
)
_RUN: Final = _object(
    {
        "ack_time": _TIME,
        "end_time": _TIME,
        "error": _TEXT,
        "exit_status": {"type": "integer"},
        "node_name": _TEXT,
        "output": _TEXT,
        "run_id": _TEXT,
        "status": {
            "enum": ["created", "running", "succeeded", "failed", "cancelled", "nacked", "invalid", "down"],
        },
        "stderr": _TEXT,
    },
    {"output_base64": _BASE64, "stderr_base64": _BASE64},
)
_STREAM: Final = _object(
    {
        "is_last": {"type": "boolean"},
        "node_name": _TEXT,
        "output": _TEXT,
        "output_type": {"enum": ["stdout", "stderr", "both"]},
        "run_id": _TEXT,
    },
    {"last_seq": {"type": "integer"}, "output_base64": _BASE64},
)
_STATUS: Final = _object({"node_name": _TEXT, "status": {"enum": ["new", "up", "down"]}, "updated_at": _TIME})
_LISTED_STATUS: Final = _object({**_STATUS["properties"], "url": _TEXT})
_KEY: Final = _object({"public_key": _TEXT})
_ERROR: Final = _object({"error": {"type": "array", "items": _TEXT, "minItems": 1}})
_ROWS: Final = _object(
    {"rows": _page(_object({"name": _TEXT})), "start": {"type": "integer"}, "total": {"type": "integer"}}
)

_ANSWERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "GET /shovey/jobs": _page(_TEXT),
    "POST /shovey/jobs": _object({"id": _TEXT, "uri": _TEXT}),
    "PUT /shovey/jobs/cancel": _JOB,
    "GET /shovey/jobs/{job}": _JOB,
    "GET /shovey/jobs/{job}/{node}": _RUN,
    "PUT /shovey/jobs/{job}/{node}": _object({"id": _TEXT, "node": _TEXT, "response": {"enum": ["ok"]}}),
    "GET /shovey/stream/{job}/{node}": _STREAM,
    "PUT /shovey/stream/{job}/{node}": _object({"response": {"enum": ["ok"]}}),
    "GET /shovey/key": _KEY,
    "POST /shovey/key/reset": _KEY,
    "GET /status/all/nodes": _page(_LISTED_STATUS),
    "GET /status/node/{node}/latest": _STATUS,
    "GET /status/node/{node}/all": _page(_STATUS),
    "GET /nodes": {"type": "object", "additionalProperties": _TEXT},
    "GET /search/node": _ROWS,
}
_RAW: Final = frozenset({"GET /shovey/output/{job}/{node}"})
_SECONDS: Final = {"oneOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": "^[0-9]+$"}]}
_BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "POST /shovey/jobs": {
        "type": "object",
        "required": ["command", "nodes"],
        "properties": {
            "command": {"type": "string", "minLength": 1, "maxLength": 256},
            "nodes": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            "quorum": {"oneOf": [{"type": "number", "minimum": 0}, {"type": "string"}, {"type": "null"}]},
            "run_timeout": _SECONDS,
        },
    },
    "PUT /shovey/jobs/cancel": {
        "type": "object",
        "required": ["run_id"],
        "properties": {"run_id": {"type": "string", "minLength": 1}, "nodes": _NAMES, "kill_timeout": _SECONDS},
    },
    "PUT /shovey/jobs/{job}/{node}": {
        "type": "object",
        "properties": {"status": _TEXT, "error": _TEXT, "exit_status": {"type": "integer"}},
    },
    "PUT /shovey/stream/{job}/{node}": {
        "type": "object",
        "required": ["seq", "output", "output_type", "is_last"],
        "properties": {
            "seq": {"type": "integer", "minimum": 0},
            "output": _TEXT,
            "output_type": {"enum": ["stdout", "stderr"]},
            "is_last": {"type": "boolean"},
        },
    },
}
_OUTPUT_TYPE: Final = {"output_type": {"enum": ["stdout", "stderr", "both"]}}
_QUERIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "GET /shovey/stream/{job}/{node}": {**_OUTPUT_TYPE, "sequence": {"type": "integer", "minimum": 0}},
    "GET /shovey/output/{job}/{node}": _OUTPUT_TYPE,
    "GET /search/node": {
        "q": _TEXT,
        "start": {"type": "integer", "minimum": 0},
        "rows": {"type": "integer", "minimum": 0},
    },
}
# What may be answered besides 200, by every route and for the same reasons.
_ERRORS: Final = {
    "400": "the request makes no sense, or its signature is missing",
    "401": "the signature does not hold",
    "403": "the caller may not do this",
    "404": "there is no such thing",
    "405": "there is no such method",
    "408": "the request took too long",
    "409": "it was done before, or cannot be done any more",
    "413": "the body is too large",
    "431": "the headers are too large",
    "500": "a fault of ours",
    "503": "come again: too much at once, or the store or the Chef server is away",
}


def openapi_document(routes: Iterable[RestRoute]) -> dict[str, Any]:
    """The document; OpenAPI 3.1.

    Raises:
        KeyError: a route is not described here.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shovey-trio: Shovey's HTTP protocol",
            "version": __version__,
            "description": (
                "Every path also exists below /organizations/ORG. Requests are signed by Chef's protocol, version 1.0, "
                "1.1, 1.2 or 1.3. HEAD answers as GET, without a body."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"chef": {"type": "apiKey", "in": "header", "name": "X-Ops-Authorization-1"}},
        },
        "security": [{"chef": []}],
    }


def _operation(route: RestRoute) -> dict[str, Any]:
    name = f"{route.method} {route.template}"
    answer = {"application/octet-stream": {}} if name in _RAW else {JSON: {"schema": _ANSWERS[name]}}
    refused = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "description": "For " + ", ".join(sorted(role.value for role in PERMITTED[route.action])) + ".",
        "operationId": re.sub(r"[^a-z]+", "_", name.lower()).strip("_"),
        "parameters": [
            {"name": part, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for part in re.findall(r"{(\w+)}", route.template)
        ]
        + [{"name": part, "in": "query", "schema": schema} for part, schema in _QUERIES.get(name, {}).items()],
        "responses": {"200": {"description": "done", "content": answer}}
        | {status: {"description": why, "content": refused} for status, why in _ERRORS.items()},
    }
    if name in _BODIES:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _BODIES[name]}}}
    return operation
