"""What the file system and the S3 service refuse, in our words, with what was sent kept."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.adapters import blobs_s3
from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.adapters.blobs_s3 import S3Blobs, read_key
from reconciler.core.names import Digest
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.wiring.blobs import open_blob_store
from tests.services.s3_server import S3Server, s3_server

NAME = "01k9upload"
PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


# --- a folder ------------------------------------------------------------------------------------

_FULL = """
import resource, signal, sys
from pathlib import Path
from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.errors import Transient
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
store = FolderBlobs(Path(sys.argv[1]))
try:
    store.append("01k9upload", 0, [b"x" * 700, b"y" * 700])
except Transient as full:
    print(full.code, full.message, full.hint, store.part("01k9upload").bytes_done, sep="|")
"""


def test_a_full_disk_keeps_what_fitted(tmp_path: Path) -> None:
    """In a process of its own, whose files may not get larger than 1,000 bytes."""
    said = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert said == (
        "blob_store_full|there is no room left for blobs|"
        "make room there; what was sent so far is kept|1000"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    store = FolderBlobs(tmp_path)
    store.append(NAME, 1000, [b"y" * 400])
    assert store.finish(NAME, Digest.of(b"x" * 700 + b"y" * 700)) == 1400


def test_one_request_at_a_time_is_at_an_upload(tmp_path: Path) -> None:
    store, inside, go_on = FolderBlobs(tmp_path), threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        inside.set()
        assert go_on.wait(30)
        yield b"first"

    first = threading.Thread(target=lambda: store.append(NAME, 0, slow()))
    first.start()
    assert inside.wait(30)
    for attempt in (
        lambda: FolderBlobs(tmp_path).append(NAME, 0, [b"second"]),
        lambda: store.finish(NAME, Digest.of(b"")),
        lambda: FolderBlobs(tmp_path).discard(NAME),
    ):
        with pytest.raises(Transient, match="another request is at this upload") as busy:
            attempt()
        assert busy.value.code == "upload_busy"
    go_on.set()
    first.join()
    assert store.finish(NAME, Digest.of(b"first")) == 5


def hold_hash(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]
) -> None:
    """`then` happens between that the upload is hashed and that it gets its name."""
    keep = store._keep

    def later(part: Path, descriptor: int, digest: Digest) -> None:
        then()
        keep(part, descriptor, digest)

    monkeypatch.setattr(store, "_keep", later)


def test_nothing_is_dropped_or_begun_anew_while_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent that is closed meanwhile waits: else the next bytes would get the digest."""
    store, other, codes = FolderBlobs(tmp_path), FolderBlobs(tmp_path), []

    def meanwhile() -> None:
        for attempt in (
            lambda: other.discard(NAME),
            lambda: other.append(NAME, 0, [b"EVIL"]),
        ):
            with pytest.raises(Transient) as busy:
                attempt()
            codes.append(busy.value.code)

    hold_hash(store, monkeypatch, meanwhile)
    store.append(NAME, 0, [b"good"])
    assert store.finish(NAME, Digest.of(b"good")) == 4
    assert codes == ["upload_busy", "upload_busy"]
    assert b"".join(store.read(Digest.of(b"good"))) == b"good"


