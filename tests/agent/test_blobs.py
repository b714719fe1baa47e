"""The cache of blobs: nothing unhashed is used, nothing downloaded twice, nothing needed goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node_agent.artifact_wire import BlobFile, BlobSeen
from node_agent.blob_files import BlobFiles
from node_agent.blob_room import Needs
from node_agent.blobs import ALTERED, BlobCache
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.wire import FailureReason
from tests.agent.blob_sources import PIECE_BYTES, MemorySource
from tests.agent.cases import SOURCE, digest_of, workload
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
CONTENT = os.urandom(5 * PIECE_BYTES + 17)
DISK_BYTES = 10**9


@dataclass
class Bench:
    folder: Path
    source: MemorySource = field(default_factory=MemorySource)
    needs: Needs = field(default_factory=Needs)
    quota_bytes: int | None = None
    free_bytes: int = DISK_BYTES
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        """As after a restart of the agent."""
        self.cache = BlobCache(
            self.folder, self.source, lambda: self.needs, lambda: self.changes.append("changed"),
            self.quota_bytes, lambda _: (DISK_BYTES, 0, self.free_bytes),
        )  # fmt: skip
        self.files = BlobFiles(self.folder)

    def bring(self, content: bytes = CONTENT, *, ahead: bool = False) -> Path:
        digest = digest_of(content)
        self.cache.bring(digest, SOURCE, threading.Event(), for_target=not ahead)
        return self.files.path(digest)

    def fails(self, content: bytes = CONTENT, *, ahead: bool = False) -> EngineFailure:
        with pytest.raises(EngineFailure) as caught:
            self.bring(content, ahead=ahead)
        return caught.value

    def seen(self, content: bytes = CONTENT) -> BlobSeen | None:
        digest = digest_of(content)
        return next((one for one in self.cache.seen() if one.digest == digest), None)

    def fill(self, *contents: bytes) -> None:
        """One after the other, some time apart."""
        for age, content in enumerate(reversed(contents)):
            self.source.holds(content)
            stamp = self.bring(content).with_name(digest_of(content)[7:] + ".stamp")
            os.utime(stamp, (1_000_000 - age, 1_000_000 - age))
            os.utime(stamp.with_suffix(""), (1_000, 1_000))
            self.files.stamp(digest_of(content))
            os.utime(stamp, (1_000_000 - age, 1_000_000 - age))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "blobs")
    bench.source.holds(CONTENT)
    return bench


# --- one blob -----------------------------------------------------------------------------------


def test_it_is_there_whole_and_nobody_can_write_to_it(bench: Bench) -> None:
    path = bench.bring()
    assert path == bench.folder / "sha256" / digest_of(CONTENT)[7:]
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    assert bench.folder.stat().st_mode & 0o777 == 0o700
    assert bench.seen() == BlobSeen(
        digest=digest_of(CONTENT), state="ready", bytes_done=len(CONTENT), size_bytes=len(CONTENT)
    )
    assert bench.changes == ["changed"]


def test_what_is_there_is_not_fetched_again_nor_after_a_restart(bench: Bench) -> None:
    bench.bring()
    bench.again()
    bench.bring()
    assert bench.source.asked == [(digest_of(CONTENT), 0)]


def test_an_empty_blob_is_one_too(bench: Bench) -> None:
    bench.source.holds(b"")
    assert bench.bring(b"").read_bytes() == b""


@pytest.mark.parametrize("cut", [1, PIECE_BYTES, 3 * PIECE_BYTES + 5, len(CONTENT) - 1])
def test_what_breaks_off_goes_on_where_it_ended(bench: Bench, cut: int) -> None:
    bench.needs = Needs({digest_of(CONTENT)})
    bench.source.cut = cut
    failure = bench.fails()
    assert failure.reason is FailureReason.BLOB_UNAVAILABLE
    assert failure.transient
    assert failure.message == f"{SOURCE}: unreachable: the connection broke off"
    assert bench.seen() == BlobSeen(
        digest=digest_of(CONTENT), state="pulling", bytes_done=cut, size_bytes=len(CONTENT),
        error="unreachable: the connection broke off",
    )  # fmt: skip
    bench.source.cut = None
    bench.again()
    assert bench.bring().read_bytes() == CONTENT
    assert bench.source.asked[1:] == [(digest_of(CONTENT), cut)]


@pytest.mark.parametrize("pieces", [0, 1, 4])
def test_what_was_begun_by_an_agent_that_was_killed_goes_on(bench: Bench, pieces: int) -> None:
    content = bench.folder.parent / "content"
    content.write_bytes(CONTENT)
    command = [sys.executable, "-m", "tests.agent.blob_sources", str(bench.folder), str(content),
               str(pieces)]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as begun:
        assert begun.stdout is not None
        assert begun.stdout.readline() == b"waiting\n"
        begun.send_signal(signal.SIGKILL)
    assert bench.bring().read_bytes() == CONTENT
    ((_, offset),) = bench.source.asked
    assert offset <= pieces * PIECE_BYTES
    assert offset > (pieces - 1) * PIECE_BYTES or not pieces


@pytest.mark.parametrize("ending", range(0, len(CONTENT), 50_021))
def test_it_goes_on_from_any_byte(bench: Bench, ending: int) -> None:
    with bench.files.open_part(digest_of(CONTENT)) as part:
        part.write(CONTENT[:ending])
    assert bench.bring().read_bytes() == CONTENT
    assert bench.source.asked == [(digest_of(CONTENT), ending)]


def test_a_part_that_lost_its_bytes_is_begun_again(bench: Bench) -> None:
    with bench.files.open_part(digest_of(CONTENT)) as part:
        part.write(bytes(PIECE_BYTES))
    assert bench.bring().read_bytes() == CONTENT
    assert [offset for _, offset in bench.source.asked] == [PIECE_BYTES, 0]


def test_a_part_that_is_too_long_is_begun_again(bench: Bench) -> None:
    with bench.files.open_part(digest_of(CONTENT)) as part:
        part.write(CONTENT + b"more")
    assert bench.bring().read_bytes() == CONTENT


def test_what_can_not_go_on_is_begun_again(bench: Bench) -> None:
    bench.source.ranges = False
    with bench.files.open_part(digest_of(CONTENT)) as part:
        part.write(CONTENT[:100])
    assert bench.bring().read_bytes() == CONTENT


# --- what is not to be believed -----------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [CONTENT[:-1] + b"!", CONTENT[:100], b"", CONTENT + b"and more"],
    ids=["another", "shorter", "nothing", "longer"],
)
def test_wrong_bytes_are_refused_and_none_of_them_stays(bench: Bench, wrong: bytes) -> None:
    bench.needs = Needs({digest_of(CONTENT)})
    bench.source.contents[digest_of(CONTENT)] = wrong
    failure = bench.fails()
    assert failure.reason is FailureReason.DIGEST_MISMATCH
    assert not failure.transient
    assert failure.message == (
        f"{SOURCE}: digest_mismatch: the bytes that came are not what the digest says"
    )
    assert list((bench.folder / "sha256").iterdir()) == []
    seen = bench.seen()
    assert seen is not None
    assert (seen.state, seen.error[:16]) == ("failed", "digest_mismatch:")
    bench.source.holds(CONTENT)
    assert bench.bring().read_bytes() == CONTENT


def test_more_than_was_announced_fills_no_disk(bench: Bench) -> None:
    bench.source.says_size = 100
    assert bench.fails().reason is FailureReason.DIGEST_MISMATCH
    assert len(bench.source.asked) == 1


def test_less_than_was_announced_is_asked_for_again(bench: Bench) -> None:
    bench.source.says_size = len(CONTENT) + 100
    assert bench.fails().message.startswith(f"{SOURCE}: cut_short: {len(CONTENT)} of ")


def _rewrite(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"!")
    path.chmod(0o444)


def _rewrite_unnoticed(path: Path) -> None:
    before = path.stat()
    _rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT[:-1] + b"!")
    other.rename(path)


def _link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("tamper", [_rewrite, _rewrite_unnoticed, _replace, _link_elsewhere])
def test_a_file_that_was_changed_is_found_out_and_fetched_again(
    bench: Bench, tamper: Callable[[Path], None]
) -> None:
    tamper(bench.bring())
    reads = workload(blobs=(BlobFile(name="weights", source=SOURCE, digest=digest_of(CONTENT)),))
    with pytest.raises(EngineFailure) as caught:
        bench.cache.check(reads)
    assert caught.value.message == f"{SOURCE}: {ALTERED}; it is fetched again"
    assert bench.seen() == BlobSeen(digest=digest_of(CONTENT), state="failed", error=ALTERED)
    bench.cache.provide(reads, threading.Event())
    bench.cache.check(reads)
    assert bench.files.path(digest_of(CONTENT)).read_bytes() == CONTENT
    assert len(bench.source.asked) == 2


def test_a_file_without_a_stamp_is_hashed_and_not_fetched(bench: Bench) -> None:
    path = bench.bring()
    path.with_name(f"{path.name}.stamp").unlink()
    assert bench.bring().read_bytes() == CONTENT
    assert len(bench.source.asked) == 1


def test_a_file_that_is_gone_is_said_to_be(bench: Bench) -> None:
    bench.bring().unlink()
    reads = workload(blobs=(BlobFile(name="weights", source=SOURCE, digest=digest_of(CONTENT)),))
    with pytest.raises(EngineFailure) as caught:
        bench.cache.check(reads)
    assert "gone: its file was removed" in caught.value.message


@pytest.mark.parametrize("code", ["no_such_blob", "blob_not_for_node"])
def test_what_asking_again_does_not_help_is_final(bench: Bench, code: str) -> None:
    del bench.source.contents[digest_of(CONTENT)]
    bench.source.missing = code
    failure = bench.fails()
    assert failure.message == f"{SOURCE}: {code}: it is not to be had"
    assert not failure.transient


# --- whose it is --------------------------------------------------------------------------------


def as_another(bench: Bench) -> None:
    other = "artifact_store://projects/globex/lab/artifacts/llm/1.0.0/mine"
    bench.cache.bring(digest_of(CONTENT), other, threading.Event(), for_target=True)


def test_what_is_there_as_one_source_is_asked_for_as_another(bench: Bench) -> None:
    """Its bytes don't come again: only whether the control plane would give them."""
    bench.bring()
    for _ in range(2):
        as_another(bench)
    bench.again()
    as_another(bench)
    assert bench.source.asked == [(digest_of(CONTENT), 0), (digest_of(CONTENT), len(CONTENT))]


