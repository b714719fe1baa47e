"""What an operator would say a commit may remove, told from the files alone.

Rules, none of them taken from the code under test:
- An instance may go when the repo says `desired: decommissioned` of it, or when its manifest is
  cleanly gone: nothing new or changed anywhere in the repo still bears its name or its file's name,
  and every new or changed file of its project and tenant is well-formed.
- It may leave its node when its own manifest, or that of its allocation, names another place.
- Never when the repo has no Environment, and never more at once than the budget.
- Nothing else may be done to it unless its manifest or one that it depends on has changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from reconciler.core.actions import Remove
from reconciler.core.plan import Plan
from tests.fakes.state_source import Entry
from tests.faults import repo

SCHEMAS = Path(__file__).parents[2] / "schemas"
REMOVALS_MAX = 5
_PLACES = {
    "Environment": r"environments/(?P<name>[^/]+)",
    "Node": r"platform/nodes/[^/]+",
    "App": r"catalog/(?P<name>[^/]+)/app",
    "AppVersion": r"catalog/[^/]+/versions/(?P<name>[^/]+)",
    "Promotion": r"catalog/[^/]+/promotions/(?P<name>[^/]+)",
    "Tenant": r"tenants/(?P<name>[^/]+)/tenant",
    "Project": r"tenants/[^/]+/projects/(?P<name>[^/]+)/project",
    "Entitlement": r"tenants/[^/]+/projects/[^/]+/entitlements/(?P<name>[^/]+)",
    "Allocation": r"tenants/[^/]+/projects/[^/]+/allocations/(?P<name>[^/]+)",
    "Artifact": r"tenants/[^/]+/projects/[^/]+/artifacts/[^/]+/[^/]+/(?P<name>[^/]+)",
    "AppInstance": r"tenants/[^/]+/projects/[^/]+/instances/(?P<name>[^/]+)",
}

Tree = Mapping[str, Entry]


@cache
def _base() -> Mapping[str, bytes]:
    return repo.files()


@cache
def _schema(kind: str) -> Any:
    text = (SCHEMAS / f"{kind.lower()}.v1.schema.json").read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


@cache
def documents(content: bytes) -> tuple[dict[str, Any], ...] | None:
    """The manifests of a file as a YAML library reads them; None when it can't."""
    try:
        found = [one for one in yaml.load_all(content, yaml.CSafeLoader) if one is not None]
    except (yaml.YAMLError, ValueError):
        return None
    return tuple(found) if found and all(isinstance(one, dict) for one in found) else None


@cache
def well_formed(path: str, content: bytes) -> bool:
    """Whether a file is what should stand at its path."""
    found = documents(content)
    for kind, place in _PLACES.items():
        match = re.fullmatch(rf"{place}\.ya?ml", path)
        if match and found:
            name = match.groupdict().get("name")
            return all(
                one.get("kind") == kind
                and _schema(kind).is_valid(one)
                and (len(found) > 1 or name in (None, one["metadata"]["name"]))
                for one in found
            )
    return False