def test_only_the_file_that_was_hashed_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody came past the lock."""
    store, part = FolderBlobs(tmp_path), tmp_path / "uploads" / NAME

    def swap() -> None:
        part.unlink()
        part.write_bytes(b"EVIL")

    hold_hash(store, monkeypatch, swap)
    store.append(NAME, 0, [b"good"])
    with pytest.raises(Transient, match="upload_busy"):
        store.finish(NAME, Digest.of(b"good"))
    assert store.size_bytes(Digest.of(b"good")) is None
    with pytest.raises(Refused, match="digest_mismatch"):
        FolderBlobs(tmp_path).finish(NAME, Digest.of(b"good"))


def test_a_good_blob_is_left_alone_and_a_damaged_one_is_mended(tmp_path: Path) -> None:
    store, digest = FolderBlobs(tmp_path), Digest.of(b"good")
    inodes = []
    for name in ("01k9first", "01k9second", "01k9third"):
        store.append(name, 0, [b"good"])
        assert store.finish(name, digest) == 4
        (place,) = [one for one in (tmp_path / "sha256").rglob("*") if one.is_file()]
        inodes.append(place.stat().st_ino)
        if name == "01k9second":
            place.chmod(0o600)
            place.write_bytes(b"gone")
    assert inodes[0] == inodes[1]
    assert b"".join(store.read(digest)) == b"good"


def test_who_waits_for_the_lock_of_what_was_dropped_begins_anew(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path)
    store.append(NAME, 0, [b"first"])
    store.discard(NAME)
    store.discard(NAME)
    assert [*(tmp_path / "uploads").iterdir()] == []
    store.append(NAME, 0, [b"second"])
    assert store.finish(NAME, Digest.of(b"second")) == 6


def test_bytes_that_were_changed_on_the_disk_are_hashed_anew(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path)
    store.append(NAME, 0, [b"what was sent"])
    place = tmp_path / "uploads" / NAME
    place.write_bytes(b"what was SENT")
    os.utime(place, (1, 1))
    with pytest.raises(Refused) as refused:
        store.finish(NAME, Digest.of(b"what was sent"))
    assert refused.value.code == "digest_mismatch"


def test_a_crash_between_mark_and_rename_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digest = FolderBlobs(tmp_path), Digest.of(b"content")
    store.append(NAME, 0, [b"content"])

    def crash(part: Path, descriptor: int, wanted: Digest) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "_keep", crash)
        with pytest.raises(KeyboardInterrupt):
            store.finish(NAME, digest)
    assert store.size_bytes(digest) is None
    again = FolderBlobs(tmp_path)
    assert again.part(NAME).bytes_done == 7
    with pytest.raises(Refused, match="nothing is added"):
        again.append(NAME, 7, [b"more"])
    assert again.finish(NAME, digest) == 7


def test_what_is_kept_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path / "blobs")
    store.append(NAME, 0, [b"content"])
    store.finish(NAME, Digest.of(b"content"))
    modes = {place.stat().st_mode & 0o077 for place in tmp_path.rglob("*")}
    assert modes == {0}


def test_a_folder_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(GpuaasError) as refused:
        FolderBlobs(tmp_path / "blobs")
    assert refused.value.code == "blob_store_unreachable"
    assert refused.value.where.startswith(str(tmp_path))


# --- a bucket ------------------------------------------------------------------------------------


def s3_store(s3: S3Server, folder: Path) -> S3Blobs:
    return S3Blobs(s3.place, s3.key, folder)


def test_a_wrong_key_is_refused_without_showing_it(s3: S3Server, tmp_path: Path) -> None:
    key = replace(s3.key, secret=Secret("not-the-secret"))
    with pytest.raises(Refused) as refused:
        S3Blobs(s3.place, key, tmp_path).read(Digest.of(b""))
    assert refused.value.code == "blob_store_refused"
    assert "not-the-secret" not in str(refused.value)


def test_a_missing_bucket_says_which(s3: S3Server, tmp_path: Path) -> None:
    store = S3Blobs(replace(s3.place, bucket="nobodys"), s3.key, tmp_path)
    store.append(NAME, 0, [b"content"])
    with pytest.raises(Refused) as refused:
        store.finish(NAME, Digest.of(b"content"))
    assert refused.value.message == "the artifact store refuses: NoSuchBucket"
    assert refused.value.hint == "make the bucket nobodys"


def test_a_service_that_is_away_is_transient_and_loses_nothing(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_s3, "_FIRST_PART_BYTES", PART)
    content = os.urandom(2 * PART + 100)
    away = S3Blobs(replace(s3.place, address="http://127.0.0.1:9"), s3.key, tmp_path)
    with pytest.raises(Transient) as told:
        away.append(NAME, 0, [content])
    assert told.value.code == "blob_store_unreachable"
    store = s3_store(s3, tmp_path)
    kept = store.part(NAME).bytes_done
    assert kept == PART
    store.append(NAME, kept, [content[kept:]])
    assert store.finish(NAME, Digest.of(content)) == len(content)


def test_an_upload_that_the_service_dropped_begins_anew(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_s3, "_FIRST_PART_BYTES", PART)
    content = os.urandom(PART + 100)
    store = s3_store(s3, tmp_path)
    store.append(NAME, 0, [content])
    state = (tmp_path / "uploads" / NAME / "state").read_text()
    s3.bucket().abort(f"uploads/{NAME}", state.split('"')[3])
    again = s3_store(s3, tmp_path)
    assert again.part(NAME).bytes_done in (0, len(content))
    again.discard(NAME)
    again.append(NAME, 0, [content])
    assert again.finish(NAME, Digest.of(content)) == len(content)


@pytest.mark.parametrize("step", ["complete", "copy", "delete"])
def test_a_crash_at_any_step_of_finishing_repeats_nothing(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(blobs_s3, "_FIRST_PART_BYTES", PART)
    content = os.urandom(2 * PART + 100)
    digest, name = Digest.of(content), f"{NAME}-{step}"
    store = s3_store(s3, tmp_path)
    store.append(name, 0, [content])
    real = getattr(store._bucket, step)

    def crash(*given: object) -> None:
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store._bucket, step, crash)
        with pytest.raises(KeyboardInterrupt):
            store.finish(name, digest)
    again = s3_store(s3, tmp_path)
    assert again.part(name).bytes_done in (0, len(content))
    assert again.finish(name, digest) == len(content)
    assert s3.bucket().size_bytes(f"uploads/{name}") is None
    assert b"".join(again.read(digest)) == content


def test_its_address_gives_the_blob_to_whoever_has_it(s3: S3Server, tmp_path: Path) -> None:
    import httpx

    store = s3_store(s3, tmp_path)
    store.append(NAME, 0, [b"content"])
    store.finish(NAME, Digest.of(b"content"))
    address = store.address(Digest.of(b"content"), 60)
    assert address is not None
    assert s3.key.secret.reveal() not in address
    answer = httpx.get(address, headers={"Range": "bytes=3-"})
    assert (answer.status_code, answer.content) == (206, b"tent")
    bare = address.partition("?")[0]
    assert httpx.get(bare).status_code == 403


def test_parts_are_enough_for_the_largest_object() -> None:
    sizes = [blobs_s3.part_bytes(number) for number in range(1, 10_001)]
    assert sum(sizes) > 5 * 10**12
    assert max(sizes) <= 5 * 1024**3
    assert min(sizes) >= PART


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [("id secret", 0o644, "secrets_exposed"), ("id", 0o600, "blob_store_no_key")],
)
def test_a_key_file_that_others_read_or_without_a_key_is_refused(
    tmp_path: Path, text: str, mode: int, code: str
) -> None:
    place = tmp_path / "key"
    place.write_text(text)
    place.chmod(mode)
    with pytest.raises(Refused) as refused:
        read_key(place)
    assert refused.value.code == code


def test_a_bucket_without_a_key_file_is_refused(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, blob_s3_address="http://127.0.0.1:9")
    with pytest.raises(Refused) as refused:
        open_blob_store(settings).size_bytes(Digest.of(b""))
    assert (refused.value.code, refused.value.hint) == (
        "blob_store_no_key",
        "set blob_s3_key_file",
    )


def test_nothing_comes_from_the_environment(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another account's key, a profile that is not there, and a proxy that would read along."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-elses")
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert s3_store(s3, tmp_path).size_bytes(Digest.of(b"not there")) is None
