"""Uploads and downloads by the real programs, which are killed at any byte and go on."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from reconciler.core.names import Digest
from tests.services.blob_plane import BlobPlane, blob_plane
from tests.services.s3_server import S3Server, s3_server

SEED = 20_261
SIZE_BYTES = 80 * 1024 * 1024 + 12_345
KILLS = 4
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("content") / "weights"
    place.write_bytes(random.Random(SEED).randbytes(SIZE_BYTES))
    return place


@pytest.fixture(scope="module")
def digest(content: Path) -> Digest:
    return Digest.of(content.read_bytes())


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobPlane]:
    settings = {}
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3")
        settings = {
            "blob_s3_address": s3.place.address,
            "blob_s3_bucket": s3.place.bucket,
            "blob_s3_key_file": str(s3.write_key(tmp_path / "key")),
        }
    with blob_plane(tmp_path / "plane", **settings) as plane:
        yield plane


def part_bytes(folder: Path) -> int:
    """How much of a download is there; it may be renamed meanwhile."""
    try:
        return sum(place.stat().st_size for place in folder.glob("out.*.part"))
    except FileNotFoundError:
        return 0


def killed_when(
    command: list[str], reached: Callable[[], bool], kill: Callable[[], None] | None = None
) -> bool:
    """Whether it was still at it when it was killed (or what `kill` kills was)."""
    deadline = time.monotonic() + LIMIT_S
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not reached():
            if time.monotonic() > deadline:
                process.kill()
                raise AssertionError("it does not get on")
            time.sleep(0.001)
        if process.poll() is not None:
            assert process.stderr is not None
            assert process.returncode == 0, process.stderr.read().decode()
            return False
        if kill is None:
            process.kill()
        else:
            kill()
            # The client goes on by itself once the control plane is back.
            assert process.wait(LIMIT_S) == 0
    return True


def points(salt: int) -> list[int]:
    """Where to kill: at bytes that nobody chose."""
    return sorted(random.Random(SEED + salt).sample(range(1, SIZE_BYTES), KILLS))


def done(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def restart(plane: BlobPlane) -> Callable[[], None]:
    def killed() -> None:
        plane.kill()
        plane.start()

    return killed


def test_an_upload_killed_at_any_byte_goes_on(
    plane: BlobPlane, content: Path, digest: Digest
) -> None:
    command = plane.command("upload", str(content))
    kept: list[int] = []
    for point in points(1):
        if killed_when(command, partial(lambda at: plane.kept_bytes() > at, point)):
            kept += [plane.kept_bytes(settled=True)]
    assert kept, "nothing was killed: it proves nothing"
    assert kept == sorted(kept), "what was there was sent again"
    assert done(command) == str(digest)
    # Told once more it says the same: an answer that was lost is asked for again.
    assert done(command) == str(digest)


def test_a_download_killed_at_any_byte_goes_on(
    plane: BlobPlane, content: Path, digest: Digest, tmp_path: Path
) -> None:
    done(plane.command("upload", str(content)))
    plane.open("pull", digest)
    out = tmp_path / "out"
    command = [*plane.command("download", str(digest)), "--out", str(out)]
    kept: list[int] = []
    for point in points(2):
        if killed_when(command, partial(lambda at: part_bytes(tmp_path) > at, point)):
            kept += [part_bytes(tmp_path)]
    assert kept, "nothing was killed: it proves nothing"
    assert kept == sorted(kept), "what was there was sent again"
    assert done(command) == str(digest)
    assert out.read_bytes() == content.read_bytes()
    assert [*tmp_path.glob("out.*")] == []


def test_both_outlast_a_control_plane_that_is_killed(
    plane: BlobPlane, content: Path, digest: Digest, tmp_path: Path
) -> None:
    up = plane.command("upload", str(content))
    assert killed_when(up, lambda: plane.kept_bytes() > 5_000_000, restart(plane))
    plane.open("pull", digest)
    out = tmp_path / "out"
    command = [*plane.command("download", str(digest)), "--out", str(out)]
    # Where the store itself gives the bytes, the control plane is not needed for that any more.
    killed_when(command, lambda: part_bytes(tmp_path) > 5_000_000, restart(plane))
    done(command)
    assert out.read_bytes() == content.read_bytes()