@dataclass
class Verdict:
    """A tree compared with the repo that runs."""

    tree: Tree
    agreed: set[str] = field(default_factory=set)
    """What an earlier commit removed and was right to; coming back unreadable changes nothing."""

    @cached_property
    def changed(self) -> dict[str, Entry]:
        """New or changed files."""
        return {p: e for p, e in self.tree.items() if p not in _base() or _base()[p] != e}

    @cached_property
    def deleted(self) -> frozenset[str]:
        return frozenset(_base()) - frozenset(self.tree)

    @cached_property
    def _instances(self) -> list[tuple[str, dict[str, Any]]]:
        """(path, document) of every readable AppInstance in new or changed files."""
        return [
            (path, one)
            for path, entry in self.changed.items()
            if isinstance(entry, bytes)
            for one in documents(entry) or ()
            if one.get("kind") == "AppInstance" and isinstance(one.get("metadata"), dict)
        ]

    def may_remove(self, one: repo.Placed) -> bool:
        if one.key in self.agreed:
            return True
        if not self._environment_stands():
            return False
        gone = self._decommissioned(one) or (self._cleanly_gone(one) and self._sound(one))
        if gone:
            self.agreed.add(one.key)
        return gone or self.leaves_node(one)

    def may_change(self, one: repo.Placed) -> bool:
        """Whether its manifest or one it depends on is not what it was; gone is no change."""
        touched = one.path not in self.tree or one.path in self.changed
        if touched and self._documents_of(one):
            return True
        needs = {
            f"environments/{repo.ENVIRONMENT}.yaml",
            f"platform/nodes/{one.node}.yaml",
            f"{one.folder}/allocations/{one.allocation}.yaml",
            f"{one.folder}/entitlements/{one.app}.yaml",
            f"{one.folder}/project.yaml",
            f"tenants/{one.tenant}/tenant.yaml",
            f"catalog/{one.app}/versions/{one.version}.yaml",
            f"catalog/{one.app}/promotions/{one.version}.yaml",
            f"catalog/{one.app}/app.yaml",
        }
        return bool(needs & (self.changed.keys() | self.deleted))

    def _environment_stands(self) -> bool:
        """In some form, however broken: then the last good one counts."""
        own = re.compile(rf"environments\b|[^/]+/{repo.ENVIRONMENT}\.ya?ml")
        return any(own.match(path) for path in self.tree)

    def _documents_of(self, one: repo.Placed) -> list[dict[str, Any]]:
        """What new or changed files in its own folder say of it."""
        folder = re.compile(rf"{re.escape(one.folder)}/instances/[^/]+\.ya?ml")
        return [
            doc
            for path, doc in self._instances
            if folder.fullmatch(path) and doc["metadata"].get("name") == one.name
        ]

    def _decommissioned(self, one: repo.Placed) -> bool:
        """Somebody wrote that word, be it under its new name or in a file that strayed."""
        return any(
            _at(doc, "spec", "desired") == "decommissioned"
            and one.name in (_at(doc, "metadata", "name"), _at(doc, "spec", "moved_from"))
            and not path.startswith(_folders_of_twins(one))
            for path, doc in self._instances
        )

    def leaves_node(self, one: repo.Placed) -> bool:
        """Its allocation, or the one it names now, is on another node."""
        leases = {one.allocation}
        for doc in self._documents_of(one):
            leases.add(str(_at(doc, "spec", "placement_intent", "allocation")))
        paths = [
            f"{one.folder}/allocations/{lease}.{end}" for lease in leases for end in ("yaml", "yml")
        ]
        nodes = {
            str(_at(doc, "spec", "node"))
            for path in paths
            if isinstance(entry := self.tree.get(path), bytes)
            for doc in documents(entry) or ()
        }
        return bool(nodes - {one.node})

    def _cleanly_gone(self, one: repo.Placed) -> bool:
        """Its document is nowhere, and nothing looks as if it had been meant to be it."""
        if one.path in self.tree and one.path not in self.changed:
            return False
        named = re.compile(rf"""^\s*name:\s*["']?{re.escape(one.name)}["']?\s*$""".encode(), re.M)
        stem = one.path.rpartition("/")[2].partition(".")[0]
        others = _folders_of_twins(one)
        for path, entry in self.changed.items():
            content = entry if isinstance(entry, bytes) else b""
            if path.startswith(others):
                continue
            if named.search(content) and b"AppInstance" in content:
                return False
            if path.rpartition("/")[2].partition(".")[0] == stem and path != one.path:
                return False
        own = (doc for path, doc in self._instances if path.startswith(f"{one.folder}/"))
        if any(_at(doc, "spec", "moved_from") == one.name for doc in own):
            return False
        return not self._renamed(one)

    def _renamed(self, one: repo.Placed) -> bool:
        """A new one in its project says the very same under another name."""
        before = next(
            d for d in documents(_base()[one.path]) or () if d["metadata"]["name"] == one.name
        )
        known = {other.name for other in placed() if other.folder == one.folder}
        return any(
            path.startswith(f"{one.folder}/")
            and doc.get("spec") == before["spec"]
            and str(doc["metadata"].get("name")) not in known
            for path, doc in self._instances
        )

    def _sound(self, one: repo.Placed) -> bool:
        return all(
            isinstance(entry, bytes) and well_formed(path, entry)
            for path, entry in self.changed.items()
            if self._in_scope(path, one)
        )

    def _in_scope(self, path: str, one: repo.Placed) -> bool:
        """Its project's files, and its tenant's own, as far as they are manifests."""
        looks_read = bool(re.search(r"\.ya?ml$", path, re.I)) or not isinstance(
            self.tree[path], bytes
        )
        tenant = f"tenants/{one.tenant}"
        of_tenant = (path + "/").startswith(f"{tenant}/") and "/projects/" not in path
        return looks_read and ((path + "/").startswith(f"{one.folder}/") or of_tenant)


def _at(document: object, *keys: str) -> object:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


@cache
def placed() -> tuple[repo.Placed, ...]:
    return tuple(repo.placed())


@cache
def _folders_of_twins(one: repo.Placed) -> tuple[str, ...]:
    """Of projects that have instances, or room for one, of the same name."""
    twins = (o.folder for o in placed() if o.project == one.project and o.folder != one.folder)
    return tuple(f"{folder}/instances/" for folder in twins)


def note_agreed(tree: Tree, agreed: set[str]) -> set[str]:
    """Brings `agreed` up to this commit; returns all that may be removed from where it is."""
    agreed.difference_update(one.key for one in placed() if tree.get(one.path) == _base()[one.path])
    verdict = Verdict(tree, agreed)
    return {one.key for one in placed() if verdict.may_remove(one)}


def leaving(tree: Tree) -> set[str]:
    """Instances that this commit places on another node."""
    verdict = Verdict(tree)
    return {one.key for one in placed() if verdict.leaves_node(one)}


def removals_nobody_meant(
    plan: Plan, tree: Tree, agreed: set[str], begun: Collection[str] = ()
) -> Iterator[str]:
    """What an operator would object to, in words. `agreed` is remembered from commit to commit,
    `begun` are teardowns that were under way before and have to be gone through with.
    """
    allowed = note_agreed(tree, agreed) | set(begun)
    known = {one.key for one in placed()}
    removals = [action for action in plan.ready if isinstance(action, Remove)]
    if len(removals) > REMOVALS_MAX:
        yield f"{len(removals)} removals at once"
    for action in removals:
        if action.instance in known - allowed:
            yield f"removes {action.instance}: {action.reason}"


def changes_nobody_meant(plan: Plan, tree: Tree) -> Iterator[str]:
    """The same for what else is done to a fleet of which all runs as the repo says."""
    verdict = Verdict(tree)
    known = {one.key: one for one in placed()}
    for action in plan.ready:
        one = known.get(action.instance)
        if one is None or isinstance(action, Remove):
            continue
        if not verdict.may_change(one):
            yield f"{action.kind} of {one.key}, which nobody touched: {action.reason}"
        elif action.kind == "launch":
            yield f"launches {one.key}, which runs: {action.reason}"
