"""A CA for tests: certificates of a control plane and of agents, for as long as a test says."""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node_agent.membership import NODE_DOMAIN, SERVER_NAME

DAY_S = 24 * 3600.0


class Authority:
    """Its own root. `offset_s` shifts what it issues from now on into past or future."""

    def __init__(self, name: str = "gpuaas test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.offset_s = 0.0
        basic = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key.public_key(), 10 * DAY_S, -DAY_S)
        self.certificate = builder.add_extension(basic, critical=True).sign(self._key, SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    def agent(self, csr: str, node: str, ttl_s: float = DAY_S) -> str:
        """For the key of `csr`, which asks for the node's name and is signed with that key."""
        request = x509.load_pem_x509_csr(csr.encode())
        assert request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{node}.{NODE_DOMAIN}"]
        return self._issue(
            names, request.public_key(), ttl_s, ExtendedKeyUsageOID.CLIENT_AUTH
        ).decode()

    def serve(
        self, folder: Path, context: ssl.SSLContext, name: str = SERVER_NAME, ttl_s: float = DAY_S
    ) -> None:
        """Gives `context` a fresh certificate for `name`, and agents of this CA to believe."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        chain = self._issue(names, key.public_key(), ttl_s, ExtendedKeyUsageOID.SERVER_AUTH)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = folder / "server.pem"
        path.write_bytes(private + chain)
        context.load_cert_chain(path)
        context.load_verify_locations(cadata=self.pem)
        context.verify_mode = ssl.CERT_OPTIONAL

    def _issue(
        self, names: x509.SubjectAlternativeName, key: Any, ttl_s: float, usage: Any
    ) -> bytes:
        builder = self._builder(x509.Name([]), key, ttl_s, self.offset_s)
        builder = builder.add_extension(names, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def _builder(
        self, subject: x509.Name, key: Any, ttl_s: float, offset_s: float
    ) -> x509.CertificateBuilder:
        begins = datetime.now(UTC) + timedelta(seconds=offset_s)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(seconds=ttl_s))
        )