def test_what_may_not_be_had_as_another_is_not_had_from_the_cache(bench: Bench) -> None:
    path = bench.bring()
    bench.source.contents.clear()
    with pytest.raises(EngineFailure) as refused:
        as_another(bench)
    assert (refused.value.reason, refused.value.transient) == (
        FailureReason.BLOB_UNAVAILABLE,
        False,
    )
    assert "no_such_blob" in refused.value.message
    bench.bring()
    assert path.read_bytes() == CONTENT


# --- many at once -------------------------------------------------------------------------------


def test_however_many_ask_it_is_downloaded_once(bench: Bench) -> None:
    go = threading.Event()
    bench.source.before_piece = lambda _: go.wait()
    asking = [threading.Thread(target=bench.bring) for _ in range(6)]
    for one in asking:
        one.start()
    wait_until(lambda: bool(bench.source.asked))
    go.set()
    for one in asking:
        one.join()
    assert len(bench.source.asked) == 1


def test_those_who_wait_share_the_failure(bench: Bench) -> None:
    go = threading.Event()
    bench.source.contents[digest_of(CONTENT)] = b"wrong"
    bench.source.before_piece = lambda _: go.wait()
    failures: list[EngineFailure] = []
    asking = [threading.Thread(target=lambda: failures.append(bench.fails())) for _ in range(4)]
    for one in asking:
        one.start()
    wait_until(lambda: bool(bench.source.asked) and sum(map(_is_in_line, asking)) == 3)
    go.set()
    for one in asking:
        one.join()
    assert len(failures) == 4
    assert len(bench.source.asked) == 1


