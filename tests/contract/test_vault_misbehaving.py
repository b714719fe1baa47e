"""What answers in Vault's place: silent, slow, elsewhere, nonsense. And that nothing of a secret or
a token gets into an error or a log line, whatever is echoed back.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from reconciler.adapters.ca_vault import VaultCa
from reconciler.adapters.clock import SystemClock
from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.adapters.vault_client import VaultClient
from reconciler.adapters.vault_http import ANSWER_BYTES_MAX, VaultHttp
from reconciler.adapters.vault_login import AppRoleLogin, StaticToken
from reconciler.core.custody.layout import VaultLayout
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Secret
from tests.fakes.bad_server import Answer
from tests.fakes.bad_vault import (
    BadVault,
    dripping_body,
    dripping_chunks,
    dripping_head,
    echoing,
    endless,
    raw,
    resetting,
    saying,
    stalling,
    truncated,
)
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.waiting import wait_until

PATH = "projects/acme/lab/hf-token"
TOKEN = "hvs.canary-token-4711"
VALUE = 'canary-value "4711"\n'
LAYOUT = VaultLayout("gpuaas")
TIMEOUT_S = 0.4

FOUND = {"data": {"data": {"value": "v"}, "metadata": {"version": 1}}}


def client_of(vault: BadVault, timeout_s: float = TIMEOUT_S) -> VaultClient:
    return VaultClient(VaultHttp(vault.address, timeout_s=timeout_s), StaticToken(Secret(TOKEN)))


def secrets_of(vault: BadVault, timeout_s: float = TIMEOUT_S) -> VaultSecrets:
    return VaultSecrets(client_of(vault, timeout_s), LAYOUT)


def csr_of(key: Ed25519PrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, None).public_bytes(Encoding.PEM).decode()


def deep() -> bytes:
    return b'{"data":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


MALFORMED = (
    r"custody_malformed: no Vault answers like that \(\d+, gpuaas-kv/data/.*is vault_address"
)
SILENT = "custody_timeout: no answer within 0.4 s"
BROKEN = "custody_unreachable: no connection, or it broke"


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (stalling, Transient, SILENT),
        (dripping_head, Transient, SILENT),
        (dripping_body, Transient, SILENT),
        (dripping_chunks, Transient, SILENT),
        (resetting, Transient, BROKEN),
        (truncated, Transient, BROKEN),
        (endless, Refused, f"custody_malformed: its answer has more than {ANSWER_BYTES_MAX} bytes"),
        (raw(b"<html>hello</html>"), Refused, MALFORMED),
        (raw(b""), Refused, MALFORMED),
        (raw(b"\x1f\x8b\x08\x00", Content_Encoding="gzip"), Refused, MALFORMED),
        (raw(b"[1]"), Refused, MALFORMED),
        (raw(b"\xff\xfe"), Refused, MALFORMED),
        (raw(deep()), Refused, MALFORMED),
        (raw(b"not found", 404), Refused, MALFORMED),
        (raw(b"forbidden", 403), Refused, MALFORMED),
        (raw(b"{}", 201), Refused, MALFORMED),
        (raw(b"{}", 405), Refused, MALFORMED),
        (saying({}), Refused, "custody_malformed: .*in its field `value`"),
        (saying({"data": []}), Refused, "custody_malformed: .*in its field `value`"),
        (saying({"data": {"data": {"value": 7}}}), Refused, "custody_malformed: .*`value`"),
        (
            raw(b"", 307, Location="http://127.0.0.1:1/v1/elsewhere"),
            Transient,
            r"custody_unavailable: it redirects elsewhere \(307\), and a token is not sent there",
        ),
        (raw(b"busy", 429), Transient, "custody_unavailable: it answered 429"),
        (raw(b"<html>", 502), Transient, "custody_unavailable: it answered 502"),
        (raw(b"", 503), Transient, "custody_unavailable: it answered 503"),
        (saying({"errors": ["Vault is sealed"]}, 503), Transient, "custody_sealed"),
        (saying({"errors": ["OpenBao is sealed"]}, 503), Transient, "custody_sealed"),
        (
            saying({"errors": ["Upgrading from non-versioned to versioned data."]}, 400),
            Transient,
            "custody_unavailable: it answered 400",
        ),
        (saying({"errors": ["no"]}, 403), Refused, "custody_forbidden: .* read gpuaas-kv/data/"),
        (saying({"errors": ["what?"]}, 400), Refused, "custody_malformed"),
    ],
)  # fmt: skip
def test_what_is_no_good_answer(answer: Answer, error: type[GpuaasError], said: str) -> None:
    with BadVault(answer) as vault, pytest.raises(error, match=said):
        secrets_of(vault).read(PATH)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"data": {}},
        {"data": {"type": "ed25519", "keys": []}},
        {"data": {"type": "aes256-gcm96", "keys": {"1": 17}}},
        {"data": {"type": "ed25519", "min_decryption_version": 1, "min_encryption_version": 0,
                  "keys": {"1": {"public_key": "AAAA"}}}},
        {"data": {"type": "ecdsa-p256", "min_decryption_version": 1, "min_encryption_version": 0,
                  "keys": {"1": {"public_key": "-----BEGIN PUBLIC KEY-----"}}}},
        {"data": {"type": "ed25519", "min_decryption_version": None, "keys": {}}},
    ],
)  # fmt: skip
def test_a_key_that_is_none(document: object) -> None:
    with BadVault(saying(document)) as vault:
        with pytest.raises(Refused, match=r"custody_malformed|wrong_key_type"):
            secrets_of(vault).public_keys("tasks")
        with pytest.raises(Refused, match=r"custody_malformed|wrong_key_type"):
            secrets_of(vault).sign("tasks", b"m")


@pytest.mark.parametrize("signature", ["", "vault:v1:", "vault:v0:AAAA", "vault:v1:A", "AAAA", 7])
def test_a_signature_that_is_none(signature: object) -> None:
    said = r"custody_malformed: .*gpuaas-transit/sign/tasks"
    answer = saying({"data": {"signature": signature}})
    with BadVault(answer) as vault, pytest.raises(Refused, match=said):
        secrets_of(vault).sign("tasks", b"m")


@pytest.mark.parametrize("certificate", [None, "", "-----BEGIN CERTIFICATE-----\n"])
def test_a_root_that_is_none(certificate: object) -> None:
    answer = saying({"data": {"certificate": certificate}})
    with BadVault(answer) as vault, pytest.raises(Refused, match="custody_malformed"):
        VaultCa(client_of(vault), LAYOUT).root()


@pytest.mark.parametrize(("later_s", "kept"), [(0.0, True), (240.0, True), (600.0, False)])
def test_a_certificate_that_ends_later_than_asked(later_s: float, kept: bool) -> None:
    """A role that was widened gives it away."""
    csr = csr_of(Ed25519PrivateKey.generate())
    made = FakeCa(FakeClock(SystemClock().now_ms())).sign_agent("gpu-1", csr, 3600.0 + later_s)
    with BadVault(saying({"data": {"certificate": made.pem}})) as vault:
        ca = VaultCa(client_of(vault), LAYOUT)
        if kept:
            assert ca.sign_agent("gpu-1", csr, 3600.0).not_after_ms == made.not_after_ms
            return
        with pytest.raises(Refused, match=r"custody_malformed: .*gpuaas-pki/sign/agent"):
            ca.sign_agent("gpu-1", csr, 3600.0)


class TestPatience:
    def test_a_read_is_tried_again_and_a_write_is_not(self) -> None:
        with BadVault(resetting, raw(b"", 500), saying(FOUND)) as vault:
            assert secrets_of(vault, 30).read(PATH) == Secret("v")
            assert len(vault.requests) == 3
        gone = saying({"errors": []}, 404)
        with BadVault(gone, resetting) as vault:
            with pytest.raises(Transient, match="custody_unreachable"):
                secrets_of(vault, 30).write(PATH, Secret(VALUE))
            assert [asked.split()[0] for asked in vault.requests] == ["GET", "POST"]

    def test_it_gives_up(self) -> None:
        with BadVault(raw(b"", 500)) as vault:
            with pytest.raises(Transient, match="custody_unavailable: it answered 500"):
                secrets_of(vault, 30).read(PATH)
            assert len(vault.requests) == 3

    def test_a_silent_one_is_asked_once_and_then_left_alone_for_a_while(self) -> None:
        now = [0.0]
        with BadVault(stalling) as vault:
            http = VaultHttp(
                vault.address,
                timeout_s=0.2,
                monotonic=lambda: now[0],
                uniform=lambda least, most: most,
            )
            secrets = VaultSecrets(VaultClient(http, StaticToken(Secret(TOKEN))), LAYOUT)
            for _ in range(20):
                with pytest.raises(Transient, match=r"custody_timeout: no answer within 0.2 s"):
                    secrets.read(PATH)
            assert len(vault.requests) == 1
            # Each time a little longer, and never very long.
            for pause_s in (1.0, 2.0, 4.0, 8.0, 15.0, 15.0):
                before = len(vault.requests)
                now[0] += pause_s - 0.01
                with pytest.raises(Transient) as caught:
                    secrets.read(PATH)
                assert caught.value.retry_after_s == pytest.approx(0.01)
                assert len(vault.requests) == before
                now[0] += 0.02
                with pytest.raises(Transient):
                    secrets.read(PATH)
                assert len(vault.requests) == before + 1
            vault.answers[:] = [saying(FOUND)]
            now[0] += 15.01
            assert [secrets.read(PATH) for _ in range(3)] == [Secret("v")] * 3

    def test_one_that_only_says_no_is_asked_every_time(self) -> None:
        with BadVault(saying({"errors": ["Vault is sealed"]}, 503)) as vault:
            secrets = secrets_of(vault)
            for _ in range(3):
                with pytest.raises(Transient, match="custody_sealed"):
                    secrets.read(PATH)
            assert len(vault.requests) == 3
            vault.answers[:] = [saying(FOUND)]
            assert secrets.read(PATH) == Secret("v")

    def test_it_comes_back_by_itself(self) -> None:
        with BadVault(stalling, saying(FOUND)) as vault:
            secrets = secrets_of(vault, 0.2)
            with pytest.raises(Transient):
                secrets.read(PATH)

            def read() -> Secret | None:
                try:
                    return secrets.read(PATH)
                except Transient:
                    return None

            assert wait_until(read) == Secret("v")

    def test_a_login_that_is_refused_is_not_tried_at_every_call(self, tmp_path: Path) -> None:
        with BadVault(saying({"errors": ["invalid role ID"]}, 400)) as vault:
            login = _login(vault, tmp_path, "secret")
            client = VaultClient(VaultHttp(vault.address), login)
            for _ in range(5):
                with pytest.raises(Refused, match="custody_login_refused: Vault does not know"):
                    client.get("x")
            assert len(vault.requests) == 1

    def test_a_token_is_sent_to_nobody_else(self) -> None:
        with BadVault(saying(FOUND)) as other:
            there = raw(b"", 307, Location=f"{other.address}/v1/gpuaas-kv/data/runtime/{PATH}")
            with BadVault(there) as vault, pytest.raises(Transient, match="redirects elsewhere"):
                secrets_of(vault).read(PATH)
            assert other.requests == []


class TestNothingIsTold:
    @pytest.mark.parametrize("status", [200, 302, 400, 403, 404, 405, 429, 500, 503])
    def test_of_what_is_echoed_back(
        self, status: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        caplog.set_level(logging.DEBUG)
        told: list[str] = []
        with BadVault(echoing(status)) as vault:
            for act in _acts(vault, tmp_path):
                try:
                    told.append(repr(act()))
                except GpuaasError as error:
                    told += [str(error), repr(error), *traceback.format_exception(error)]
        sent = "".join(f"{headers}" for headers in vault.headers)
        assert "canary-token" in sent
        assert len(told) > 20
        assert "canary" not in "".join(told)
        assert "canary" not in caplog.text
        assert "GET /v1/gpuaas-kv" in caplog.text


def _acts(vault: BadVault, folder: Path) -> list[Callable[[], object]]:
    secrets, ca = secrets_of(vault), VaultCa(client_of(vault), LAYOUT)
    value, token = Secret(VALUE), Secret(TOKEN)
    wrapped = VaultClient(VaultHttp(vault.address), _login(vault, folder, TOKEN))
    plain = VaultClient(VaultHttp(vault.address), _login(vault, folder, "canary-secret-id"))
    return [
        lambda: secrets.read(PATH),
        lambda: secrets.write(PATH, value),
        lambda: secrets.ensure(PATH, value),
        lambda: secrets.delete(PATH),
        lambda: secrets.wrap(PATH, 60),
        lambda: secrets.unwrap(token, PATH),
        lambda: secrets.paths("projects"),
        lambda: secrets.sign("tasks", VALUE.encode()),
        lambda: secrets.rotate("tasks"),
        lambda: secrets.ensure_signing_key("tasks"),
        ca.root,
        lambda: client_of(vault).post("x", {"value": VALUE}),
        lambda: wrapped.get("x"),
        lambda: plain.get("x"),
    ]


def _login(vault: BadVault, folder: Path, secret_id: str) -> AppRoleLogin:
    role_file, secret_file = folder / "role-id", folder / f"secret-id-{len(secret_id)}"
    role_file.write_text("canary-role-id")
    secret_file.touch(mode=0o600)
    secret_file.write_text(secret_id)
    http = VaultHttp(vault.address, timeout_s=TIMEOUT_S)
    paths = LAYOUT.login_path(), LAYOUT.secret_id_path("runtime")
    return AppRoleLogin(http, *paths, role_file, secret_file)
