"""Who gets a token over real HTTP, and everybody who does not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from reconciler.errors import Transient
from reconciler.server.auth_api import GRANT_TYPE, SERVICE_ACCOUNT_PATH
from tests.fakes.store import MemoryStore
from tests.server.auth_world import (
    AUDIENCE,
    CI,
    CREATE,
    EC_KEY,
    KEY,
    NOW_S,
    OTHER,
    PATH,
    READ,
    REFUSED,
    RSA_KEY,
    Crafted,
    Pair,
    accept,
    ada,
    ask,
    audit,
    ci_account,
    claims_of,
    in_memory,
    made,
    pair,
    token,
    viewer,
)
from tests.server.harness import NOW_MS, Plane, refusal, running


class TestIssued:
    def test_a_service_account(self, plane: Plane, ci: Pair) -> None:
        answer = ask(plane, made(ci))
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert sorted(found) == ["access_token", "expires_in", "scope", "token_type"]
        assert (found["token_type"], found["expires_in"]) == ("Bearer", 900)
        assert {READ, CREATE} <= {*found["scope"].split()}
        assert answer.headers["Cache-Control"] == "no-store"
        claims = claims_of(found["access_token"])
        jti = claims.pop("jti")
        assert claims == {
            "iss": AUDIENCE, "aud": AUDIENCE, "sub": CI, "kind": "service_account", "kid": "ci-1",
            "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 900, "scope": found["scope"],
            "project": "acme/lab",
        }  # fmt: skip
        (entry,) = audit(plane.store)
        assert (entry.actor, entry.requester_type) == (f"service_account/{CI}", "service_account")
        assert (entry.action, entry.object) == ("auth.token.issued", CI)
        assert entry.reason == f"key ci-1, token {jti}, 900 s"
        assert (entry.result, entry.at_ms) == ("done", NOW_MS)
        assert entry.correlation_id == answer.headers["X-Correlation-Id"]

    @pytest.mark.parametrize("path", [PATH, SERVICE_ACCOUNT_PATH])
    def test_at_both_paths_as_a_form_and_as_json(self, plane: Plane, ci: Pair, path: str) -> None:
        form = {"grant_type": GRANT_TYPE, "assertion": made(ci)}
        assert plane.client.post(path, data=form).status_code == 200
        form["assertion"] = made(ci)
        assert plane.client.post(path, json=form).status_code == 200

    def test_as_long_as_its_manifest_says(self, plane: Plane) -> None:
        accept(plane.store, ci_account(KEY.entry(), token_ttl_s=60))
        assert ask(plane, made(KEY)).json()["expires_in"] == 60

    def test_with_a_p256_key(self, plane: Plane) -> None:
        accept(plane.store, ci_account(EC_KEY.entry()))
        assert claims_of(token(plane, made(EC_KEY)))["kid"] == "ci-ec"

    @pytest.mark.parametrize("key", [KEY, EC_KEY, RSA_KEY], ids=["ed25519", "p256", "rsa"])
    def test_a_person_with_an_ssh_key(self, plane: Plane, key: Pair) -> None:
        accept(plane.store, ada(key.ssh()), viewer())
        claims = claims_of(token(plane, made(key, "identity:ada")))
        assert (claims["sub"], claims["kind"]) == ("identity:ada", "user")
        assert READ in claims["scope"].split()
        assert "project" not in claims
        assert audit(plane.store)[0].actor == "user/ada"

    @pytest.mark.parametrize(
        ("asked", "got"),
        [
            (READ, READ),
            (f"{READ} {READ}", READ),
            ("platform.iam.edit", ""),
            (f"{READ} platform.iam.edit", READ),
        ],
    )
    def test_for_no_more_than_was_asked_for(
        self, plane: Plane, ci: Pair, asked: str, got: str
    ) -> None:
        assert ask(plane, made(ci), scope=asked).json()["scope"] == got

    def test_with_the_old_key_and_the_new_one_while_both_are_there(self, plane: Plane) -> None:
        new = pair("ci-2")
        until = {"valid_until": "2023-11-14T23:00:00Z"}  # The clock stands 47 minutes before.
        accept(plane.store, ci_account(KEY.entry(**until), new.entry()))
        assert claims_of(token(plane, made(KEY)))["kid"] == "ci-1"
        assert claims_of(token(plane, made(new)))["kid"] == "ci-2"
        accept(plane.store, ci_account(new.entry()))
        assert refusal(ask(plane, made(KEY))) == REFUSED
        assert claims_of(token(plane, made(new)))["kid"] == "ci-2"

    @pytest.mark.parametrize(
        "claims",
        [
            {"exp": NOW_S + 1},
            {"exp": NOW_S + 300},
            {"exp": NOW_S + 120.5},
            {"iat": None},
            {"iat": NOW_S + 60},
            {"nbf": NOW_S + 60},
            {"aud": [AUDIENCE]},
            {"jti": "x" * 200},
            {"more": {"of": ["this"]}},
        ],
        ids=str,
    )
    def test_within_the_bounds(self, plane: Plane, ci: Pair, claims: dict[str, Any]) -> None:
        assert ask(plane, Crafted(ci, claims=claims)).status_code == 200


@in_memory
class TestNoLonger:
    @pytest.mark.parametrize(
        ("key", "spec", "said"),
        [
            ({}, {"disabled": True}, ("account_disabled", f"{CI} is disabled")),
            (
                {"revoked": {"at": "2030-01-01T00:00:00Z", "reason": "lost"}},
                {},
                ("key_revoked", f"key ci-1 of {CI} is revoked"),
            ),
            (
                {"valid_until": "2023-11-14T22:13:20Z"},
                {},
                ("key_expired", f"key ci-1 of {CI} is not valid any more"),
            ),
            (
                {"valid_until": "2030-02-31T00:00:00Z"},
                {},
                ("key_expired", f"key ci-1 of {CI} is not valid any more"),
            ),
            (
                {"valid_from": "2023-11-14T22:13:21Z"},
                {},
                ("key_not_yet_valid", f"key ci-1 of {CI} is not valid yet"),
            ),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_who_has_the_key_is_told_why(
        self, plane: Plane, key: dict[str, Any], spec: dict[str, Any], said: tuple[str, str]
    ) -> None:
        accept(plane.store, ci_account(KEY.entry(**key), **spec))
        assert refusal(ask(plane, made(KEY))) == (403, *said)
        (entry,) = audit(plane.store)
        assert (entry.actor, entry.result) == (f"service_account/{CI}", said[0])

    def test_at_once(self, plane: Plane, ci: Pair) -> None:
        token(plane, made(ci))
        accept(plane.store, ci_account(ci.entry(), disabled=True))
        assert refusal(ask(plane, made(ci)))[1] == "account_disabled"
        accept(plane.store)
        assert refusal(ask(plane, made(ci))) == REFUSED


class TestOnce:
    REPLAYED = (
        401,
        "assertion_replayed",
        "this very assertion was used before: make a new one",
    )

    def test_a_copy(self, plane: Plane, ci: Pair) -> None:
        given = made(ci)
        token(plane, given)
        for later_ms in (0, 1, 119_999):
            plane.clock.ms = NOW_MS + later_ms
            assert refusal(ask(plane, given)) == self.REPLAYED
        plane.clock.ms = NOW_MS + 120_000
        assert refusal(ask(plane, given))[1] == "assertion_expired"
        assert {entry.result for entry in audit(plane.store, "refused")} == {
            "assertion_replayed",
            "assertion_expired",
        }

    def test_another_text_of_the_same_assertion(self, plane: Plane, ci: Pair) -> None:
        given = made(ci)
        token(plane, given)
        assert refusal(ask(plane, f"{given}=="))[1] in ("assertion_replayed", "assertion_refused")

    def test_the_same_word_of_two_accounts_is_two(self, plane: Plane) -> None:
        accept(plane.store, ci_account(KEY.entry()), ada(OTHER.ssh()), viewer())
        for one in (Crafted(KEY), Crafted(OTHER, "identity:ada")):
            assert ask(plane, replace(one, claims={"jti": "1"})).status_code == 200

    def test_whichever_server_is_asked(self, plane: Plane, ci: Pair) -> None:
        with running(plane.store) as other:
            given = made(ci)
            token(other, given)
            assert refusal(ask(plane, given)) == self.REPLAYED

    def test_of_many_at_once_one_gets_a_token(self, plane: Plane, ci: Pair) -> None:
        given = made(ci)
        with running(plane.store) as other, ThreadPoolExecutor(8) as pool:
            planes = [plane, other] * 8
            found = [*pool.map(lambda one: ask(one, given).status_code, planes)]
        assert sorted(found) == [200] + [401] * 15


@pytest.fixture
def elsewhere(plane: Plane) -> Iterator[httpx.Client]:
    """Somebody at another address."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=plane.client.base_url, transport=transport, timeout=60) as client:
        yield client