def test_who_is_called_off_leaves_what_there_is_to_who_waits(bench: Bench) -> None:
    called_off, given = threading.Event(), threading.Event()

    def piece(done: int) -> None:
        if done >= 2 * PIECE_BYTES and len(bench.source.asked) == 1:
            given.set()
            called_off.wait()

    bench.source.before_piece = piece
    cancelled: list[bool] = []

    def first() -> None:
        with pytest.raises(Cancelled):
            bench.cache.bring(digest_of(CONTENT), SOURCE, called_off, for_target=True)
        cancelled.append(True)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    given.wait()
    threads.append(threading.Thread(target=bench.bring))
    threads[1].start()
    called_off.set()
    for thread in threads:
        thread.join()
    assert cancelled == [True]
    assert [offset for _, offset in bench.source.asked] == [0, 2 * PIECE_BYTES]
    assert bench.files.path(digest_of(CONTENT)).read_bytes() == CONTENT


def test_who_waits_can_be_called_off_too(bench: Bench) -> None:
    go, called_off = threading.Event(), threading.Event()
    bench.source.before_piece = lambda _: go.wait()
    first = threading.Thread(target=bench.bring)
    first.start()
    wait_until(lambda: bool(bench.source.asked))
    called_off.set()
    with pytest.raises(Cancelled):
        bench.cache.bring(digest_of(CONTENT), SOURCE, called_off, for_target=True)
    go.set()
    first.join()


