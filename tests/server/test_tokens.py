"""What a bearer token is worth when it is shown, and what is worth nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import VerifierKey
from reconciler.core.authority.accounts import Subject
from reconciler.core.authority.facts import Actor
from reconciler.core.names import InstanceKey
from reconciler.core.records import State
from reconciler.custody.signing import newest_verifier
from reconciler.ports import Changes, Signed
from reconciler.server.errors import ApiError
from reconciler.server.machine_identity import make_identity
from reconciler.server.tokens import TOKEN_KEY, Issued, TokenLimits, Tokens
from reconciler.settings import Settings
from tests.contract.test_store import a_record
from tests.core.authority.trust_builders import binding
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.server.auth_world import (
    CI,
    CREATE,
    READ,
    Crafted,
    accept,
    ada,
    base64url,
    ci_account,
    claims_of,
    made,
    pair,
    segment,
    viewer,
)
from tests.server.harness import NOW_MS, StillClock

PROD = "gpuaas/prod"
KEY, ADA_KEY = pair(), pair("ada-1")
HELLO = InstanceKey("acme/research/hello")
RECORD = a_record(HELLO, secrets=("machine-identity",), state=State.RUNNING)
ADA, CI_SUBJECT = Subject("user", "ada"), Subject("service_account", CI)
NOT_OURS = ("token_invalid", "this control plane did not issue this token")
NO_TOKEN = ("token_invalid", "this is no token of this control plane")


@dataclass
class World:
    store: MemoryStore = field(default_factory=MemoryStore)
    secrets: FakeSecrets = field(default_factory=FakeSecrets)
    clock: StillClock = field(default_factory=StillClock)
    environment: str = "prod"

    def __post_init__(self) -> None:
        accept(self.store, ci_account(KEY.entry()), ada(ADA_KEY.ssh()), viewer())
        self.tokens = self.server()

    def server(self, **fields: Any) -> Tokens:
        """One more process that shares store and secrets."""
        settings = Settings(environment=fields.pop("environment", self.environment))
        return Tokens(self.store, self.secrets, self.clock, settings, **fields)

    def issue(self, subject: Subject, *asked: str) -> Issued:
        found = self.tokens.accounts.holder(subject, self.clock.ms)
        assert found is not None
        account, _ = found
        return self.tokens.issue(account, next(iter(account.keys)), asked or None)

    def token(self, subject: Subject = CI_SUBJECT, *asked: str) -> str:
        return self.issue(subject, *asked).access_token

    def who(self, token: str, tokens: Tokens | None = None) -> Actor:
        return (tokens or self.tokens).check(f"Bearer {token}", self.clock.ms).actor

    def holds(self, token: str, permission: str, *scope: str) -> bool:
        return self.tokens.check(f"Bearer {token}", self.clock.ms).holds(permission, scope)

    def signed(self, claims: object, key: str = TOKEN_KEY, **header: object) -> str:
        """Anything at all, with a signature of ours."""
        verifier = newest_verifier(self.secrets, key)
        head = {"alg": "EdDSA", "kid": verifier.key_id, "typ": "at+jwt", **header}
        message = f"{segment(head)}.{segment(claims)}"
        return f"{message}.{base64url(self.secrets.sign(key, message.encode()).signature)}"


@pytest.fixture
def world() -> World:
    return World()


def refused(world: World, token: str, scheme: str = "Bearer ") -> tuple[str, str]:
    with pytest.raises(ApiError) as caught:
        world.tokens.check(f"{scheme}{token}", world.clock.ms)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
    assert not token or token not in str(caught.value)
    return caught.value.code, caught.value.message


class TestGood:
    def test_it_is_a_jwt_that_others_can_verify(self, world: World) -> None:
        issued = world.issue(CI_SUBJECT)
        (verifier,) = world.secrets.verifier_keys(TOKEN_KEY)
        key = jwt.PyJWK({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA",
                         "x": base64url(bytes.fromhex(verifier.public_key))})  # fmt: skip
        claims = jwt.decode(
            issued.access_token, key, ["EdDSA"], audience=PROD, issuer=PROD,
            options={"verify_exp": False},
        )  # fmt: skip
        assert (claims["jti"], claims["project"]) == (issued.token_id, "acme/lab")
        assert jwt.get_unverified_header(issued.access_token) == {
            "alg": "EdDSA", "kid": verifier.key_id, "typ": "at+jwt",
        }  # fmt: skip

    def test_it_says_who_and_which_key(self, world: World) -> None:
        found = world.tokens.check(f"bearer  {world.token()} ", NOW_MS)
        assert found.actor == Actor("service_account", CI, "ci-1")
        assert (found.type, found.expires_at_ms) == ("service_account", NOW_MS + 900_000)
        assert world.who(world.token(ADA)) == Actor("user", "ada", "ada-1")

    def test_it_is_good_until_it_ends(self, world: World) -> None:
        token = world.token()
        world.clock.ms += 899_999
        world.who(token)
        world.clock.ms += 1
        assert refused(world, token) == ("token_expired", "the token has ended: get a new one")

    def test_at_any_server_of_this_control_plane(self, world: World) -> None:
        token, other = world.token(), world.server()
        assert world.who(token, other).name == CI
        world.clock.ms -= 60_000
        assert world.who(token, other).name == CI
        world.clock.ms -= 1
        said = "the token is not valid yet: check the clocks"
        assert refused(world, token) == ("token_invalid", said)

    def test_rights_are_those_of_its_scope_and_below(self, world: World) -> None:
        token = world.token(ADA)
        assert world.holds(token, READ, "acme")
        assert world.holds(token, READ, "acme", "lab")
        assert not world.holds(token, READ)
        assert not world.holds(token, READ, "globex", "lab")
        assert not world.holds(token, CREATE, "acme", "lab")
        token = world.token()
        assert world.holds(token, CREATE, "acme", "lab")
        assert not world.holds(token, CREATE, "acme")
        assert not world.holds(token, CREATE, "acme", "other")

    def test_no_more_than_was_asked_for(self, world: World) -> None:
        token = world.token(CI_SUBJECT, READ)
        assert world.holds(token, READ, "acme", "lab")
        assert not world.holds(token, CREATE, "acme", "lab")
        found = world.tokens.check(f"Bearer {token}", NOW_MS)
        assert {grant.permission for grant in found.grants} == {READ}

    def test_what_is_given_later_is_in_the_next_token(self, world: World) -> None:
        accept(world.store, ada(ADA_KEY.ssh()))
        token = world.token(ADA)
        assert world.issue(ADA).scope == ()
        accept(world.store, ada(ADA_KEY.ssh()), viewer())
        assert not world.holds(token, READ, "acme")
        assert world.holds(world.token(ADA), READ, "acme")


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
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_at_once(
        self, world: World, key: dict[str, Any], spec: dict[str, Any], said: tuple[str, str]
    ) -> None:
        token = world.token()
        world.who(token)
        accept(world.store, ci_account(KEY.entry(**key), **spec))
        assert refused(world, token) == said

    def test_a_key_that_was_taken_out(self, world: World) -> None:
        token, new = world.token(), pair("ci-2")
        accept(world.store, ci_account(KEY.entry(), new.entry()))
        world.who(token)
        accept(world.store, ci_account(new.entry()))
        assert refused(world, token) == ("key_unknown", f"{CI} has this key no more")

    def test_an_account_that_was_deleted(self, world: World) -> None:
        token = world.token()
        accept(world.store)
        assert refused(world, token) == ("account_gone", f"{CI} is not there any more")

    def test_a_person_who_was_disabled_or_became_a_machine(self, world: World) -> None:
        token = world.token(ADA)
        accept(world.store, ada(ADA_KEY.ssh(), disabled=True), viewer())
        assert refused(world, token) == ("account_disabled", "identity:ada is disabled")
        accept(world.store, ada(ADA_KEY.ssh(), type_="service_account", service_account=CI))
        assert refused(world, token)[0] == "account_gone"

    def test_a_role_that_was_taken_away(self, world: World) -> None:
        token = world.token(ADA)
        assert world.holds(token, READ, "acme", "lab")
        accept(world.store, ada(ADA_KEY.ssh()), viewer(where="acme/lab"))
        assert not world.holds(token, READ, "acme")
        assert world.holds(token, READ, "acme", "lab")
        accept(world.store, ada(ADA_KEY.ssh()))
        assert not world.holds(token, READ, "acme", "lab")

    def test_a_role_and_a_key_that_end_by_themselves(self, world: World) -> None:
        """Nothing is written when they do."""
        key = ADA_KEY.ssh(valid_until="2023-11-14T22:15:00Z")
        short = binding("short", "viewer", "acme", "ada", until="2023-11-14T22:14:00Z")
        accept(world.store, ada(key), short)
        token = world.token(ADA)
        world.clock.ms = NOW_MS + 39_999
        assert world.holds(token, READ, "acme")
        world.clock.ms = NOW_MS + 40_000
        assert not world.holds(token, READ, "acme")
        world.clock.ms = NOW_MS + 99_999
        world.who(token)
        world.clock.ms = NOW_MS + 100_000
        assert refused(world, token)[0] == "key_expired"
        world.clock.ms = NOW_MS
        assert world.holds(token, READ, "acme")

    def test_what_cannot_be_read_any_more_gives_nothing(self, world: World) -> None:
        token = world.token()
        accepted = world.store.accepted()
        spoilt = {
            ref: replace(one, document_json='{"kind": "ServiceAccount"}')
            for ref, one in accepted.objects.items()
        }
        world.store.save_accepted(replace(accepted, objects=spoilt))
        assert refused(world, token) == ("account_gone", f"{CI} is not there any more")


class TestForged:
    @pytest.mark.parametrize("scheme", ["", "Basic ", "Token ", "Bearer"])
    def test_another_scheme(self, world: World, scheme: str) -> None:
        assert refused(world, world.token(), scheme) == (
            "token_missing",
            "send the header Authorization: Bearer TOKEN",
        )

    @pytest.mark.parametrize("text", ["", "x", "a.b.c", "é" * 9, "x" * 9000, "e30.e30.e30", "a b"])
    def test_what_is_no_token(self, world: World, text: str) -> None:
        assert refused(world, text) == NO_TOKEN

    def test_an_assertion(self, world: World) -> None:
        assert refused(world, made(KEY)) == NO_TOKEN
        assert refused(world, str(Crafted(KEY, header={"typ": "at+jwt"}))) == NOT_OURS

    @pytest.mark.parametrize(
        "header",
        [{"alg": "none"}, {"alg": "HS256"}, {"alg": "ES256"}, {"typ": "JWT"}, {"jwk": {}},
         {"crit": ["exp"]}, {"jku": "https://x.example"}, {"kid": 7}, {"kid": ["x"]}],
        ids=str,
    )  # fmt: skip
    def test_another_header(self, world: World, header: dict[str, Any]) -> None:
        """Even with a good signature over it."""
        claims = claims_of(world.token())
        world.who(world.signed(claims))
        assert refused(world, world.signed(claims, **header)) == NO_TOKEN

    def test_our_public_key_as_a_shared_secret(self, world: World) -> None:
        claims = claims_of(world.token())
        (verifier,) = world.secrets.verifier_keys(TOKEN_KEY)
        forged = jwt.encode(
            claims, verifier.public_key, "HS256", {"kid": verifier.key_id, "typ": "at+jwt"}
        )
        assert refused(world, forged) == NO_TOKEN

    def test_another_key_of_ours(self, world: World) -> None:
        """What tasks are signed with signs no token."""
        forged = world.signed(claims_of(world.token()), key="tasks")
        assert refused(world, forged) == NOT_OURS
        named = world.secrets.verifier_keys(TOKEN_KEY)[0].key_id
        forged = world.signed(claims_of(world.token()), key="tasks", kid=named)
        assert refused(world, forged) == NOT_OURS

    def test_a_token_of_another_control_plane(self, world: World) -> None:
        """Which has the same keys, as after a copy of its secrets."""
        token = world.token()
        with pytest.raises(ApiError, match="did not issue this token"):
            world.server(environment="staging").check(f"Bearer {token}", NOW_MS)

    @given(st.data())
    def test_one_that_was_changed_anywhere(self, data: st.DataObject) -> None:
        world = ONE_WORLD
        at = data.draw(st.integers(0, len(ONE_TOKEN) - 1))
        other = data.draw(st.characters(codec="ascii"))
        changed = ONE_TOKEN[:at] + other + ONE_TOKEN[at + 1 :]
        # The last bits of base64url's last character say nothing.
        if changed.rpartition(".")[0] == ONE_TOKEN.rpartition(".")[0]:
            return
        with pytest.raises(ApiError) as caught:
            world.tokens.check(f"Bearer {changed}", NOW_MS)
        assert caught.value.code == "token_invalid"


ONE_WORLD = World()
ONE_TOKEN = ONE_WORLD.token()


class TestSigningKeys:
    def test_old_ones_verify_while_they_are_there(self, world: World) -> None:
        token = world.token()
        world.secrets.rotate(TOKEN_KEY)
        world.clock.ms += 2_000
        newer = world.token()
        first, second = (jwt.get_unverified_header(one)["kid"] for one in (token, newer))
        assert first != second
        assert world.who(token).name == world.who(newer).name == CI

    def test_one_that_is_gone_verifies_nothing_soon(self, world: World) -> None:
        token = world.token()
        world.who(token)
        world.secrets.rotate(TOKEN_KEY)
        world.secrets.retire(TOKEN_KEY, 2)
        world.clock.ms += 60_000
        assert refused(world, token) == NOT_OURS

    def test_one_that_nobody_has_is_asked_for_once_a_second(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claims, asked = claims_of(world.token()), []
        known = world.secrets.verifier_keys

        def counted(name: str) -> tuple[VerifierKey, ...]:
            asked.append(name)
            return known(name)

        monkeypatch.setattr(world.secrets, "verifier_keys", counted)
        tokens = world.server()
        forged = [world.signed(claims, kid=f"unknown-{number}") for number in range(50)]
        asked.clear()
        for one in forged:
            with pytest.raises(ApiError):
                tokens.check(f"Bearer {one}", NOW_MS)
        assert len(asked) == 1
        with pytest.raises(ApiError):
            tokens.check(f"Bearer {forged[0]}", NOW_MS + 1_000)
        assert len(asked) == 2

    def test_one_that_is_replaced_while_it_signs(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sign = world.secrets.sign

        def signing(name: str, message: bytes, version: int | None = None) -> Signed:
            world.secrets.rotate(name)
            return sign(name, message, version)

        monkeypatch.setattr(world.secrets, "sign", signing)
        assert world.who(world.token()).name == CI


class TestInstances:
    @pytest.fixture
    def token(self, world: World) -> str:
        world.store.commit(Changes(records=[RECORD]))
        path = "instances/node-1/acme/research/hello/machine-identity"
        world.secrets.ensure(path, make_identity(RECORD, PROD))
        return world.token(Subject("instance", HELLO))

    def test_it_reads_its_own_project(self, world: World, token: str) -> None:
        found = world.tokens.check(f"Bearer {token}", NOW_MS)
        assert (found.actor.type, found.actor.name) == ("instance", HELLO)
        assert [grant.permission for grant in found.grants] == [READ]
        assert world.holds(token, READ, "acme", "research")
        assert not world.holds(token, READ, "acme", "lab")
        assert not world.holds(token, READ, "acme")
        assert not world.holds(token, READ)
        assert not world.holds(token, CREATE, "acme", "research")

    @pytest.mark.parametrize(
        "state", [State.REQUESTED, State.DECOMMISSIONING, State.DECOMMISSIONED]
    )
    def test_not_one_that_is_to_go(self, world: World, token: str, state: State) -> None:
        world.store.commit(Changes(records=[replace(RECORD, state=state)]))
        said = f"instance:{HELLO} is not there any more"
        assert refused(world, token) == ("account_gone", said)

    def test_not_one_that_nobody_remembers(self, world: World, token: str) -> None:
        world.store.commit(Changes(forgotten=[HELLO]))
        assert refused(world, token)[0] == "account_gone"

    def test_its_token_outlives_an_upgrade(self, world: World, token: str) -> None:
        upgraded = replace(RECORD, state=State.UPGRADING, epoch=RECORD.epoch + 1)
        world.store.commit(Changes(records=[upgraded]))
        assert world.who(token).name == HELLO

    def test_but_not_its_life(self, world: World, token: str) -> None:
        """The next of that name, on the same node, has another key."""
        world.who(token)
        path = "instances/node-1/acme/research/hello/machine-identity"
        world.secrets.delete(path)
        again = replace(RECORD, state=State.DEPLOYING, epoch=RECORD.epoch + 2)
        world.store.commit(Changes(records=[again]))
        assert refused(world, token)[0] == "account_gone"
        world.secrets.ensure(path, make_identity(again, PROD))
        said = f"instance:{HELLO} has this key no more"
        assert refused(world, token) == ("key_unknown", said)


def test_an_issued_token_does_not_print(world: World) -> None:
    issued = world.issue(CI_SUBJECT)
    assert issued.access_token not in repr(issued)


def test_limits_may_be_others(world: World) -> None:
    assert world.server(limits=TokenLimits(account_burst=1)).limits.account_burst == 1
