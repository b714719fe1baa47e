"""A folder that is not committed reads like the commit it would become."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.git_pygit2 import GitSource
from reconciler.adapters.working_tree import UNCOMMITTED, snapshot_of_directory
from reconciler.errors import Refused
from reconciler.settings import Settings


def git(folder: Path, *words: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b.c", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    (made / "tenants" / "acme").mkdir(parents=True)
    (made / "tenants" / "acme" / "a.yaml").write_bytes(b"a: 1\n")
    (made / "tenants.yaml").write_bytes(b"b: 1\n")
    (made / "README.md").write_bytes(b"words")
    (made / "big.yml").write_bytes(b"x" * 101)
    (made / "link.yaml").symlink_to("tenants.yaml")
    (made / "loop").symlink_to(".")
    return made


def seen(folder: Path, **limits: Any) -> list[tuple[str, bytes, str]]:
    snapshot = snapshot_of_directory(folder, Settings(**({"file_bytes_max": 100} | limits)))
    return [(file.path, file.content, file.kind) for file in snapshot.files]


def test_it_reads_like_the_commit(folder: Path, tmp_path: Path) -> None:
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    settings = Settings(file_bytes_max=100)
    source = GitSource(str(folder), "main", tmp_path / "mirror.git", settings)
    committed = source.snapshot(source.fetch())
    uncommitted = snapshot_of_directory(folder, settings)
    assert uncommitted.revision == UNCOMMITTED
    assert seen(folder) == [(file.path, file.content, file.kind) for file in committed.files]
    ids = {file.path: file.blob_id for file in committed.files}
    assert all(file.blob_id == ids[file.path] for file in uncommitted.files if file.content)
    assert ("big.yml", b"", "too_large") in seen(folder)
    assert ("link.yaml", b"", "symlink") in seen(folder)


def test_a_pipe_is_not_waited_for_and_a_nested_repository_not_entered(folder: Path) -> None:
    before = seen(folder)
    os.mkfifo(folder / "pipe.yaml")
    git(folder, "init", "-q", "vendor")
    (folder / "vendor" / "x.yaml").write_bytes(b"x: 1\n")
    assert seen(folder) == sorted([*before, ("vendor", b"", "submodule")])


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.yaml")).write_bytes(b"a")
    assert seen(tmp_path) == [("odd\\xff.yaml", b"a", "file")]


def test_the_limits_hold(folder: Path) -> None:
    with pytest.raises(Refused, match="too_many_files: more than 3 files"):
        seen(folder, files_max=3)
    with pytest.raises(Refused, match="too_many_bytes: more than 6 bytes of YAML"):
        seen(folder, snapshot_bytes_max=6)
    deep = folder
    for _ in range(70):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(Refused, match="too_deep: folders more than 64 deep"):
        seen(folder)


def test_commits_of_a_checkout_are_read_in_place(folder: Path, tmp_path: Path) -> None:
    git(folder, "init", "-q", "-b", "main")
    reader = GitSource.local(folder / "tenants", Settings())
    with pytest.raises(Refused, match="unknown_revision: no such commit here"):
        reader.resolve("HEAD")
    with pytest.raises(Refused, match="git_no_commit: there is no HEAD here"):
        reader.head()
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "commit", "-q", "-m", "second", "--allow-empty")
    assert reader.resolve("HEAD") == reader.resolve("main") == reader.head()
    first = reader.resolve("HEAD~1")
    assert reader.snapshot(first).subject == "first"
    assert reader.is_ancestor(first, reader.head())
    with pytest.raises(Refused, match="not_a_repository: there is no Git repository"):
        GitSource.local(tmp_path, Settings())


def test_what_is_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match="not_a_folder: not a folder"):
        seen(folder / "README.md")
    with pytest.raises(Refused, match=r"nowhere: unreadable: No such file"):
        seen(folder / "nowhere")
