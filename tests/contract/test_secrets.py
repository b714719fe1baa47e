"""SecretStore: one suite for the fake, the local store and a real Vault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from node_agent.envelope import seal, unseal
from node_agent.wire import key_id
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.core.custody.paths import join_secret, project_secret
from reconciler.core.names import InstanceKey, secret_path
from reconciler.custody.signing import newest_verifier, sealed
from reconciler.errors import Refused
from reconciler.ports import PublicKey, Secret, SecretStore
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets

TOKEN = "instances/n1/a/b/c/token"
HF = project_secret("acme", "lab", "hf-token")
JOIN = join_secret("node-1", "7")
WRAP_S = 2


@dataclass
class Custody:
    """A store, and how to let time go by."""

    store: SecretStore
    wait: Callable[[float], None]


@pytest.fixture(params=["fake", "local", "vault"])
def custody(request: pytest.FixtureRequest, tmp_path: Path) -> Custody:
    clock = FakeClock()

    def wait(seconds: float) -> None:
        clock.advance(int(seconds * 1000))

    if request.param == "fake":
        return Custody(FakeSecrets(clock), wait)
    if request.param == "local":
        return Custody(LocalSecrets(tmp_path / "secrets", clock=clock), wait)
    return Custody(request.getfixturevalue("vault_secrets"), time.sleep)


@pytest.fixture
def store(custody: Custody) -> SecretStore:
    return custody.store


def verifies(public: PublicKey, signature: bytes, message: bytes) -> bool:
    key = load_pem_public_key(public.pem.encode())
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            assert isinstance(key.curve, ec.SECP256R1)
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


class TestKeys:
    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256"])
    def test_one_is_made_once(self, store: SecretStore, kind: str) -> None:
        first = store.ensure_signing_key("artifacts", kind)  # type: ignore[arg-type]
        assert (first.name, first.kind, first.version) == ("artifacts", kind, 1)
        assert store.ensure_signing_key("artifacts", kind) == first  # type: ignore[arg-type]
        assert store.public_keys("artifacts") == (first,)
        assert store.public_keys("none") == ()

    def test_of_another_kind_it_is_refused(self, store: SecretStore) -> None:
        store.ensure_signing_key("tasks")
        store.ensure_signing_key("artifacts", "ecdsa-p256")
        with pytest.raises(Refused, match=r"tasks: wrong_key_type: it is no ecdsa-p256 key"):
            store.ensure_signing_key("tasks", "ecdsa-p256")
        with pytest.raises(Refused, match=r"artifacts: wrong_key_type: it is no ed25519 key"):
            store.ensure_signing_key("artifacts")
        with pytest.raises(Refused, match="wrong_key_type"):
            store.verifier_keys("artifacts")

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256"])
    def test_what_it_signs_verifies(self, store: SecretStore, kind: str) -> None:
        public = store.ensure_signing_key("artifacts", kind)  # type: ignore[arg-type]
        signed = store.sign("artifacts", b"message")
        assert signed.version == 1
        assert verifies(public, signed.signature, b"message")
        assert not verifies(public, signed.signature, b"another")

    def test_an_envelope_by_it_opens(self, store: SecretStore) -> None:
        assert store.verifier_keys("tasks") == ()
        key = newest_verifier(store, "tasks")
        assert store.verifier_keys("tasks") == (key,)
        assert key.key_id == key_id(key.public_key)
        made = seal(b"{}", "text/x", key.key_id, lambda pae: store.sign("tasks", pae).signature)
        for envelope in (made, sealed(store, "tasks", b"{}", "text/x")):
            raw = json.dumps(envelope).encode()
            assert unseal(raw, "text/x", store.verifier_keys("tasks")) == (b"{}", key)
        assert newest_verifier(store, "tokens").key_id != key.key_id

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256"])
    def test_rotation_adds_a_version_that_signs(self, store: SecretStore, kind: str) -> None:
        first = store.ensure_signing_key("artifacts", kind)  # type: ignore[arg-type]
        second = store.rotate("artifacts")
        assert (second.version, second.kind) == (2, kind)
        assert store.public_keys("artifacts") == (first, second)
        assert store.ensure_signing_key("artifacts", kind) == second  # type: ignore[arg-type]
        newest, older = store.sign("artifacts", b"m"), store.sign("artifacts", b"m", 1)
        assert (newest.version, older.version) == (2, 1)
        assert verifies(second, newest.signature, b"m")
        assert verifies(first, older.signature, b"m")
        assert not verifies(second, older.signature, b"m")

    def test_a_retired_version_is_none_any_more(self, store: SecretStore) -> None:
        store.ensure_signing_key("tasks")
        store.rotate("tasks")
        third = store.rotate("tasks")
        store.retire("tasks", 3)
        store.retire("tasks", 3)
        store.retire("tasks", 1)  # Never back.
        assert store.public_keys("tasks") == (third,)
        assert [key.version for key in store.verifier_keys("tasks")] == [3]
        for version in (1, 2, 4, 0):
            with pytest.raises(Refused, match=f"tasks: key_version_unknown: .* version {version}"):
                store.sign("tasks", b"m", version)
        assert verifies(third, store.sign("tasks", b"m", 3).signature, b"m")
        assert store.rotate("tasks").version == 4

    def test_the_newest_is_never_retired(self, store: SecretStore) -> None:
        store.ensure_signing_key("tasks")
        with pytest.raises(Refused, match="key_version_unknown"):
            store.retire("tasks", 2)
        assert store.sign("tasks", b"m").version == 1

    def test_without_a_key_nothing_is_signed(self, store: SecretStore) -> None:
        said = "no_signing_key: there is no signing key 'none'"
        with pytest.raises(Refused, match=said):
            store.sign("none", b"")
        with pytest.raises(Refused, match=said):
            store.rotate("none")
        with pytest.raises(Refused, match=said):
            store.retire("none", 1)

    @pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 64, "a\n"])
    def test_a_name_that_is_none_is_refused(self, store: SecretStore, name: str) -> None:
        for act in (
            store.ensure_signing_key,
            store.public_keys,
            store.verifier_keys,
            store.rotate,
            lambda it: store.retire(it, 1),
            lambda it: store.sign(it, b""),
        ):
            with pytest.raises(Refused, match="key_name_refused"):
                act(name)


class TestSecrets:
    def test_they_are_kept_by_path(self, store: SecretStore) -> None:
        assert store.read("tenants/acme") is None
        store.write("tenants/acme", Secret("one"))
        store.write("tenants/acme/token", Secret("zwei ä\n"))
        store.write("tenants/acme", Secret("three"))
        assert store.read("tenants/acme") == Secret("three")
        assert store.read("tenants/acme/token") == Secret("zwei ä\n")

    @pytest.mark.parametrize(
        "path",
        [
            "", "/", "/ci", "ci/", "ci//b", "..", "ci/../b", "./ci", "ci\0b", "ci b", "-a", "ä",
            "ci/" + "x" * 398, "elsewhere/x", "kv/data/ci/x", "runtime/x", "CI/x",
        ],
    )  # fmt: skip
    def test_a_path_that_is_none_is_refused(self, store: SecretStore, path: str) -> None:
        for act in (
            store.read,
            store.seen,
            store.paths,
            store.delete,
            lambda it: store.write(it, Secret("x")),
            lambda it: store.ensure(it, Secret("x")),
            lambda it: store.wrap(it, WRAP_S),
            lambda it: store.unwrap(Secret("x"), it),
        ):
            with pytest.raises(Refused, match="secret_path_refused"):
                act(path)

    def test_one_is_made_once(self, store: SecretStore) -> None:
        assert store.ensure(TOKEN, Secret("first")) == Secret("first")
        assert store.ensure(TOKEN, Secret("second")) == Secret("first")
        assert store.read(TOKEN) == Secret("first")

    def test_of_several_who_make_one_at_once_all_get_the_same(self, store: SecretStore) -> None:
        def ensure(number: int) -> Secret:
            return store.ensure(TOKEN, Secret(f"value {number}"))

        with ThreadPoolExecutor(8) as pool:
            values = {found.reveal() for found in pool.map(ensure, range(16))}
        kept = store.read(TOKEN)
        assert kept is not None
        assert values == {kept.reveal()}

    def test_a_deleted_one_is_gone_and_no_other(self, store: SecretStore) -> None:
        for path in ("ci/a", "ci/a/b", "ci/a/bc"):
            store.write(path, Secret(path))
        store.delete("ci/a")
        store.delete("ci/a")
        store.delete("ci/never/was")
        assert store.read("ci/a") is None
        assert store.read("ci/a/b") == Secret("ci/a/b")
        assert store.read("ci/a/bc") == Secret("ci/a/bc")
        store.delete("ci/a/b")
        assert store.ensure("ci/a/b", Secret("anew")) == Secret("anew")

    def test_the_longest_names_there_are_make_a_path(self, store: SecretStore) -> None:
        path = secret_path("n" * 63, InstanceKey("/".join(["t" * 63] * 3)), "s" * 63)
        store.write(path, Secret("long"))
        store.write(path[:-1], Secret("shorter"))
        assert store.ensure(path, Secret("other")) == Secret("long")
        assert store.paths("instances") == (path[:-1], path)
        store.delete(path)
        assert (store.read(path), store.read(path[:-1])) == (None, Secret("shorter"))

    def test_one_too_large_is_refused(self, store: SecretStore) -> None:
        for act in (store.write, store.ensure):
            with pytest.raises(Refused, match=f"{HF}: secret_too_large: more than 65536 bytes"):
                act(HF, Secret("x" * 65_537))
        store.write(HF, Secret("x" * 65_536))
        assert store.read(HF) == Secret("x" * 65_536)

    def test_each_write_is_seen(self, custody: Custody) -> None:
        store = custody.store
        assert store.seen(HF) is None
        store.ensure(HF, Secret("one"))
        first = store.seen(HF)
        store.ensure(HF, Secret("not this"))
        assert store.seen(HF) == first
        custody.wait(0.01)
        store.write(HF, Secret("two"))
        second = store.seen(HF)
        assert first is not None
        assert second is not None
        assert (first.version, second.version) == (1, 2)
        assert second.changed_at_ms > first.changed_at_ms

    def test_one_made_anew_begins_at_version_1(self, store: SecretStore) -> None:
        store.write(HF, Secret("one"))
        store.write(HF, Secret("two"))
        store.delete(HF)
        assert store.seen(HF) is None
        store.write(HF, Secret("three"))
        seen = store.seen(HF)
        assert seen is not None
        assert seen.version == 1

    def test_paths_are_those_below(self, store: SecretStore) -> None:
        for path in ("ssh/acme", "ssh/acme/lab/v1", "ssh/acme/lab/v2", "ssh/acme-2/x", "ci/x"):
            store.write(path, Secret("x"))
        assert store.paths("ssh/acme") == ("ssh/acme/lab/v1", "ssh/acme/lab/v2")
        assert store.paths("ssh") == (
            "ssh/acme", "ssh/acme-2/x", "ssh/acme/lab/v1", "ssh/acme/lab/v2",
        )  # fmt: skip
        store.delete("ci/x")
        assert store.paths("ci") == store.paths("joins") == store.paths("ssh/none") == ()


class TestWrapping:
    def test_the_value_goes_to_the_first_who_asks(self, store: SecretStore) -> None:
        store.write(JOIN, Secret("hand this over"))
        wrapped = store.wrap(JOIN, 60)
        assert wrapped.token.reveal() not in repr(wrapped)
        assert store.unwrap(wrapped.token, JOIN) == Secret("hand this over")
        with pytest.raises(Refused, match=f"{JOIN}: wrap_spent: .*replace the secret") as caught:
            store.unwrap(wrapped.token, JOIN)
        assert wrapped.token.reveal() not in str(caught.value)
        assert store.read(JOIN) == Secret("hand this over")

    def test_it_is_the_value_of_that_moment(self, store: SecretStore) -> None:
        store.write(JOIN, Secret("one"))
        first = store.wrap(JOIN, 60)
        store.write(JOIN, Secret("two"))
        second = store.wrap(JOIN, 60)
        store.delete(JOIN)
        assert store.unwrap(second.token, JOIN) == Secret("two")
        assert store.unwrap(first.token, JOIN) == Secret("one")

    def test_of_several_at_once_one_gets_it(self, store: SecretStore) -> None:
        store.write(JOIN, Secret("once"))
        token = store.wrap(JOIN, 60).token

        def unwrap(_: int) -> str:
            try:
                return str(store.unwrap(token, JOIN).reveal())
            except Refused as refused:
                return refused.code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(unwrap, range(8))) == ["once", *["wrap_spent"] * 7]

    def test_a_token_for_another_secret_is_not_spent(self, store: SecretStore) -> None:
        for path in (JOIN, HF):
            store.write(path, Secret(path))
        token = store.wrap(HF, 60).token
        for _ in range(2):
            with pytest.raises(Refused, match=f"{JOIN}: wrap_foreign: this token does not hold"):
                store.unwrap(token, JOIN)
        assert store.unwrap(token, HF) == Secret(HF)

    @pytest.mark.parametrize(
        "token", ["", "never given", "../key", "x" * 5000, "\0\n", "ä", "\ud800x"]
    )
    def test_what_was_never_given_is_spent(self, store: SecretStore, token: str) -> None:
        store.write(JOIN, Secret("x"))
        store.wrap(JOIN, 60)
        with pytest.raises(Refused, match="wrap_spent"):
            store.unwrap(Secret(token), JOIN)

    def test_it_ends(self, custody: Custody) -> None:
        store = custody.store
        store.write(JOIN, Secret("x"))
        wrapped, again = store.wrap(JOIN, WRAP_S), store.wrap(JOIN, 3600)
        assert wrapped.expires_at_ms < again.expires_at_ms
        custody.wait(WRAP_S + 1)
        with pytest.raises(Refused, match="wrap_spent"):
            store.unwrap(wrapped.token, JOIN)
        assert store.unwrap(again.token, JOIN) == Secret("x")

    def test_of_what_is_not_there_nothing_is_handed_over(self, store: SecretStore) -> None:
        with pytest.raises(Refused, match=f"{JOIN}: no_secret: there is no such secret"):
            store.wrap(JOIN, 60)
