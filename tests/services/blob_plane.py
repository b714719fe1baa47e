"""A control plane that moves blobs and does nothing else, as a process of its own.

Its transfers are in the store before it starts. It listens on the same port each time, so that one
that was killed comes back where its clients look for it.
"""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.names import Digest
from reconciler.core.transfers import Transfer, TransferKind, hash_of
from reconciler.devkit.services import free_port
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.settings import Settings
from reconciler.wiring.blobs import open_blob_store
from tests.fakes.secrets import FakeSecrets

PASSWORD = "a-credential-that-opens-one-intent-and-nothing-else"
UPLOAD, DOWNLOAD = "0" * 25 + "1", "0" * 25 + "2"
START_S = 30.0


def a_transfer(
    kind: TransferKind = "publish",
    digest: str = "",
    now_ms: int = 0,
    **fields: Any,
) -> Transfer:
    """Open for an hour, with `PASSWORD`."""
    source = "artifact_store://projects/acme/lab/artifacts/llm/1.0.0/weights"
    given = {
        "id": UPLOAD if kind == "publish" else DOWNLOAD,
        "kind": kind,
        "content": "blob",
        "owner": "acme/lab",
        "app": "llm",
        "version": "1.0.0",
        "name": "weights",
        "repository": source,
        "place": source,
        "requester": "user/ada",
        "credential_hash": hash_of(PASSWORD),
        "created_at_ms": now_ms,
        "expires_at_ms": now_ms + 3_600_000,
        "digest": digest,
        **fields,
    }
    return Transfer(**given)


def raw_patch(url: httpx.URL, content: bytes, length: int) -> socket.socket:
    """The beginning of an upload whose body was said to be of this length."""
    word = base64.b64encode(f"{UPLOAD}:{PASSWORD}".encode()).decode()
    sender = socket.create_connection((url.host, url.port or 80), timeout=30)
    head = (
        f"PATCH /v1/blobs/uploads/{UPLOAD} HTTP/1.1\r\nHost: {url.host}\r\n"
        f"Authorization: Basic {word}\r\nUpload-Offset: 0\r\nContent-Length: {length}\r\n\r\n"
    )
    sender.sendall(head.encode() + content)
    return sender


@dataclass
class BlobPlane:
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.listen = f"127.0.0.1:{free_port()}"
        self.address = f"http://{self.listen}"
        self.password_file = self.folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        given = {"listen": self.listen, "state_dir": str(self.folder), **self.settings}
        (self.folder / "settings.json").write_text(json.dumps(given))
        self.open("publish")

    def open(self, kind: TransferKind, digest: Digest | None = None) -> None:
        """Another transfer, in place of the one of its kind."""
        store = SqlStore.open(f"sqlite:///{self.folder / 'store.db'}")
        now_ms = SystemClock().now_ms()
        transfer = a_transfer(kind, str(digest or ""), now_ms)
        store.save_transfer(transfer)
        store.close()
        if digest is not None:
            settings = Settings(**json.loads((self.folder / "settings.json").read_text()))
            open_blob_store(settings).claim(transfer.repository, digest)

    def start(self) -> None:
        log = (self.folder / "plane.log").open("ab")
        with log:
            command = [sys.executable, "-m", "tests.services.blob_plane", str(self.folder)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, (self.folder / "plane.log").read_text()[-3000:]
            try:
                httpx.get(f"{self.address}/healthz", timeout=5.0)
                return
            except httpx.HTTPError:
                assert time.monotonic() < deadline, "it does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kept_bytes(self, *, settled: bool = False) -> int:
        """How much of the upload is kept; 0 where that can't be told just now, as while a part is
        stored. `settled`: asked until it can, and nothing is added any more.
        """
        last = -1
        while True:
            try:
                answer = httpx.get(
                    f"{self.address}/v1/blobs/uploads/{UPLOAD}", auth=(UPLOAD, PASSWORD)
                )
                found = int(answer.headers.get("Upload-Offset", 0))
            except httpx.HTTPError:
                found = 0
            if not settled or found == last > 0:
                return found
            last = found
            time.sleep(0.1)

    def command(self, *words: str) -> list[str]:
        """`gpuaas blob` of the installation under test."""
        program = str(Path(sys.executable).with_name("gpuaas"))
        intent = UPLOAD if words[0] == "upload" else DOWNLOAD
        opened = ["--intent", intent, "--password-file", str(self.password_file)]
        return [program, "blob", *words, "--server", self.address, *opened]


@contextmanager
def blob_plane(folder: Path, **settings: Any) -> Iterator[BlobPlane]:
    plane = BlobPlane(folder, settings)
    try:
        plane.start()
        yield plane
    finally:
        plane.kill()


def main(folder: Path) -> None:
    settings = Settings(**json.loads((folder / "settings.json").read_text()))
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    deps = ServerDeps(
        store,
        FakeSecrets(),
        SystemClock(),
        settings,
        lambda reason: None,
        Signal(),
        Metrics(),
        blobs=open_blob_store(settings),
    )
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with serve(build_app(deps), settings):
        stopped.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
