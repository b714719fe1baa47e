"""The forms of topologies on disk: whole or not there, ours or moved aside."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node_agent.engines.base import EngineFailure
from node_agent.engines.compose_forms import Form, FormFiles, InForce
from node_agent.wire import FailureReason

PROJECT = "gpuaas-acme-research-rag-0123456789abcdef"
A, B = ("sha256:" + letter * 64 for letter in "ab")


def form(spec_hash: str = A) -> Form:
    document = {"name": PROJECT, "services": {"api": {"environment": {"PRICE": "$5 …\u2028"}}}}
    return Form("acme/research/rag", spec_hash, "sha256:" + "d" * 64, document)


def names(files: FormFiles) -> list[str]:
    return sorted(one.name for one in files.folder(PROJECT).iterdir())


@pytest.fixture
def files(tmp_path: Path) -> FormFiles:
    return FormFiles(tmp_path / "compose")


def test_what_was_written_is_read(files: FormFiles) -> None:
    assert files.read(PROJECT).forms == ()
    assert files.projects() == ()
    files.write(PROJECT, form(A))
    files.write(PROJECT, form(B))
    read = files.read(PROJECT)
    assert [one.spec_hash for one in read.forms] == [A, B]
    assert read.forms[0].document == form().document
    assert (read.in_force, read.form_in_force) == (None, None)
    files.put_in_force(PROJECT, B, run=True)
    assert files.read(PROJECT).in_force == InForce(B, run=True)
    assert files.read(PROJECT).form_in_force == files.read(PROJECT).form(B)
    assert files.projects() == (PROJECT,)


def test_nobody_else_may_look(files: FormFiles) -> None:
    files.write(PROJECT, form())
    shown = files.show(PROJECT, "{}")
    assert shown.stat().st_mode & 0o777 == 0o600
    folder = files.folder(PROJECT)
    assert [folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    folder.chmod(0o755)
    files.read(PROJECT)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_one_after_the_other_is_gone(files: FormFiles) -> None:
    files.write(PROJECT, form(A))
    files.write(PROJECT, form(B))
    files.put_in_force(PROJECT, A, run=False)
    for _ in range(2):
        files.remove_in_force(PROJECT)
        files.remove(PROJECT, A)
    assert [one.spec_hash for one in files.read(PROJECT).forms] == [B]
    with files.hold(PROJECT, 1):
        assert files.count(PROJECT) == 3
        for _ in range(2):
            files.clear(PROJECT)
    assert files.count(PROJECT) == 0
    assert files.projects() == ()


def test_in_force_without_its_form_is_not_in_force(files: FormFiles) -> None:
    files.write(PROJECT, form(A))
    files.put_in_force(PROJECT, B, run=True)
    assert files.read(PROJECT).in_force is None


TORN = {
    "empty": b"",
    "half": b'{"spec_hash": "sha',
    "no document": b"[]",
    "not text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "another's": json.dumps({"spec_hash": B, "file": {}}).encode(),
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN.keys())
@pytest.mark.parametrize("name", ["aaaaaaaaaaaaaaaa.json", "in-force.json"])
def test_what_can_not_be_read_is_moved_aside_and_said(
    files: FormFiles, name: str, content: bytes
) -> None:
    files.write(PROJECT, form(A))
    files.put_in_force(PROJECT, A, run=True)
    (files.folder(PROJECT) / name).write_bytes(content)
    with capture_logs() as logs:
        read = files.read(PROJECT)
    assert read.form_in_force is None
    (line,) = logs
    assert line["event"] == "form of a topology moved aside"
    assert line["file"].startswith(f"{name}.corrupt-")
    assert line["file"] in names(files)
    assert name not in names(files)
    files.clear(PROJECT)
    assert files.count(PROJECT) == 0


def test_one_that_was_changed_is_moved_aside(files: FormFiles) -> None:
    files.write(PROJECT, form(A))
    (path,) = files.folder(PROJECT).iterdir()
    document = json.loads(path.read_text())
    document["file"]["services"]["api"]["privileged"] = True
    path.write_text(json.dumps(document))
    assert files.read(PROJECT).forms == ()


def test_one_under_another_name_is_moved_aside(files: FormFiles) -> None:
    files.write(PROJECT, form(A))
    (path,) = files.folder(PROJECT).iterdir()
    path.rename(path.with_name("b" * 16 + ".json"))
    assert files.read(PROJECT).forms == ()


def test_links_are_not_followed(files: FormFiles, tmp_path: Path) -> None:
    files.write(PROJECT, form(A))
    (path,) = files.folder(PROJECT).iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert files.read(PROJECT).forms == ()
    assert (tmp_path / "elsewhere").exists()
    other = files.folder("other")
    other.symlink_to(files.folder(PROJECT))
    with pytest.raises(EngineFailure, match="not a folder of this agent's"):
        files.read("other")
    with pytest.raises(EngineFailure, match="not a folder of this agent's"):
        files.write("other", form(B))
    with pytest.raises(EngineFailure, match="not a folder of this agent's"):
        files.clear("other")
    assert files.folder(PROJECT).is_dir()


@pytest.mark.parametrize(
    "project", ["", ".", "..", "a/b", "/etc", "A", "-a", "a" * 64, "a\n", ".x"]
)
def test_a_project_is_a_plain_name(files: FormFiles, project: str) -> None:
    with pytest.raises(EngineFailure) as refused:
        files.write(project, form())
    assert refused.value.reason is FailureReason.CREATE_REFUSED


@given(st.text())
def test_no_name_leads_out(project: str) -> None:
    files = FormFiles(Path("/root-of-all"))
    try:
        folder = files.folder(project)
    except EngineFailure:
        return
    assert folder.parent == Path("/root-of-all")


def test_a_spec_hash_is_one(files: FormFiles) -> None:
    with pytest.raises(EngineFailure, match="is no spec hash"):
        files.remove(PROJECT, "sha256:../../etc")


def test_a_full_disk_is_said_so_and_leaves_the_old_one(
    files: FormFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(PROJECT, form(A))
    files.put_in_force(PROJECT, A, run=True)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineFailure) as failed:
        files.put_in_force(PROJECT, A, run=False)
    assert failed.value.reason is FailureReason.DISK_FULL
    assert failed.value.transient
    monkeypatch.undo()
    assert files.read(PROJECT).in_force == InForce(A, run=True)


def test_what_can_not_be_looked_at_is_not_taken_for_nothing(files: FormFiles) -> None:
    files.folder(PROJECT).parent.mkdir(parents=True)
    files.folder(PROJECT).write_text("a file")
    with pytest.raises(EngineFailure) as failed:
        files.read(PROJECT)
    assert failed.value.reason is FailureReason.ENGINE_UNAVAILABLE
    assert failed.value.transient


def test_a_lock_that_somebody_holds_is_waited_for(files: FormFiles) -> None:
    with files.hold(PROJECT, 1) as held:
        with pytest.raises(EngineFailure, match="still at") as failed, files.hold(PROJECT, 0.05):
            pass
        assert failed.value.transient
        inherited = os.dup(held)
    with pytest.raises(EngineFailure, match="still at"), files.hold(PROJECT, 0.05):
        pass
    fcntl.flock(inherited, fcntl.LOCK_UN)
    os.close(inherited)
    with files.hold(PROJECT, 1):
        pass


def test_a_lock_that_went_with_its_project_is_nobodys(files: FormFiles) -> None:
    """Who waited for it, and who comes after that, are not both at the project."""
    inside, leave, waiting = threading.Event(), threading.Event(), threading.Event()

    def next_one() -> None:
        waiting.set()
        with files.hold(PROJECT, 30):
            inside.set()
            leave.wait(30)

    waits = threading.Thread(target=next_one)
    with files.hold(PROJECT, 1):
        waits.start()
        waiting.wait(30)
        time.sleep(0.1)
        files.clear(PROJECT)
    assert inside.wait(30)
    try:
        with pytest.raises(EngineFailure, match="still at"), files.hold(PROJECT, 0.05):
            pass
    finally:
        leave.set()
        waits.join()


def test_who_is_waited_for_is_named(files: FormFiles) -> None:
    """A Compose that hangs and whose agent is gone is ended by nobody but the operator."""
    with files.hold(PROJECT, 1) as held:
        left = subprocess.Popen(["sleep", "600"], pass_fds=(held,))
    try:
        with pytest.raises(EngineFailure) as told, files.hold(PROJECT, 0.05):
            pass
        assert told.value.message == (
            f"{PROJECT} is waited for: a Compose that was started earlier is still at it "
            f"(process {left.pid}); end that if it hangs"
        )
    finally:
        left.kill()
        left.wait()
