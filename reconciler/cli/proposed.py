"""What commands that write a commit on a new branch have to show of it, alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import unified_diff
from typing import Any, Protocol

from reconciler.core.changes import FieldChange
from reconciler.core.names import Revision
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.views.changes import Line, field_document, field_lines, problem_document

Files = Mapping[str, bytes | None]


class Proposal(Protocol):
    """A commit on top of `base`, as `use_cases.rollback.Rollback` describes its fields."""

    @property
    def base(self) -> Revision: ...

    @property
    def files(self) -> Files: ...

    @property
    def before(self) -> Files: ...

    @property
    def fields(self) -> tuple[FieldChange, ...]: ...

    @property
    def in_the_way(self) -> tuple[Problem, ...]: ...


def committed(title: str, made: Proposal, branch: str, revision: Revision) -> Iterator[Line]:
    """The commit that was made: where it is, what it changes, and its patch."""
    yield Line(title, "title")
    yield Line(f"  branch {branch}, commit {revision[:12]} on top of {made.base[:12]}")
    yield Line("")
    yield from (Line(f"  {line.text}", line.style) for line in field_lines(made.fields))
    if made.fields:
        yield Line("")
    yield from patch(made.before, made.files)


def changed_document(made: Proposal) -> dict[str, Any]:
    """What it changes, and what is in its way, as the end of a command's document."""
    return {
        "paths": sorted(made.files),
        "fields": [field_document(field) for field in made.fields],
        "in_the_way": [problem_document(problem) for problem in made.in_the_way],
    }


def patch(before: Files, after: Files) -> Iterator[Line]:
    """What differs between files, as Git would show it."""
    styles = {"+": "added", "-": "removed", "@": "dim"}
    for path, new_content in after.items():
        old_content = before[path]
        old = f"a/{path}" if old_content is not None else "/dev/null"
        new = f"b/{path}" if new_content is not None else "/dev/null"
        for line in unified_diff(_rows(old_content), _rows(new_content), old, new, lineterm=""):
            yield Line(printable(line), styles.get(line[:1], "plain"))


def _rows(content: bytes | None) -> list[str]:
    return (content or b"").decode("utf-8", "replace").splitlines()


def next_steps(branch: str, known: tuple[str, ...]) -> Iterator[Line]:
    """How to propose it; `known` are the remotes."""
    remote = "origin" if "origin" in known or not known else known[0]
    yield Line("")
    yield Line("Nothing changes until it is merged. To propose it:", "title")
    yield Line(f"  git push {remote} {branch}")
    yield Line(f"  gh pr create --head {branch} --fill    # or open it in your forge")


def in_the_way(title: str, problems: tuple[object, ...]) -> Iterator[Line]:
    yield Line(title, "problem")
    yield from (Line(f"  ! {printable(str(problem))}", "problem") for problem in problems)
    yield Line("Nothing was written.")
