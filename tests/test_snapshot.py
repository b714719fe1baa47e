# ruff: noqa: F811 - fixtures are asked for by name
"""Snapshots: the same plan without us, nothing in it that should stay, believed for good reason."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.envelope import seal
from node_agent.wire import Endpoint, Phase, Stray, key_id
from reconciler.adapters.fetch_document import fetch_document
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.observed import Known
from reconciler.core.records import Condition
from reconciler.core.validate import validate
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import load, preview
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Changes
from reconciler.server.app import build_app
from reconciler.server.deps import ServerDeps, Signal
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.use_cases import snapshot
from reconciler.use_cases.planning import Planned, plan_revision
from reconciler.use_cases.snapshot import (
    ReadDocuments,
    documents_of,
    opened,
    sealed,
    take,
)
from reconciler.use_cases.snapshot_form import Remembered, document
from reconciler.wiring.snapshots import KEPT_MS, SnapshotService, read_snapshot, snapshot_service
from tests.server.harness import refusal, settings_of
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, world  # noqa: F401

DAY_MS = 86_400_000
CANARY = "canary-4711"


def keys(world: World) -> list[str]:
    return [newest_verifier(world.ports.secrets, snapshot.SNAPSHOT_KEY).public_key]


def checkout(world: World) -> ReadDocuments:
    """A clone with all of the history."""

    def read(revision: Revision) -> Mapping[str, str]:
        source = world.ports.source.snapshot(revision)
        return documents_of(validate(source, SCHEMAS, SETTINGS.parse_limits))

    return read


def taken(world: World) -> Remembered:
    """There and back again, through the signed bytes."""
    raw = sealed(take(world.ports, SETTINGS), world.ports.secrets)
    return opened(raw, keys(world), "dev", world.clock.now_ms(), DAY_MS, checkout(world))


def planned(world: World, seen: Remembered | None = None) -> Planned:
    head = world.ports.source.fetch()
    source = world.ports.source.snapshot(head)
    return plan_revision(seen or taken(world), source, SCHEMAS, SETTINGS)


# --- the same plan -------------------------------------------------------------------------------


def before_the_first_pass(world: World) -> None:
    world.agent.report(world.clock.now_ms())


def converged(world: World) -> None:
    world.converge()


def upgrade(world: World) -> None:
    world.converge()
    world.set_version("1.1.0")


def under_way(world: World) -> None:
    world.converge()
    world.set_version("1.1.0")
    world.run_pass()


def failed_upgrade(world: World) -> None:
    world.converge()
    world.agent.broken = {world.files[_artifact("1.1.0")].decode().split("digest: ")[1].split()[0]}
    world.set_version("1.1.0")
    world.converge()


def removal(world: World) -> None:
    world.converge()
    world.commit(**{INSTANCE: None})


def removal_proved(world: World) -> None:
    removal(world)
    world.run_pass()
    world.agent.work(world.clock.now_ms())


def silent_node(world: World) -> None:
    upgrade(world)
    world.clock.advance(120_000)


def stopped(world: World) -> None:
    world.converge()
    text = world.files[INSTANCE].decode()
    world.commit(**{INSTANCE: text.replace("desired: running", "desired: stopped").encode()})


def broken_file(world: World) -> None:
    upgrade(world)
    world.run_pass()
    world.commit(**{INSTANCE: b"kind: [AppInstance\n"})


def _artifact(version: str) -> str:
    return f"tenants/platform/projects/catalog/artifacts/hello/{version}/image.yaml"


STORIES = [
    converged, upgrade, under_way, failed_upgrade, removal, removal_proved, silent_node, stopped,
    broken_file,
]  # fmt: skip


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_an_offline_plan_is_the_live_one(world: World, story: Callable[[World], None]) -> None:
    story(world)
    found = planned(world)
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    live, _ = preview(state, world.ports, SETTINGS)
    assert found.plan.plan_id == live.plan_id
    assert found.plan.unchanged == live.unchanged
    assert found.plan.removals_id == live.removals_id
    assert [(a.kind, a.instance, a.held and a.held.code) for a in found.plan.actions] == [
        (a.kind, a.instance, a.held and a.held.code) for a in live.actions
    ]
    assert [f.code for f in found.plan.findings] == [f.code for f in live.findings]
    assert [w.code for w in found.plan.waiting] == [w.code for w in live.waiting]


def test_an_artifact_it_does_not_know_holds_the_launch_and_says_why(world: World) -> None:
    before_the_first_pass(world)
    (action,) = planned(world).plan.actions
    assert action.held is not None
    assert action.held.code == "not_in_snapshot"
    assert action.held.message.endswith(
        "the snapshot was taken before anything needed it; a plan against live state will know"
    )


def test_a_version_on_offer_is_known_before_anybody_runs_it(world: World) -> None:
    world.converge()
    seen = taken(world)
    assert [key.repository for key in seen.artifacts] == ["gpuaas/apps/platform/catalog/hello"] * 2
    world.registry.looked_up.clear()
    world.registry.failure = Transient("registry_unreachable", "no answer from 10.1.2.3")
    assert {one.code for one in taken(world).artifacts.values()} == {  # type: ignore[union-attr]
        "registry_unreachable"
    }
    assert len(world.registry.looked_up) == 1, "who is silent is asked once"


# --- redaction -----------------------------------------------------------------------------------


def test_what_should_stay_here_is_not_in_its_bytes(world: World) -> None:
    """Manifests with env and access, endpoints, addresses, messages, conditions, envelopes,
    inventory, engine errors, strays.
    """
    for version in ("1.0.0", "1.1.0"):
        path = f"catalog/hello/versions/{version}.yaml"
        text = world.files[path].decode()
        assert "    command:" in text
        text = text.replace("    command:", f"    env: {{TOKEN: {CANARY}}}\n    command:", 1)
        text = text.replace('instructions: "', f'instructions: "{CANARY} ')
        world.commit(**{path: text.encode()})
    world.converge()
    world.set_version("1.1.0")
    world.run_pass()
    endpoint = Endpoint(name=CANARY, container=1, host_ip="10.99.88.77", host_port=32123)
    condition = Condition("Ready", "True", "Ready", CANARY, "r", 1)
    record = replace(
        world.record, endpoints=(endpoint,), access=CANARY, message=CANARY, conditions=(condition,)
    )
    world.store.commit(Changes(records=[record]))
    report = world.agent.reports[HELLO]
    world.agent.reports[HELLO] = report.model_copy(
        update={"message": CANARY, "endpoints": (endpoint,), "image_digest": CANARY}
    )
    world.agent.report(world.clock.now_ms())
    seen = take(world.ports, SETTINGS)
    node = seen.nodes["node-a"]
    assert isinstance(node, Known)
    inventory = node.value.inventory.model_copy(
        update={"docker_version": CANARY, "engine_errors": {"docker": CANARY}}
    )
    stray = Stray(name=CANARY, instance="a/b/c", spec_hash=None)
    told = replace(
        node.value, inventory=inventory, strays=(stray,), refusal=f"state_not_written: {CANARY}"
    )
    intents = tuple(
        replace(one, envelope=CANARY, detail=f"no_space: {CANARY}") for one in seen.intents
    )
    assert intents, "the story needs an open intent"
    seen = replace(seen, nodes={"node-a": Known(told)}, intents=intents)
    text = json.dumps(document(seen))
    for secret in (CANARY, "10.99.88.77", "32123", "127.0.0.1"):
        assert secret not in text
    assert '"refusal": "state_not_written"' in text
    assert '"code": "no_space"' in text


def test_what_a_silent_engine_said_stays_here(world: World) -> None:
    world.converge()
    world.agent.report(world.clock.now_ms(), complete=False)
    seen = take(world.ports, SETTINGS)
    assert document(seen)["nodes"] == {"node-a": {"unknown": "engine_unavailable"}}
    (finding,) = planned(world).plan.findings
    assert finding.message == "node node-a has an engine that is silent when the snapshot was taken"


# --- whom to believe -----------------------------------------------------------------------------


def refused(raw: bytes, trusted: list[str], now_ms: int, environment: str = "dev") -> Refused:
    with pytest.raises(Refused) as caught:
        opened(raw, trusted, environment, now_ms, DAY_MS, lambda _: {})
    assert caught.value.hint
    return caught.value


def test_refusals(world: World) -> None:
    world.converge()
    raw, trusted = sealed(take(world.ports, SETTINGS), world.ports.secrets), keys(world)
    now_ms = world.clock.now_ms()
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()

    foreign = refused(raw, [other], now_ms)
    assert (foreign.code, foreign.message) == (
        "snapshot_not_trusted",
        "not to be believed: signed by no key that is trusted here",
    )
    document = json.loads(raw)
    payload = bytearray(document["payload"].encode())
    payload[40] = ord("A") if payload[40] != ord("A") else ord("B")
    document["payload"] = payload.decode()
    edited = refused(json.dumps(document).encode(), trusted, now_ms)
    assert (edited.code, edited.message) == (
        "snapshot_not_trusted",
        "not to be believed: the signature does not match the payload",
    )
    assert refused(b"{}", trusted, now_ms).code == "snapshot_unreadable"
    assert refused(b"x" * (snapshot.SNAPSHOT_BYTES_MAX + 1), trusted, now_ms).code == (
        "snapshot_too_large"
    )
    elsewhere = refused(raw, trusted, now_ms, "prod")
    assert (elsewhere.code, elsewhere.message) == (
        "snapshot_environment",
        "it is of environment dev, the plan is for prod",
    )
    old = refused(raw, trusted, now_ms + DAY_MS + 1)
    assert old.code == "snapshot_too_old"
    assert old.message.endswith("more than 86400 s ago")
    future = refused(raw, trusted, now_ms - snapshot.CLOCKS_APART_MS - 1)
    assert future.code == "snapshot_from_future"
    assert future.message.endswith("which is still to come")


def test_a_snapshot_of_another_format_is_refused_kindly(world: World) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    for payload in (b"[]", b"{}", b'{"format": "gpuaas.dev/snapshot/v9"}', b"\xff"):
        envelope = seal(payload, snapshot.SNAPSHOT_TYPE, key_id(public), key.sign)
        found = refused(json.dumps(envelope).encode(), [public], 0)
        assert found.code == "snapshot_unreadable"
    task = seal(b"{}", "application/vnd.gpuaas.task.v1+json", key_id(public), key.sign)
    assert refused(json.dumps(task).encode(), [public], 0).code == "snapshot_unreadable"


def test_a_clone_without_the_history_is_told_what_it_lacks(world: World) -> None:
    world.converge()
    raw, trusted = sealed(take(world.ports, SETTINGS), world.ports.secrets), keys(world)
    found = refused(raw, trusted, world.clock.now_ms())
    head = world.ports.source.head()
    assert (found.code, found.message) == (
        "snapshot_needs_history",
        "16 accepted manifests are not in this checkout, such as Allocation/acme/research/small "
        f"of commit {head[:12]}",
    )
    assert "fetch-depth: 0" in found.hint


def test_a_manifest_of_another_content_is_not_taken_for_the_accepted_one(world: World) -> None:
    world.converge()
    raw = sealed(take(world.ports, SETTINGS), world.ports.secrets)
    real = checkout(world)

    def forged(revision: Revision) -> Mapping[str, str]:
        return {
            ref: text.replace('"cpu_cores":0.5', '"cpu_cores":64')
            for ref, text in real(revision).items()
        }

    with pytest.raises(Refused, match="snapshot_needs_history: 1 accepted manifests"):
        opened(raw, keys(world), "dev", world.clock.now_ms(), DAY_MS, forged)


def test_a_rotated_key_is_still_believed_while_it_is_listed(world: World) -> None:
    world.converge()
    raw, trusted = sealed(take(world.ports, SETTINGS), world.ports.secrets), keys(world)
    world.ports.secrets.rotate(snapshot.SNAPSHOT_KEY)
    now_ms = world.clock.now_ms()
    both = [*trusted, *keys(world)]
    assert opened(raw, both, "dev", now_ms, DAY_MS, checkout(world)).records
    assert refused(raw, keys(world), now_ms).code == "snapshot_not_trusted"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="snapshot_unreadable: it cannot be read: No such file"):
        read_snapshot(str(tmp_path / "none.json"), SETTINGS)


# --- served --------------------------------------------------------------------------------------


@contextmanager
def served(world: World, take_one: Callable[[], bytes] | None) -> Iterator[httpx.Client]:
    settings = settings_of()
    deps = ServerDeps(
        world.store,
        world.ports.secrets,
        world.clock,
        settings,
        lambda _: None,
        Signal(),
        Metrics(),
        snapshot=take_one,
    )
    with serve(build_app(deps), settings) as url, httpx.Client(base_url=url) as client:
        yield client


def test_served_to_who_asks_and_compressed_to_who_takes_that(world: World) -> None:
    world.converge()
    with served(world, snapshot_service(world.ports, SETTINGS)) as client:
        plain = client.get("/v1/snapshot", headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        now_ms = world.clock.now_ms()
        seen = opened(plain.content, keys(world), "dev", now_ms, DAY_MS, checkout(world))
        assert list(seen.records) == [HELLO]
        for header in ("gzip", "br;q=1, gzip;q=0.5"):
            packed = client.get("/v1/snapshot", headers={"Accept-Encoding": header})
            assert packed.headers["Content-Encoding"] == "gzip"
            assert packed.content == plain.content
        for header in ("gzip;q=0", "br"):
            answer = client.get("/v1/snapshot", headers={"Accept-Encoding": header})
            assert "Content-Encoding" not in answer.headers
        assert len(gzip.compress(plain.content)) < len(plain.content)
        url = f"{client.base_url}/v1/snapshot".replace("//v1", "/v1")
        assert read_snapshot(url, SETTINGS) == plain.content
        with pytest.raises(Refused, match="fetch_refused: it answered 404"):
            read_snapshot(f"{client.base_url}/nowhere", SETTINGS)


def test_a_server_that_offers_none_says_so(world: World) -> None:
    with served(world, None) as client:
        answer = client.get("/v1/snapshot")
        assert refusal(answer) == (404, "no_snapshot", "this server offers no snapshots")


def test_nobody_answers() -> None:
    with pytest.raises(Transient, match=r"fetch_failed: no answer \(ConnectError\)"):
        read_snapshot("http://127.0.0.1:9/v1/snapshot?token=x", SETTINGS)


@contextmanager
def answering(body: bytes, encoding: str) -> Iterator[str]:
    """A server on the way that answers with this, whoever it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Encoding", encoding)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/snapshot"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PACKED = gzip.compress(b"0" * 100_000)
