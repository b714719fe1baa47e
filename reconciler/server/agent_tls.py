"""The server's side of TLS for agents: its key, its certificate, and when both are renewed.

Rules:
- The private key is made here, is in memory alone, and is another with every certificate.
- Clients are believed by our CA alone. They may come without a certificate: who joins has none yet,
  and the routes say where one is needed.
- While there is no certificate, handshakes end at once. One that ends is no reason to stop serving
  with it: agents say so, and what runs goes on.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node_agent.membership import SERVER_NAME
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Certificate, CertificateAuthority, Clock

RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0
LOOK_EVERY_S = 60.0
"""A clock may be set meanwhile: a long wait is made of short ones."""
_STOP_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Issued:
    certificate: Certificate
    root: str
    key: ec.EllipticCurvePrivateKey


class AgentTls:
    """What the agents' listener speaks TLS with. `context` stays the same for its whole life."""

    def __init__(self, ca: CertificateAuthority, clock: Clock, ttl_s: float) -> None:
        self.context = _context()
        self._ca = ca
        self._clock = clock
        self._ttl_s = ttl_s
        self._failures = 0
        self._renew_at_ms = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def renew(self) -> bool:
        """Gets a certificate for a new key; connections that are open go on with what they have.

        False when there is none to be had now; why is in the log.
        """
        asked_ms = self._clock.now_ms()
        try:
            issued = self._issue()
            self._install(issued)
        except GpuaasError as error:
            self._failures += 1
            log.warning("agents_wait_for_certificate", code=error.code, reason=error.message)
            return False
        ends_at_ms = issued.certificate.not_after_ms
        # Two control planes that started together need not ask together for ever.
        share = random.uniform(0.45, 0.5)  # noqa: S311
        self._renew_at_ms = asked_ms + int((ends_at_ms - asked_ms) * share)
        self._failures = 0
        log.info("certificate_of_server", serial=issued.certificate.serial, ends_at_ms=ends_at_ms)
        return True

    def wait_s(self) -> float:
        """How long to leave it as it is."""
        if self._failures:
            longest_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(self._failures, 10))
            return random.uniform(longest_s / 2, longest_s)  # noqa: S311
        left_s = (self._renew_at_ms - self._clock.now_ms()) / 1000
        return min(max(left_s, 0.0), LOOK_EVERY_S)

    @contextmanager
    def kept(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Renews it in a thread, for as long as this is open. `loop` is where it is used."""
        self._loop = loop
        ended = threading.Event()
        thread = threading.Thread(
            target=self._keep, args=(ended.wait,), name="gpuaas-agent-tls", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()
            # It may be waiting for a CA that is away: the process does not wait for that.
            thread.join(_STOP_S)

    def _keep(self, wait: Callable[[float], bool]) -> None:
        while not wait(self.wait_s()):
            if self._failures or self._clock.now_ms() >= self._renew_at_ms:
                self.renew()

    def _issue(self) -> _Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._ca.sign_server(_request(key), self._ttl_s)
        return _Issued(certificate, self._ca.root(), key)

    def _install(self, issued: _Issued) -> None:
        """Raises Refused for what TLS does not take."""
        loop = self._loop
        if loop is None:
            _load(self.context, issued)
            return

        loaded: Future[None] = Future()

        def load() -> None:
            try:
                _load(self.context, issued)
            except Refused as refused:
                loaded.set_exception(refused)
            else:
                loaded.set_result(None)

        # Where handshakes begin, so that none finds half of it old and half new.
        try:
            loop.call_soon_threadsafe(load)
            loaded.result(RETRY_MAX_S)
        except (RuntimeError, TimeoutError):
            raise Transient("server_stopping", "the server stops") from None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Agents come with what they were released with; nobody else has to be able to speak to us.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    # A session that is resumed brings the certificate of the one before, however old that is.
    context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, issued: _Issued) -> None:
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        context.load_verify_locations(cadata=issued.root)
        with _in_memory(key + issued.certificate.pem.encode()) as path:
            context.load_cert_chain(path)
    except (ssl.SSLError, ValueError):
        message = "TLS does not take the certificate that the CA issued"
        raise Refused("certificate_unusable", message) from None


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path for a library that reads from files only; nothing is on any disk, or it is refused."""
    try:
        held = os.memfd_create("tls")
    except (OSError, AttributeError):
        message = "this host has no files in memory (memfd_create, Linux 3.17 and later)"
        hint = "the key of the agents' listener is put on no disk: run it on Linux"
        raise Refused("no_memory_file", message, hint=hint) from None
    try:
        os.write(held, content)
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)


def _request(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(name, critical=True).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()
