"""Writes one commit on a new branch, with the git command line.

Rules: nothing is checked out. Working tree, index and HEAD stay as they are: the tree is built in
an index of its own. No hook and no filter runs; contents are stored as they are given. Whose commit
it is, and whether it is signed, is as the person's own Git is set up. A branch that exists is never
moved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from reconciler.adapters.git_local import LocalGit
from reconciler.core.names import Revision
from reconciler.errors import GpuaasError, Refused

_NO_BRANCHES = ("HEAD", "@")


def commit_on_branch(
    folder: Path,
    *,
    parent: Revision,
    branch: str,
    files: Mapping[str, bytes | None],
    message: str,
) -> Revision:
    """One commit on top of `parent`: `files` replaced, or removed where the content is None.

    `folder` is the repository or lies in it. Refused when the branch exists or is no name for one,
    when Git does not know whose commit it is, or can't sign it as it is told to.
    """
    git = LocalGit(folder)
    ref = f"refs/heads/{branch}"
    _check_branch(git, branch, ref)
    with tempfile.TemporaryDirectory(prefix="gpuaas-index-") as scratch:
        git.index = Path(scratch) / "index"
        git.run("read-tree", "--end-of-options", parent)
        git.run("update-index", "-z", "--index-info", given=_index_info(git, parent, files))
        tree = git.run("write-tree").strip()
    _check_tree(git, parent, tree, files)
    sign = ["-S"] if _signs(git) else []
    commit = git.run("commit-tree", *sign, "-p", parent, "-F", "-", tree, given=message.encode())
    revision = Revision(commit.strip())
    said = "gpuaas: created"
    try:
        git.run("update-ref", "--create-reflog", "-m", said, ref, revision, "0" * len(revision))
    except Refused as error:
        raise _taken(branch, error) from None
    return revision


def remotes(folder: Path) -> tuple[str, ...]:
    """The names of the repository's remotes, sorted."""
    return tuple(sorted(LocalGit(folder).run("remote").split()))


def _check_branch(git: LocalGit, branch: str, ref: str) -> None:
    _check_name(git, branch)
    if ref in git.run("for-each-ref", "--format=%(refname)", "--", ref).split():
        raise _taken(branch)


def _check_name(git: LocalGit, branch: str) -> None:
    try:
        if branch.startswith("-") or branch in _NO_BRANCHES:
            raise Refused("git_failed", "it means something else to git")
        # Without --branch, which would take @{-1} for the branch before.
        git.run("check-ref-format", f"refs/heads/{branch}")
    except Refused:
        hint = "see git check-ref-format for what Git takes"
        raise Refused(
            "git_branch_refused", f"not a branch name: {branch[:80]!r}", hint=hint
        ) from None


def _taken(branch: str, error: GpuaasError | None = None) -> Refused:
    if error is not None and "already exists" not in error.message:
        return Refused("git_branch_refused", f"{branch} cannot be made: {error.message}")
    hint = "choose another with --branch, or delete that one"
    return Refused("git_branch_exists", f"there is a branch {branch} already", hint=hint)


def _index_info(git: LocalGit, parent: Revision, files: Mapping[str, bytes | None]) -> bytes:
    """Lines for `git update-index`; a file keeps its mode, mode 0 removes it."""
    lines = []
    for path, content in sorted(files.items()):
        if content is None:
            lines.append(f"0 {'0' * len(parent)}\t{path}")
            continue
        blob = git.run("hash-object", "-w", "--no-filters", "--stdin", given=content).strip()
        listed = git.run("--literal-pathspecs", "ls-tree", "-z", parent, "--", path)
        # What stands there may be a link; the content is that of a file.
        mode = "100755" if listed.startswith("100755 ") else "100644"
        lines.append(f"{mode} {blob}\t{path}")
    return "".join(f"{line}\0" for line in lines).encode()


def _check_tree(
    git: LocalGit, parent: Revision, tree: str, files: Mapping[str, bytes | None]
) -> None:
    """Git passes over a path it does not like without saying so in its exit code."""
    listed = git.run("diff-tree", "-r", "-z", "--name-only", "--no-renames", parent, tree)
    left = sorted({*files} ^ {*listed.split("\0")[:-1]})
    if left:
        message = "Git would not take this change of a file"
        raise Refused("git_failed", message, where=left[0][:200])


def _signs(git: LocalGit) -> bool:
    """`commit-tree` signs only when told to, so the person's setting is read here."""
    return git.run("config", "--type=bool", "--default=false", "commit.gpgSign").strip() == "true"
