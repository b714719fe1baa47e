"""How the control plane gets in to a real Vault, stays in, and by what address and certificate."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.adapters.vault_client import VaultClient
from reconciler.adapters.vault_http import VaultHttp
from reconciler.adapters.vault_login import REFUSED_PAUSE_S, AppRoleLogin, StaticToken
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret
from tests.services.vault_place import Runtime, VaultPlace, runtime, vault_place
from tests.services.vault_server import Tls, VaultServer

PATH = "projects/acme/lab/hf-token"
VALUE = "canary-value-4711"


@pytest.fixture
def control_plane(own_vault: VaultPlace) -> Iterator[Runtime]:
    made = runtime(own_vault)
    yield made
    made.client.close()


class TestLogin:
    def test_a_token_revoked_behind_our_back_is_replaced(
        self, own_vault: VaultPlace, control_plane: Runtime
    ) -> None:
        control_plane.secrets.write(PATH, Secret(VALUE))
        for _ in range(2):
            token = control_plane.client.identity.token()
            assert own_vault.root.post("auth/token/revoke", {"token": token}).ok
            assert control_plane.secrets.read(PATH) == Secret(VALUE)
            assert control_plane.client.identity.token() != token

    def test_it_is_renewed_at_half_its_life_and_replaced_at_its_end(
        self, own_vault: VaultPlace
    ) -> None:
        now = [0.0]
        client = _with_clock(own_vault, now)
        first = client.identity.token()
        now[0] = 1799.0
        assert client.identity.token() == first
        assert _creation_ttl_left(own_vault, first) <= 3600
        now[0] = 1801.0
        assert client.identity.token() == first
        now[0] = 1801.0 + 1799.0
        assert client.identity.token() == first
        now[0] = 1801.0 + 3601.0
        second = client.identity.token()
        assert second != first
        assert own_vault.root.post("auth/token/revoke", {"token": second}).ok
        now[0] += 1801.0
        assert client.identity.token() not in (first, second)

    def test_rights_taken_away_are_named_and_rights_given_back_are_used(
        self, own_vault: VaultPlace, control_plane: Runtime
    ) -> None:
        secrets = control_plane.secrets
        secrets.write(PATH, Secret(VALUE))
        policy = f"sys/policies/acl/{own_vault.layout.policy('runtime')}"
        before = own_vault.root.get(policy)
        assert before is not None
        assert own_vault.root.post(policy, {"policy": 'path "x" { capabilities = ["read"] }'}).ok
        place = f"{own_vault.layout.kv_mount}/data/runtime/{PATH}"
        said = rf"custody_forbidden: .* login read {place} \(`gpuaas vault plan` shows"
        with pytest.raises(Refused, match=said):
            secrets.read(PATH)
        with pytest.raises(Refused, match=r"custody_forbidden: .* login update .*/sign/tasks"):
            secrets.sign("tasks", b"m")
        with pytest.raises(Refused, match=r"custody_forbidden: .* login list .*/runtime/projects/"):
            secrets.paths("projects")
        with pytest.raises(Refused, match=r"custody_forbidden: .* login delete .*/runtime/"):
            secrets.delete(PATH)
        assert own_vault.root.post(policy, {"policy": before.data["policy"]}).ok
        assert secrets.read(PATH) == Secret(VALUE)
        assert secrets.sign("tasks", b"m").version == 1

    def test_a_right_that_the_role_gets_later_is_used(self, own_vault: VaultPlace) -> None:
        now = [0.0]
        secrets = VaultSecrets(_with_clock(own_vault, now), own_vault.layout)
        role = own_vault.layout.role_path("runtime")
        assert own_vault.root.post(role, {"token_policies": own_vault.layout.policy("ci")}).ok
        with pytest.raises(Refused, match="custody_forbidden"):
            secrets.read(PATH)
        assert own_vault.root.post(role, {"token_policies": own_vault.layout.policy("runtime")}).ok
        now[0] = 61.0
        assert secrets.read(PATH) is None

    def test_many_at_once_log_in_once(self, control_plane: Runtime) -> None:
        with ThreadPoolExecutor(16) as pool:
            tokens = set(pool.map(lambda _: control_plane.client.identity.token(), range(32)))
            signed = [*pool.map(lambda _: control_plane.secrets.sign("tasks", b"m"), range(64))]
        assert len(tokens) == 1
        # ed25519 says the same to the same.
        assert len(set(signed)) == 1


class TestSecretId:
    def test_one_that_is_wrapped_is_unwrapped_once(self, own_vault: VaultPlace) -> None:
        file = _put_wrapped(own_vault)
        token = file.read_text()
        there = [runtime(own_vault) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(lambda one: one.secrets.read(PATH), there)] == [None] * 4
        assert file.stat().st_mode & 0o777 == 0o600
        assert token not in file.read_text()
        assert [place.name for place in file.parent.glob(".secret-id*")] == []
        assert runtime(own_vault).secrets.read(PATH) is None

    def test_a_folder_that_another_process_keeps_locked_is_not_waited_for(
        self, own_vault: VaultPlace
    ) -> None:
        file, now, step_s = _put_wrapped(own_vault), [0.0], [4.0]
        wrapped = file.read_text()

        def ticking() -> float:
            now[0] += step_s[0]
            return now[0]

        client = _client_at(own_vault, ticking)
        said = (
            rf"{file.parent}: custody_timeout: another process has had this folder locked for 10 s "
            r"\(`lslocks` shows which"
        )
        holder = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            with pytest.raises(Transient, match=said):
                client.identity.token()
            # Who comes next does not wait as long again: this clock stands still.
            step_s[0] = 0.0
            with pytest.raises(Transient, match=said):
                client.identity.token()
        finally:
            os.close(holder)
        assert file.read_text() == wrapped
        now[0] += REFUSED_PAUSE_S
        assert client.identity.token()
        assert file.read_text() != wrapped

    def test_one_that_somebody_else_took_out_is_told(self, own_vault: VaultPlace) -> None:
        file = _put_wrapped(own_vault)
        own_vault.root.http.ask("POST", "sys/wrapping/unwrap", token=file.read_text())
        said = (
            rf"{file}: custody_login_refused: the wrapped secret id in it was taken out before.*"
            "destroy that secret id"
        )
        with pytest.raises(Refused, match=said) as caught:
            runtime(own_vault).secrets.read(PATH)
        assert file.read_text() not in str(caught.value)

    def test_what_wraps_something_else_is_left_as_it_is(self, own_vault: VaultPlace) -> None:
        secrets = VaultSecrets(own_vault.root, own_vault.layout)
        secrets.write(PATH, Secret(VALUE))
        token = secrets.wrap(PATH, 60).token
        file = _put(own_vault, token.reveal())
        with pytest.raises(Refused, match=rf"{file}: custody_login_refused: what it wraps is no"):
            runtime(own_vault).secrets.read(PATH)
        assert file.read_text() == token.reveal()
        assert secrets.unwrap(token, PATH) == Secret(VALUE)

    def test_of_another_role_it_is_refused(self, own_vault: VaultPlace) -> None:
        token = own_vault.admin.wrapped_secret_id("operator", 60)
        _put(own_vault, token.reveal())
        with pytest.raises(Refused, match="what it wraps is no secret id of the role"):
            runtime(own_vault).secrets.read(PATH)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_one_that_others_may_reach_is_refused(self, own_vault: VaultPlace, mode: int) -> None:
        file = _put(own_vault, own_vault.secret_id())
        file.chmod(mode)
        said = rf"{file}: secrets_exposed: others may reach it .mode {mode:o}.*chmod 600 {file}"
        with pytest.raises(Refused, match=said) as caught:
            runtime(own_vault).secrets.read(PATH)
        assert file.read_text() not in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "custody_login_refused: it holds no role id or secret id"),
            ("two words", "custody_login_refused: it holds no role id or secret id"),
            ("\xff", "custody_login_refused: it holds no role id or secret id"),
            (
                "9e5d8b6e-0000-0000-0000-canary471111",
                "custody_login_refused: Vault does not know this role id with this secret id.*"
                "put a fresh secret id",
            ),
            ("hvs.canary-4711", "custody_login_refused: the wrapped secret id in it was taken out"),
        ],
    )
    def test_a_wrong_one_is_refused_until_there_is_a_right_one(
        self, own_vault: VaultPlace, content: str, said: str
    ) -> None:
        file = _put(own_vault, content)
        secrets = runtime(own_vault).secrets
        for _ in range(3):
            with pytest.raises(Refused, match=rf"{file}: {said}") as caught:
                secrets.read(PATH)
            assert "canary" not in str(caught.value)
        _put(own_vault, own_vault.secret_id())
        assert secrets.read(PATH) is None

    def test_without_files_it_is_told_which(self, own_vault: VaultPlace) -> None:
        settings = own_vault.settings
        file = own_vault.settings.vault_secret_id_file
        assert file is not None
        file.unlink()
        said = rf"{file}: custody_login_refused: it can't be read: No such file"
        with pytest.raises(Refused, match=said):
            runtime(own_vault).secrets.read(PATH)
        settings = settings.model_copy(update={"vault_secret_id_file": None})
        with pytest.raises(Refused, match=r"custody_login_refused: .*set vault_role_id_file and"):
            runtime(own_vault, settings).secrets.read(PATH)

    def test_a_folder_it_can_not_be_kept_in_costs_no_unwrapping(
        self, own_vault: VaultPlace, tmp_path: Path
    ) -> None:
        if os.geteuid() == 0:
            # To root nothing but a file system without room is closed.
            long = tmp_path / ("s" * 255)
            os.replace(_put_wrapped(own_vault), long)
            settings = own_vault.settings.model_copy(update={"vault_secret_id_file": long})
        else:
            closed = tmp_path / "closed"
            closed.mkdir()
            os.replace(_put_wrapped(own_vault), closed / "secret-id")
            closed.chmod(0o500)
            settings = own_vault.settings.model_copy(
                update={"vault_secret_id_file": closed / "secret-id"}
            )
        with pytest.raises(Refused, match="custody_login_refused: the secret id can't be written"):
            runtime(own_vault, settings).secrets.read(PATH)
        file = settings.vault_secret_id_file
        assert file is not None
        answer = own_vault.root.http.ask("POST", "sys/wrapping/unwrap", token=file.read_text())
        assert answer.ok


class TestTransport:
    def test_nothing_of_the_environment_counts(
        self, own_vault: VaultPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        for name in ("VAULT_ADDR", "BAO_ADDR"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(tmp_path / "nonsense"))
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert runtime(own_vault).secrets.read(PATH) is None

    @pytest.mark.parametrize(
        "address",
        ["", "vault:8200", "ftp://vault", "http://", "https://a:b@vault", "https://vault?x",
         "https://vault:99999", "https://" + "x" * 300],
    )  # fmt: skip
    def test_an_address_that_is_none_is_refused(self, address: str) -> None:
        with pytest.raises(Refused, match="vault_address_refused: vault_address is no Vault's URL"):
            VaultHttp(address)

    @pytest.mark.parametrize("address", ["http://vault.example:8200", "http://192.0.2.1"])
    def test_nothing_goes_over_a_network_in_the_clear(self, address: str) -> None:
        with pytest.raises(Refused, match=r"vault_address_refused: .*plain HTTP.*use https://"):
            VaultHttp(address)

    def test_tls_by_an_unknown_ca_is_not_believed(self, tmp_path: Path) -> None:
        tls = _tls(tmp_path / "right")
        other = _tls(tmp_path / "other")
        said = (
            "custody_unreachable: its certificate is not believed, or it does not speak TLS "
            r"\(is vault_ca_file the CA"
        )
        with (
            VaultServer.start(tmp_path / "server", tls=tls) as server,
            vault_place(server, tmp_path, ca_file=tls.ca) as place,
        ):
            assert place.settings.vault_address.startswith("https://")
            assert runtime(place).secrets.read(PATH) is None
            for ca_file in (None, other.ca):
                settings = place.settings.model_copy(update={"vault_ca_file": ca_file})
                with pytest.raises(Transient, match=said):
                    runtime(place, settings).secrets.read(PATH)
            plain = server.address.replace("https:", "http:")
            settings = place.settings.model_copy(update={"vault_address": plain})
            with pytest.raises(Refused, match="custody_malformed: no Vault answers like that"):
                runtime(place, settings).secrets.read(PATH)


def _with_clock(place: VaultPlace, now: list[float]) -> VaultClient:
    """The login of the control plane, with a clock that the test sets."""
    return _client_at(place, lambda: now[0])


def _client_at(place: VaultPlace, monotonic: Callable[[], float]) -> VaultClient:
    settings, layout = place.settings, place.layout
    http = VaultHttp(settings.vault_address, ca_file=settings.vault_ca_file)
    login = AppRoleLogin(
        http,
        layout.login_path(),
        layout.secret_id_path("runtime"),
        settings.vault_role_id_file,
        settings.vault_secret_id_file,
        monotonic=monotonic,
    )
    return VaultClient(http, login)


def _creation_ttl_left(place: VaultPlace, token: str) -> int:
    looked = VaultClient(place.root.http, StaticToken(Secret(token))).get("auth/token/lookup-self")
    assert looked is not None
    return int(looked.data["ttl"])


def _put(place: VaultPlace, content: str) -> Path:
    file = place.settings.vault_secret_id_file
    assert file is not None
    file.write_text(content, encoding="latin-1")
    return file


def _put_wrapped(place: VaultPlace) -> Path:
    return _put(place, place.admin.wrapped_secret_id("runtime", 60).reveal())


def _tls(folder: Path) -> Tls:
    """A CA and a certificate by it for the loopback address."""
    folder.mkdir()
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
    address = x509.IPAddress(IPv4Address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    private.write_bytes(pem)
    return Tls(certificate, private, certificate)
