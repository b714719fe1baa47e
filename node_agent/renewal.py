"""Keeps the agent's certificate good: asks for another at half of its time.

Rules:
- The request is signed with the agent's own key and needs no certificate, so an agent that was off
  until its own had ended comes back by itself.
- What does not fit our key changes nothing: what is in use stays. Whom this node believes is not
  said here: the answer is not signed, and to be sealed into a TLS connection is less than that.
- Tried again and again, jittered; a fleet does not ask all at once.
"""

from __future__ import annotations

import random
import threading

import structlog

from node_agent.backoff import Backoff
from node_agent.certificate import CertificateRefused, Validity, validity_of
from node_agent.clock import WallClock
from node_agent.link import AgentKey, Away, Credentials, Link
from node_agent.membership import CertificateRequest
from node_agent.state import StateStore

LOOK_S = 60.0
"""How often the clock is looked at, which can be set."""
PAUSE_S = 30.0
"""After a certificate came, before the next one is asked for, whatever is said of it."""
PATIENCE = 10
"""How much longer it waits between tries while the certificate is good for a while."""


class Renewal:
    """`link` shows no certificate. `run` is for a thread of its own."""

    def __init__(
        self, store: StateStore, key: AgentKey, link: Link, clock: WallClock, backoff_max_s: float
    ) -> None:
        self._store = store
        self._key = key
        self._link = link
        self._clock = clock
        self._backoff = Backoff(backoff_max_s)
        self._spread = random.random()  # noqa: S311
        self._due = threading.Event()
        self._hurried = False
        self._log = structlog.get_logger()

    def run(self, stop: threading.Event) -> None:
        """Renews when it is time, until `stop` is set and `wake` was called."""
        while not stop.is_set():
            self._due.clear()
            wait_s = 0.0 if self._hurried else self.due_in_s()
            if wait_s > 0:
                self._due.wait(min(wait_s, LOOK_S))
                continue
            try:
                self.renew()
            except (Away, CertificateRefused) as refused:
                self._log.warning("no certificate", code=refused.code, message=refused.message)
                stop.wait(self._backoff.next_s() * (PATIENCE if self._good_for_a_while() else 1))
            except OSError as error:
                self._log.error("state not written", error=error.strerror)
                stop.wait(self._backoff.next_s())
            else:
                self._hurried = False
                self._backoff.reset()
                due_s = self.due_in_s()
                # One that is due again at once is of a clock that is not ours.
                stop.wait(min(PAUSE_S, due_s) if due_s > 0 else PAUSE_S)

    def hurry(self) -> None:
        """The control plane does not take the certificate, or misses it."""
        self._hurried = True
        self._due.set()

    def wake(self) -> None:
        self._due.set()

    def due_in_s(self) -> float:
        """Zero and less: now."""
        validity = self._validity()
        if validity is None:
            return 0.0
        return (validity.renewal_at_ms(self._spread) - self._clock.now_ms()) / 1_000

    def renew(self) -> Validity:
        """Asks once, and uses what comes from then on. Raises Away, CertificateRefused, OSError."""
        identity = self._store.identity
        if identity is None:
            raise Away("not_joined", "this node has not joined")
        request = CertificateRequest(
            node=identity.node,
            sent_at_ms=self._clock.now_ms(),
            csr=self._key.request_certificate(identity.node),
        )
        reply = self._link.certificate(request)
        if not reply.certificate:
            raise Away("no_certificate_yet", "the control plane's CA gave none")
        validity = validity_of(reply.certificate, self._key.public_key)
        self._key.tls(Credentials(identity.ca, reply.certificate))
        self._store.save_certificate(reply.certificate)
        self._log.info("certificate renewed", node=identity.node, ends_at_ms=validity.ends_at_ms)
        return validity

    def _validity(self) -> Validity | None:
        identity = self._store.identity
        if identity is None or not identity.certificate:
            return None
        try:
            return validity_of(identity.certificate, self._key.public_key)
        except CertificateRefused:
            return None

    def _good_for_a_while(self) -> bool:
        validity = self._validity()
        if validity is None or self._hurried:
            return False
        return validity.ends_at_ms - self._clock.now_ms() > validity.length_ms // 10
