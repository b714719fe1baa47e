"""What a download gathers lies in a file of its own, wherever others would have it lead."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.adapters.blob_http import BlobServer, download
from reconciler.adapters.part_file import open_part
from reconciler.core.names import Digest
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.wiring.releases import copied
from tests.fakes.blobs import MemoryBlobs

CONTENT = b"a release" * 1000
DIGEST = Digest.of(CONTENT)
LINK = "not_written: .*it is a symbolic link, which is not followed"


def test_it_is_made_for_its_owner_alone_and_kept(tmp_path: Path) -> None:
    place = tmp_path / "x.part"
    with open_part(place) as file:
        file.write(b"half")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with open_part(place) as file:
        assert file.read() == b"half"


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Attempted: to have another's file written to."""
    other, place = tmp_path / "other", tmp_path / "x.part"
    other.write_bytes(b"precious")
    for target in (other, tmp_path / "nowhere"):
        place.symlink_to(target)
        with pytest.raises(Refused, match=LINK):
            open_part(place)
        place.unlink()
    assert (other.read_bytes(), (tmp_path / "nowhere").exists()) == (b"precious", False)


def test_nor_is_a_pipe_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.part")
    with pytest.raises(Refused, match="it is no regular file"):
        open_part(tmp_path / "x.part")
    with pytest.raises(Refused, match="not_written"):
        open_part(tmp_path / "none" / "x.part")


def from_here(blobs: MemoryBlobs, place: Path) -> None:
    copied(blobs, DIGEST, place, lambda done, total: None)


def from_elsewhere(blobs: MemoryBlobs, place: Path) -> None:
    server = BlobServer("http://127.0.0.1:9", "", Secret(""))
    download(server, DIGEST, place, lambda done, total: None)


@pytest.mark.parametrize("fetch", [from_here, from_elsewhere])
def test_a_download_leaves_alone_what_a_link_leads_to(
    tmp_path: Path, fetch: Callable[[MemoryBlobs, Path], None]
) -> None:
    other, place, blobs = tmp_path / "other", tmp_path / "out", MemoryBlobs()
    other.write_bytes(b"precious")
    (tmp_path / f"out.{DIGEST.short}.part").symlink_to(other)
    blobs.put(CONTENT)
    with pytest.raises(Refused, match=LINK):
        fetch(blobs, place)
    assert (other.read_bytes(), place.exists()) == (b"precious", False)


def test_what_was_left_of_an_earlier_copy_is_overwritten(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    blobs.put(CONTENT)
    (tmp_path / f"out.{DIGEST.short}.part").write_bytes(b"x" * 2 * len(CONTENT))
    copied(blobs, DIGEST, tmp_path / "out", lambda done, total: None)
    found = (tmp_path / "out").read_bytes()
    assert hashlib.sha256(found).hexdigest() == DIGEST.value.removeprefix("sha256:")
