"""What commands that write a commit on a new branch have to show of it, alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import unified_diff

from reconciler.core.printable import printable
from reconciler.views.changes import Line

Files = Mapping[str, bytes | None]


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
