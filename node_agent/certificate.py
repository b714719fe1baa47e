"""The agent's certificate, and connections that it and the control plane's CA secure.

Rules:
- Only CA certificates that a join token pinned, or a signed NodeConfig named, are believed: none
  of the system's. The server must be SERVER_NAME, whatever address was dialled.
- The private key is handed to TLS in memory; no file with it is made for that, or TLS goes without.
- What went wrong is told in words of ours: nothing of TLS's own, which a peer may have a say in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from node_agent.membership import NODE_DOMAIN, SERVER_NAME

PEM_LENGTH_MAX = 64 * 1024


class CertificateRefused(Exception):
    """Nothing to go by.

    `code`: certificate_malformed, certificate_of_another, ca_malformed or no_memory_file.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Validity:
    begins_at_ms: int
    ends_at_ms: int

    @property
    def length_ms(self) -> int:
        return self.ends_at_ms - self.begins_at_ms

    def renewal_at_ms(self, spread: float) -> int:
        """At half of it, and with `spread` (0 to 1) up to a tenth of it later."""
        return self.begins_at_ms + int(self.length_ms * (0.5 + 0.1 * spread))


def request_for(private: Ed25519PrivateKey, node: str) -> str:
    """A CSR for the node's certificate, PEM."""
    # Names can be longer than the 64 characters that a common name holds.
    name = x509.SubjectAlternativeName([x509.DNSName(f"{node}.{NODE_DOMAIN}")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(name, critical=True).sign(private, None)
    return request.public_bytes(Encoding.PEM).decode()


def validity_of(chain: str, public_key: str) -> Validity:
    """When the first certificate of `chain` (PEM) is good; it must be of this key (hex)."""
    leaf = _certificates(chain, "certificate_malformed", "a certificate")[0]
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw().hex() != public_key:
        raise CertificateRefused("certificate_of_another", "the certificate is of another key")
    return Validity(_ms(leaf.not_valid_before_utc), _ms(leaf.not_valid_after_utc))


def pinned(ca: str, ca_hash: str) -> str | None:
    """The first certificate of `ca`, PEM, if it is the one with this hash. CertificateRefused for
    what is none.
    """
    first = _certificates(ca, "ca_malformed", "a CA certificate")[0]
    if hashlib.sha256(first.public_bytes(Encoding.DER)).hexdigest() != ca_hash:
        return None
    return first.public_bytes(Encoding.PEM).decode()


def tls_context(
    ca: str, chain: str = "", private: Ed25519PrivateKey | None = None
) -> ssl.SSLContext:
    """Believes `ca` (PEM) alone, and shows `chain` where there is one. May raise
    CertificateRefused.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # What was pinned is believed for itself, whether or not somebody else signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusted = _certificates(ca, "ca_malformed", "a CA certificate")
    try:
        context.load_verify_locations(
            cadata="".join(one.public_bytes(Encoding.PEM).decode() for one in trusted)
        )
        if chain and private is not None:
            _show(context, chain, private)
    except (ssl.SSLError, ValueError):
        message = "TLS can't use the certificate and the agent's key together"
        raise CertificateRefused("certificate_malformed", message) from None
    return context


def unverified_context() -> ssl.SSLContext:
    """For one thing alone: to fetch the CA certificate, which its hash vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tls_words(error: ssl.SSLError) -> str:
    """Why there is no connection, for whoever reads the agent's log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_WORDS.get(error.verify_code, _NOT_OF_CA)
    reason = str(getattr(error, "reason", None) or "").upper()
    found = next((words for part, words in _REASON_WORDS if part in reason), None)
    return found or "the TLS handshake failed"


_NOT_OF_CA = "the server's certificate is not of the CA that this node joined"
_VERIFY_WORDS = {
    9: "the control plane's certificate is not good yet: check this node's clock",
    10: "the control plane's certificate has ended: it renews it by itself once its CA answers, "
    "or this node's clock is wrong",
    62: f"the server's certificate is not for {SERVER_NAME}: it is not the control plane's",
}
"""By OpenSSL's X509_V_ERR numbers."""
_REASON_WORDS = (
    ("ALERT_CERTIFICATE_EXPIRED", "the control plane says that this node's certificate has ended"),
    ("ALERT_CERTIFICATE_REVOKED", "this node's certificate was revoked"),
    ("ALERT_UNKNOWN_CA", "the control plane does not know the CA of this node's certificate"),
    ("ALERT_DECRYPT_ERROR", "the control plane does not know the CA of this node's certificate"),
    ("ALERT_BAD_CERTIFICATE", "the control plane does not believe this node's certificate"),
    ("ALERT_CERTIFICATE_UNKNOWN", "the control plane does not believe this node's certificate"),
    ("CERTIFICATE_REQUIRED", "the control plane wants a certificate of this node"),
    ("WRONG_VERSION_NUMBER", "no TLS is spoken there: is it the address for agents?"),
    ("RECORD_LAYER_FAILURE", "no TLS is spoken there: is it the address for agents?"),
    ("HTTP_REQUEST", "no TLS is spoken there: is it the address for agents?"),
    ("PROTOCOL_VERSION", "the server speaks no TLS version that is good enough"),
    ("ALERT_INTERNAL_ERROR", "the control plane has no certificate yet"),
    ("ALERT_HANDSHAKE_FAILURE", "the control plane has no certificate yet"),
)


def _show(context: ssl.SSLContext, chain: str, private: Ed25519PrivateKey) -> None:
    key = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _in_memory(key + chain.encode()) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path to read `content` at, which nobody else can open. OpenSSL takes it from a path only.

    CertificateRefused where the kernel gives no file without a name: any other may be on a disk.
    """
    try:
        handle = os.memfd_create("gpuaas-key", os.MFD_CLOEXEC)
    except (OSError, AttributeError):
        message = (
            "this host has no files in memory (memfd_create, Linux 3.17 and later), and the "
            "agent's key is put on no disk"
        )
        raise CertificateRefused("no_memory_file", message) from None
    try:
        os.fchmod(handle, 0o600)
        os.write(handle, content)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _certificates(pem: str, code: str, what: str) -> list[x509.Certificate]:
    if len(pem) <= PEM_LENGTH_MAX:
        with contextlib.suppress(ValueError):
            found = x509.load_pem_x509_certificates(pem.encode())
            if found:
                return found
    raise CertificateRefused(code, f"the control plane gave no {what.removeprefix('a ')} as PEM")


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1_000)
