"""The CA of the local custody: one root, whose key is a secret like others, made at first use.

Rules: what a certificate says comes from here, and only the key from the request. The root signs
for nobody outside `gpuaas.internal`, and no certificate outlives it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node_agent.membership import NODE_DOMAIN, SERVER_NAME
from reconciler.adapters.clock import SystemClock
from reconciler.adapters.csr import CsrKey, agent_name, check_csr
from reconciler.errors import Refused
from reconciler.ports import Certificate, Clock, Secret, SecretStore

ROOT_PATH = "pki/root"
REVOKED_PATH = "pki/revoked"
ROOT_DAYS = 3650
BACKDATED_S = 300
"""How far clocks may be apart."""

_DOMAIN = NODE_DOMAIN.partition(".")[2]
_SERIAL = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){0,19}")


@dataclass(frozen=True)
class _Root:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class LocalCa:
    """A CertificateAuthority whose root is kept by `secrets`, under `pki/`."""

    def __init__(self, secrets: SecretStore, clock: Clock | None = None) -> None:
        self._secrets = secrets
        self._clock = clock or SystemClock()

    def root(self) -> str:
        return _pem(self._root().certificate)

    def sign_agent(self, node: str, csr_pem: str, ttl_s: float) -> Certificate:
        usage, key = ExtendedKeyUsageOID.CLIENT_AUTH, check_csr(csr_pem)
        return self._sign(node, agent_name(node), usage, key, ttl_s)

    def sign_server(self, csr_pem: str, ttl_s: float) -> Certificate:
        usage, key = ExtendedKeyUsageOID.SERVER_AUTH, check_csr(csr_pem)
        return self._sign(SERVER_NAME, SERVER_NAME, usage, key, ttl_s)

    def revoke(self, serial: str) -> None:
        if not _SERIAL.fullmatch(serial):
            return
        entry = json.dumps({"serial": serial, "revoked_at_ms": self._clock.now_ms()})
        self._secrets.ensure(f"{REVOKED_PATH}/{serial.replace(':', '-')}", Secret(entry))

    def revoked(self) -> tuple[str, ...]:
        """The serials of all that were revoked, sorted."""
        paths = self._secrets.paths(REVOKED_PATH)
        return tuple(path.rpartition("/")[2].replace("-", ":") for path in paths)

    def _sign(
        self, common_name: str, name: str, usage: x509.ObjectIdentifier, key: CsrKey, ttl_s: float
    ) -> Certificate:
        root, now = self._root(), self._now()
        ends = min(now + timedelta(seconds=ttl_s), root.certificate.not_valid_after_utc)
        if ends <= now:
            hint = "back up and remove the secret pki/root, restart, and join every node again"
            raise Refused("ca_ended", "the CA certificate has ended", where=ROOT_PATH, hint=hint)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_called(common_name))
            .issuer_name(root.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=BACKDATED_S))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority(root), critical=False)
            .sign(root.key, hashes.SHA256())
        )
        ends_ms = int(certificate.not_valid_after_utc.timestamp() * 1000)
        return Certificate(_pem(certificate), _serial(certificate.serial_number), ends_ms)

    def _root(self) -> _Root:
        """Read anew each time: after the folder was put back from a backup it may be another."""
        found = self._secrets.read(ROOT_PATH)
        if found is None:
            found = self._secrets.ensure(ROOT_PATH, self._new_root())
        try:
            pem = found.reveal().encode()
            key = load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise _damaged() from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _damaged()
        return _Root(certificate, key)

    def _new_root(self) -> Secret:
        key, now = ec.generate_private_key(ec.SECP256R1()), self._now()
        public, name = key.public_key(), _called(f"gpuaas CA {_DOMAIN}")
        limits = x509.NameConstraints([x509.DNSName(_DOMAIN)], None)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=2 * BACKDATED_S))
            .not_valid_after(now + timedelta(days=ROOT_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(limits, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Secret(pem + _pem(certificate))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ms() // 1000, UTC)


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _authority(root: _Root) -> x509.AuthorityKeyIdentifier:
    own = root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _serial(number: int) -> str:
    digits = f"{number:x}"
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":")


def _damaged() -> Refused:
    return Refused(
        "ca_damaged",
        "there is no CA in the secret that should hold it",
        where=ROOT_PATH,
        hint="restore the secret from a backup",
    )
