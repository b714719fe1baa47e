"""Mishaps worth telling one by one: what a few commits in a row lead to on a fleet that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.faults import oracle, repo
from tests.faults.fleet import Fleet, Tree

TPS = "tenants/initech/projects/tps"
ETL = "tenants/globex/projects/etl"
ETL_0 = f"{ETL}/instances/etl-0.yaml"
SANDBOX = "tenants/acme/projects/sandbox"

Edit = Callable[[Tree], None]


def delete(*paths: str) -> Edit:
    """Files, or folders with all that is in them."""

    def edit(tree: Tree) -> None:
        for path in [p for p in tree for gone in paths if p == gone or p.startswith(gone + "/")]:
            del tree[path]

    return edit


def move(path: str, to: str) -> Edit:
    def edit(tree: Tree) -> None:
        for old in [p for p in tree if p == path or p.startswith(path + "/")]:
            tree[to + old.removeprefix(path)] = tree.pop(old)

    return edit


def write(path: str, old: str, new: str) -> Edit:
    def edit(tree: Tree) -> None:
        content = tree[path]
        assert isinstance(content, bytes)
        assert old.encode() in content, path
        tree[path] = content.replace(old.encode(), new.encode())

    return edit


def back(*paths: str) -> Edit:
    """As it was at first: one file, a folder, or everything."""

    def edit(tree: Tree) -> None:
        found = {p: c for p, c in repo.files().items() if p.startswith(paths or ("",))}
        if not paths:
            tree.clear()
        tree.update(found)

    return edit


def rename(path: str, name: str, *, moved: bool = True) -> tuple[Edit, ...]:
    """The file and what it says of itself; with `moved_from` unless it was forgotten."""
    folder, _, file = path.rpartition("/")
    old, to = file.removesuffix(".yaml"), f"{folder}/{name}.yaml"
    more = f"\n  moved_from: {old}\n" if moved else "\n"
    return (
        move(path, to),
        write(to, f"name: {old}\n", f"name: {name}\n"),
        write(to, "  desired: running\n", f"  desired: running{more}"),
    )


MANY = tuple(f"{TPS}/instances/tps-{number}.yaml" for number in (0, 1, 2, 3, 5, 7))
BROKEN = (ETL_0, "spec:", "spec: [")

Commits = tuple[tuple[Edit, ...], ...]


@dataclass(frozen=True)
class Told:
    """Commits, what is done after the last one, and codes of problems that tell why not more."""

    commits: Commits
    does: frozenset[str] = frozenset()
    says: frozenset[str] = frozenset()


def told(*commits: tuple[Edit, ...], does: str = "", says: str = "") -> Told:
    return Told(commits, frozenset(does.split(", ") if does else ()), frozenset(says.split()))


STORIES: Mapping[str, Told] = {
    "a file is deleted": told((delete(ETL_0),), does="remove globex/etl/etl-0"),
    "it is decommissioned, although its project is broken": told(
        (write(ETL_0, ": running", ": decommissioned"), delete(f"{ETL}/project.yaml")),
        does="remove globex/etl/etl-0",
    ),
    "its allocation goes": told((delete(f"{ETL}/allocations"),), says="unknown_reference"),
    "its node goes": told((delete("platform/nodes"),), says="unknown_reference"),
    "its tenant goes": told((delete("tenants/globex/tenant.yaml"),), says="unknown_reference"),
    "the Environment goes, and instances with it": told(
        (delete("environments", ETL_0),), says="unknown_environment"
    ),
    "a project folder goes, within the budget": told(
        (delete(SANDBOX),),
        does=", ".join(f"remove acme/sandbox/sandbox-{number}" for number in range(3)),
    ),
    "a project folder goes, over the budget": told((delete(TPS),)),
    "a project folder is misspelt": told(
        (move(SANDBOX, f"{SANDBOX}s"),), says="removal_suspended name_mismatch"
    ),
    "a top folder is misspelt": told(
        (move("tenants/globex", "tenant/globex"),), says="removal_suspended unknown_path"
    ),
    "a folder is moved to where nothing is read": told(
        (move(SANDBOX, "attic/sandbox"),), says="removal_suspended"
    ),
    "a file gets an ending that is not read": told(
        (move(ETL_0, f"{ETL_0}.bak"),), says="removal_suspended unknown_path"
    ),
    "a file lands in another project": told(
        (move(ETL_0, f"{SANDBOX}/instances/etl-0.yaml"),), says="removal_suspended"
    ),
    "an instance is renamed": told((*rename(ETL_0, "other"),), does="move globex/etl/other"),
    "an instance is renamed without moved_from": told(
        (*rename(ETL_0, "other", moved=False),), says="looks_renamed removal_suspended"
    ),
    "an instance is renamed while its project is in quarantine": told(
        (*rename(ETL_0, "another"), write(f"{ETL}/instances/etl-1.yaml", "spec:", "spec: [")),
        says="removal_suspended",
    ),
    "a rename is not accepted": told(
        (*rename(ETL_0, "another"), delete(f"{ETL}/allocations")), says="unknown_reference"
    ),
    "too much is deleted, and one comes back broken": told(
        (delete(*MANY),), (back(*MANY), write(MANY[0], "spec:", "spec: [")), says="yaml_syntax"
    ),
    "too much is deleted, and comes back where it is not accepted": told(
        (delete(*MANY),), (back(*MANY), delete(f"{TPS}/entitlements")), says="not_entitled"
    ),
    "too much is deleted, and one comes back with a wrong ending": told(
        (delete(*MANY),), (back(*MANY), move(MANY[0], f"{MANY[0]}.orig")), says="unknown_path"
    ),
    "a deleted one comes back broken": told((delete(ETL_0),), (back(ETL_0), write(*BROKEN))),
    "everything goes, and comes back": told((delete(*repo.files()),), (back(),)),
}


def outcome(fleet: Fleet, story: Told) -> tuple[set[str], set[str], list[str]]:
    """What the last commit does, what it says, and what an operator would object to on the way."""
    tree, last, agreed = dict(fleet.tree), fleet.first.accepted, set[str]()
    wrong: list[str] = []
    for edits in story.commits:
        for edit in edits:
            edit(tree)
        decision = fleet.commit(tree, last=last)
        wrong += oracle.removals_nobody_meant(decision.plan, tree, agreed)
        last = decision.accepted
    done = {f"{action.kind} {action.instance}" for action in decision.plan.ready}
    return done, {problem.code for problem in decision.state.problems}, wrong


def objections(fleet: Fleet) -> Iterator[str]:
    """For a pipeline with a planted bug: the stories that don't come out as told."""
    for title, story in STORIES.items():
        done, _, wrong = outcome(fleet, story)
        if wrong or done != story.does:
            yield title


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


@pytest.mark.parametrize("title", STORIES)
def test_a_mishap_comes_out_as_told(fleet: Fleet, title: str) -> None:
    story = STORIES[title]
    done, said, wrong = outcome(fleet, story)
    assert (done, wrong) == (set(story.does), [])
    assert said >= story.says
