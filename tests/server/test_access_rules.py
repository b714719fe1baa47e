"""Who is let in to read, and what of others shows through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import Grant, Scope
from reconciler.core.names import InstanceKey
from reconciler.server.access_rules import (
    FOREIGN,
    INSTANCE_READ,
    READS,
    STATUS_READ,
    Access,
    Reader,
    is_loopback,
    local_reader,
    may_read,
    project_of,
    reader_of,
    without_foreign_names,
)
from reconciler.server.deps import Threads
from reconciler.server.errors import ApiError
from reconciler.server.tokens import Bearer, Tokens
from reconciler.settings import Settings
from tests.server.harness import NOW_MS, StillClock


def of(*holdings: tuple[str, Scope]) -> Reader:
    grants = tuple(Grant(permission, scope, "a binding") for permission, scope in holdings)
    return reader_of(Bearer(Actor("user", "ada"), NOW_MS + 1, grants))


class OneToken(Tokens):
    """`Bearer good` is ada's."""

    def __init__(self) -> None:
        pass

    def check(self, header: str, now_ms: int) -> Bearer:
        if header != "Bearer good":
            raise ApiError(401, "token_invalid", "no good", {"WWW-Authenticate": "Bearer"})
        return Bearer(Actor("user", "ada"), NOW_MS + 1, ())


