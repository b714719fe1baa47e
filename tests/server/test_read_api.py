"""What is read over HTTP, how failures look, and how the server starts and stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from structlog.testing import capture_logs

from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import (
    Condition,
    Event,
    PassSummary,
    State,
)
from reconciler.errors import Refused, Transient
from reconciler.ports import Changes
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.views.read_models import node_document
from tests.fakes.store import MemoryStore
from tests.server.harness import (
    NOW_MS,
    Keys,
    Plane,
    StillClock,
    a_store,
    an_intent,
    refusal,
    running,
    settings_of,
)
from tests.server.readers import record

REVISION = Revision("a" * 40)
HELLO = InstanceKey("acme/research/hello")
SERVES = Condition("Ready", "True", "Serving", "it serves", REVISION, 5)
RECORD = record(HELLO, conditions=(SERVES,))
SUMMARY = PassSummary("done", REVISION, NOW_MS - 3_000, 1_000, findings=({"code": "x"},))
PATHS = [
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/status",
    "/v1/instances",
    "/v1/instances/acme/research/hello",
    "/v1/events",
    "/v1/nodes",
    "/v1/agent/join",
    "/v1/agent/report",
    "/v1/agent/poll",
    "/v1/hooks/git",
    "/nowhere",
]


def event(number: int, key: InstanceKey = HELLO) -> Event:
    return Event(f"e-{number}", "apps.instance.running", key, "c", REVISION, number, {"n": "1"})


class TestStatus:
    def test_everything_on_one_page(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.post("/v1/agent/report", agent.report())
        plane.store.commit(Changes(records=[RECORD]))
        plane.store.commit(Changes(summary=SUMMARY))
        plane.clock.ms += 5_000
        document = plane.client.get("/v1/status").json()
        assert document["generated_at_ms"] == NOW_MS + 5_000
        assert document["summary"]["instances"] == 1
        assert document["summary"]["by_state"]["running"] == 1
        assert document["summary"]["by_state"]["failed"] == 0
        assert document["last_pass"]["result"] == "done"
        assert document["last_pass"]["age_ms"] == 7_000
        assert document["last_pass"]["findings"] == [{"code": "x"}]
        instance = plane.client.get("/v1/instances/acme/research/hello").json()
        assert document["instances"] == [instance]
        assert document["nodes"] == plane.client.get("/v1/nodes").json()["nodes"]
        assert document["nodes"][0]["state"] == "online"

    def test_nothing_yet(self, plane: Plane) -> None:
        document = plane.client.get("/v1/status").json()
        assert document["last_pass"] is None
        assert document["instances"] == document["nodes"] == []

    def test_an_instance(self, plane: Plane) -> None:
        plane.store.commit(Changes(records=[RECORD]))
        document = plane.client.get("/v1/instances/acme/research/hello").json()
        names = ("instance", "tenant", "project", "name", "state", "target_version")
        assert [document[name] for name in names] == [
            "acme/research/hello",
            "acme",
            "research",
            "hello",
            "running",
            "1.0.0",
        ]
        assert document["endpoints"] == [
            {"name": "web", "container": 80, "host_ip": "127.0.0.1", "host_port": 8080}
        ]
        assert document["conditions"][0]["reason"] == "Serving"
        assert plane.client.get("/v1/instances").json() == {"instances": [document]}

    def test_an_instance_with_members(self, plane: Plane) -> None:
        """Each is a row of its own, right after its instance, and the instance names them."""
        worker = replace(RECORD, key=InstanceKey(f"{HELLO}.w1"), role="worker", node="node-2")
        beside = replace(RECORD, key=InstanceKey(f"{HELLO}-2"))
        gone = replace(
            worker, key=InstanceKey(f"{HELLO}.w2"), state=State.DECOMMISSIONED, conditions=()
        )
        plane.store.commit(Changes(records=[replace(RECORD, role="head"), worker, beside, gone]))
        rows = plane.client.get("/v1/instances").json()["instances"]
        assert [row["name"] for row in rows] == ["hello", "hello.w1", "hello.w2", "hello-2"]
        assert [(row["member"], row["member_of"], row["role"]) for row in rows[:2]] == [
            ("", "", "head"),
            ("w1", HELLO, "worker"),
        ]
        hello = plane.client.get("/v1/instances/acme/research/hello").json()
        assert hello["members"] == [
            {
                "instance": f"{HELLO}.w1",
                "member": "w1",
                "role": "worker",
                "node": "node-2",
                "state": "running",
                "ready": "True",
            }
        ]
        assert plane.client.get("/v1/instances/acme/research/hello.w1").json() == rows[1]

    def test_an_instance_that_is_not_there(self, plane: Plane) -> None:
        answer = plane.client.get("/v1/instances/acme/research/none")
        assert refusal(answer) == (
            404,
            "no_such_instance",
            "there is no instance of that name",
        )

    def test_nodes_say_how_fresh_they_are(self, plane: Plane) -> None:
        agent = plane.enrol("node-1")
        plane.enrol("node-2")
        plane.post("/v1/agent/report", agent.report())
        plane.clock.ms += 45_001
        first, second = plane.client.get("/v1/nodes").json()["nodes"]
        assert (first["state"], first["report_age_ms"]) == ("offline", 45_001)
        assert (first["cpu_count"], first["engines"]) == (8, ["docker"])
        assert (second["state"], second["report_age_ms"]) == ("never_reported", None)

    def test_a_report_of_another_version_is_not_taken_for_none(self, plane: Plane) -> None:
        plane.enrol()
        plane.store.save_report("node-1", '{"shape": "of tomorrow"}', 9, 0, NOW_MS)
        node = plane.store.node("node-1")
        assert node is not None
        assert node_document(node, NOW_MS)["state"] == "unreadable_report"
        assert node_document(replace(node, revoked_at_ms=1), NOW_MS)["state"] == "revoked"


class TestEvents:
    @pytest.fixture(autouse=True)
    def three_events(self, plane: Plane) -> None:
        other = InstanceKey("acme/research/other")
        plane.store.commit(Changes(events=[event(1), event(2, other), event(3)]))

    def test_pages(self, plane: Plane) -> None:
        page = plane.client.get("/v1/events?limit=2").json()
        assert [(one["cursor"], one["event_id"]) for one in page["events"]] == [
            (1, "e-1"),
            (2, "e-2"),
        ]
        assert page["events"][0]["data"] == {"n": "1"}
        rest = plane.client.get(f"/v1/events?after={page['next_after']}").json()
        assert [one["event_id"] for one in rest["events"]] == ["e-3"]
        end = plane.client.get(f"/v1/events?after={rest['next_after']}").json()
        assert end == {"events": [], "next_after": 3}

    def test_of_one_instance(self, plane: Plane) -> None:
        page = plane.client.get("/v1/events?instance=acme/research/hello").json()
        assert [one["event_id"] for one in page["events"]] == ["e-1", "e-3"]

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("after=-1", "after: expected a number from 0 to 9223372036854775807"),
            ("after=9223372036854775808", "after: expected a number from 0 to 9223372036854775807"),
            ("after=x", "after: expected a number from 0 to 9223372036854775807"),
            ("limit=1001", "limit: expected a number from 0 to 1000"),
            ("limit=", "limit: expected a number from 0 to 1000"),
            ("instance=acme", "instance: expected tenant/project/name[.member]"),
            ("instance=a/b/%00", "instance: expected tenant/project/name[.member]"),
            ("instance=a/b/c.", "instance: expected tenant/project/name[.member]"),
        ],
    )
    def test_invalid_parameters(self, plane: Plane, query: str, message: str) -> None:
        answer = plane.client.get(f"/v1/events?{query}")
        assert refusal(answer) == (422, "invalid_parameter", message)


class TestProbes:
    def test_live(self, plane: Plane) -> None:
        assert plane.client.get("/healthz").json() == {"status": "live"}

    def test_ready(self, plane: Plane) -> None:
        assert refusal(plane.client.get("/readyz")) == (
            503,
            "no_pass_yet",
            "no pass has ended yet",
        )
        plane.store.commit(Changes(summary=SUMMARY))
        ready = {"status": "ready", "last_pass_age_s": 2.0, "last_pass_result": "done"}
        assert plane.client.get("/readyz").json() == ready
        plane.clock.ms += 300_000
        assert refusal(plane.client.get("/readyz")) == (
            503,
            "pass_overdue",
            "the last pass ended 302 s ago",
        )

    def test_not_ready_without_a_store(self) -> None:
        store = MemoryStore()
        with running(store) as plane:
            store.failure = Transient("store_full", "no space left", where="/place", hint="free it")
            answer = plane.client.get("/readyz")
            assert refusal(answer) == (503, "store_full", "no space left (free it)")
            assert "/place" not in answer.text
            assert plane.client.get("/healthz").status_code == 200

    def test_metrics(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.post("/v1/agent/report", agent.report())
        plane.store.commit(Changes(records=[RECORD], intents=[an_intent(1)]))
        found = ({"code": "node_offline"}, {"code": "stray"}, {"code": "stray"})
        plane.store.commit(Changes(summary=replace(SUMMARY, findings=found)))
        plane.metrics.observe(SUMMARY)
        plane.clock.ms += 2_500
        answer = plane.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.text.splitlines()
        for line in (
            'gpuaas_passes_total{result="done"} 1.0',
            "gpuaas_pass_duration_seconds_sum 1.0",
            'gpuaas_instances{state="running"} 1.0',
            'gpuaas_instances{state="failed"} 0.0',
            'gpuaas_node_report_age_seconds{node="node-1"} 2.5',
            'gpuaas_intents_open{state="queued"} 1.0',
            'gpuaas_findings{code="node_offline"} 1.0',
            'gpuaas_findings{code="stray"} 2.0',
        ):
            assert line in lines


class TestFailures:
    def test_a_path_that_is_not_there(self, plane: Plane) -> None:
        for path in ("/nowhere", "/v1/status/", "/v1/instances/acme"):
            assert refusal(plane.client.get(path)) == (
                404,
                "not_found",
                "there is nothing at this path",
            )

    def test_a_method_that_is_not_taken(self, plane: Plane) -> None:
        answer = plane.client.delete("/v1/status")
        assert refusal(answer) == (
            405,
            "method_not_allowed",
            "this path does not take the method",
        )
        assert "GET" in answer.headers["Allow"]

    def test_the_callers_correlation_id_is_kept(self, plane: Plane) -> None:
        answer = plane.client.get("/nowhere", headers={"X-Correlation-Id": "call-7"})
        assert answer.json()["error"]["correlation_id"] == "call-7"
        assert answer.headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "<script>"])
    def test_a_correlation_id_that_is_not_well_formed(self, plane: Plane, bad: str) -> None:
        answer = plane.client.get("/healthz", headers={"X-Correlation-Id": bad})
        assert len(answer.headers["X-Correlation-Id"]) == 32

    def test_a_fault_of_ours_shows_nothing_and_is_logged(self) -> None:
        store = MemoryStore()
        with running(store) as plane, capture_logs() as logs:
            store.failure = RuntimeError("hush: internal detail")
            answer = plane.client.get("/v1/status", headers={"X-Correlation-Id": "call-8"})
        assert refusal(answer) == (500, "internal", "the control plane failed")
        assert "hush" not in answer.text
        failed = [line for line in logs if line["event"] == "request_failed"]
        assert [(line["correlation_id"], line["path"]) for line in failed] == [
            ("call-8", "/v1/status")
        ]

    def test_a_refusal_is_logged_with_its_correlation_id(self) -> None:
        with running(MemoryStore()) as plane, capture_logs() as logs:
            plane.client.get("/nowhere", headers={"X-Correlation-Id": "call-9"})
        (line,) = [line for line in logs if line["event"] == "request_refused"]
        assert (line["correlation_id"], line["status"], line["code"]) == (
            "call-9",
            404,
            "not_found",
        )


class TestServe:
    def make(self, **fields: Any) -> tuple[Starlette, Any]:
        chosen = settings_of(**fields)
        deps = ServerDeps(
            MemoryStore(), Keys(), StillClock(), chosen, lambda _: None, Signal(), Metrics()
        )
        return build_app(deps), chosen

    def test_it_starts_and_stops(self) -> None:
        with serve(*self.make()) as url:
            assert httpx.get(f"{url}/healthz").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")

    def test_a_port_that_is_taken(self) -> None:
        with serve(*self.make()) as url:
            taken = url.removeprefix("http://")
            with pytest.raises(Refused) as refused, serve(*self.make(listen=taken)):
                pass
        assert str(refused.value) == (
            f"port_in_use: something else listens on {taken} "
            "(stop it, or choose another address with --listen)"
        )

    @pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
    def test_an_address_that_others_reach_takes_readers_with_a_token_only(
        self, listen: str
    ) -> None:
        with capture_logs() as logs, serve(*self.make(listen=listen)) as url:
            port = url.rpartition(":")[2]
            answer = httpx.get(f"http://127.0.0.1:{port}/v1/status")
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        assert refusal(answer)[:2] == (401, "token_required")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert [line["event"] for line in logs if "listen" in line] == ["listens_in_the_clear"]

    def test_unless_a_person_allows_it(self) -> None:
        chosen = {"listen": "0.0.0.0:0", "allow_remote_read": True}
        with capture_logs() as logs, serve(*self.make(**chosen)) as url:
            port = url.rpartition(":")[2]
            assert httpx.get(f"http://127.0.0.1:{port}/v1/status").status_code == 200
        assert "reads_need_no_token" in [line["event"] for line in logs]

    @pytest.mark.parametrize("listen", ["", "8470", "127.0.0.1", "127.0.0.1:99999", "a b:1", ":80"])
    def test_an_address_that_is_none(self, listen: str) -> None:
        with pytest.raises(Refused) as refused, serve(*self.make(listen=listen)):
            pass
        assert str(refused.value) == f"listen_invalid: cannot listen on {listen!r} (use HOST:PORT)"

    def test_an_address_of_another_host(self) -> None:
        chosen = {"listen": "192.0.2.1:0", "allow_remote_read": True}
        with pytest.raises(Refused) as refused, serve(*self.make(**chosen)):
            pass
        assert refused.value.code == "listen_failed"

    def test_ipv6(self) -> None:
        with serve(*self.make(listen="[::1]:0")) as url:
            assert url.startswith("http://[::1]:")
            assert httpx.get(f"{url}/healthz").status_code == 200


class TestHost:
    @pytest.mark.parametrize("host", ["127.0.0.1:1", "[::1]:1", "localhost", "LOCALHOST:1"])
    def test_our_own(self, plane: Plane, host: str) -> None:
        assert plane.client.get("/v1/status", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/v1/status", "/v1/events", "/metrics", "/v1/instances/a/b/c"]
    )
    @pytest.mark.parametrize("host", ["evil.example:8470", "localhost.evil.example", "[::1", "x@y"])
    def test_another_name(self, plane: Plane, path: str, host: str) -> None:
        """Attempted: DNS rebinding, a browser that is led here by a page's own name."""
        answer = plane.client.get(path, headers={"Host": host})
        assert refusal(answer) == (
            421,
            "wrong_host",
            "this host is not called so: use its address, or name it in allowed_hosts",
        )

    def test_a_name_that_is_allowed(self) -> None:
        with running(MemoryStore(), allowed_hosts=("Fleet.example",)) as plane:
            answer = plane.client.get("/v1/status", headers={"Host": "fleet.example"})
            assert answer.status_code == 200


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def long_lived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plane]:
    folder: Path = tmp_path_factory.mktemp("store")
    with (
        a_store(request.param, folder) as store,
        running(store, join_failures_max=1_000_000) as plane,
    ):
        plane.store.commit(Changes(records=[replace(RECORD, state=State.FAILED)]))
        yield plane


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ENVELOPES = st.fixed_dictionaries(
    {
        "payload": JSON,
        "payloadType": JSON | st.sampled_from(["application/vnd.gpuaas.report.v1+json"]),
        "signatures": st.lists(st.fixed_dictionaries({"keyid": JSON, "sig": JSON})) | JSON,
    }
)
JOINS = st.fixed_dictionaries({"token": JSON, "node": JSON, "public_key": JSON})
BODIES = st.binary(max_size=200) | (JSON | ENVELOPES | JOINS).map(lambda d: json.dumps(d).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(PATHS),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    body=BODIES,
    query=st.dictionaries(st.sampled_from(["after", "limit", "instance"]), st.text(max_size=9)),
)
def test_garbage_never_makes_a_500(
    long_lived: Plane, path: str, method: str, body: bytes, query: dict[str, str]
) -> None:
    answer = long_lived.client.request(method, path, content=body, params=query)
    if answer.status_code >= 400:
        assert refusal(answer)[1] in {
            "bad_signature",
            "invalid_message",
            "invalid_parameter",
            "malformed",
            "method_not_allowed",
            "no_pass_yet",
            "not_found",
            "token_refused",
            "unknown_node",
            "unknown_parameter",
            "unsigned_webhook",
            "wrong_type",
        }


def test_a_signed_report_full_of_nonsense_never_makes_a_500(long_lived: Plane) -> None:
    agent = long_lived.enrol("node-nonsense")
    for payload in (b"", b"null", b"[]", b"\xff", b"{" * 100_000, b'{"node": "\\ud800"}', b"1e999"):
        signed = agent.seal(payload, "application/vnd.gpuaas.report.v1+json")
        assert refusal(long_lived.post("/v1/agent/report", signed))[:2] == (422, "invalid_message")
