"""`gpuaas blob` as its users meet it: what it prints, and what it refuses with which words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters import blob_http
from reconciler.adapters.blob_http import BlobServer
from reconciler.cli.main import gpuaas
from reconciler.core.names import Digest
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import Secret
from reconciler.server.errors import ApiError
from reconciler.server.upload_slots import UploadSlots
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Plane, running
from tests.services.blob_plane import DOWNLOAD, PASSWORD, UPLOAD, a_transfer

CONTENT = bytes(range(256)) * 1000
DIGEST = Digest.of(CONTENT)


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs(claims={(a_transfer().repository, DIGEST)})


@pytest.fixture
def plane(blobs: MemoryBlobs) -> Iterator[Plane]:
    with running(MemoryStore(), blobs=blobs) as plane:
        plane.store.save_transfer(a_transfer("publish", now_ms=NOW_MS))
        plane.store.save_transfer(a_transfer("pull", str(DIGEST), NOW_MS))
        yield plane


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(CONTENT)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return tmp_path


def run(plane: Plane, folder: Path, what: str, *words: str, **given: Any) -> Result:
    intent = UPLOAD if what == "upload" else DOWNLOAD
    command = [
        "blob", what, *words, "--server", str(plane.client.base_url), "--intent", intent,
        "--password-file", str(folder / "password"),
    ]  # fmt: skip
    return CliRunner().invoke(gpuaas, command, standalone_mode=False, **given)


def refused(result: Result) -> GpuaasError:
    assert isinstance(result.exception, GpuaasError), result.output
    return result.exception


def test_a_blob_goes_up_and_comes_down(plane: Plane, folder: Path, blobs: MemoryBlobs) -> None:
    up = run(plane, folder, "upload", str(folder / "weights"))
    assert up.stdout == f"{DIGEST}\n"
    assert f"gpuaas intent complete {UPLOAD} --digest {DIGEST}" in up.stderr
    out = folder / "out"
    down = run(plane, folder, "download", str(DIGEST), "-o", str(out), "--format", "json")
    assert json.loads(down.stdout) == {"digest": str(DIGEST), "size_bytes": len(CONTENT)}
    assert out.read_bytes() == CONTENT
    assert sorted(place.name for place in folder.iterdir()) == ["out", "password", "weights"]


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 3 * 1024 * 1024 + 1])
def test_blobs_of_any_size(plane: Plane, folder: Path, blobs: MemoryBlobs, size: int) -> None:
    content = bytes(size)
    (folder / "weights").write_bytes(content)
    assert run(plane, folder, "upload", str(folder / "weights")).stdout == f"{Digest.of(content)}\n"
    plane.store.save_transfer(a_transfer("pull", str(Digest.of(content)), NOW_MS))
    blobs.claim(a_transfer().repository, Digest.of(content))
    out = folder / "out"
    run(plane, folder, "download", str(Digest.of(content)), "-o", str(out))
    assert out.read_bytes() == content


def test_the_password_may_come_by_standard_input(plane: Plane, folder: Path) -> None:
    command = ["blob", "upload", str(folder / "weights"), "--intent", UPLOAD, "--server",
               str(plane.client.base_url), "--password-file", "-"]  # fmt: skip
    done = CliRunner().invoke(gpuaas, command, standalone_mode=False, input=PASSWORD)
    assert done.stdout == f"{DIGEST}\n"


@pytest.mark.parametrize("text", ["", "two words", "\n"])
def test_a_file_without_a_credential_is_refused(plane: Plane, folder: Path, text: str) -> None:
    (folder / "password").write_text(text)
    error = refused(run(plane, folder, "upload", str(folder / "weights")))
    assert (error.code, error.message) == ("no_credential", "there is no credential in it")


def test_a_wrong_credential_is_told_in_the_servers_words(plane: Plane, folder: Path) -> None:
    (folder / "password").write_text("wrong-password")
    for what, word in (("upload", str(folder / "weights")), ("download", str(DIGEST))):
        error = refused(run(plane, folder, what, word))
        assert error.code == "credential_refused"
        assert "no open intent has this credential" in error.message
        assert "wrong-password" not in str(error)


def test_no_credential_is_sent_in_the_clear(folder: Path) -> None:
    command = ["blob", "upload", str(folder / "weights"), "--intent", UPLOAD, "--server",
               "http://gpuaas.invalid", "--password-file", str(folder / "password")]  # fmt: skip
    error = refused(CliRunner().invoke(gpuaas, command, standalone_mode=False))
    assert error.code == "credential_in_the_clear"


@pytest.mark.parametrize("address", ["ftp://x", "gpuaas.example", "https://u:p@x", "http://x:port"])
def test_what_is_no_address_is_refused(folder: Path, address: str) -> None:
    server = BlobServer(address, UPLOAD, Secret(PASSWORD))
    with pytest.raises(Refused) as told:
        blob_http.upload(server, folder / "weights", lambda done, total: None)
    assert told.value.code == "bad_server"


def test_another_file_than_was_begun_is_found_out(
    plane: Plane, folder: Path, blobs: MemoryBlobs
) -> None:
    blobs.append(UPLOAD, 0, [b"x" * 10])
    error = refused(run(plane, folder, "upload", str(folder / "weights")))
    assert error.code == "digest_mismatch"
    blobs.append(UPLOAD, 0, [bytes(len(CONTENT) + 1)])
    error = refused(run(plane, folder, "upload", str(folder / "weights")))
    assert error.code == "upload_of_another"
    assert error.hint == "name the file that was begun with, or open another intent"


def test_a_file_that_changes_meanwhile_is_no_blob(
    plane: Plane, folder: Path, blobs: MemoryBlobs
) -> None:
    place = folder / "weights"
    server = BlobServer(str(plane.client.base_url), UPLOAD, Secret(PASSWORD))

    def change(done: int, total: int) -> None:
        place.write_bytes(bytes(total))

    with pytest.raises(Refused) as told:
        blob_http.upload(server, place, change)
    assert told.value.code == "file_changed"
    assert not blobs.blobs


def test_a_full_store_ends_it_at_once(plane: Plane, folder: Path, blobs: MemoryBlobs) -> None:
    blobs.room_bytes = 1000
    error = refused(run(plane, folder, "upload", str(folder / "weights")))
    assert (error.code, error.message) == ("blob_store_full", "there is no room left for blobs")
    blobs.room_bytes = 2**30
    assert run(plane, folder, "upload", str(folder / "weights")).exit_code == 0


def test_what_is_there_of_a_download_is_not_sent_again(
    plane: Plane, folder: Path, blobs: MemoryBlobs
) -> None:
    blobs.put(CONTENT)
    (folder / f"out.{DIGEST.short}.part").write_bytes(CONTENT[:200_000])
    run(plane, folder, "download", str(DIGEST), "-o", str(folder / "out"))
    assert (folder / "out").read_bytes() == CONTENT
    assert blobs.read_pieces == 1


@pytest.mark.parametrize(
    "left", [CONTENT[:1000][::-1], CONTENT + b"more", CONTENT[::-1]], ids=["part", "more", "whole"]
)
def test_what_was_damaged_where_it_lay_is_fetched_again(
    plane: Plane, folder: Path, blobs: MemoryBlobs, left: bytes
) -> None:
    blobs.put(CONTENT)
    (folder / f"out.{DIGEST.short}.part").write_bytes(left)
    assert run(plane, folder, "download", str(DIGEST), "-o", str(folder / "out")).exit_code == 0
    assert (folder / "out").read_bytes() == CONTENT


def test_other_content_never_gets_into_place(
    plane: Plane, folder: Path, blobs: MemoryBlobs
) -> None:
    blobs.blobs[DIGEST] = CONTENT[::-1]
    (folder / "out").write_bytes(b"what was there")
    error = refused(run(plane, folder, "download", str(DIGEST), "-o", str(folder / "out")))
    assert error.code == "blob_damaged"
    assert (folder / "out").read_bytes() == b"what was there"
    assert [*folder.glob("*.part")] == []


@pytest.mark.parametrize("there", [0, 7])
def test_more_than_was_announced_is_not_written(folder: Path, there: int) -> None:
    """A store that the control plane sends on to, say, which streams without end."""
    part = folder / f"out.{DIGEST.short}.part"
    part.write_bytes(CONTENT[:there])
    sizes = []
    with endless(announced=10) as address:
        server = BlobServer(address, DOWNLOAD, Secret(PASSWORD))
        with pytest.raises(Refused) as told:
            blob_http.download(server, DIGEST, folder / "out", lambda done, _: sizes.append(done))
    assert (told.value.code, told.value.message) == (
        "blob_damaged",
        "more came than the 10 bytes that were announced",
    )
    assert max(sizes) <= 10
    assert part.stat().st_size == 0
    assert not (folder / "out").exists()


@contextmanager
def endless(announced: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(announced))
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(256):
                    self.wfile.write(bytes(1024 * 1024))

        def log_message(self, *args: Any) -> None:
            """Nothing is said."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_an_upload_that_somebody_is_at_is_tried_again(
    plane: Plane, folder: Path, blobs: MemoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, busy = UploadSlots.taken, iter([True, True, False])

    def sometimes(slots: UploadSlots, upload: str, owner: str) -> Any:
        if next(busy, False):
            raise ApiError(409, "upload_busy", "another request is at this upload")
        return taken(slots, upload, owner)

    monkeypatch.setattr(UploadSlots, "taken", sometimes)
    assert run(plane, folder, "upload", str(folder / "weights")).exit_code == 0
    assert blobs.parts.get(UPLOAD) is None


