"""The OpenAPI 3.1 description. What is said of data comes from the structs that decode and encode it, so the
description can't differ from what is done."""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

from lb.admin.operations import EVENT_STREAM, OPERATIONS, PREFIX, Operation
from lb.admin.problems import CONTENT_TYPE
from lb.admin.views import Problem

_REF: Final = "#/components/schemas/{name}"
_PROBLEMS: Final = {
    400: "The request is malformed: a parameter is unknown, missing or wrong, or the body is no JSON.",
    401: "Over TCP: the token is missing or wrong.",
    403: "The caller may not ask: another user, or a page of another site.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    413: "The body is over 64 KiB.",
    415: "The body is not application/json.",
    421: "Host is neither the address that is listened on, nor localhost, nor this machine's name.",
    422: "The body is JSON, but says something that can't be done.",
    429: "Too many wrong tokens came from this address.",
    500: "A fault in lb.",
    503: "The master or a worker does not answer, or too many listen to events.",
}
_ALWAYS: Final = (400, 401, 403, 421, 429, 500)
_INTRODUCTION: Final = """\
On a Unix socket (the default) the file's permissions decide: root and the user that lb was started as
are served. On a TCP address each request needs the token: `Authorization: Bearer TOKEN`. Requests that change
something need `Content-Type: application/json`, and all need a Host that is the address that is listened on,
an IP address of it, localhost, or, where all addresses are listened on, the machine's own host name. Unknown
parameters and fields are refused. Problems are RFC 9457."""


@functools.cache
def document(version: str) -> dict[str, Any]:
    """The whole description, of lb `version`."""
    kinds = [kind for one in OPERATIONS for kind in (one.answer, one.body) if kind is not None]
    _, schemas = msgspec.json.schema_components([*kinds, Problem], ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(PREFIX + one.route, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "shardlb admin API", "version": version, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _problem(status, text) for status, text in _PROBLEMS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "tags": [one.tag],
        "parameters": _parameters(one),
        "responses": {"200": _answer(one)}
        | {str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses(one)},
    }
    if one.body is not None:
        content = {"schema": _schema(one.body), "example": msgspec.to_builtins(one.example)}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _statuses(one: Operation) -> list[int]:
    """The problems that `one` may answer with."""
    found = [*_ALWAYS]
    if one.path or "worker" in one.query.__struct_fields__:
        found.append(404)
    if one.body is not None:
        found += [408, 413, 415, 422]
    if one.waits:
        found.append(503)
    return sorted(found)


def _parameters(one: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1},
            "description": f"Name of the {name}, percent-encoded.", "example": example,
        }
        for name, example in one.path.items()
    ]  # fmt: skip
    for name, schema in _fields(one.query).items():
        text = schema.pop("description")
        found.append({"name": name, "in": "query", "required": False, "schema": schema, "description": text})
    if one.content == EVENT_STREAM:
        found.append(
            {
                "name": "Last-Event-ID", "in": "header", "required": False, "schema": _NUMBER,
                "description": "The last event that was seen; counts more than `after`.",
            }
        )  # fmt: skip
    return found


_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}


def _fields(query: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """The schemas of the parameters."""
    _, schemas = msgspec.json.schema_components([query])
    fields: dict[str, dict[str, Any]] = schemas[query.__name__]["properties"]
    return fields


def _answer(one: Operation) -> dict[str, Any]:
    if one.answer is not None:
        schema = _schema(one.answer)
    elif one.content == EVENT_STREAM:
        schema = {"type": "string"}
    else:
        schema = {"type": "object"}
    return {"description": one.summary, "content": {one.content: {"schema": schema}}}


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _problem(status: int, text: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": text,
        "content": {CONTENT_TYPE: {"schema": _schema(Problem)}},
    }
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return described