# --- room ---------------------------------------------------------------------------------------

A, B, C = b"a" * 1000, b"b" * 1000, b"c" * 1000
STAMPS_BYTES = 400


def _quota(bench: Bench, blobs: int) -> None:
    """Room for so many of a thousand bytes, and what is written of them besides."""
    bench.quota_bytes = blobs * (1000 + STAMPS_BYTES)
    bench.again()


def test_what_was_used_longest_ago_goes_first(bench: Bench) -> None:
    _quota(bench, 2)
    bench.fill(A, B)
    bench.source.holds(C)
    bench.bring(C)
    assert bench.seen(A) is None
    assert bench.seen(B) is not None


def test_what_is_used_stays_longer(bench: Bench) -> None:
    _quota(bench, 2)
    bench.fill(A, B)
    bench.bring(A)
    bench.source.holds(C)
    bench.bring(C)
    assert bench.seen(B) is None
    assert bench.seen(A) is not None


def test_what_workloads_need_never_goes_and_that_is_said(bench: Bench) -> None:
    _quota(bench, 2)
    bench.fill(A, B)
    bench.needs = Needs({digest_of(A), digest_of(B)})
    bench.source.holds(C)
    failure = bench.fails(C)
    assert failure.reason is FailureReason.BLOB_UNAVAILABLE
    assert failure.transient
    assert failure.message.startswith(f"{SOURCE}: over_quota: 1000 bytes more do not fit, ")
    assert {bench.seen(A), bench.seen(B)} & {None} == set()
    bench.needs = Needs({digest_of(B)})
    bench.bring(C)
    assert bench.seen(A) is None


def test_what_is_said_to_be_large_clears_nothing_away_before_it_comes(bench: Bench) -> None:
    """Sizes are the word of whoever serves the bytes."""
    _quota(bench, 3)
    bench.fill(A, B)
    said = bench.source
    said.holds(C)
    said.says_size, said.cut = 3000, 500
    bench.fails(C)
    assert {one.digest for one in bench.cache.seen()} == {digest_of(A), digest_of(B)}
    said.says_size, said.cut = 10**9, None
    assert "over_quota" in bench.fails(C).message
    assert {one.digest for one in bench.cache.seen()} == {digest_of(A), digest_of(B)}


def test_no_more_goes_than_what_came_needs(bench: Bench) -> None:
    _quota(bench, 3)
    bench.fill(A, B, C)
    content = os.urandom(3000)
    bench.source.holds(content)
    bench.source.cut = 1500
    bench.source.before_piece = lambda _: None
    bench.fails(content)
    left = {one.digest for one in bench.cache.seen()}
    assert digest_of(C) in left
    assert digest_of(A) not in left


def test_a_task_takes_no_room_from_another(bench: Bench) -> None:
    _quota(bench, 1)
    bench.fill(A)
    bench.needs = Needs(frozenset(), {digest_of(A): 1, digest_of(B): 2})
    bench.source.holds(B)
    assert "over_quota" in bench.fails(B, ahead=True).message
    assert bench.seen(A) is not None
    bench.bring(B)
    assert bench.seen(A) == BlobSeen(digest=digest_of(A), state="pulling", size_bytes=1000)


def test_a_full_disk_is_said_to_be_full(bench: Bench) -> None:
    bench.free_bytes = 1000
    failure = bench.fails()
    assert failure.reason is FailureReason.DISK_FULL
    assert failure.transient
    assert failure.message.startswith(f"{SOURCE}: disk_full: {len(CONTENT)} bytes more do not fit")


def test_a_disk_that_fills_up_meanwhile_is_said_to_be_full(bench: Bench) -> None:
    def full(given: int) -> None:
        if given:
            raise OSError(28, "No space left on device")

    bench.source.before_piece = full
    failure = bench.fails()
    assert failure.reason is FailureReason.DISK_FULL
    assert failure.message == f"{SOURCE}: disk_full: No space left on device"
    bench.source.before_piece = lambda _: None
    assert bench.bring().read_bytes() == CONTENT


def test_a_cache_that_can_not_be_used_is_said_to_be(bench: Bench) -> None:
    bench.folder.write_text("no folder")
    failure = bench.fails()
    assert failure.reason is FailureReason.BLOB_UNAVAILABLE
    assert failure.message.startswith(f"{SOURCE}: cache_unusable: the cache can't be used (")


def _is_in_line(thread: threading.Thread) -> bool:
    """Waits for who is at the same digest."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != "_alone":
        frame = frame.f_back
    return frame is not None
