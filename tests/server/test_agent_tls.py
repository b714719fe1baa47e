"""The agents' listener over real sockets: who gets in, and certificates that change."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from structlog.testing import capture_logs

from node_agent.link import AgentKey, Away, Credentials, JoinRefused, Link, join
from node_agent.membership import SERVER_NAME, JoinToken
from node_agent.wire import Poll
from reconciler.adapters.clock import SystemClock
from reconciler.custody.wrap_mac import WrapMac, join_text
from reconciler.errors import Refused, Transient
from reconciler.ports import Certificate, Secret
from reconciler.server.agent_tls import LOOK_EVERY_S, RETRY_MAX_S, AgentTls
from reconciler.server.app import ServerDeps, Signal, build_agents_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve_agents
from reconciler.settings import Settings
from tests.fakes.ca import FakeCa
from tests.fakes.store import MemoryStore
from tests.server.harness import Agent, Keys, StillClock
from tests.waiting import wait_until

DAY_S = 86_400.0
AWAY = Transient("custody_sealed", "the custody is sealed")
REPORT = "/v1/agent/report"
PLAIN = b"GET /v1/agent/ca HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Listener:
    """The agents' listener of one control plane, and what it is made of."""

    url: str
    tls: AgentTls
    ca: FakeCa
    clock: StillClock
    store: MemoryStore
    keys: Keys
    folder: Path

    def enrol(self, node: str = "node-1") -> Agent:
        agent = Agent(node)
        self.store.add_join_token(agent.public_key, node, 2**50)
        assert self.store.redeem_join_token(agent.public_key, node, agent.public_key, 1)
        return agent

    def certificate(self, agent: Agent) -> Certificate:
        return self.ca.sign_agent(agent.node, agent.csr(), DAY_S)

    def connect(
        self, agent: Agent | None = None, certificate: Certificate | None = None
    ) -> http.client.HTTPConnection:
        """Shows the certificate that `agent` has of the CA, or another one."""
        context = ssl.create_default_context(cadata=self.ca.root())
        if agent is not None:
            shown = certificate or self.certificate(agent)
            context.load_cert_chain(self._file(agent, shown))
        host, port = self.address
        raw = socket.create_connection((host, port), 30)
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = context.wrap_socket(raw, server_hostname=SERVER_NAME)
        except BaseException:
            raw.close()
            raise
        return connection

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def _file(self, agent: Agent, certificate: Certificate) -> Path:
        key = agent.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.folder / f"{agent.node}.pem"
        path.write_bytes(key + certificate.pem.encode())
        return path

    def report(self, agent: Agent, seq: int = 1) -> dict[str, Any]:
        return agent.report(seq, sent_at_ms=self.clock.ms)


@contextmanager
def listening(folder: Path, ca: FakeCa | None = None, ttl_s: float = DAY_S) -> Iterator[Listener]:
    # TLS reads no clock but the system's.
    clock = StillClock(SystemClock().now_ms())
    ca = ca or FakeCa(clock)
    settings = Settings(agents_listen="127.0.0.1:0")
    store, keys = MemoryStore(), Keys()
    woken: SimpleQueue[str] = SimpleQueue()
    deps = ServerDeps(store, keys, clock, settings, woken.put, Signal(), Metrics())
    tls = AgentTls(ca, SystemClock(), ttl_s)
    with serve_agents(build_agents_app(deps, ca), settings, tls) as url:
        yield Listener(url, tls, ca, clock, store, keys, folder)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(tmp_path) as one:
        yield one


