"""The first commit of a state repo, signed, or the first one that says who may do what.

Rules: nothing that is there is written over, and nothing else that is staged gets into the commit.
Whose commit it is, is as the person's own Git is set up, unless something else is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.adapters.git_local import LocalGit
from reconciler.core.names import Revision
from reconciler.errors import Refused


@dataclass(frozen=True)
class Place:
    """Where it goes. `head` None: there is no commit yet; `made`: is there a repository."""

    folder: Path
    made: bool
    head: Revision | None
    branch: str
    files: frozenset[str]
    """What the head has, or the folder where there is no head yet."""


def look(folder: Path, branch: str) -> Place:
    """What is there; Refused for a folder in the work tree of another repository."""
    if folder.exists() and not folder.is_dir():
        raise Refused("init_in_the_way", "it is no folder", where=str(folder))
    if not (folder / ".git").exists():
        _refuse_inside(folder)
        return Place(folder, made=False, head=None, branch=branch, files=_listed(folder))
    git = LocalGit(folder)
    at = git.run("symbolic-ref", "--short", "HEAD").strip()
    if not git.run("for-each-ref", f"refs/heads/{at}").strip():
        return Place(folder, made=True, head=None, branch=at, files=_listed(folder))
    head = Revision(git.run("rev-parse", "HEAD").strip())
    files = git.run("ls-tree", "-r", "-z", "--name-only", head).split("\0")[:-1]
    return Place(folder, made=True, head=head, branch=at, files=frozenset(files))


def stage(place: Place, files: Mapping[str, bytes], config: Mapping[str, str]) -> None:
    """Writes and stages new files; makes the repository, with `config`, where there is none."""
    git = LocalGit(place.folder)
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            file = place.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as new:
                new.write(content)
    except OSError as error:
        where = str(error.filename or place.folder)
        raise Refused("init_in_the_way", f"{error.strerror}", where=where) from None
    if not place.made:
        git.run("init", "--quiet", "--initial-branch", place.branch)
    for name, value in config.items():
        git.run("config", name, value)
    git.run("--literal-pathspecs", "add", "--", *sorted(files))


def commit_signed(
    place: Place, paths: Iterable[str], message: str, config: Mapping[str, str]
) -> Revision:
    """Commits what was staged at these paths, signed; Refused git_cannot_sign, git_no_identity."""
    git = LocalGit(place.folder)
    arguments = ("commit", "--quiet", "-S", "--message", message, "--", *sorted(paths))
    git.run("--literal-pathspecs", *arguments, config=config)
    return Revision(git.run("rev-parse", "HEAD").strip())


def knows_who(folder: Path) -> bool:
    """Whether Git knows whose commit one made in the folder would be."""
    try:
        LocalGit(folder).run("var", "GIT_COMMITTER_IDENT")
    except Refused as error:
        if error.code != "git_no_identity":
            raise
        return False
    return True


def _refuse_inside(folder: Path) -> None:
    for above in folder.absolute().parents:
        if (above / ".git").exists():
            message = "it lies in the work tree of another repository"
            hint = "name a folder outside of it, or that repository itself"
            raise Refused("init_in_the_way", f"{message}: {above}", where=str(folder), hint=hint)


def _listed(folder: Path) -> frozenset[str]:
    if not folder.is_dir():
        return frozenset()
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return frozenset(path.relative_to(folder).as_posix() for path in found)
