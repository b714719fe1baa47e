"""Blobs through the life of a workload, on processes and on real Docker, over real HTTPS."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from node_agent.artifact_wire import BLOBS_PATH, BlobFile, BlobSeen
from node_agent.engines.base import BLOBS_VARIABLE, Engine
from node_agent.link import AgentKey, join, parse_join_token
from node_agent.main import make_engines
from node_agent.runtime import Agent, Pace
from node_agent.secret_files import SecretFiles
from node_agent.state import Identity, StateStore
from node_agent.units import Unit
from node_agent.wire import (
    ExecProbe,
    FailureReason,
    Image,
    Phase,
    Readiness,
    Report,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import INSTANCE, SOURCE, digest_of, launch, process_image, pull_blob, remove
from tests.agent.cases import workload as any_workload
from tests.agent.control_plane import ControlPlane

NODE = "n1"
PACE = Pace(heartbeat_s=0.2, poll_wait_ms=300, backoff_max_s=0.2, inventory_s=60)
WEIGHTS = os.urandom(3_000_000)
MORE = b"other weights" * 1000


@dataclass
class Bench:
    """A running agent with one engine, `name`; its workload is ready once it reads its blob."""

    plane: ControlPlane
    name: str
    state: Path
    image: Image
    host: str | None
    secrets: SecretFiles
    agent: Agent | None = None
    store: StateStore | None = None
    quota_bytes: int | None = None

    def start(self) -> None:
        self.stop()
        self.store = StateStore(self.state, time.time_ns() // 1_000_000)
        self.agent = Agent(
            self.store, self.engines(), self.state, PACE, self.secrets,
            blob_quota_bytes=self.quota_bytes,
        )  # fmt: skip
        self.agent.start()

    def stop(self) -> None:
        if self.agent is not None and self.store is not None:
            self.agent.stop()
            self.store.close()
        self.agent = None

    def engines(self) -> dict[str, Engine]:
        made = make_engines(NODE, self.state, (self.name,), self.host, self.secrets)
        return dict(made)

    def units(self) -> tuple[Unit, ...]:
        engine = self.engines()[self.name]
        try:
            return engine.units(INSTANCE)
        finally:
            engine.close()

    def kill(self) -> None:
        engine = self.engines()[self.name]
        engine.stop(engine.units(INSTANCE)[0], 0)
        engine.close()

    def reads(self, content: bytes, name: str = "weights", **changes: Any) -> Workload:
        """Ready when the blob has the size it should have, and can't be written to."""
        shell = ("/bin/busybox", "sh", "-c") if self.name == "docker" else ("sh", "-c")
        look = f'test "$(wc -c < "${BLOBS_VARIABLE}/{name}")" -eq {len(content)}'
        blob = BlobFile(name=name, source=SOURCE, digest=digest_of(content))
        fields = {
            "engine": self.name,
            "image": self.image,
            "command": (*shell, "while true; do sleep 1; done"),
            "ports": (),
            "readiness": Readiness(
                probe=ExecProbe(command=(*shell, look)), interval_ms=100, start_budget_ms=20_000
            ),
            "stop_grace_ms": 0,
            "blobs": (blob,),
        }
        return any_workload(**{**fields, **changes})

    def offers(self, *contents: bytes) -> None:
        self.plane.blobs.update({digest_of(content): content for content in contents})

    def launched(self, content: bytes = WEIGHTS) -> WorkloadReport:
        self.offers(content)
        what = self.reads(content)
        self.plane.send(launch, what)
        return self.plane.wait_for_workload(
            lambda w: w.phase is Phase.READY and w.running_hash == what.spec_hash
        )

    def blob(self, content: bytes, met: Callable[[BlobSeen], bool]) -> BlobSeen:
        """How the report says that it stands, once that is met."""

        def one(report: Report) -> BlobSeen | None:
            found = (blob for blob in report.blobs if blob.digest == digest_of(content))
            return next((blob for blob in found if met(blob)), None)

        report = self.plane.wait_for(lambda report: one(report) is not None)
        found = one(report)
        assert found is not None
        return found

    def file(self, content: bytes) -> Path:
        return self.state / "blobs" / "sha256" / digest_of(content)[7:]


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    plane = ControlPlane()
    host = request.getfixturevalue("docker_host") if request.param == "docker" else None
    image = process_image(tmp_path / "layout")
    if host is not None:
        image = request.getfixturevalue("demo_image")
    files = SecretFiles.for_node(NODE, memory / "secrets")
    _join(plane, tmp_path / "state")
    bench = Bench(plane, request.param, tmp_path / "state", image, host, files)
    bench.start()
    yield bench
    bench.stop()
    plane.close()
    engine = bench.engines()[request.param]
    for unit in engine.units():
        engine.stop(unit, 0)
        engine.remove(unit)
        engine.sweep(unit.instance)
    engine.close()
    shutil.rmtree(memory, ignore_errors=True)


