"""Writes one commit on a new branch, with the git command line.

Rules: nothing is checked out. Working tree, index and HEAD stay as they are: the tree is built in
an index of its own. No hook and no filter runs; contents are stored as they are given. Whose commit
it is, and whether it is signed, is as the person's own Git is set up. A branch that exists is never
moved.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.core.names import Revision
from reconciler.errors import GpuaasError, Refused, Transient

TIMEOUT_S = 300.0
"""A person may have to touch a key or type its passphrase."""

_NO_BRANCHES = ("HEAD", "@")
_STDERR_LENGTH_MAX = 2000
_KEPT_GIT_VARIABLES = frozenset(
    {
        "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM",
        "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL",
    }
)  # fmt: skip
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.splitIndex": "false",
    "core.untrackedCache": "false",
    "index.sparse": "false",
    "i18n.commitEncoding": "utf-8",
    "user.useConfigOnly": "true",
}
_NO_IDENTITY = re.compile(
    r"Please tell me who you are|empty ident|user\.useConfigOnly|no email was"
)


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
    git = _Git(folder)
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
    return tuple(sorted(_Git(folder).run("remote").split()))


def _check_branch(git: _Git, branch: str, ref: str) -> None:
    _check_name(git, branch)
    if ref in git.run("for-each-ref", "--format=%(refname)", "--", ref).split():
        raise _taken(branch)


def _check_name(git: _Git, branch: str) -> None:
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


def _index_info(git: _Git, parent: Revision, files: Mapping[str, bytes | None]) -> bytes:
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


def _check_tree(git: _Git, parent: Revision, tree: str, files: Mapping[str, bytes | None]) -> None:
    """Git passes over a path it does not like without saying so in its exit code."""
    listed = git.run("diff-tree", "-r", "-z", "--name-only", "--no-renames", parent, tree)
    left = sorted({*files} ^ {*listed.split("\0")[:-1]})
    if left:
        message = "Git would not take this change of a file"
        raise Refused("git_failed", message, where=left[0][:200])


def _signs(git: _Git) -> bool:
    """`commit-tree` signs only when told to, so the person's setting is read here."""
    return git.run("config", "--type=bool", "--default=false", "commit.gpgSign").strip() == "true"


class _Git:
    """Runs git in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.index: Path | None = None

    def run(self, *args: str, given: bytes = b"") -> str:
        """What it printed; Refused for any exit but 0, Transient when it does not end."""
        options = [word for key, value in _CONFIG.items() for word in ("-c", f"{key}={value}")]
        command = ["git", "-C", str(self._folder), *options, *args]
        try:
            done = subprocess.run(
                command, input=given, env=self._environment(), capture_output=True,
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise Refused(
                "git_missing", "there is no git on this host", hint="install git 2.34 or newer"
            ) from None
        except subprocess.TimeoutExpired:
            raise Transient(
                "git_timeout", f"git {args[0]} did not end after {TIMEOUT_S:g} s",
                where=str(self._folder),
            ) from None  # fmt: skip
        if done.returncode != 0:
            raise _failure(args, done.stderr, self._folder)
        return done.stdout.decode("utf-8", "surrogateescape")

    def _environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("GIT_") or key in _KEPT_GIT_VARIABLES
        }
        own = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1"}
        index = {"GIT_INDEX_FILE": str(self.index)} if self.index else {}
        return {**kept, **own, **index}


def _failure(args: Sequence[str], stderr: bytes, folder: Path) -> Refused:
    said = " ".join(stderr.decode("utf-8", "replace")[-_STDERR_LENGTH_MAX:].split())
    where = str(folder)
    if _NO_IDENTITY.search(said):
        return Refused(
            "git_no_identity", "Git does not know whose commit this would be", where=where,
            hint="git config user.name NAME and git config user.email ADDRESS",
        )  # fmt: skip
    if "commit-tree" in args and "-S" in args:
        return Refused(
            "git_cannot_sign", f"Git could not sign the commit: {said}", where=where,
            hint="commit.gpgSign is on: check user.signingKey, gpg.format and your agent",
        )  # fmt: skip
    if "not a git repository" in said:
        return Refused("not_a_repository", "there is no Git repository", where=where)
    return Refused("git_failed", said or f"git {args[0]} failed", where=where)
