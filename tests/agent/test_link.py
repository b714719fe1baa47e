"""The way to the control plane, when somebody else answers in its place."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent import certificate
from node_agent.certificate import CertificateRefused, tls_words, validity_of
from node_agent.link import AgentKey, Away, Credentials, Link
from node_agent.membership import CertificateRequest
from node_agent.wire import Poll
from tests.agent.authority import DAY_S, Authority
from tests.agent.cases import NODE, NOW_MS
from tests.agent.control_plane import ControlPlane

POLL = Poll(node=NODE, sent_at_ms=NOW_MS, report_seq=1, wait_ms=0)


class Stage:
    """A link to a control plane, with credentials that a test can change under way."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.key = AgentKey.generate()
        plane.enrol(self.key.public_key)
        self.credentials = Credentials(plane.authority.pem, self.certificate())
        self.link = Link(plane.url, self.key, lambda: self.credentials)

    def certificate(self, authority: Authority | None = None, ttl_s: float = DAY_S) -> str:
        issuer = authority or self.plane.authority
        return issuer.agent(self.key.request_certificate(NODE), NODE, ttl_s)

    def believing(self, ca: str | None = None, certificate: str | None = None) -> None:
        now = self.credentials
        self.credentials = Credentials(
            now.ca if ca is None else ca, now.certificate if certificate is None else certificate
        )

    def away(self) -> str:
        with pytest.raises(Away) as away:
            self.link.poll(POLL)
        return str(away.value)


@pytest.fixture
def stage(plane: ControlPlane) -> Iterator[Stage]:
    stage = Stage(plane)
    yield stage
    stage.link.close()


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (500, b"[" * 200_000, "http_500"),
        (500, b'{"error":' * 100_000, "http_500"),
        (200, b"[" * 200_000, "answer_malformed"),
        (200, b'{"tasks":[' + b'{"a":' * 100_000, "answer_malformed"),
        (200, b" " * (8 * 1024 * 1024 + 1), "answer_too_large"),
    ],
    ids=["deep error", "deep fields", "deep answer", "deep task", "endless answer"],
)
def test_no_answer_ends_the_loop_that_asked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, status: int, answer: bytes, code: str
) -> None:
    """Attempted: to stop an agent for good with one answer."""
    monkeypatch.setattr(stage.plane, "answer", lambda *_: (status, answer))
    assert stage.away().startswith(f"{code}: ")


def test_it_is_the_control_plane_under_whatever_address(stage: Stage) -> None:
    port = stage.plane.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        link = Link(f"https://{host}:{port}", stage.key, lambda: stage.credentials)
        assert link.poll(POLL).tasks == ()
        link.close()


