"""The API's own description: OpenAPI 3.1, written from the table of operations.

Rules: nothing is said here of a single route. The same code gives the same bytes; a copy is in
`docs/reference/openapi.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from node_agent.membership import SERVER_NAME
from reconciler.core.names import NAME
from reconciler.server.api_schemas import Schema, components, ref
from reconciler.server.intent_schemas import intent_schemas
from reconciler.server.operations import BEARER_ERRORS, CALLER, MEMBER, OPERATIONS, OWN, Operation
from reconciler.server.topology_schemas import topology_schemas
from reconciler.use_cases.releases import COMPONENTS

VERSION = "1.0.0"
"""Of the API, not of what serves it."""
_CORRELATION_ID = r"^[A-Za-z0-9][-_.A-Za-z0-9]{0,63}$"
_NAMED = {"X-Correlation-Id": {"$ref": "#/components/headers/CorrelationId"}}
RESPONSES = "#/components/responses/"
_PATH_PARAMETERS: Mapping[str, str] = {
    "tenant": f"^{NAME}$",
    "project": f"^{NAME}$",
    "name": f"^{MEMBER}$",
    "id": "^[0-9a-f]{26}$",
    "digest": "^sha256:[0-9a-f]{64}$",
    "version": "^[0-9A-Za-z][-+.0-9A-Za-z]*$",
    "component": f"^(?:{'|'.join(COMPONENTS)})$",
    "os": "^(?:any|linux|darwin|windows)$",
    "arch": "^(?:any|amd64|arm64)$",
}
_TAGS: Mapping[str, str] = {
    "read": "What is seen and remembered. Nothing is changed here: changes are commits.",
    "tokens": "Tokens for people and machines.",
    "handover": "For people whom a secret was handed to. Using up a token changes no desired "
    "state.",
    "intents": "Ways in and out for artifacts: what is given out is good for one place, until it "
    "is completed, closed or over. What should run is not touched.",
    "blobs": "Large files in and out, resumable, by digest, with the credential of an intent.",
    "releases": "Builds of the platform's own programs, by version and by digest.",
    "probes": "For orchestrators and Prometheus.",
    "agent": "Internal: between the control plane and node agents of the same release.",
    "webhooks": "For Git forges.",
}
_AGENTS = [{"url": f"https://{SERVER_NAME}:8471", "description": "`agents_listen`, TLS 1.3"}]
_WORDS: Mapping[int, str] = {
    400: "It is no message of ours.",
    401: "Whoever asks did not prove who he is.",
    403: "Whoever asks may not.",
    404: "There is no such thing, or none that the caller may know of.",
    408: "The body took too long.",
    409: "It was said before.",
    410: "It was given out before, or it is too late.",
    413: "The body is too large.",
    421: "The server is called by a name that is not its own.",
    415: "The body is of another type.",
    416: "There is nothing in that range.",
    422: "It is not well-formed.",
    429: "Too many tries: wait.",
    500: "The control plane failed; its log has the correlation id.",
    503: "Something it needs does not answer: try again.",
    507: "There is no room for it.",
}


def _schemas() -> dict[str, Schema]:
    return {**components(), **intent_schemas(), **topology_schemas()}


@cache
def openapi_json() -> str:
    """The document as it is served and stored."""
    return json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n"


def openapi_document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        there = paths.setdefault(one.path, {"servers": _AGENTS} if one.tag == "agent" else {})
        there[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpuaas",
            "version": VERSION,
            "summary": "What a GitOps control plane for GPU apps shows of itself.",
            "description": "What should run is said by commits to the state repo and nowhere "
            "else; this API tells what does. Cursors only rise. Every failure has the same "
            "shape.",
            "license": {"name": "See the repository", "identifier": "LicenseRef-gpuaas"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": says} for name, says in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(_schemas().items())),
            "responses": _shared_responses(),
            "headers": {
                "CorrelationId": {
                    "description": "The caller's own when it is well-formed, else a new one.",
                    "required": True,
                    "schema": {"type": "string", "pattern": _CORRELATION_ID},
                }
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "On the control plane's own host reading needs none, unless "
                    "the setting `require_tokens` says so.",
                }
            },
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": one.id,
        "summary": one.summary,
        "description": _may(one),
        "tags": [one.tag],
        "security": [{"bearer": []}] if one.needs_token else [],
        "parameters": _parameters(one),
        "responses": _responses(one),
    }
    if one.needs_token and one.access != CALLER:
        found["x-permission"] = one.access
    if one.takes:
        content = {media: {"schema": ref(one.takes)} for media in one.takes_as}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _may(one: Operation) -> str:
    if one.access == OWN:
        return f"Proof of who calls: {one.proof}."
    if not one.needs_token:
        return "For anybody."
    if one.access == CALLER:
        return "For whoever has a token."
    where = "in a project; what is of others is not there" if one.by_project else "for the platform"
    return f"Needs `{one.access}` {where}."


def _parameters(one: Operation) -> list[dict[str, Any]]:
    in_path: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": it}}
        for name, it in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in one.path
    ]
    in_query: list[dict[str, Any]] = [
        {"name": it.name, "in": "query", "description": it.says, "schema": it.schema}
        for it in one.query
    ]
    in_header: list[dict[str, Any]] = [
        {"name": it.name, "in": "header", "description": it.says, "schema": it.schema}
        for it in one.header
    ]
    return [*in_path, *in_query, *in_header]


def errors_of(one: Operation) -> dict[int, tuple[str, ...]]:
    """Status → codes of every refusal there can be, the most likely first."""
    found: dict[int, tuple[str, ...]] = dict(one.errors)
    if one.needs_token:
        found[401] = BEARER_ERRORS
        found[421] = ("wrong_host",)
        found[422] = (*one.errors.get(422, ()), "invalid_parameter", "unknown_parameter")
        if one.access != CALLER and not one.by_project:
            found[403] = ("not_permitted",)
    found[500] = ("internal",)
    found[503] = (*one.errors.get(503, ()), "")
    return dict(sorted(found.items()))


def _responses(one: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for answered, shape in ((one.status, one.answers), *one.further.items()):
        found[str(answered)] = {"description": one.summary, "headers": _NAMED}
        if shape:
            media = one.media if shape == one.answers else "application/json"
            found[str(answered)]["content"] = {media: {"schema": ref(shape)}}
    for status, codes in errors_of(one).items():
        found[str(status)] = {"$ref": RESPONSES + _response_name(status, codes)}
    return found


def _shared_responses() -> dict[str, Any]:
    """Name → every refusal that some operation answers with."""
    found = {
        _response_name(status, codes): _refusal(one, status, codes)
        for one in OPERATIONS
        for status, codes in errors_of(one).items()
    }
    return dict(sorted(found.items()))


def _response_name(status: int, codes: tuple[str, ...]) -> str:
    """The status and its codes."""
    known = ("token",) if codes == BEARER_ERRORS else codes
    return "_".join([str(status), *filter(None, known)])


def _refusal(one: Operation, status: int, codes: tuple[str, ...]) -> dict[str, Any]:
    known = ", ".join(f"`{code}`" for code in codes if code)
    return {
        "description": f"{_WORDS[status]} {known}".strip(),
        "headers": {**_NAMED, **_headers(one, status)},
        "content": {"application/json": {"schema": ref("Error")}},
    }


def _headers(one: Operation, status: int) -> dict[str, Schema]:
    if status == 401 and one.needs_token:
        scheme: Schema = {"type": "string", "pattern": "^Bearer"}
        return {"WWW-Authenticate": {"required": True, "schema": scheme}}
    if status in (429, 503):
        wait: Schema = {"type": "integer", "minimum": 0}
        says = "Seconds to wait, where that is known."
        return {"Retry-After": {"description": says, "schema": wait}}
    return {}
