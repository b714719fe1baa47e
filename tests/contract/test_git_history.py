"""Whose commit changed what, on repositories made by Git itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reconciler.adapters.git_history import GitHistory
from reconciler.core.history import History
from reconciler.core.names import ObjectRef, Revision
from reconciler.errors import GpuaasError, Refused
from reconciler.settings import Settings
from reconciler.use_cases.history import blame, history_of
from tests.services.git_repo import GitRepo

FOLDER = "tenants/acme/projects/research/instances"
FILE = f"{FOLDER}/one.yaml"
ONE = ObjectRef.parse("AppInstance/acme/research/one")
SETTINGS = Settings()


def instance(name: str = "one", version: str = "1.0.0", **more: str) -> str:
    lines = [f"  {key}: {value}" for key, value in {"version": f'"{version}"', **more}.items()]
    head = f"apiVersion: gpuaas.dev/v1\nkind: AppInstance\nmetadata:\n  name: {name}\nspec:\n"
    return head + "\n".join(lines) + "\n"


@pytest.fixture
def repo(tmp_path: Path) -> GitRepo:
    return GitRepo(tmp_path / "state")


def history(repo: GitRepo | Path) -> GitHistory:
    return GitHistory.local(repo if isinstance(repo, Path) else repo.folder, SETTINGS)


def log(repo: GitRepo | Path, target: ObjectRef | str = ONE, limit: int = 100) -> History:
    commits = history(repo)
    return commits.log(target, commits.head(), limit)


def subjects(found: History) -> list[str]:
    return [step.commit.subject for step in found.steps]


def test_only_commits_that_changed_the_object(repo: GitRepo) -> None:
    repo.commit({FILE: instance()}, "add")
    repo.commit({"README.md": "hello"}, "something else")
    repo.commit({FILE: "# a comment\n" + instance()}, "only a comment")
    repo.commit({FILE: instance(version="1.1.0")}, "upgrade")
    repo.commit({f"{FOLDER}/two.yaml": instance("two")}, "another one")
    repo.commit({FILE: None}, "remove")
    found = log(repo)
    assert subjects(found) == ["remove", "upgrade", "add"]
    assert found.end == "root"
    assert [step.verb for step in found.steps] == ["removed", "changed", "added"]
    (field,) = found.steps[1].fields
    assert (field.pointer, field.old, field.new) == ("/spec/version", "1.0.0", "1.1.0")
    assert subjects(log(repo, FILE)) == ["remove", "upgrade", "only a comment", "add"]


def test_one_of_several_documents_in_a_file(repo: GitRepo) -> None:
    file = f"{FOLDER}/all.yaml"
    repo.commit({file: f"{instance()}---\n{instance('two')}"}, "both")
    repo.commit({file: f"{instance()}---\n{instance('two', '2.0.0')}"}, "the other")
    repo.commit({file: f"{instance(version='1.1.0')}---\n{instance('two', '2.0.0')}"}, "this one")
    assert subjects(log(repo)) == ["this one", "both"]


def test_a_file_renamed_is_the_same_object(repo: GitRepo) -> None:
    repo.commit({f"{FOLDER}/all.yaml": f"{instance()}---\n{instance('two')}"}, "both")
    repo.commit({f"{FOLDER}/all.yaml": instance("two"), FILE: instance()}, "apart")
    repo.commit({FILE: instance(version="1.1.0")}, "upgrade")
    found = log(repo)
    assert subjects(found) == ["upgrade", "both"]
    assert found.steps[1].after is not None
    assert found.steps[1].after.path == f"{FOLDER}/all.yaml"


def test_a_file_that_cannot_be_read_is_no_removal(repo: GitRepo) -> None:
    repo.commit({FILE: instance()}, "add")
    repo.commit({FILE: instance() + "  - broken: [one\n"}, "break")
    repo.commit({FILE: instance(version="1.1.0")}, "mend")
    found = log(repo)
    assert subjects(found) == ["mend", "break", "add"]
    assert [step.verb for step in found.steps] == ["changed", "changed", "added"]
    assert found.steps[1].after is not None
    assert found.steps[1].after.document is None


def test_a_merge_that_took_one_side_is_not_a_change(repo: GitRepo) -> None:
    base = repo.commit({FILE: instance()}, "add")
    repo.git("switch", "--quiet", "--create", "side")
    repo.commit({FILE: instance(version="1.1.0")}, "on the side")
    repo.git("switch", "--quiet", "main")
    repo.commit({"README.md": "x"}, "on main")
    repo.record("merge", "--quiet", "--no-ff", "--message", "merge", "side")
    assert subjects(log(repo)) == ["on the side", "add"]
    assert base == log(repo).steps[1].commit.revision


def test_a_merge_that_did_something_of_its_own_is_one(repo: GitRepo) -> None:
    repo.commit({FILE: instance()}, "add")
    repo.git("switch", "--quiet", "--create", "side")
    repo.commit({FILE: instance(version="1.1.0")}, "side")
    repo.git("switch", "--quiet", "main")
    repo.commit({FILE: instance(desired="stopped")}, "main")
    repo.record("merge", "--quiet", "--strategy", "ours", "--no-commit", "side")
    (repo.folder / FILE).write_text(instance(version="1.1.0", desired="stopped"))
    repo.git("add", "--all")
    merge = repo.record("commit", "--quiet", "--message", "both")
    found = log(repo)
    assert found.steps[0].commit.revision == merge
    assert len(found.steps[0].commit.parents) == 2
    assert sorted(subjects(found)[1:]) == ["add", "main", "side"]


def test_it_agrees_with_git_log(repo: GitRepo) -> None:
    """The simplification is Git's own, on a history of branches and merges."""
    repo.commit({FILE: instance()}, "start")
    for number in range(12):
        branch = f"b{number}"
        repo.git("switch", "--quiet", "--create", branch)
        version = f"1.0.{number}" if number % 3 else "1.0.0"
        repo.commit({FILE: instance(version=version)}, f"{branch} {version}")
        repo.git("switch", "--quiet", "main")
        repo.commit({f"other-{number}.txt": "x"}, f"main {number}")
        repo.record("merge", "--quiet", "--no-ff", "-X", "theirs", "--message", "m", branch)
    listed = repo.git("log", "--format=%H", "--", FILE).split()
    assert [step.commit.revision for step in log(repo, FILE).steps] == listed