def ask(
    connection: http.client.HTTPConnection, path: str, message: Mapping[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    body = json.dumps(message) if message is not None else None
    connection.request("GET" if message is None else "POST", path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def is_let_in(listener: Listener, agent: Agent, certificate: Certificate) -> bool:
    """In TLS 1.3 a client hears that it is not when it reads the first answer."""
    connection = listener.connect(agent, certificate)
    try:
        return ask(connection, "/v1/agent/ca")[0] == 200
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        connection.close()


def serial(connection: http.client.HTTPConnection) -> int:
    return shown_by(connection).serial_number


def shown_by(connection: http.client.HTTPConnection) -> x509.Certificate:
    assert isinstance(connection.sock, ssl.SSLSocket)
    shown = connection.sock.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown or b"")


class TestWhoGetsIn:
    def test_an_agent_with_its_certificate(self, listener: Listener) -> None:
        agent = listener.enrol()
        connection = listener.connect(agent)
        assert ask(connection, REPORT, listener.report(agent))[0] == 200
        connection.close()

    def test_an_agent_without_one_gets_no_further_than_to_ask(self, listener: Listener) -> None:
        agent = listener.enrol()
        connection = listener.connect()
        assert ask(connection, "/v1/agent/ca") == (200, {"ca": listener.ca.root()})
        status, document = ask(connection, REPORT, listener.report(agent))
        assert (status, document["error"]["code"]) == (403, "certificate_required")
        asked = agent.certificate_request(sent_at_ms=listener.clock.ms)
        assert ask(connection, "/v1/agent/certificate", asked)[0] == 200
        connection.close()

    def test_the_certificate_of_another_node(self, listener: Listener) -> None:
        agent, other = listener.enrol(), listener.enrol("node-2")
        connection = listener.connect(other)
        status, document = ask(connection, REPORT, listener.report(agent))
        assert (status, document["error"]["code"]) == (403, "certificate_of_another")
        connection.close()

    def test_a_node_that_is_revoked_on_an_open_connection(self, listener: Listener) -> None:
        agent = listener.enrol()
        connection = listener.connect(agent)
        assert ask(connection, REPORT, listener.report(agent))[0] == 200
        listener.store.revoke_node("node-1", "stolen", listener.clock.ms)
        status, document = ask(connection, REPORT, listener.report(agent, 2))
        assert (status, document["error"]["code"]) == (403, "node_revoked")
        connection.close()

    def test_a_certificate_that_ends_on_an_open_connection(self, listener: Listener) -> None:
        agent = listener.enrol()
        connection = listener.connect(agent)
        listener.clock.ms += int(DAY_S * 1000)
        status, document = ask(connection, REPORT, listener.report(agent))
        assert (status, document["error"]["code"]) == (403, "certificate_required")
        assert document["error"]["message"].endswith("ask for a new one, then connect anew")
        connection.close()

    def test_the_certificate_of_another_ca(self, listener: Listener) -> None:
        agent = listener.enrol()
        foreign = FakeCa(listener.clock).sign_agent("node-1", agent.csr(), DAY_S)
        assert not is_let_in(listener, agent, foreign)

    def test_a_certificate_that_has_ended(self, tmp_path: Path) -> None:
        clock = StillClock(SystemClock().now_ms() - 2 * int(DAY_S * 1000))
        ca, agent = FakeCa(clock), Agent()
        ended = ca.sign_agent("node-1", agent.csr(), DAY_S)
        clock.ms = SystemClock().now_ms()
        with listening(tmp_path, ca) as listener:
            assert not is_let_in(listener, agent, ended)
            assert is_let_in(listener, agent, listener.certificate(agent))

    def test_the_certificate_of_a_server(self, listener: Listener) -> None:
        agent = listener.enrol()
        to_be_dialled = listener.ca.sign_server(agent.csr(), DAY_S)
        assert not is_let_in(listener, agent, to_be_dialled)


class TestNoise:
    """What is no agent hurts nobody, and is not worth an error in the log."""

    @pytest.mark.parametrize(
        "sent",
        [PLAIN, b"\x16\x03\x01\xff\xff" + b"\0" * 99, b""],
        ids=["plain HTTP", "half a handshake", "nothing"],
    )
    def test_no_tls(
        self, listener: Listener, sent: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        agent = listener.enrol()
        with caplog.at_level(logging.DEBUG), capture_logs() as logs:
            with socket.create_connection(listener.address, 30) as raw:
                raw.sendall(sent)
                connection = listener.connect(agent)
                assert ask(connection, REPORT, listener.report(agent))[0] == 200
                if sent == PLAIN:
                    assert not raw.recv(4096).startswith(b"HTTP/")
            foreign = FakeCa(listener.clock).sign_agent("node-1", agent.csr(), DAY_S)
            assert not is_let_in(listener, agent, foreign)
            assert ask(connection, REPORT, listener.report(agent, 2))[0] == 200
            connection.close()
        assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
        assert [one for one in logs if one["log_level"] in ("warning", "error")] == []

    def test_sessions_are_not_resumed(self, listener: Listener) -> None:
        """A resumed one brings the certificate of the connection before."""
        context = ssl.create_default_context(cadata=listener.ca.root())
        with (
            socket.create_connection(listener.address, 30) as raw,
            context.wrap_socket(raw, server_hostname=SERVER_NAME) as tls,
        ):
            tls.sendall(PLAIN)
            assert tls.recv(4096).startswith(b"HTTP/1.1 200")
            assert tls.session is None or not tls.session.has_ticket

    def test_older_tls_is_not_spoken(self, listener: Listener) -> None:
        context = ssl.create_default_context(cadata=listener.ca.root())
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(listener.address, 30) as raw,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(raw, server_hostname=SERVER_NAME)


class TestRenewal:
    def test_open_connections_go_on(self, listener: Listener) -> None:
        agent = listener.enrol()
        before = listener.connect(agent)
        assert ask(before, REPORT, listener.report(agent))[0] == 200
        assert listener.tls.renew()
        after = listener.connect(agent)
        assert ask(after, REPORT, listener.report(agent, 2))[0] == 200
        assert ask(before, REPORT, listener.report(agent, 3))[0] == 200
        assert serial(after) != serial(before)
        before.close()
        after.close()

    def test_each_has_a_key_of_its_own(self, listener: Listener) -> None:
        keys = set()
        for _ in range(2):
            connection = listener.connect()
            key = shown_by(connection).public_key()
            keys.add(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
            connection.close()
            assert listener.tls.renew()
        assert len(keys) == 2

    def test_it_comes_by_itself_before_the_end(self, tmp_path: Path) -> None:
        with listening(tmp_path, ttl_s=3.0) as listener:
            first = serial_of(listener)
            wait_until(lambda: serial_of(listener) != first)

    def test_at_half_of_its_life(self) -> None:
        clock = StillClock()
        tls = AgentTls(FakeCa(clock), clock, 100.0)
        assert tls.renew()
        assert 45.0 <= tls.wait_s() <= 50.0
        clock.ms += 50_000
        assert tls.wait_s() == 0.0
        tls = AgentTls(FakeCa(clock), clock, DAY_S)
        assert tls.renew()
        assert tls.wait_s() == LOOK_EVERY_S

    def test_a_ca_that_is_away_is_asked_again_and_again(self) -> None:
        clock = StillClock()
        ca = FakeCa(clock)
        tls = AgentTls(ca, clock, 100.0)
        ca.failure = AWAY
        with capture_logs() as logs:
            for most_s in (2, 4, 8, 16, RETRY_MAX_S, RETRY_MAX_S):
                assert not tls.renew()
                assert most_s / 2 <= tls.wait_s() <= most_s
        assert {(one["log_level"], one["event"], one["code"]) for one in logs} == {
            ("warning", "agents_wait_for_certificate", "custody_sealed")
        }
        ca.failure = None
        assert tls.renew()

    def test_a_certificate_that_is_of_no_use(self) -> None:
        class Wrong(FakeCa):
            def sign_server(self, csr_pem: str, ttl_s: float) -> Certificate:
                return super().sign_server(Agent().csr(), ttl_s)

        with capture_logs() as logs:
            assert not AgentTls(Wrong(StillClock()), StillClock(), 100.0).renew()
        assert logs[0]["code"] == "certificate_unusable"
        assert logs[0]["reason"] == "TLS does not take the certificate that the CA issued"

    def test_its_key_is_put_on_no_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "memfd_create", refuse)
        with capture_logs() as logs:
            assert not AgentTls(FakeCa(StillClock()), StillClock(), 100.0).renew()
        assert (logs[0]["code"], logs[0]["reason"]) == (
            "no_memory_file",
            "this host has no files in memory (memfd_create, Linux 3.17 and later)",
        )

    def test_a_ca_that_is_away_at_the_start(self, tmp_path: Path) -> None:
        ca = FakeCa(StillClock(SystemClock().now_ms()))
        root = ca.root()
        ca.failure = AWAY
        with listening(tmp_path, ca) as listener:
            context = ssl.create_default_context(cadata=root)
            not_yet = pytest.raises((ssl.SSLError, ConnectionError))
            with socket.create_connection(listener.address, 30) as raw, not_yet:
                context.wrap_socket(raw, server_hostname=SERVER_NAME)
            ca.failure = None

            def up() -> bool:
                try:
                    listener.connect().close()
                except OSError:
                    return False
                return True

            wait_until(up)


def serial_of(listener: Listener) -> int:
    connection = listener.connect()
    try:
        return serial(connection)
    finally:
        connection.close()


def test_a_port_that_is_taken(listener: Listener) -> None:
    host, port = listener.address
    settings = Settings(agents_listen=f"{host}:{port}")
    app = build_agents_app(
        ServerDeps(
            listener.store, listener.keys, listener.clock, settings, print, Signal(), Metrics()
        ),
        listener.ca,
    )
    with pytest.raises(Refused) as taken, serve_agents(app, settings, listener.tls):
        raise AssertionError
    assert str(taken.value) == (
        f"port_in_use: something else listens on {host}:{port} (stop it, or choose another "
        "address: agents_listen in gpuaas.toml, --agents-listen)"
    )


class TestTheAgentItself:
    """What the agent's own code makes of it."""

    def token(self, listener: Listener, ca: FakeCa | None = None) -> JoinToken:
        now_ms = listener.clock.ms
        listener.store.add_join_token(hashlib.sha256(b"s").hexdigest(), "node-1", now_ms + 60_000)
        path = "joins/node-1/7"
        listener.keys.write(path, Secret("s"))
        macs = WrapMac(listener.keys, listener.clock)
        given = macs.given(path, listener.keys.wrap(path, 60))
        root = ssl.PEM_cert_to_DER_cert((ca or listener.ca).root())
        return JoinToken(
            server=listener.url,
            node="node-1",
            secret=join_text(given),
            ca_hash=hashlib.sha256(root).hexdigest(),
        )

    def test_it_joins_and_polls(self, listener: Listener) -> None:
        key = AgentKey.generate()
        reply = join(self.token(listener), key)
        assert reply.verifiers == listener.keys.verifier_keys("tasks")
        link = Link(listener.url, key, lambda: Credentials(reply.ca, reply.certificate))
        poll = Poll(node="node-1", sent_at_ms=listener.clock.ms, report_seq=1, wait_ms=0)
        assert link.poll(poll).tasks == ()
        listener.store.revoke_node("node-1", "stolen", listener.clock.ms)
        with pytest.raises(Away) as shut_out:
            link.poll(poll)
        assert shut_out.value.code == "node_revoked"
        link.close()

    def test_it_joins_no_control_plane_but_the_one_that_the_token_pins(
        self, listener: Listener
    ) -> None:
        """Attempted: to answer in the control plane's place, with a CA of one's own."""
        token = self.token(listener, FakeCa(listener.clock))
        with pytest.raises(JoinRefused) as refused:
            join(token, AgentKey.generate())
        assert refused.value.code == "pin_mismatch"
        assert listener.store.nodes() == []
