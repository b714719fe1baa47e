"""The API does what its OpenAPI document says: schemathesis asks, and nothing may surprise it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.config import SchemathesisConfig
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from docs.generate import codes
from reconciler.ports import Store
from reconciler.server.app import ServerDeps, Signal, build_agents_app, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.openapi import errors_of, openapi_document, openapi_json
from reconciler.server.operations import OPERATIONS, Operation
from reconciler.server.peer import Peer, with_peer
from tests.fakes.ca import FakeCa
from tests.fakes.registry import FakeRegistry
from tests.fakes.store import MemoryStore
from tests.server.harness import Keys, Plane, StillClock, refusal, running, settings_of
from tests.server.readers import ADA, EVE, FOREIGN_KEY, NILS, OWN, populate, token_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = 25


def app_over(store: Store, **fields: Any) -> Starlette:
    chosen = settings_of(require_tokens=True, join_failures_max=1_000_000, **fields)
    deps = ServerDeps(store, Keys(), StillClock(), chosen, lambda _: None, Signal(), Metrics())
    deps = replace(deps, registry=FakeRegistry())
    envelope = {
        "payload": "e30=",
        "payloadType": "x",
        "signatures": [{"keyid": "k", "sig": "AA=="}],
    }
    return build_app(replace(deps, snapshot=lambda: json.dumps(envelope).encode()))


def agents_app_over(store: Store) -> Starlette:
    """As it is for an agent that shows a certificate."""
    chosen, clock = settings_of(join_failures_max=1_000_000), StillClock()
    deps = ServerDeps(store, Keys(), clock, chosen, lambda _: None, Signal(), Metrics())
    app = build_agents_app(deps, FakeCa(clock))
    app.add_middleware(partial(with_peer, peer=Peer("0" * 64, 2**50)))
    app.router.routes.append(Route("/openapi.json", lambda _: Response(openapi_json())))
    return app


STORE = MemoryStore()
populate(STORE)
APP = app_over(STORE)
AGENTS_APP = agents_app_over(STORE)
CONFIG_GENERATION = {
    "deterministic": True,
    "max-examples": EXAMPLES,
    # OpenAPI can't say that there are no other parameters; those are refused here.
    "allow-extra-parameters": False,
    "with-security-parameters": False,
}
CONFIG = SchemathesisConfig.from_dict(
    {
        # Instances that are there; what else they may be called is asked for below.
        "parameters": {"path.tenant": "acme", "path.project": "lab", "path.name": "notebook"},
        "generation": CONFIG_GENERATION,
        # A message of the right shape may still be signed by nobody we know.
        "checks": {
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", 400, 401, 403, 404, 410, 429]
            },
        },
    }
)
WILD = SchemathesisConfig.from_dict({"generation": CONFIG_GENERATION})
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP, config=CONFIG).exclude(tag="agent")
AGENTS = schemathesis.openapi.from_asgi("/openapi.json", AGENTS_APP, config=CONFIG).include(
    tag="agent"
)
ANY_INSTANCE = schemathesis.openapi.from_asgi("/openapi.json", APP, config=WILD).include(
    path_regex="^/v1/instances/"
)
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@SCHEMA.parametrize()
@BOUNDED
def test_the_api_does_what_its_document_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=token_of(STORE, ADA))


@AGENTS.parametrize()
@BOUNDED
def test_so_does_that_of_agents(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate()


@ANY_INSTANCE.parametrize()
@BOUNDED
def test_so_it_does_for_instances_of_any_name(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=token_of(STORE, ADA))


# --- the document itself -------------------------------------------------------------------------

DOCUMENT = openapi_document()


def refs(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        if "$ref" in document:
            yield document["$ref"]
        for value in document.values():
            yield from refs(value)
    elif isinstance(document, list):
        for value in document:
            yield from refs(value)


def test_it_is_openapi() -> None:
    SCHEMA.validate()
    there = [
        one
        for path in DOCUMENT["paths"].values()
        for name, one in path.items()
        if name != "servers"
    ]
    ids = [one["operationId"] for one in there]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_all_that_is_named_is_there_and_all_that_is_there_is_named() -> None:
    there = {
        f"#/components/{kind}/{name}"
        for kind, found in DOCUMENT["components"].items()
        if kind != "securitySchemes"
        for name in found
    }
    assert set(refs(DOCUMENT)) == there


def test_no_object_is_left_open() -> None:
    def objects(schema: Any, where: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
                yield where
            for name, value in schema.items():
                yield from objects(value, f"{where}/{name}")

    left = {*objects(DOCUMENT["components"]["schemas"], "")}
    # This document itself, and findings, which say what each of them has to say.
    assert left == {"/AnyObject", "/Pass/properties/findings/items"}


def test_it_names_every_code_that_the_server_answers_with() -> None:
    told = {code for one in OPERATIONS for of in errors_of(one).values() for code in of}
    # Of every path: there is none, or not with this method.
    made = set(codes()["Errors of the HTTP API"])
    assert made - told == set()


def test_it_is_served_as_it_is_stored(plane: Plane) -> None:
    answer = plane.client.get("/openapi.json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.text == openapi_json()
    assert json.loads(answer.text) == DOCUMENT
    stored = ROOT / "docs" / "reference" / "openapi.json"
    assert stored.read_text() == answer.text, "python docs/generate.py"


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    with running(STORE, require_tokens=True) as plane:
        yield plane


READS = [one for one in OPERATIONS if one.tag == "read" and one.by_project]


@pytest.mark.parametrize("one", READS, ids=lambda one: one.id)
@pytest.mark.parametrize("who", [NILS, EVE, ADA])
def test_what_is_filtered_has_the_same_shape(plane: Plane, one: Operation, who: str) -> None:
    tenant, project, name = OWN.split("/")
    path = one.path.format(tenant=tenant, project=project, name=name)
    answer = plane.client.get(path, headers=token_of(STORE, who))
    shape = one.answers if answer.status_code == 200 else "Error"
    schema = {"$ref": f"#/components/schemas/{shape}", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json())


# --- one shape for every failure -----------------------------------------------------------------

ODD = [
    ("GET", "/", 404),
    ("GET", "//v1/status", 404),
    ("GET", "/v1/status/", 404),
    ("GET", "/v1/../v1/nowhere", 404),
    ("GET", "/v1/status%00", 404),
    ("GET", "/v1/instances/a%2Fb/c/d", 404),
    ("GET", "/v1/instances/%ff/%00/%F0%9F%92%A5", 404),
    ("GET", "/v1/instances/ACME/lab/x", 404),
    ("GET", f"/v1/instances/acme/lab/{'x' * 5_000}", 404),
    ("GET", "/v1/instances/acme/lab/x.y.z/timeline", 404),
    ("OPTIONS", "/v1/status", 405),
    ("TRACE", "/v1/status", 405),
    ("PROPFIND", "/v1/events", 405),
    ("POST", "/v1/instances/acme/lab/notebook", 405),
    ("GET", "/v1/agent/poll", 404),
    ("GET", "/v1/events?limit", 422),
    ("GET", "/v1/events?limit=1&limit=2", 422),
    ("GET", "/v1/events?limit=%FF", 422),
    ("GET", "/v1/events?limit=٣", 422),
    ("GET", "/v1/events?%00=1", 422),
    ("GET", "/v1/events?&&&=&", 422),
    ("GET", "/v1/events?instance=globex", 422),
    ("GET", "/v1/status?verbose=1", 422),
    ("POST", "/v1/auth/token", 415),
]


@pytest.mark.parametrize(("method", "path", "status"), ODD)
def test_odd_requests_are_refused_in_the_one_shape(
    plane: Plane, method: str, path: str, status: int
) -> None:
    answer = plane.client.request(method, path, headers=token_of(STORE, ADA))
    assert (refusal(answer)[0], answer.headers["Content-Type"]) == (status, "application/json")
    assert status != 405 or answer.headers["Allow"]


def test_a_head_has_the_status_of_its_get_and_no_body(plane: Plane) -> None:
    headers = token_of(STORE, NILS)
    for path in ("/v1/whoami", "/v1/status", f"/v1/instances/{FOREIGN_KEY}", "/nowhere"):
        got = plane.client.get(path, headers=headers)
        head = plane.client.head(path, headers=headers)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"]


def test_an_unknown_parameter_is_told_what_there_is(plane: Plane) -> None:
    answer = plane.client.get("/v1/events?aftr=3", headers=token_of(STORE, ADA))
    assert refusal(answer) == (
        422, "unknown_parameter",
        "a parameter that is not known here; those known: after, limit, instance",
    )  # fmt: skip