def cases_of_refusal() -> dict[str, tuple[Callable[[Stage], None], str]]:
    def ended(stage: Stage) -> None:
        stage.plane.authority.offset_s = -2 * DAY_S
        stage.plane.show(stage.plane.authority)

    def too_early(stage: Stage) -> None:
        stage.plane.authority.offset_s = DAY_S
        stage.plane.show(stage.plane.authority)

    def ours_ended(stage: Stage) -> None:
        stage.plane.authority.offset_s = -2 * DAY_S
        stage.believing(certificate=stage.certificate())

    def ours_of_another_ca(stage: Stage, name: str) -> None:
        stage.believing(certificate=stage.certificate(Authority(name)))

    return {
        "another CA": (
            lambda stage: stage.plane.show(Authority()),
            "the server's certificate is not of the CA that this node joined",
        ),
        "another name": (
            lambda stage: stage.plane.show(stage.plane.authority, name="n1.node.gpuaas.internal"),
            "the server's certificate is not for control-plane.gpuaas.internal: it is not the "
            "control plane's",
        ),
        "theirs ended": (ended, "the control plane's certificate has ended: it renews it"),
        "theirs not begun": (too_early, "the control plane's certificate is not good yet"),
        "ours ended": (
            ours_ended, "this node's certificate has ended; a new one is being asked for",
        ),
        "ours of another CA": (
            lambda stage: ours_of_another_ca(stage, "another"),
            "the control plane does not know the CA of this node's certificate",
        ),
        "ours of a CA that bears its name": (
            lambda stage: ours_of_another_ca(stage, "gpuaas test CA"),
            "the control plane does not know the CA of this node's certificate",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", cases_of_refusal())
def test_tls_that_fails_says_what_is_wrong(stage: Stage, case: str) -> None:
    arrange, words = cases_of_refusal()[case]
    arrange(stage)
    assert stage.away().startswith(f"tls_refused: {words}")


def test_a_server_without_tls_is_said_so(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            heard, _ = server.accept()
            with heard:
                heard.recv(4096)
                heard.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        link = Link(url, stage.key, lambda: stage.credentials)
        with pytest.raises(Away) as away:
            link.poll(POLL)
        link.close()
        thread.join()
    assert str(away.value) == "tls_refused: no TLS is spoken there: is it the address for agents?"


def test_words_of_tls_itself_are_never_told() -> None:
    error = ssl.SSLError(1, "[SSL: SOMETHING_NEW] said by who knows whom (_ssl.c:1)")
    assert tls_words(error) == "the TLS handshake failed"


def test_a_new_certificate_is_shown_without_a_restart(stage: Stage) -> None:
    stage.link.poll(POLL)
    shown: list[bytes | None] = []
    answer = stage.plane.answer

    def looking(path: str, body: bytes, peer: bytes | None) -> tuple[int, bytes]:
        shown.append(peer)
        return answer(path, body, peer)

    stage.plane.answer = looking  # type: ignore[method-assign]
    stage.link.poll(POLL)
    stage.believing(certificate=stage.certificate())
    stage.link.poll(POLL)
    stage.link.poll(POLL)
    before, first, second = shown
    assert before != first == second


def test_a_request_under_way_is_not_cut_off_by_a_new_certificate(stage: Stage) -> None:
    waiting = POLL.model_copy(update={"wait_ms": 600})
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(stage.link.poll(waiting)))
    thread.start()
    while not stage.plane.polls:
        time.sleep(0.01)
    stage.believing(certificate=stage.certificate())
    stage.link.poll(POLL)
    thread.join()
    assert len(ended) == 1


def test_another_ca_is_believed_from_the_next_request_on(stage: Stage) -> None:
    stage.link.poll(POLL)
    newer = Authority("newer")
    stage.plane.authority = newer
    stage.plane.show(newer)
    stage.believing(newer.pem, stage.certificate())
    stage.link.poll(POLL)


@pytest.mark.parametrize("kind", ["ca", "certificate", "key"])
def test_what_can_not_be_used_is_said(stage: Stage, kind: str) -> None:
    other = AgentKey.generate().request_certificate(NODE)
    changes, code = {
        "ca": ({"ca": "x"}, "ca_malformed"),
        "certificate": ({"certificate": "x"}, "certificate_malformed"),
        "key": (
            {"certificate": stage.plane.authority.agent(other, NODE)}, "certificate_of_another",
        ),
    }[kind]  # fmt: skip
    stage.believing(**changes)
    assert stage.away().startswith(f"{code}: ")


def test_a_certificate_is_asked_for_with_the_agents_own_key(stage: Stage) -> None:
    request = CertificateRequest(
        node=NODE, sent_at_ms=NOW_MS, csr=stage.key.request_certificate(NODE)
    )
    reply = stage.link.certificate(request)
    validity = validity_of(reply.certificate, stage.key.public_key)
    assert validity.length_ms == DAY_S * 1_000


def test_names_longer_than_a_common_name_get_a_certificate() -> None:
    node, key = "n" * 63, AgentKey.generate()
    chain = Authority().agent(key.request_certificate(node), node)
    assert validity_of(chain, key.public_key).length_ms > 0


def test_half_of_the_time_and_up_to_a_tenth_more() -> None:
    validity = certificate.Validity(1_000_000, 2_000_000)
    assert [validity.renewal_at_ms(spread) for spread in (0.0, 1.0)] == [1_500_000, 1_600_000]


def test_the_key_is_put_on_no_disk(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the kernel gives no file without a name, there is no connection."""

    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stage.believing(certificate=stage.certificate())
    stage.link.poll(POLL)
    monkeypatch.setattr(os, "memfd_create", refuse)
    stage.believing(certificate=stage.certificate())
    assert stage.away() == (
        "no_memory_file: this host has no files in memory (memfd_create, Linux 3.17 and later), "
        "and the agent's key is put on no disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_them_is_shown(stage: Stage) -> None:
    assert repr(stage.credentials) == "Credentials(***)"
    assert stage.key.reveal_private() not in repr(stage.key)
    with pytest.raises(CertificateRefused) as refused:
        validity_of("secret words", stage.key.public_key)
    assert "secret words" not in str(refused.value)


def test_revoked_is_told_with_its_code(stage: Stage) -> None:
    stage.plane.revoked = True
    assert stage.away().startswith("node_revoked: this node was revoked: lost")
    stage.plane.revoked = False
    stage.believing(certificate="")
    assert stage.away().startswith("certificate_required: ")