class TestFlood:
    def test_who_is_refused_often_has_to_wait(
        self, plane: Plane, ci: Pair, elsewhere: httpx.Client
    ) -> None:
        for _ in range(30):
            assert refusal(ask(plane, Crafted(OTHER))) == REFUSED
        answer = ask(plane, made(ci))
        said = "too many refused tries from this address: wait, then retry"
        assert refusal(answer) == (429, "rate_limited", said)
        assert answer.headers["Retry-After"] == "2"
        assert ask(plane, made(ci), elsewhere).status_code == 200
        plane.clock.ms += 2_000
        assert ask(plane, made(ci, now_ms=plane.clock.ms)).status_code == 200

    def test_the_audit_trail_is_told_of_some_and_counts_the_rest(
        self, plane: Plane, ci: Pair
    ) -> None:
        for _ in range(100):
            ask(plane, Crafted(OTHER))
        assert len(audit(plane.store, "refused")) == 20
        plane.clock.ms += 30_000
        ask(plane, Crafted(OTHER))
        last = audit(plane.store, "refused")[-1]
        assert last.reason == (
            "bad_signature, key ci-1, from 127.0.0.1, 10 refusals before it are in the log alone"
        )

    def test_one_who_is_known_is_told_of_whatever_strangers_do(self, plane: Plane) -> None:
        accept(plane.store, ci_account(KEY.entry(), disabled=True))
        for _ in range(25):
            ask(plane, Crafted(OTHER))
        ask(plane, made(KEY))
        assert audit(plane.store)[-1].result == "account_disabled"

    def test_an_account_that_asks_for_more_than_it_needs(self, plane: Plane, ci: Pair) -> None:
        given = [made(ci) for _ in range(11)]
        for one in given[:10]:
            token(plane, one)
        answer = ask(plane, given[10])
        said = f"too many tokens for {CI}: wait, then retry; a token is good many times"
        assert refusal(answer) == (429, "rate_limited", said)
        assert answer.headers["Retry-After"] == "6"
        plane.clock.ms += 6_000
        token(plane, given[10])

    def test_nobody_uses_up_the_share_of_another(
        self, plane: Plane, ci: Pair, elsewhere: httpx.Client
    ) -> None:
        given = made(ci)
        token(plane, given)
        for _ in range(12):
            assert refusal(ask(plane, given, elsewhere))[1] == "assertion_replayed"
            ask(plane, Crafted(OTHER), elsewhere)
        for _ in range(9):
            token(plane, made(ci))

    def test_a_store_that_is_away_counts_against_nobody(self, ci_plane: Plane) -> None:
        store = ci_plane.store
        assert isinstance(store, MemoryStore)
        store.failure = Transient("store_busy", "the store is busy")
        for _ in range(40):
            assert refusal(ask(ci_plane, made(KEY)))[:2] == (503, "store_busy")
        store.failure = None
        token(ci_plane, made(KEY))