def _join(plane: ControlPlane, folder: Path) -> None:
    key = AgentKey.generate()
    reply = join(parse_join_token(plane.token()), key)
    store = StateStore(folder, time.time_ns() // 1_000_000)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=reply.verifiers, min_version=1, joined_at_ms=0,
            certificate=reply.certificate, ca=reply.ca,
        )
    )  # fmt: skip
    store.close()


def is_ready(blob: BlobSeen) -> bool:
    return blob.state == "ready"


# --- workloads ----------------------------------------------------------------------------------


def test_a_workload_reads_its_blob_and_its_removal_is_proved(bench: Bench) -> None:
    bench.launched()
    assert bench.blob(WEIGHTS, is_ready).size_bytes == len(WEIGHTS)
    bench.plane.send(remove)
    removed = bench.plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert removed.proof is not None
    assert removed.proof.clean
    # The cache is the node's, and the next one finds it there.
    assert bench.file(WEIGHTS).read_bytes() == WEIGHTS
    bench.launched()
    assert len(bench.plane.blobs_asked) == 1


def test_the_next_blob_is_there_before_what_runs_is_stopped(bench: Bench) -> None:
    before = bench.launched()
    upgrade = bench.reads(MORE)
    bench.plane.send(launch, upgrade)
    waiting = bench.plane.wait_for_workload(
        lambda w: w.reason is FailureReason.BLOB_UNAVAILABLE or w.phase is Phase.FAILED
    )
    assert "no_such_blob" in waiting.message
    assert waiting.running_hash == before.running_hash
    assert [unit.status for unit in bench.units()] == ["running"]
    bench.offers(MORE)
    bench.plane.send(launch, upgrade)
    bench.plane.wait_for_workload(
        lambda w: w.phase is Phase.READY and w.running_hash == upgrade.spec_hash
    )


def test_wrong_bytes_are_refused_and_nothing_is_started(bench: Bench) -> None:
    bench.plane.blobs[digest_of(WEIGHTS)] = WEIGHTS[:-1] + b"!"
    bench.plane.send(launch, bench.reads(WEIGHTS))
    failed = bench.plane.wait_for_workload(lambda w: w.phase is Phase.FAILED)
    assert failed.reason is FailureReason.DIGEST_MISMATCH
    assert "are not what the digest says" in failed.message
    assert bench.units() == ()
    assert not bench.file(WEIGHTS).exists()
    assert bench.blob(WEIGHTS, lambda one: one.state == "failed").error.startswith("digest_mism")


def test_what_breaks_off_goes_on_also_in_the_next_agent(bench: Bench) -> None:
    bench.offers(WEIGHTS)
    bench.plane.blob_cut = 1_000_000
    what = bench.reads(WEIGHTS)
    bench.plane.send(launch, what)
    bench.plane.wait_for_workload(lambda w: w.reason is FailureReason.BLOB_UNAVAILABLE)
    bench.start()
    bench.plane.blob_cut = None
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.READY)
    offsets = [request.offset for request in bench.plane.blobs_asked]
    assert offsets[0] == 0
    assert all(offset >= 1_000_000 for offset in offsets[1:])
    assert bench.file(WEIGHTS).read_bytes() == WEIGHTS


def test_a_file_that_was_changed_is_found_out_before_the_next_start(bench: Bench) -> None:
    bench.launched()
    path = bench.file(WEIGHTS)
    path.chmod(0o644)
    path.write_bytes(WEIGHTS[:-1] + b"!")
    bench.kill()
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.READY and w.restarts == 1)
    assert path.read_bytes() == WEIGHTS
    assert len(bench.plane.blobs_asked) == 2


def test_two_workloads_share_one_download(bench: Bench) -> None:
    bench.offers(WEIGHTS)
    other = bench.reads(WEIGHTS, "mine", instance="acme/research/other")
    bench.plane.send(launch, bench.reads(WEIGHTS))
    bench.plane.send(launch, other)
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.READY)
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.READY, "acme/research/other")
    assert len(bench.plane.blobs_asked) == 1


