"""What services see of the host is what the agent put there, and never where a link leads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node_agent.engines.base import EngineFailure
from node_agent.engines.bind_sources import check_bind_sources
from node_agent.engines.compose_file import compose_file
from node_agent.wire import BlobFile, FailureReason, SecretFile
from tests.topologies import DIGEST, IMAGE, placement_of, service, workload_of

SECRET, BLOB = FailureReason.SECRET_UNAVAILABLE, FailureReason.BLOB_UNAVAILABLE


class Sources:
    """A folder of secrets and a blob, as the agent makes them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "secrets"
        self.cache = root / "cache"
        self.folder = self.root / "own"
        self.blob = self.cache / "weights"
        for folder in (self.root, self.cache):
            folder.mkdir(mode=0o700)
        self.folder.mkdir(mode=0o755)
        self.blob.write_text("bytes")

    def check(self) -> None:
        what = workload_of(
            service(secrets=("token",), blobs=("weights",)),
            service("db", image=IMAGE),
            secrets=(SecretFile(name="token"),),
            blobs=(BlobFile(name="weights", source="artifact_store://x", digest=DIGEST),),
        )
        at = placement_of(what)
        places: dict[str, Any] = {"secrets": {"api": str(self.folder)},
                                  "blobs": {"weights": str(self.blob)}}  # fmt: skip
        check_bind_sources(compose_file(what, type(at)(**{**vars(at), **places})))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def test_what_the_agent_made_may_be_mounted(sources: Sources) -> None:
    sources.check()


def linked_folder(sources: Sources) -> None:
    sources.folder.rmdir()
    sources.folder.symlink_to("/etc")


def linked_blob(sources: Sources) -> None:
    sources.blob.unlink()
    sources.blob.symlink_to("/etc/shadow")


def linked_cache(sources: Sources) -> None:
    sources.cache.rename(sources.cache.with_name("elsewhere"))
    sources.cache.symlink_to("elsewhere")


def file_for_a_folder(sources: Sources) -> None:
    sources.folder.rmdir()
    sources.folder.touch()


def device_for_a_blob(sources: Sources) -> None:
    sources.blob.unlink()
    os.mkfifo(sources.blob)


def gone(sources: Sources) -> None:
    sources.blob.unlink()


def open_to_others(sources: Sources) -> None:
    sources.cache.chmod(0o777)


CASES: dict[str, tuple[Callable[[Sources], None], FailureReason, str]] = {
    "a link to a folder of the host": (linked_folder, SECRET, "it is a link, or in a folder"),
    "a link to a file of the host": (linked_blob, BLOB, "it is a link, or in a folder"),
    "a folder that is a link": (linked_cache, BLOB, "it is a link, or in a folder that is one"),
    "a file for a folder": (file_for_a_folder, SECRET, "it is not as this agent made it"),
    "no plain file": (device_for_a_blob, BLOB, "it is not as this agent made it"),
    "nothing": (gone, BLOB, "can't be mounted (No such file or directory)"),
    "a folder of everybody's": (open_to_others, BLOB, "others can write to the folder it is in"),
}


@pytest.mark.parametrize(("spoil", "reason", "words"), CASES.values(), ids=CASES.keys())
def test_refused(
    sources: Sources, spoil: Callable[[Sources], None], reason: FailureReason, words: str
) -> None:
    spoil(sources)
    with pytest.raises(EngineFailure) as caught:
        sources.check()
    assert caught.value.reason is reason
    assert words in caught.value.message
    assert caught.value.transient


def test_what_another_user_made_is_refused(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EngineFailure, match="it is not as this agent made it"):
        sources.check()