def test_two_at_once_are_told(plane: Plane, folder: Path, blobs: MemoryBlobs) -> None:
    blobs.put(CONTENT)
    server = BlobServer(str(plane.client.base_url), DOWNLOAD, Secret(PASSWORD))
    codes = []

    def second(done: int, total: int) -> None:
        with pytest.raises(Refused) as told:
            blob_http.download(server, DIGEST, folder / "out", lambda done, total: None)
        codes.append(told.value.code)

    blob_http.download(server, DIGEST, folder / "out", second)
    assert {*codes} == {"download_busy"}
    assert (folder / "out").read_bytes() == CONTENT


def test_a_blob_that_is_not_there_and_no_digest(plane: Plane, folder: Path) -> None:
    error = refused(run(plane, folder, "download", str(DIGEST), "-o", str(folder / "out")))
    assert error.code == "no_such_blob"
    error = refused(run(plane, folder, "download", "latest"))
    assert (error.code, error.hint) == ("digest_invalid", "sha256: and 64 hex digits")


# --- where a redirect leads ----------------------------------------------------------------------


class Elsewhere(BaseHTTPRequestHandler):
    """A store of its own: gives the blob, and remembers what it was asked with."""

    asked: list[dict[str, str]]

    def do_GET(self) -> None:
        self.asked.append({name.lower(): value for name, value in self.headers.items()})
        wanted = self.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("there", [0, 1000])
def test_nothing_of_ours_goes_along_with_a_redirect(
    plane: Plane, folder: Path, blobs: MemoryBlobs, there: int
) -> None:
    blobs.put(CONTENT)
    Elsewhere.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        blobs.addresses[DIGEST] = f"http://127.0.0.1:{server.server_port}/blob?signed=1"
        (folder / f"out.{DIGEST.short}.part").write_bytes(CONTENT[:there])
        assert run(plane, folder, "download", str(DIGEST), "-o", str(folder / "out")).exit_code == 0
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert (folder / "out").read_bytes() == CONTENT
    asked = Elsewhere.asked[0]
    assert "authorization" not in asked
    assert asked.get("range") == (f"bytes={there}-" if there else None)