ANSWERS = {
    "larger than is read": (PACKED, "gzip", 99_999, "snapshot_too_large: more than 99999 bytes"),
    "packed twice": (gzip.compress(PACKED), "gzip, gzip", 100_000, "nobody asked for: 'gzip, gzip"),
    "packed in another way": (PACKED, "zstd", 100_000, "nobody asked for: 'zstd'"),
    "cut off": (PACKED[:-20], "gzip", 100_000, "fetch_failed: no answer .it ends too early"),
    "not packed": (b"{}", "gzip", 100_000, "fetch_failed: no answer .error"),
}


@pytest.mark.parametrize(("body", "encoding", "most", "said"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_a_bomb(body: bytes, encoding: str, most: int, said: str) -> None:
    """Attempted: a few kilobytes that unpack to more memory than there is."""
    with answering(body, encoding) as url, pytest.raises(GpuaasError, match=said):
        fetch_document(url, most, 10.0)


def test_an_answer_of_just_the_size_that_is_read() -> None:
    with answering(PACKED, "gzip") as url:
        assert fetch_document(url, 100_000, 10.0) == b"0" * 100_000


def test_an_answer_that_comes_in_drops_ends_some_time() -> None:
    """Attempted: a byte now and then, which no time-out of a single read ends."""
    with answering(PACKED, "identity") as url, pytest.raises(Transient, match="not all of it in"):
        fetch_document(url, 200_000, 10.0, monotonic=iter((0.0, 10.1)).__next__)


def test_many_askers_cost_one_look_every_few_seconds() -> None:
    now_ms, calls = [0], []

    def take_one() -> bytes:
        calls.append(now_ms[0])
        return b"x"

    service = SnapshotService(take_one, lambda: now_ms[0])
    for at_ms in (0, 1, KEPT_MS - 1, KEPT_MS, KEPT_MS + 1, 0):
        now_ms[0] = at_ms
        assert service() == b"x"
    assert calls == [0, KEPT_MS, 0], "a clock put back does not keep an old one for ever"


def test_what_is_stopped_stays_stopped_in_it(world: World) -> None:
    stopped(world)
    world.converge()
    node = taken(world).nodes["node-a"]
    assert isinstance(node, Known)
    assert node.value.workloads[InstanceKey(HELLO)].phase is Phase.STOPPED
