"""Who gets a token for the registry, and what it says, over real HTTP and both stores."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import jwt
import pytest
from structlog.testing import capture_logs

from reconciler.core.transfers import Transfer, hash_of, staging_repository
from reconciler.ports import REGISTRY_KEY
from tests.server.harness import NOW_MS, Plane, refusal

PATH = "/v1/registry/token"
PASSWORD = "a credential that was handed over"
PLACE = staging_repository("t1")
PUSHED = f"repository:{PLACE}:pull,push"
PUBLISH = Transfer(
    id="t1", kind="publish", content="oci", owner="acme/research", app="hello", version="1.0.0",
    name="image", repository="gpuaas/apps/acme/research/hello", place=PLACE,
    requester="user/ada", credential_hash=hash_of(PASSWORD), created_at_ms=NOW_MS,
    expires_at_ms=NOW_MS + 3_600_000,
)  # fmt: skip
PULL = replace(PUBLISH, id="t2", kind="pull", place=PUBLISH.repository, digest="sha256:" + "a" * 64)


@pytest.fixture(autouse=True)
def _transfers(plane: Plane) -> None:
    for transfer in (PUBLISH, PULL):
        plane.store.save_transfer(transfer)


def ask(
    plane: Plane, *scopes: str, login: tuple[str, str] | None = ("t1", PASSWORD), **more: str
) -> httpx.Response:
    asked: list[tuple[str, str]] = [("service", "registry"), *(("scope", one) for one in scopes)]
    auth = httpx.BasicAuth(*login) if login is not None else None
    return plane.client.get(PATH, params=[*asked, *more.items()], auth=auth)


def post(plane: Plane, **fields: str) -> httpx.Response:
    form = {"grant_type": "password", "username": "t1", "password": PASSWORD, **fields}
    return plane.client.post(PATH, data=form)


def claims_of(plane: Plane, answer: httpx.Response) -> dict[str, Any]:
    """After the checks that a registry makes."""
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["token"] == document["access_token"]
    assert answer.headers["Cache-Control"] == "no-store"
    (key,) = plane.keys.public_keys(REGISTRY_KEY)
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims: dict[str, Any] = jwt.decode(
        document["token"], key.pem, ["ES256"], options, audience="registry", issuer="gpuaas"
    )
    assert claims["exp"] - claims["iat"] == document["expires_in"]
    return claims


def access(plane: Plane, answer: httpx.Response) -> dict[str, list[str]]:
    said = claims_of(plane, answer)["access"]
    assert {one["type"] for one in said} <= {"repository"}
    return {one["name"]: one["actions"] for one in said}


CANONICAL = PUBLISH.repository
SCOPES: dict[str, tuple[tuple[str, ...], dict[str, list[str]]]] = {
    "all that it opens": ((PUSHED,), {PLACE: ["pull", "push"]}),
    "a part of it": ((f"repository:{PLACE}:pull",), {PLACE: ["pull"]}),
    "in two words": ((f"{PUSHED} repository:{CANONICAL}:pull",), {PLACE: ["pull", "push"]}),
    "twice": ((f"repository:{PLACE}:pull", f"repository:{PLACE}:push"), {PLACE: ["pull", "push"]}),
    "nothing, to log in": ((), {}),
    "what it ends up as": ((f"repository:{CANONICAL}:pull,push",), {}),
    "more than it opens": ((f"repository:{PLACE}:pull,push,delete,*",), {PLACE: ["pull", "push"]}),
    "only what it does not open": ((f"repository:{PLACE}:delete",), {}),
    "another intent's place": ((f"repository:{staging_repository('t2')}:push",), {}),
    "below its place": ((f"repository:{PLACE}/x:push",), {}),
    "the catalog": (("registry:catalog:*",), {}),
    "a class": ((f"repository(plugin):{PLACE}:pull",), {}),
    "no scope at all": (("x", ":::", "repository:", f"repository:{PLACE}", ""), {}),
}


@pytest.mark.parametrize("name", SCOPES)
def test_a_token_says_what_is_both_asked_for_and_opened(plane: Plane, name: str) -> None:
    asked, granted = SCOPES[name]
    assert access(plane, ask(plane, *asked)) == granted
    if asked:
        assert access(plane, post(plane, service="registry", scope=" ".join(asked))) == granted


def test_a_pull_intent_opens_no_push(plane: Plane) -> None:
    wanted = f"repository:{CANONICAL}:pull,push"
    assert access(plane, ask(plane, wanted, login=("t2", PASSWORD))) == {CANONICAL: ["pull"]}


def test_what_docker_and_others_add_does_not_matter(plane: Plane) -> None:
    answer = ask(plane, PUSHED, account="t1", client_id="docker", offline_token="true")
    assert access(plane, answer) == {PLACE: ["pull", "push"]}
    assert claims_of(plane, answer)["sub"] == "transfer/t1"


def test_a_token_does_not_outlast_its_intent(plane: Plane) -> None:
    assert ask(plane, PUSHED).json()["expires_in"] == 300
    plane.clock.ms = PUBLISH.expires_at_ms - 10_000
    assert ask(plane, PUSHED).json()["expires_in"] == 10


REFUSED = (
    "no open intent has this credential: log in with the id of a publish or pull intent and what "
    "its hand-over token unwraps to (gpuaas intent publish|pull)"
)


@pytest.mark.parametrize(
    "login",
    [
        None, ("t1", ""), ("t1", PASSWORD + " "), ("t3", PASSWORD), ("", PASSWORD), ("", ""),
        ("t1", PUBLISH.credential_hash),
    ],
)  # fmt: skip
def test_who_has_no_credential_gets_no_token(plane: Plane, login: tuple[str, str] | None) -> None:
    answer = ask(plane, PUSHED, login=login)
    assert refusal(answer) == (401, "credential_refused", REFUSED)
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="gpuaas"'


@pytest.mark.parametrize(
    "header", ["Bearer x", "Basic", "Basic !!!", "Basic dDE=", "Basic //8=", "basic"]
)
def test_an_odd_login_is_none(plane: Plane, header: str) -> None:
    answer = plane.client.get(PATH, headers={"Authorization": header})
    assert refusal(answer) == (401, "credential_refused", REFUSED)


@pytest.mark.parametrize("state", ["closed", "completed"])
def test_an_intent_that_is_over_opens_nothing(plane: Plane, state: Any) -> None:
    plane.store.save_transfer(replace(PUBLISH, state=state))
    assert refusal(ask(plane, PUSHED))[:2] == (401, "credential_refused")


def test_nor_does_one_that_expired(plane: Plane) -> None:
    plane.clock.ms = PUBLISH.expires_at_ms
    assert refusal(ask(plane, PUSHED))[:2] == (401, "credential_refused")
    assert refusal(post(plane))[:2] == (401, "credential_refused")


def test_one_for_a_blob_opens_no_repository(plane: Plane) -> None:
    plane.store.save_transfer(replace(PUBLISH, content="blob"))
    assert access(plane, ask(plane, PUSHED)) == {}


def test_a_registry_that_is_not_ours_is_told_so(plane: Plane) -> None:
    answer = plane.client.get(PATH, params={"service": "another"}, auth=("t1", PASSWORD))
    message = "this control plane makes tokens for 'registry'"
    assert refusal(answer) == (400, "service_unknown", message)


FORMS: list[tuple[dict[str, Any], int, str]] = [
    ({"data": {"grant_type": "refresh_token"}}, 400, "unsupported_grant_type"),
    ({"data": {"grant_type": ["password", "password"]}}, 400, "invalid_message"),
    ({"json": {}}, 415, "unsupported_media_type"),
    ({"data": {"grant_type": "password"}}, 401, "credential_refused"),
    ({"data": {"grant_type": "password", "password": "x" * 20_000}}, 413, "too_large"),
]


@pytest.mark.parametrize(("sent", "status", "code"), FORMS)
def test_odd_forms(plane: Plane, sent: dict[str, Any], status: int, code: str) -> None:
    assert refusal(plane.client.post(PATH, **sent))[:2] == (status, code)


def test_who_guesses_has_to_wait_and_nobody_else(plane: Plane) -> None:
    for _ in range(30):
        assert ask(plane, login=("t1", "guess")).status_code == 401
    answer = ask(plane, login=("t1", "guess"))
    assert refusal(answer)[:2] == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) == 2
    plane.clock.ms += 2_000
    # Who has a good one takes no share of what guesses may.
    for _ in range(40):
        assert ask(plane, PUSHED).status_code == 200


def test_neither_credential_nor_token_is_told(plane: Plane) -> None:
    with capture_logs() as lines:
        given = ask(plane, PUSHED)
        refused = ask(plane, login=("t1", "a wrong guess"))
    said = json.dumps([*lines, *map(str, plane.store.audit())], default=str) + refused.text
    hidden = (PASSWORD, given.json()["token"], "a wrong guess", PUBLISH.credential_hash)
    assert [word for word in hidden if word in said] == []
    assert [line["event"] for line in lines] == ["registry_token_issued", "request_refused"]
    assert lines[0]["granted"] == {PLACE: ["pull", "push"]}