def test_what_a_workload_needs_is_not_cleared_away(bench: Bench) -> None:
    bench.quota_bytes = len(WEIGHTS) + 2_000
    bench.start()
    bench.launched()
    bench.offers(MORE)
    bench.plane.send(pull_blob, MORE)
    waits = bench.blob(MORE, lambda one: one.error != "")
    assert waits.state == "pulling"
    assert waits.error.startswith("over_quota: ")
    assert bench.file(WEIGHTS).exists()
    bench.plane.send(remove)
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    bench.blob(MORE, is_ready)
    assert not bench.file(WEIGHTS).exists()


# --- tasks --------------------------------------------------------------------------------------


def test_a_task_brings_it_ahead_and_the_launch_finds_it_there(bench: Bench) -> None:
    bench.offers(WEIGHTS)
    task = bench.plane.send(pull_blob, WEIGHTS)
    told = bench.plane.wait_for(lambda r: task.task_id in {ack.task_id for ack in r.acks})
    assert digest_of(WEIGHTS) in {blob.digest for blob in told.blobs}
    bench.blob(WEIGHTS, is_ready)
    bench.launched()
    assert len(bench.plane.blobs_asked) == 1


def test_a_task_survives_its_agent(bench: Bench) -> None:
    bench.plane.send(pull_blob, WEIGHTS)
    bench.plane.blob_cut = 500_000
    bench.offers(WEIGHTS)
    bench.blob(WEIGHTS, lambda one: one.bytes_done > 0 or one.error != "")
    bench.stop()
    bench.plane.blob_cut = None
    bench.start()
    bench.blob(WEIGHTS, is_ready)


def test_a_task_for_what_is_not_to_be_had_is_given_up(bench: Bench) -> None:
    bench.plane.send(pull_blob, WEIGHTS)
    failed = bench.blob(WEIGHTS, lambda one: one.state == "failed")
    assert failed.error == "no_such_blob: it is not in the store (correlation id c-1)"


# --- sent elsewhere -----------------------------------------------------------------------------


@contextmanager
def elsewhere(content: bytes, *, ranges: bool = True) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A plain store of blobs; the headers that it was asked with."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers.items()))
            start = 0
            if ranges and "Range" in self.headers:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x?signature=abc", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_goes_where_the_control_plane_sends_it_and_says_nothing_of_itself(
    bench: Bench,
) -> None:
    bench.offers(WEIGHTS)
    with elsewhere(WEIGHTS) as (address, asked):
        bench.plane.blob_elsewhere = address
        bench.plane.send(pull_blob, WEIGHTS)
        bench.blob(WEIGHTS, is_ready)
    (headers,) = asked
    assert {"Authorization", "Cookie", "Content-Type"} & headers.keys() == set()


@pytest.mark.parametrize("ranges", [True, False])
def test_there_too_it_goes_on_where_it_ended_or_begins_again(bench: Bench, ranges: bool) -> None:
    bench.offers(WEIGHTS)
    bench.plane.blob_cut = 1_000_000
    bench.plane.send(pull_blob, WEIGHTS)
    bench.blob(WEIGHTS, lambda one: one.error != "")
    with elsewhere(WEIGHTS, ranges=ranges) as (address, asked):
        bench.plane.blob_elsewhere = address
        bench.blob(WEIGHTS, is_ready)
    assert "Range" in asked[0]
    assert [("Range" in headers) for headers in asked] == ([True] if ranges else [True, False])


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://x/y", " ", "http://[::1"])
def test_what_is_no_address_is_not_followed(bench: Bench, address: str) -> None:
    bench.offers(WEIGHTS)
    bench.plane.blob_elsewhere = address
    bench.plane.send(pull_blob, WEIGHTS)
    waits = bench.blob(WEIGHTS, lambda one: one.error != "")
    assert waits.state == "pulling"
    assert waits.bytes_done == 0


def test_the_container_sees_its_blob_alone_and_may_not_write(bench: Bench) -> None:
    if bench.name != "docker":
        return
    import docker

    bench.launched()
    client = docker.APIClient(base_url=bench.host)
    (unit,) = bench.units()
    mounts = client.inspect_container(unit.unit_id)["Mounts"]
    assert [(one["Source"], one["Destination"], one["RW"]) for one in mounts] == [
        (str(bench.file(WEIGHTS)), f"{BLOBS_PATH}/weights", False)
    ]
    assert unit.altered == ()
    client.close()
