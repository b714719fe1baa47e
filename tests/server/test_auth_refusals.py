"""Assertions that prove nothing: malformed, forged, and of nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconciler.server.auth_api import GRANT_TYPE
from tests.core.authority.trust_builders import Written, identity
from tests.server.auth_world import (
    AUDIENCE,
    CI,
    EC_KEY,
    KEY,
    NOW_S,
    OTHER,
    PATH,
    READ,
    REFUSED,
    RSA_KEY,
    TWICE,
    Crafted,
    Pair,
    accept,
    ada,
    ask,
    audit,
    base64url,
    ci_account,
    in_memory,
    made,
    pair,
    rsa_pair,
    segment,
    token,
    viewer,
)
from tests.server.harness import Plane, refusal


@in_memory
class TestMalformed:
    @pytest.mark.parametrize(
        ("claims", "said"),
        [
            ({"aud": "gpuaas/other"}, "aud: expected gpuaas, and nobody else"),
            ({"aud": [AUDIENCE, "gpuaas/other"]}, "aud: expected gpuaas, and nobody else"),
            ({"aud": None}, "aud: expected gpuaas, and nobody else"),
            ({"exp": None}, "exp: missing, or not seconds since 1970"),
            ({"exp": "soon"}, "exp: missing, or not seconds since 1970"),
            ({"exp": True}, "exp: missing, or not seconds since 1970"),
            ({"exp": 1e300}, "exp: missing, or not seconds since 1970"),
            ({"exp": float("inf")}, "exp: missing, or not seconds since 1970"),
            ({"exp": NOW_S + 301}, "exp: more than 300 s ahead"),
            ({"iat": NOW_S + 61}, "iat: more than 60 s ahead: check the clocks"),
            ({"iat": NOW_S - 361}, "iat: too long ago"),
            ({"iat": "now"}, "iat: not seconds since 1970"),
            ({"nbf": NOW_S + 61}, "nbf: more than 60 s ahead: check the clocks"),
            ({"jti": None}, "jti: expected a text of up to 200 characters, new each time"),
            ({"jti": ""}, "jti: expected a text of up to 200 characters, new each time"),
            ({"jti": 7}, "jti: expected a text of up to 200 characters, new each time"),
            ({"jti": "x" * 201}, "jti: expected a text of up to 200 characters, new each time"),
        ],
        ids=str,
    )
    def test_claims(self, plane: Plane, ci: Pair, claims: dict[str, Any], said: str) -> None:
        answer = ask(plane, Crafted(ci, claims=claims))
        assert refusal(answer) == (400, "assertion_invalid", said)

    @pytest.mark.parametrize(
        "subject",
        ["ci", "acme/ci", "acme/lab/ci/x", "identity:", "identity:a/b", "forge:x", "Acme/lab/ci",
         "instance:acme/lab", "instance:acme/lab/x.y.z", "acme/lab/ci\n", "acme/../ci", ""],
    )  # fmt: skip
    def test_who_it_is_from(self, plane: Plane, ci: Pair, subject: str) -> None:
        said = (
            400,
            "assertion_invalid",
            "iss and sub: expected both to be tenant/project/name, identity:NAME or "
            "instance:tenant/project/name",
        )
        assert refusal(ask(plane, Crafted(ci, subject))) == said
        for claims in ({"iss": "acme/lab/other"}, {"iss": None}, {"sub": None}, {"sub": [CI]}):
            assert refusal(ask(plane, Crafted(ci, claims=claims))) == said

    def test_one_that_has_ended(self, plane: Plane, ci: Pair) -> None:
        for ended_s in (0, 1, 100):
            answer = ask(plane, Crafted(ci, claims={"exp": NOW_S - ended_s}))
            assert refusal(answer) == (
                401,
                "assertion_expired",
                "the assertion has ended: make a new one",
            )

    @pytest.mark.parametrize(
        "given",
        [
            "x", "a.b", "a.b.c", "a.b.c.d", "..", "!!.!!.!!", "é.é.é",
            f"{segment([])}.{segment({})}.x",
            f"{segment({})}.{segment('x')}.x",
            f"{segment({})}.{base64url(b'[' * 2000)}.x",
            f"{TWICE}.{segment({})}.x",
            f"{segment({})}.{base64url(bytes(range(128, 200)))}.x",
        ],
        ids=lambda text: text[:20],
    )  # fmt: skip
    def test_what_is_no_jwt(self, plane: Plane, ci: Pair, given: str) -> None:
        answer = ask(plane, given)
        assert refusal(answer) == (400, "assertion_invalid", "not a signed JWT in compact form")

    def test_one_that_is_too_large(self, plane: Plane, ci: Pair) -> None:
        given = Crafted(ci, claims={"more": "x" * 8192})
        said = "the assertion is larger than 8192 bytes"
        assert refusal(ask(plane, given)) == (400, "assertion_invalid", said)
        said = "the body is larger than 16384 bytes"
        assert refusal(ask(plane, "x" * 20_000)) == (413, "too_large", said)

    @pytest.mark.parametrize(
        ("content", "kind", "said"),
        [
            (b"{", "application/json", (400, "invalid_message", "the body can't be read")),
            (b"[1]", "application/json", (400, "invalid_message", "the body can't be read")),
            (b'[["grant_type", "x"]]', "application/json",
             (400, "invalid_message", "the body can't be read")),
            (b'{"assertion": 1}', "application/json",
             (400, "invalid_message", "the body can't be read")),
            (b'{"a": "1", "a": "2"}', "application/json",
             (400, "invalid_message", "the body can't be read")),
            (b"[" * 16_000, "application/json",
             (400, "invalid_message", "the body can't be read")),
            (b"a=1&a=2", "application/x-www-form-urlencoded",
             (400, "invalid_message", "the body can't be read")),
            (b"a", "application/x-www-form-urlencoded",
             (400, "invalid_message", "the body can't be read")),
            (b"&".join(b"%d=1" % n for n in range(20)), "application/x-www-form-urlencoded",
             (400, "invalid_message", "the body can't be read")),
            (b"x", "text/plain", (415, "unsupported_media_type",
             "expected application/x-www-form-urlencoded or application/json")),
            (b'{"grant_type": "password"}', "application/json", (400, "unsupported_grant_type",
             "grant_type: expected urn:ietf:params:oauth:grant-type:jwt-bearer")),
            (json.dumps({"grant_type": GRANT_TYPE}).encode(), "application/json",
             (400, "invalid_message", "assertion: missing")),
        ],
    )  # fmt: skip
    def test_requests(
        self, plane: Plane, content: bytes, kind: str, said: tuple[int, str, str]
    ) -> None:
        answer = plane.client.post(PATH, content=content, headers={"Content-Type": kind})
        assert refusal(answer) == said

    def test_a_permission_that_is_none(self, plane: Plane, ci: Pair) -> None:
        answer = ask(plane, made(ci), scope=f"{READ} apps.instance.reed")
        said = "scope: there is no permission apps.instance.reed"
        assert refusal(answer) == (400, "scope_invalid", said)


@in_memory
class TestConfusedAlgorithms:
    """The usual ways to have a signature believed that is none."""

    @pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "HS512", "PS256", "ES384", ""])
    def test_an_algorithm_that_nobody_has(self, plane: Plane, ci: Pair, algorithm: str) -> None:
        answer = ask(plane, Crafted(ci, header={"alg": algorithm}))
        said = "alg: expected one of EdDSA, ES256, RS256"
        assert refusal(answer) == (400, "assertion_invalid", said)

    def test_no_signature_at_all(self, plane: Plane, ci: Pair) -> None:
        head, payload, _ = str(Crafted(ci)).split(".")
        said = "not a signed JWT in compact form"
        answer = ask(plane, f"{head}.{payload}.")
        assert refusal(answer) == (400, "assertion_invalid", said)

    @pytest.mark.parametrize(
        "header",
        [{"jwk": {"kty": "OKP"}}, {"jku": "https://x.example"}, {"x5u": "https://x.example"},
         {"x5c": ["x"]}, {"crit": ["exp"]}, {"b64": False}, {"zip": "DEF"}, {"cty": "JWT"}],
        ids=lambda header: next(iter(header)),
    )  # fmt: skip
    def test_a_header_that_brings_its_own_key(
        self, plane: Plane, ci: Pair, header: dict[str, Any]
    ) -> None:
        (name,) = header
        answer = ask(plane, Crafted(ci, header=header))
        said = f"header: {name!r} is not taken, only alg, kid and typ are"
        assert refusal(answer) == (400, "assertion_invalid", said)

    @pytest.mark.parametrize(
        "kid",
        ["../../secrets/key", "/dev/null", "ci-1' OR '1'='1", "ci-1\n", "CI-1", "ci-1 ", "*"],
    )
    def test_a_key_id_that_is_a_trick(self, plane: Plane, ci: Pair, kid: str) -> None:
        assert refusal(ask(plane, Crafted(ci, header={"kid": kid}))) == REFUSED

    @pytest.mark.parametrize("kid", [None, "", 1, ["ci-1"], "x" * 129])
    def test_a_key_id_that_is_none(self, plane: Plane, ci: Pair, kid: object) -> None:
        said = "kid: expected the id of the key in the account's manifest"
        answer = ask(plane, Crafted(ci, header={"kid": kid}))
        assert refusal(answer) == (400, "assertion_invalid", said)

    def test_another_kind_of_token(self, plane: Plane, ci: Pair) -> None:
        answer = ask(plane, Crafted(ci, header={"typ": "at+jwt"}))
        assert refusal(answer) == (400, "assertion_invalid", "typ: expected JWT")
        assert refusal(ask(plane, token(plane, made(ci))))[:2] == (400, "assertion_invalid")

    def test_a_key_of_another_kind(self, plane: Plane) -> None:
        """An EdDSA key named in the header of an ES256 signature, and the other way round."""
        accept(plane.store, ci_account(KEY.entry(), EC_KEY.entry()))
        crossed = [
            Crafted(EC_KEY, header={"kid": "ci-1"}, algorithm="ES256"),
            Crafted(KEY, header={"kid": "ci-ec"}),
            Crafted(RSA_KEY, header={"kid": "ci-1"}, algorithm="RS256"),
            Crafted(KEY, header={"alg": "ES256"}),
        ]
        for one in crossed:
            assert refusal(ask(plane, one)) == REFUSED

    def test_an_rsa_key_that_is_too_short(self, plane: Plane) -> None:
        short = rsa_pair("ada-rsa", 1024)
        accept(plane.store, ada(short.ssh()), viewer())
        assert refusal(ask(plane, Crafted(short, "identity:ada", algorithm="RS256"))) == REFUSED


@in_memory
class TestNobodyLearnsWho:
    @pytest.mark.parametrize(
        ("subject", "kid", "why"),
        [
            ("acme/lab/nobody", "ci-1", "account_unknown"),
            ("identity:nobody", "ci-1", "account_unknown"),
            ("identity:robot", "ci-1", "account_unknown"),
            ("identity:forge", "ci-1", "account_unknown"),
            ("instance:acme/lab/none", "ci-1", "account_unknown"),
            (CI, "ci-9", "key_unknown"),
            (CI, "ci-1", "bad_signature"),
            ("identity:ada", "ada-1", "bad_signature"),
            ("identity:ada", "ci-ec", "key_does_not_fit"),
        ],
    )
    def test_but_the_log_and_the_audit_trail(
        self, plane: Plane, subject: str, kid: str, why: str
    ) -> None:
        robot = identity_of("robot", "service_account", service_account=CI)
        forge = identity_of("forge", "forge", vouches_for_author=True)
        person = ada(pair("ada-1").ssh(), EC_KEY.ssh())
        accept(plane.store, ci_account(KEY.entry()), person, robot, forge)
        with capture_logs() as logs:
            assert refusal(ask(plane, Crafted(OTHER, subject, header={"kid": kid}))) == REFUSED
        (line,) = [line for line in logs if line["event"] == "token_refused"]
        assert (line["why"], line["account"], line["key_id"]) == (why, subject, kid)
        (entry,) = audit(plane.store)
        assert (entry.action, entry.result) == ("auth.token.refused", "assertion_refused")
        assert (entry.actor, entry.object) == ("unproved", subject)
        assert entry.reason == f"{why}, key {kid}, from 127.0.0.1"

    def test_not_that_an_account_is_disabled_or_a_key_revoked(self, plane: Plane) -> None:
        """Who does not have the key is told what he would be told of no account at all."""
        revoked = {"revoked": {"at": "2023-01-01T00:00:00Z", "reason": "lost"}}
        accept(plane.store, ci_account(KEY.entry(**revoked), disabled=True))
        assert refusal(ask(plane, Crafted(OTHER))) == REFUSED


def identity_of(name: str, type_: str, **spec: Any) -> Written:
    return identity(name, type_, keys=[pair("ci-1").ssh()], **spec)
