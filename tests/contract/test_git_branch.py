"""A commit on a new branch, and nothing else: what Git itself shows afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.adapters.git_branch import commit_on_branch, remotes
from reconciler.core.names import Revision
from reconciler.errors import Refused
from tests.services.git_repo import GitRepo


@pytest.fixture(autouse=True)
def _own_git_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests bring their own Git settings, whoever runs them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def repo(tmp_path: Path) -> GitRepo:
    made = GitRepo(tmp_path / "state")
    made.commit({"a.yaml": "a: 1\n", "folder/b.yaml": "b: 1\n", "run.sh": "#!/bin/sh\n"}, "first")
    return made


def write(
    repo: GitRepo | Path,
    files: Mapping[str, bytes | None],
    branch: str = "undo",
    parent: Revision | None = None,
    message: str = "Roll back\n\nTrailer: x\n",
) -> Revision:
    folder = repo if isinstance(repo, Path) else repo.folder
    base = parent or GitRepo(folder, config={}, make=False).head()
    return commit_on_branch(folder, parent=base, branch=branch, files=files, message=message)


def files_of(repo: GitRepo, revision: str) -> dict[str, str]:
    names = repo.git("ls-tree", "-r", "-z", "--name-only", revision).split("\0")[:-1]
    return {name: repo.git("show", f"{revision}:{name}") for name in names}


def test_a_commit_with_the_files_and_nothing_else(repo: GitRepo) -> None:
    made = write(repo, {"a.yaml": b"a: 2\n", "folder/b.yaml": None, "new/c d.yaml": b"c: 1"})
    assert repo.head("undo") == made
    assert repo.head("undo~1") == repo.head("main")
    assert files_of(repo, "undo") == {
        "a.yaml": "a: 2\n", "new/c d.yaml": "c: 1", "run.sh": "#!/bin/sh\n",
    }  # fmt: skip
    assert repo.git("log", "-1", "--format=%an <%ae> %cn%n%B", "undo").strip() == (
        "Ada Admin <ada@acme.example> Ada Admin\nRoll back\n\nTrailer: x"
    )
    assert "gpuaas: created" in repo.git("reflog", "show", "undo")
    repo.git("fsck", "--strict")


def test_working_tree_index_and_head_stay(repo: GitRepo) -> None:
    (repo.folder / "a.yaml").write_text("a: edited\n")
    (repo.folder / "staged.yaml").write_text("s: 1\n")
    repo.git("add", "staged.yaml")
    (repo.folder / "untracked.yaml").write_text("u: 1\n")
    status, head = repo.git("status", "--porcelain"), repo.head()
    index = (repo.folder / ".git" / "index").read_bytes()
    write(repo, {"a.yaml": b"a: 2\n", "staged.yaml": b"other\n"})
    assert (repo.git("status", "--porcelain"), repo.head()) == (status, head)
    assert (repo.folder / ".git" / "index").read_bytes() == index
    assert repo.git("symbolic-ref", "HEAD").strip() == "refs/heads/main"
    assert not (repo.folder / ".git" / "index.lock").exists()


def test_modes_are_kept_and_bytes_are_not_filtered(repo: GitRepo) -> None:
    repo.git("update-index", "--chmod=+x", "run.sh")
    attributes = "* text=auto eol=crlf filter=evil\n"
    repo.commit({".gitattributes": attributes}, "attributes")
    repo.git("update-index", "--chmod=+x", "run.sh")
    repo.record("commit", "--quiet", "--message", "mode")
    ran = repo.folder / "ran"
    repo.git("config", "filter.evil.clean", f"touch '{ran}'; cat")
    content = b"#!/bin/sh\r\necho \xff\n"
    write(repo, {"run.sh": content})
    assert repo.git("ls-tree", "undo", "run.sh").startswith("100755")
    assert repo.git("show", "undo:run.sh").encode("utf-8", "surrogateescape") == content
    assert not ran.exists()


def test_no_hook_runs(repo: GitRepo) -> None:
    ran = repo.folder / "ran"
    hooks = repo.folder / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "post-commit", "reference-transaction", "update"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{ran}'\nexit 1\n")
        (hooks / name).chmod(0o755)
    repo.git("config", "core.hooksPath", str(hooks))
    repo.git("config", "core.fsmonitor", str(hooks / "update"))
    write(repo, {"a.yaml": b"a: 2\n"})
    assert not ran.exists()


def test_variables_of_our_caller_do_not_reach_git(
    repo: GitRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = repo.head()
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "CI")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "ci@acme.example")
    write(repo, {"a.yaml": b"a: 2\n"}, parent=parent)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"):
        monkeypatch.delenv(name)
    assert repo.git("log", "-1", "--format=%an,%cn", "undo").strip() == "CI,Ada Admin"


@pytest.mark.parametrize(
    "branch", ["-f", "a..b", "a b", "x~1", "", "a\nb", "@{", "end.lock", "@", "@{-1}"]
)
def test_a_hostile_branch_is_refused(repo: GitRepo, branch: str) -> None:
    with pytest.raises(Refused, match="git_branch_refused: not a branch name"):
        write(repo, {"a.yaml": b"x"}, branch)


def test_an_existing_branch_is_not_moved(repo: GitRepo) -> None:
    repo.git("branch", "undo")
    before = repo.head("undo")
    with pytest.raises(Refused, match=r"git_branch_exists: there is a branch undo.*--branch"):
        write(repo, {"a.yaml": b"a: 2\n"})
    repo.git("pack-refs", "--all")
    with pytest.raises(Refused, match="git_branch_exists"):
        write(repo, {"a.yaml": b"a: 2\n"})
    assert repo.head("undo") == before
    with pytest.raises(Refused, match="git_branch_refused: undo/more cannot be made"):
        write(repo, {"a.yaml": b"a: 2\n"}, "undo/more")


def test_of_many_at_once_one_makes_the_branch(repo: GitRepo) -> None:
    def attempt(number: int) -> str:
        try:
            return write(repo, {"a.yaml": f"a: new {number}\n".encode()})
        except Refused as error:
            return error.code

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(attempt, range(6)))
    made = [one for one in found if not one.startswith("git_")]
    assert made == [repo.head("undo")]
    assert {*found} - {*made} <= {"git_branch_exists", "git_branch_refused"}


def test_git_has_to_know_whose_commit_it_is(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "state")
    repo.commit({"a.yaml": "a: 1\n"})
    for name in ("user.name", "user.email"):
        repo.git("config", "--unset", name)
    with pytest.raises(Refused, match=r"git_no_identity: Git does not know whose .*user\.email"):
        write(repo, {"a.yaml": b"a: 2\n"})
    assert repo.git("branch", "--list", "undo") == ""


def test_it_is_signed_where_git_signs(repo: GitRepo, tmp_path: Path) -> None:
    keygen = shutil.which("ssh-keygen")
    assert keygen is not None
    key = tmp_path / "key"
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    settings = {"gpg.format": "ssh", "user.signingKey": f"{key}.pub", "commit.gpgSign": "true"}
    for name, value in settings.items():
        repo.git("config", name, value)
    write(repo, {"a.yaml": b"a: 2\n"})
    assert "gpgsig -----BEGIN SSH SIGNATURE" in repo.git("cat-file", "commit", "undo")
    key.unlink()
    with pytest.raises(Refused, match=r"git_cannot_sign: .*commit\.gpgSign is on"):
        write(repo, {"a.yaml": b"a: 3\n"}, "second")
    assert repo.git("branch", "--list", "second") == ""


def test_bare_repositories_worktrees_and_shallow_clones(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({"a.yaml": "a: 2\n"}, "second")
    for name, options in (("bare.git", ["--bare"]), ("shallow", ["--depth", "1"])):
        clone = tmp_path / name
        repo.git("clone", "--quiet", *options, repo.folder.as_uri(), str(clone))
        made = GitRepo(clone, make=False)
        write(clone, {"a.yaml": b"a: 1\n"})
        assert made.git("show", "undo:a.yaml") == "a: 1\n"
        made.git("fsck")
    tree = tmp_path / "tree"
    repo.git("worktree", "add", "--quiet", "-b", "side", str(tree))
    write(tree, {"a.yaml": b"a: 7\n"}, "from-tree")
    assert repo.git("show", "from-tree:a.yaml") == "a: 7\n"
    write(repo.folder / "folder", {"a.yaml": b"a: 8\n"}, "from-folder")
    assert repo.git("show", "from-folder:a.yaml") == "a: 8\n"


def test_object_names_by_sha256(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "state", "--object-format=sha256")
    repo.commit({"a.yaml": "a: 1\n", "b.yaml": "b"})
    made = write(repo, {"a.yaml": b"a: 2\n", "b.yaml": None})
    assert len(made) == 64
    assert files_of(repo, "undo") == {"a.yaml": "a: 2\n"}


@pytest.mark.parametrize("path", ["../out.yaml", ".git/config", "/abs.yaml", "a//b.yaml"])
def test_paths_that_git_would_not_take(repo: GitRepo, path: str) -> None:
    with pytest.raises(Refused, match="git_failed"):
        write(repo, {path: b"x"})
    assert repo.git("branch", "--list", "undo") == ""


def test_odd_paths(repo: GitRepo) -> None:
    odd = {"ü €/*.yaml": b"1", ":(top)x.yaml": b"2", "tab\tnew\nline.yaml": b"3"}
    repo.commit({"ü €/a.yaml": "0"})
    write(repo, odd)
    found = files_of(repo, "undo")
    assert {name: found[name].encode() for name in odd} == odd


def test_no_repository_and_no_commit(tmp_path: Path) -> None:
    revision = Revision("1" * 40)
    (tmp_path / "home").mkdir()
    with pytest.raises(Refused, match="not_a_repository"):
        write(tmp_path / "home", {}, parent=revision)
    repo = GitRepo(tmp_path / "state")
    with pytest.raises(Refused, match="git_failed"):
        write(repo, {"a.yaml": b"x"}, parent=revision)


def test_remotes(repo: GitRepo) -> None:
    assert remotes(repo.folder) == ()
    repo.git("remote", "add", "upstream", "x")
    repo.git("remote", "add", "fork", "y")
    assert remotes(repo.folder) == ("fork", "upstream")


def test_a_file_in_place_of_a_link_is_a_file(repo: GitRepo) -> None:
    """Attempted: a link in the tree, which would take the new content for where it leads to."""
    (repo.folder / "link.yaml").symlink_to("/etc/passwd")
    repo.git("add", "link.yaml")
    repo.git("commit", "-qm", "a link")
    made = write(repo, {"link.yaml": b"a: 1\n", "run.sh": b"#!/bin/sh\nexit\n"})
    assert repo.git("ls-tree", made, "--", "link.yaml").startswith("100644 blob ")
    assert repo.git("show", f"{made}:link.yaml") == "a: 1\n"
