"""A real Vault that is sealed, killed, or lacks what it should have, under one adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from reconciler.adapters.ca_vault import VaultCa
from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.core.custody.layout import VaultLayout
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret
from tests.services.vault_place import Runtime, VaultPlace, runtime, vault_place
from tests.services.vault_server import VaultServer
from tests.waiting import wait_until

PATH = "projects/acme/lab/hf-token"
JOIN = "joins/node-1/7"
VALUE = "canary-value-4711"


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    root = tmp_path_factory.mktemp("vault")
    with VaultServer.start(root, root / "storage") as server:
        yield server


@pytest.fixture
def own_place(killable: VaultServer, tmp_path: Path) -> Iterator[VaultPlace]:
    with vault_place(killable, tmp_path) as place:
        yield place


def csr() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    return made.sign(Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM).decode()


class TestAway:
    def test_sealed_it_waits_and_goes_on_without_a_restart(
        self, killable: VaultServer, own_place: VaultPlace
    ) -> None:
        there = runtime(own_place)
        keys, root = there.secrets.verifier_keys("tasks"), there.ca.root()
        there.secrets.write(PATH, Secret(VALUE))
        killable.seal()
        said = rf"{own_place.settings.vault_address}: custody_sealed: Vault is sealed \(unseal it"
        for act in (
            lambda: there.secrets.read(PATH),
            lambda: there.secrets.seen(PATH),
            lambda: there.secrets.paths("projects"),
            lambda: there.secrets.write(PATH, Secret("other")),
            lambda: there.secrets.ensure(JOIN, Secret("other")),
            lambda: there.secrets.delete(PATH),
            lambda: there.secrets.wrap(PATH, 60),
            lambda: there.secrets.sign("tasks", b"m"),
            lambda: there.secrets.sign("tasks", b"m", 1),
            lambda: there.secrets.rotate("tasks"),
            lambda: there.ca.sign_agent("node-1", csr(), 3600),
            lambda: there.ca.revoke("00:11"),
        ):
            with pytest.raises(Transient, match=said):
                act()
        assert there.secrets.verifier_keys("tasks") == keys
        assert there.ca.root() == root
        with pytest.raises(Transient, match=said):
            runtime(own_place).secrets.verifier_keys("tasks")
        killable.unseal()
        assert wait_until(lambda: self._read(there)) == Secret(VALUE)
        assert there.secrets.sign("tasks", b"m").version == 1

    def test_killed_it_waits_and_goes_on_without_a_restart(
        self, killable: VaultServer, own_place: VaultPlace
    ) -> None:
        there = runtime(own_place)
        keys = there.secrets.public_keys("tasks")
        there.secrets.write(PATH, Secret(VALUE))
        killable.kill()
        said = r"custody_unreachable: no connection, or it broke .*does Vault run"
        for _ in range(3):
            with pytest.raises(Transient, match=said):
                there.secrets.read(PATH)
        with pytest.raises(Transient, match=said):
            there.secrets.sign("tasks", b"m")
        assert there.secrets.public_keys("tasks") == keys
        killable.restart()
        wait_until(lambda: self._code(there) == "custody_sealed")
        killable.unseal()
        assert wait_until(lambda: self._read(there)) == Secret(VALUE)
        assert there.secrets.sign("tasks", b"m", 1).version == 1

    def _read(self, there: Runtime) -> Secret | None:
        try:
            return there.secrets.read(PATH)
        except Transient:
            return None

    def _code(self, there: Runtime) -> str:
        try:
            return str(there.secrets.read(PATH))
        except Transient as error:
            return error.code


class TestSetUp:
    def test_a_mount_that_is_not_there_is_no_empty_one(self, own_vault: VaultPlace) -> None:
        layout = VaultLayout("nobody")
        secrets, ca = VaultSecrets(own_vault.root, layout), VaultCa(own_vault.root, layout)
        said = r"custody_not_set_up: there is nothing at nobody-.*`gpuaas vault bootstrap` sets"
        for act in (
            lambda: secrets.read(PATH),
            lambda: secrets.seen(PATH),
            lambda: secrets.paths("projects"),
            lambda: secrets.delete(PATH),
            lambda: secrets.ensure(PATH, Secret(VALUE)),
            lambda: secrets.public_keys("tasks"),
            lambda: secrets.sign("tasks", b"m"),
            ca.root,
            lambda: ca.sign_server(csr(), 60),
            lambda: ca.revoke("00:11"),
        ):
            with pytest.raises(Refused, match=said):
                act()

    def test_without_a_root_or_a_role_there_is_no_certificate(self, own_vault: VaultPlace) -> None:
        ca, layout = VaultCa(own_vault.root, own_vault.layout), own_vault.layout
        assert own_vault.root.delete(layout.pki_role_path("agent")).ok
        said = "custody_not_set_up: there is no CA, or no role of it, at .*/sign/agent"
        with pytest.raises(Refused, match=said):
            ca.sign_agent("node-1", csr(), 60)
        assert own_vault.root.delete(f"{layout.pki_mount}/root").ok
        with pytest.raises(Refused, match="custody_not_set_up: there is no CA certificate"):
            ca.root()

    def test_keys_come_with_the_rest_that_is_set_up(self, own_vault: VaultPlace) -> None:
        path = own_vault.layout.key_path("tasks")
        assert own_vault.root.post(f"{path}/config", {"deletion_allowed": True}).ok
        assert own_vault.root.delete(path).ok
        secrets = runtime(own_vault).secrets
        said = r"custody_not_set_up: there is no signing key 'tasks' .*vault bootstrap"
        with pytest.raises(Refused, match=said):
            secrets.ensure_signing_key("tasks")
        with pytest.raises(Refused, match=r"custody_forbidden: .* read .*/keys/another"):
            secrets.ensure_signing_key("another")

    def test_a_key_that_is_gone_is_not_made_anew(self, own_vault: VaultPlace) -> None:
        secrets = VaultSecrets(own_vault.root, own_vault.layout)
        secrets.ensure_signing_key("tasks")
        path = own_vault.layout.key_path("tasks")
        assert own_vault.root.post(f"{path}/config", {"deletion_allowed": True}).ok
        assert own_vault.root.delete(path).ok
        with pytest.raises(Refused, match=r"signing_key_lost: .*restore Vault"):
            secrets.ensure_signing_key("tasks")

    def test_what_no_hand_of_ours_wrote_is_told(self, own_vault: VaultPlace) -> None:
        secrets = VaultSecrets(own_vault.root, own_vault.layout)
        place = f"{own_vault.layout.kv_data_path(PATH)}"
        assert own_vault.root.post(place, {"data": {"password": VALUE}}).ok
        with pytest.raises(Refused, match=rf"{place}: custody_malformed: .*field `value`") as told:
            secrets.read(PATH)
        assert VALUE not in str(told.value)

    def test_what_somebody_deleted_by_hand_is_none_and_may_be_made_again(
        self, own_vault: VaultPlace
    ) -> None:
        secrets = VaultSecrets(own_vault.root, own_vault.layout)
        place = f"{own_vault.layout.kv_data_path(PATH)}"
        for remake in (secrets.ensure, secrets.write):
            secrets.write(PATH, Secret(VALUE))
            assert own_vault.root.delete(place).ok
            assert (secrets.read(PATH), secrets.seen(PATH)) == (None, None)
            with pytest.raises(Refused, match=f"{PATH}: no_secret"):
                secrets.wrap(PATH, 60)
            remake(PATH, Secret("anew"))
            assert secrets.read(PATH) == Secret("anew")

    def test_a_retired_version_stays_so_whatever_is_set_later(self, own_vault: VaultPlace) -> None:
        secrets = VaultSecrets(own_vault.root, own_vault.layout)
        secrets.ensure_signing_key("tasks")
        secrets.rotate("tasks")
        secrets.retire("tasks", 2)
        config = f"{own_vault.layout.key_path('tasks')}/config"
        both = {"min_decryption_version": 1, "min_encryption_version": 1}
        assert not own_vault.root.post(config, both).ok
        assert [key.version for key in secrets.public_keys("tasks")] == [2]

    def test_a_version_retired_by_another_process_is_told(self, own_vault: VaultPlace) -> None:
        one, another = (VaultSecrets(own_vault.root, own_vault.layout) for _ in range(2))
        one.ensure_signing_key("tasks")
        another.rotate("tasks")
        another.retire("tasks", 2)
        with pytest.raises(Refused, match=r"tasks: key_version_unknown: .* no version 1"):
            one.sign("tasks", b"m", 1)
        assert one.sign("tasks", b"m", 2).version == 2
