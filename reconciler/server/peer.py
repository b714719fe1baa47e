"""Who is at the other end of a TLS connection, and what a certificate is asked for.

Rules: the certificate was checked by TLS, against our CA and no other. Here only its key and its
end are read: the key tells which node speaks, the end holds for connections that stay open.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from reconciler.server.errors import ApiError

PEER = "gpuaas.peer"
"""Among the `extensions` of a request's scope: the Peer, where it showed a certificate."""
CERTIFICATE_REQUIRED = "certificate_required"


@dataclass(frozen=True)
class Peer:
    """`public_key`: raw ed25519 key, hex; empty for a key of another kind."""

    public_key: str
    ends_at_ms: int


class PeerProtocol(H11Protocol):
    """HTTP over TLS, whose requests carry the certificate of the connection they came over."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls is not None else None
        if shown:
            self.app = with_peer(self.app, _peer(shown))


def with_peer(app: ASGIApp, peer: Peer) -> ASGIApp:
    """The application, as `peer` sees it."""

    async def seen(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), PEER: peer}
        await app(scope, receive, send)

    return seen


def shown_key(request: Request, now_ms: int) -> str:
    """The key of the connection's certificate. ApiError for one without, or whose has ended."""
    peer = request.scope.get("extensions", {}).get(PEER)
    if not isinstance(peer, Peer):
        message = "the connection shows no certificate: ask for one, then show it"
        raise ApiError(403, CERTIFICATE_REQUIRED, message)
    if peer.ends_at_ms <= now_ms:
        message = "the connection's certificate has ended: ask for a new one, then connect anew"
        raise ApiError(403, CERTIFICATE_REQUIRED, message)
    return peer.public_key


def check_csr(pem: str, public_key: str) -> None:
    """ApiError unless it is a signing request for this very key, made by who has it."""
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key, is_signed = csr.public_key(), csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ApiError(400, "csr_refused", "csr: not a signing request in PEM") from None
    if _raw(key) != public_key:
        message = "csr: it is for another key than the agent's own"
        raise ApiError(400, "csr_of_another_key", message)
    if not is_signed:
        raise ApiError(400, "csr_refused", "csr: its signature does not hold")


def _peer(shown: bytes) -> Peer:
    try:
        certificate = x509.load_der_x509_certificate(shown)
        key = _raw(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return Peer("", 0)
    return Peer(key, int(certificate.not_valid_after_utc.timestamp() * 1000))


def _raw(key: object) -> str:
    return key.public_bytes_raw().hex() if isinstance(key, Ed25519PublicKey) else ""