def test_a_limit_says_that_there_may_be_more(repo: GitRepo) -> None:
    for number in range(5):
        repo.commit({FILE: instance(version=f"1.0.{number}")}, f"{number}")
    assert (subjects(log(repo, limit=2)), log(repo, limit=2).end) == (["4", "3"], "limit")
    assert log(repo, limit=5).end == "root"


def test_a_shallow_clone_says_where_it_ends(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({FILE: instance()}, "add")
    last = repo.commit({"README.md": "1"}, "one")
    repo.commit({FILE: instance(version="1.1.0")}, "upgrade")
    clone = tmp_path / "clone"
    repo.git("clone", "--quiet", "--depth", "2", repo.folder.as_uri(), str(clone))
    found = log(clone)
    assert subjects(found) == ["upgrade"]
    assert (found.end, found.end_revision) == ("shallow", last)
    assert log(clone, ObjectRef.parse("AppInstance/acme/research/two")).end == "shallow"


def test_former_names_are_followed(repo: GitRepo) -> None:
    repo.commit({f"{FOLDER}/old.yaml": instance("old")}, "add")
    repo.commit({f"{FOLDER}/old.yaml": instance("old", "1.1.0")}, "upgrade")
    new = instance(version="1.1.0", moved_from="old")
    repo.commit({f"{FOLDER}/old.yaml": None, FILE: new}, "rename")
    repo.commit({FILE: instance(version="1.2.0", moved_from="old")}, "again")
    commits = history(repo)
    found = history_of(commits, ONE, commits.head(), 100)
    assert subjects(found) == ["again", "rename", "upgrade", "add"]
    assert [str(step.of).rpartition("/")[2] for step in found.steps] == ["one", "one", "old", "old"]
    assert history_of(commits, ONE, commits.head(), 2).end == "limit"


def test_blame_by_field(repo: GitRepo) -> None:
    repo.commit({FILE: instance(desired="running")}, "add")
    repo.commit({FILE: "# moved a line\n" + instance(desired="running")}, "comment")
    repo.commit({FILE: instance(version="1.1.0", desired="running")}, "upgrade")
    repo.commit({FILE: instance(version="1.1.0", desired="stopped")}, "stop")
    repo.commit({FILE: instance(version="1.1.0", desired="running")}, "start")
    commits = history(repo)
    wanted = ["/spec/version", "/spec/desired", "/metadata/name"]
    found = blame(commits, ONE, wanted, commits.head())
    assert {pointer: commit.subject for pointer, commit in found.items()} == {
        "/spec/version": "upgrade",
        "/spec/desired": "start",
        "/metadata/name": "add",
    }


def test_where_repositories_may_be(repo: GitRepo, tmp_path: Path) -> None:
    """Packed refs, a linked worktree, a folder inside, a bare repository."""
    repo.commit({FILE: instance()}, "add")
    repo.git("branch", "side")
    repo.git("pack-refs", "--all")
    repo.git("gc", "--quiet")
    assert subjects(log(repo)) == ["add"]
    assert subjects(log(repo.folder / FOLDER)) == ["add"]
    tree = tmp_path / "tree"
    repo.git("worktree", "add", "--quiet", str(tree), "side")
    work = GitRepo(tree, config={}, make=False)
    work.commit({FILE: instance(version="1.1.0")}, "in the worktree")
    assert subjects(log(tree)) == ["in the worktree", "add"]
    assert subjects(log(repo)) == ["add"]
    bare = tmp_path / "bare.git"
    repo.git("clone", "--quiet", "--bare", str(repo.folder), str(bare))
    assert subjects(log(bare)) == ["add"]


def test_a_repository_without_a_commit(repo: GitRepo) -> None:
    with pytest.raises(Refused, match="git_no_commit: there is no HEAD here"):
        history(repo).head()


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not_a_repository: there is no Git repository"):
        history(tmp_path)


def test_sha256_names(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "state", "--object-format=sha256")
    repo.commit({FILE: instance()}, "add")
    with pytest.raises(GpuaasError, match="names its objects by SHA-256, which cannot be read"):
        history(repo).head()


def test_an_object_that_is_missing(repo: GitRepo) -> None:
    repo.commit({FILE: instance()}, "add")
    repo.commit({FILE: instance(version="1.1.0")}, "upgrade")
    blob = repo.git("rev-parse", f"HEAD~1:{FILE}").strip()
    (repo.folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(Refused, match=r"git_repo_damaged.*git fsck shows what is wrong"):
        log(repo)


def test_odd_names_and_authors(repo: GitRepo) -> None:
    file = "docs/a name with spaces/ümläut€.txt"
    author = b"Andr\xe9 \x1b[31m<a@b>"
    tree = repo.git("hash-object", "-w", "--stdin", given=b"x").strip()
    del tree
    repo.commit({file: "x"}, "add")
    text = (
        b"tree " + repo.git("rev-parse", "HEAD^{tree}").strip().encode() + b"\n"
        b"parent " + repo.head().encode() + b"\n"
        b"author " + author + b" 1700000900 +0000\ncommitter " + author + b" 1700000900 +0000\n"
        b"encoding iso-8859-1\n\nsubject \xe9\x1b[2J\n"
    )
    repo.commit({FILE: instance()}, "instance")
    odd = repo.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", given=text)
    commit = history(repo).commit(Revision(odd.strip()))
    assert commit.author == "Andr\ufffd  [31m <a@b>"
    assert commit.subject == "subject \ufffd [2J"
    assert subjects(log(repo, file)) == ["add"]
    assert log(repo, "docs/nothing").steps == ()
    assert history(repo).content(repo.head(), file) == b"x"


def test_whether_a_signature_is_there(repo: GitRepo, tmp_path: Path) -> None:
    keygen = shutil.which("ssh-keygen")
    assert keygen is not None
    key = tmp_path / "key"
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    repo.commit({FILE: instance()}, "unsigned")
    for name, value in {"gpg.format": "ssh", "user.signingKey": f"{key}.pub"}.items():
        repo.git("config", name, value)
    repo.commit({FILE: instance(version="1.1.0")}, "signed", "--gpg-sign")
    assert [step.commit.signed for step in log(repo).steps] == [True, False]
    said = "subject\n\ngpgsig that is only said"
    repo.commit({FILE: instance(version="1.2.0")}, said)
    assert not log(repo).steps[0].commit.signed


def test_forms_contents_and_paths(repo: GitRepo) -> None:
    first = repo.commit({FILE: instance()}, "add")
    second = repo.commit({FILE: None, "README.md": "x"}, "remove")
    commits = history(repo)
    form = commits.form(ONE, first)
    assert form is not None
    assert form.path == FILE
    assert commits.form(ONE, second) is None
    assert commits.content(first, FILE) == instance().encode()
    assert commits.content(second, FILE) is None
    assert commits.content(first, FOLDER) is None
    assert commits.paths(second) == ("README.md",)


def test_links_and_folders_are_no_objects(repo: GitRepo) -> None:
    repo.commit({f"{FOLDER}/real.txt": instance()}, "text")
    (repo.folder / FILE).symlink_to("real.txt")
    (repo.folder / FOLDER / "two.yaml").mkdir()
    repo.commit({f"{FOLDER}/two.yaml/x.yaml": instance("two")}, "traps")
    assert log(repo).steps == ()
    assert log(repo, ObjectRef.parse("AppInstance/acme/research/two")).steps == ()


def test_a_tree_beyond_the_limits_is_refused(repo: GitRepo) -> None:
    """Attempted: folders in folders until Python gives up, and the same folder very many times."""
    commits = history(repo)
    blob = repo.git("hash-object", "-w", "--stdin").strip()
    wide = repo.git("mktree", given=f"100644 blob {blob}\tf\n".encode()).strip()
    for _ in range(20):
        folders = "".join(f"040000 tree {wide}\t{name}\n" for name in "abcd")
        wide = repo.git("mktree", given=folders.encode()).strip()
    head = "commit refs/heads/deep\ncommitter a <a@b> 1 +0000\ndata 0\nM 100644"
    repo.git("fast-import", "--quiet", given=f"{head} {blob} {'d/' * 1_200}f\n".encode())
    with pytest.raises(Refused, match="too_deep"):
        commits.paths(repo.head("deep"))
    with pytest.raises(Refused, match="too_many_files"):
        commits.paths(Revision(repo.git("commit-tree", "-m", "x", wide).strip()))


def test_a_tag_does_not_stand_for_a_branch(repo: GitRepo, tmp_path: Path) -> None:
    """Attempted: a tag by the name of the base, at the change that is to be compared with it."""
    base = repo.commit({FILE: instance()}, "base")
    repo.git("tag", "--annotate", "--message", "x", "v1")
    repo.git("checkout", "--quiet", "-b", "change")
    change = repo.commit({FILE: None}, "change")
    repo.git("tag", "origin/main")
    subprocess.run(["git", "clone", "-q", str(repo.folder), str(tmp_path / "ci")], check=True)
    clone = history(tmp_path / "ci")
    for name in ("origin/main", "origin/main~0", "origin/main^{commit}"):
        with pytest.raises(Refused, match=r"ambiguous_revision: .* may be refs/remotes/.* or refs"):
            clone.resolve(name)
    assert clone.resolve("refs/remotes/origin/main") == base
    assert clone.resolve("refs/tags/origin/main") == clone.resolve("HEAD") == change
    assert clone.resolve("v1") == clone.resolve(base) == base
    with pytest.raises(Refused, match="ambiguous_revision"):
        clone.merge_base("HEAD", "origin/main")
