"""The CA in Vault's PKI engine. Its roles say what a certificate may be; it is checked here again.

Rules: the name comes from here, the key from the request, and nothing else of it. The root is made
by whoever sets Vault up, never by the control plane.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from node_agent.membership import SERVER_NAME
from reconciler.adapters.csr import CsrKey, agent_name, check_csr
from reconciler.adapters.vault_client import VaultClient, not_set_up
from reconciler.adapters.vault_http import Answer
from reconciler.core.custody.layout import AGENT_ROLE, SERVER_ROLE, VaultLayout
from reconciler.errors import Refused, Transient
from reconciler.ports import Certificate

FRESH_S = 300.0
CLOCKS_APART_S = 300.0
"""How much later than asked for a certificate may end: Vault has a clock of its own."""

_SERIAL = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){0,19}")


class VaultCa:
    """A CertificateAuthority. Raises what VaultClient does, and Refused("csr_refused")."""

    def __init__(
        self,
        client: VaultClient,
        layout: VaultLayout,
        monotonic: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._layout = layout
        self._monotonic = monotonic
        self._epoch = epoch
        self._root: tuple[str, float] | None = None

    def root(self) -> str:
        """From memory where it was asked for a while ago, or Vault is away."""
        known = self._root
        if known is not None and self._monotonic() - known[1] < FRESH_S:
            return known[0]
        at_s = self._monotonic()
        try:
            pem = self._fetch_root()
        except Transient:
            if known is None:
                raise
            return known[0]
        self._root = pem, at_s
        return pem

    def sign_agent(self, node: str, csr_pem: str, ttl_s: float) -> Certificate:
        return self._sign(AGENT_ROLE, agent_name(node), csr_pem, ttl_s)

    def sign_server(self, csr_pem: str, ttl_s: float) -> Certificate:
        return self._sign(SERVER_ROLE, SERVER_NAME, csr_pem, ttl_s)

    def revoke(self, serial: str) -> None:
        if not _SERIAL.fullmatch(serial):
            return
        path = f"{self._layout.pki_mount}/revoke"
        answer = self._client.post(path, {"serial_number": serial}, again=True)
        if answer.ok or answer.says("not found") or answer.says("expired"):
            return
        raise self._client.malformed(path)

    def _fetch_root(self) -> str:
        path = f"{self._layout.pki_mount}/cert/ca"
        answer = self._client.get(path)
        if answer is None or answer.says("no default issuer"):
            raise not_set_up("there is no CA certificate", self._client.address)
        return _pem(self._certificate(path, answer.data.get("certificate")))

    def _sign(self, role: str, name: str, csr_pem: str, ttl_s: float) -> Certificate:
        key = check_csr(csr_pem)
        path = self._layout.pki_sign_path(role)
        body = {"csr": csr_pem, "common_name": name, "ttl": f"{int(ttl_s)}s", "format": "pem"}
        answer = self._client.post(path, body)
        if not answer.ok:
            raise self._refusal(path, answer)
        certificate = self._certificate(path, answer.data.get("certificate"))
        ends_s = certificate.not_valid_after_utc.timestamp()
        ends_in_time = ends_s <= self._epoch() + ttl_s + CLOCKS_APART_S
        if not (ends_in_time and _is_for(certificate, name, key)):
            raise self._client.malformed(path)
        chain = answer.data.get("ca_chain")
        above = [self._certificate(path, pem) for pem in chain] if isinstance(chain, list) else []
        pems = [certificate, *(one for one in above if one.subject != one.issuer)]
        serial = _serial(certificate.serial_number)
        return Certificate("".join(map(_pem, pems)), serial, int(ends_s * 1000))

    def _refusal(self, path: str, answer: Answer) -> Refused:
        if answer.says("unknown role") or answer.says("no default issuer"):
            return not_set_up(f"there is no CA, or no role of it, at {path}", self._client.address)
        if answer.says("beyond the expiration of the CA"):
            message = "the CA certificate ends before this one would"
            hint = "rotate the CA in Vault, and join every node again"
            return Refused("ca_ended", message, where=path, hint=hint)
        return self._client.malformed(path)

    def _certificate(self, path: str, pem: object) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(str(pem).encode())
        except ValueError:
            raise self._client.malformed(path) from None


def _is_for(certificate: x509.Certificate, name: str, key: CsrKey) -> bool:
    """Whether it is what was asked for: this name and no other, this key."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_the_key = certificate.public_key() == key
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return False
    return is_the_key and [*names] == [x509.DNSName(name)]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _serial(number: int) -> str:
    digits = f"{number:x}"
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":")