@pytest.fixture
def ci_plane() -> Iterator[Plane]:
    store = MemoryStore()
    accept(store, ci_account(KEY.entry()))
    with running(store) as plane:
        yield plane


class TestUntold:
    def test_no_token_without_its_entry(
        self, ci_plane: Plane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_entries: object) -> None:
            raise Transient("store_full", "no space left")

        monkeypatch.setattr(ci_plane.store, "append_audit", full)
        answer = ask(ci_plane, made(KEY))
        assert refusal(answer) == (503, "store_full", "no space left")
        assert "eyJ" not in answer.text

    def test_no_token_and_no_assertion_in_log_or_audit(self, plane: Plane, ci: Pair) -> None:
        good, bad = made(ci), str(Crafted(OTHER))
        with capture_logs() as logs:
            issued = token(plane, good)
            ask(plane, good)
            ask(plane, bad)
            ask(plane, "eyJ.half.token")
            ask(plane, made(ci), scope="no.such.thing")
        told = f"{logs} {plane.store.audit()}"
        for text in (good, bad, issued):
            for part in text.split("."):
                assert part not in told
        assert "eyJ" not in told
        assert "token_issued" in told
        assert "token_refused" in told

    def test_what_a_stranger_sends_is_made_harmless(self, plane: Plane, ci: Pair) -> None:
        with capture_logs() as logs:
            ask(plane, Crafted(OTHER, header={"kid": "\x1b[31m\n\u202eci"}))
        (line,) = [line for line in logs if line["event"] == "token_refused"]
        assert line["key_id"] == "\\x1b[31m\\n\\u202eci"
        assert "\x1b" not in audit(plane.store)[0].reason


def test_a_secret_store_that_is_away(plane: Plane, ci: Pair) -> None:
    plane.keys.failure = Transient("sealed", "the vault is sealed", retry_after_s=7.2)
    answer = ask(plane, made(ci))
    assert refusal(answer) == (503, "sealed", "the vault is sealed")
    assert answer.headers["Retry-After"] == "8"
    assert audit(plane.store) == []