def who(headers: Mapping[str, str] | list[tuple[str, str]], **fields: Any) -> str:
    """Who is let in, or the status and code of why nobody is."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    scope = {"type": "http", "method": "GET", "path": "/v1/status", "headers": raw}
    access = Access(Settings(**fields), OneToken(), StillClock(), Threads(1))
    try:
        return asyncio.run(access.reader(Request(scope))).actor
    except ApiError as error:
        found = error
    assert found.status != 401 or "Bearer" in found.headers["WWW-Authenticate"]
    return f"{found.status} {found.code}"


HERE, AWAY = "127.0.0.1:8470", "10.0.0.7:8470"
GOOD, BAD = {"Authorization": "Bearer good"}, {"Authorization": "Bearer bad"}
OURS, EVIL = {"Host": "127.0.0.1:8470"}, {"Host": "evil.example"}
OPEN = {"allow_remote_read": True}
STRICT = {"require_tokens": True}
NO_TOKEN, WRONG, HOST = "401 token_required", "401 token_invalid", "421 wrong_host"


@pytest.mark.parametrize(
    ("listen", "settings", "headers", "expected"),
    [
        # On this host nobody needs a token who calls us by address or by a name of ours.
        (HERE, {}, OURS, "local"),
        ("localhost:8470", {}, {"Host": "localhost"}, "local"),
        ("[::1]:8470", {}, {"Host": "[::1]:8470"}, "local"),
        (HERE, {}, EVIL, HOST),
        (HERE, {"allowed_hosts": ("evil.example",)}, EVIL, "local"),
        (HERE, {}, {}, HOST),
        (HERE, STRICT, OURS, NO_TOKEN),
        (HERE, STRICT, {**OURS, **GOOD}, "user/ada"),
        # A token is judged wherever it is sent.
        (HERE, {}, {**OURS, **BAD}, WRONG),
        (HERE, {}, {**EVIL, **GOOD}, "user/ada"),
        (HERE, OPEN, {**OURS, **BAD}, WRONG),
        (HERE, {}, {**OURS, "Authorization": ""}, WRONG),
        (HERE, {}, [("Authorization", "Bearer good"), ("Authorization", "Bearer good")], WRONG),
        # What a proxy passes on is not from this host.
        (HERE, {}, {**OURS, "X-Forwarded-For": "192.0.2.1"}, NO_TOKEN),
        (HERE, {}, {**OURS, "Forwarded": "for=192.0.2.1"}, NO_TOKEN),
        (HERE, {}, {**OURS, "Via": "1.1 proxy", **GOOD}, "user/ada"),
        (HERE, OPEN, {**EVIL, "X-Forwarded-For": "192.0.2.1"}, "local"),
        # Beyond it everybody needs one.
        (AWAY, {}, {"Host": AWAY}, NO_TOKEN),
        (AWAY, {}, {"Host": AWAY, **GOOD}, "user/ada"),
        (AWAY, OPEN, {"Host": AWAY}, "local"),
        (AWAY, {**OPEN, **STRICT}, {"Host": AWAY}, NO_TOKEN),
        ("0.0.0.0:8470", {}, OURS, NO_TOKEN),
        ("[::]:8470", {}, OURS, NO_TOKEN),
        ("control.example:8470", {}, {"Host": "control.example"}, NO_TOKEN),
    ],
)
def test_who_is_let_in(
    listen: str, settings: Mapping[str, Any], headers: Any, expected: str
) -> None:
    assert who(headers, listen=listen, **settings) == expected


def test_what_is_for_the_platform() -> None:
    with pytest.raises(ApiError) as refused:
        may_read(of((STATUS_READ, ("acme",))), STATUS_READ)
    assert (refused.value.status, refused.value.code, refused.value.message) == (
        403, "not_permitted",
        "user/ada may not read this: it needs platform.status.read for the platform",
    )  # fmt: skip
    may_read(of((STATUS_READ, ())), STATUS_READ)
    for permission in READS:
        may_read(local_reader(), permission)
    with pytest.raises(ApiError):
        may_read(local_reader(), "platform.iam.edit")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_host(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "x"])
def test_any_other(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("key", ["", "a", "a/b", "a/b/c/d", "//", "a//c"])
def test_what_is_no_key_is_of_no_project(key: str) -> None:
    assert project_of(key) == ("", "")
    assert not of((INSTANCE_READ, ("a", "b"))).sees(InstanceKey(key))
    assert of((INSTANCE_READ, ())).sees(InstanceKey(key))


def test_projects_whose_names_begin_alike() -> None:
    reader = of((INSTANCE_READ, ("acme", "lab")), (INSTANCE_READ, ("umbrella",)))
    assert reader.sees(InstanceKey("acme/lab/x.w1"))
    assert reader.sees(InstanceKey("umbrella/any/x"))
    for key in ("acme/lab-2/x", "acme/la/x", "acm/lab/x", "umbrella-2/any/x"):
        assert not reader.sees(InstanceKey(key))


KEYS = tuple(map(InstanceKey, ("acme/lab/mine", "globex/vault/secret-1", "globex/vault/w.w1")))
READER = of((INSTANCE_READ, ("acme", "lab")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GPUs still held by globex/vault/secret-1", f"GPUs still held by {FOREIGN}"),
        ("globex/vault/w.w1, acme/lab/mine.", f"{FOREIGN}, acme/lab/mine."),
        ("leased by Allocation/globex/vault/big already", f"leased by {FOREIGN} already"),
        ("as AppInstance/other/place/x asks", f"as {FOREIGN} asks"),
        ("Project/globex/vault is not attached", f"{FOREIGN} is not attached"),
        ("globex/vault: quota", f"{FOREIGN}: quota"),
        ("(globex/vault/secret-1)", f"({FOREIGN})"),
        # Not names of others:
        ("Project/acme/lab is not attached", "Project/acme/lab is not attached"),
        ("AppVersion/hello/1.0.0 is in canary", "AppVersion/hello/1.0.0 is in canary"),
        ("registry.example/globex/vault@sha256:0", "registry.example/globex/vault@sha256:0"),
        ("http://127.0.0.1/globex/vault/x", "http://127.0.0.1/globex/vault/x"),
        ("and/or 1/2", "and/or 1/2"),
        ("globex/vault-2/x", "globex/vault-2/x"),
        ("", ""),
    ],
)  # fmt: skip
def test_names_of_others_in_messages(text: str, shown: str) -> None:
    document = {"a": [text, 1, None], "b": {"c": text}}
    found = without_foreign_names(document, READER, KEYS)
    assert found == {"a": [shown, 1, None], "b": {"c": shown}}
    everything = of((INSTANCE_READ, ()))
    assert without_foreign_names(document, everything, KEYS) is document


@given(
    before=st.text(alphabet=" ,:;('\"=→", max_size=3),
    after=st.text(alphabet=" ,:;.)'\"!?", max_size=3),
    kind=st.sampled_from(["", "AppInstance/"]),
    key=st.sampled_from(KEYS[1:]),
)
def test_no_name_of_others_is_left(before: str, after: str, kind: str, key: InstanceKey) -> None:
    found = without_foreign_names(f"{before}{kind}{key}{after}", READER, KEYS)
    assert found == f"{before}{FOREIGN}{after}"
