"""Commits made up in memory: a repository as a graph, and what a CommitLog would say of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.authority.facts import (
    ChainStep,
    CommitFacts,
    FileForm,
    SideCommit,
    Signature,
    TouchedFile,
    Walked,
)
from reconciler.core.authority.public_key import ssh_public_key
from reconciler.core.authority.walk import Start, WalkLimits, under_authority, walk
from reconciler.core.desired import Candidate
from reconciler.core.forms import canonical_json, to_stored
from reconciler.core.names import Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.records import Accepted
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.validate import invalid_objects, validate
from tests.core.authority.trust_builders import (
    AT_MS,
    DEPLOYER,
    Document,
    account,
    binding,
    identity,
    manifest,
    ssh,
    stand_in,
)

Tree = Mapping[str, str]
SCHEMAS = SchemaSet.build(load_schemas())
LIMITS = WalkLimits(ParseLimits(), ahead_max_ms=3_600_000)
NOW_MS = AT_MS + 90 * 86_400_000
MINUTE_MS = 60_000
NOWHERE = Revision("")
OPERATOR = ssh("operator")["public_key"]
LAB = "tenants/acme/projects/lab"


def key_of(name: str) -> str:
    """The fingerprint of the key that `ssh(name)` is."""
    found = ssh_public_key(ssh(name)["public_key"])
    assert found is not None
    return found.key_id


def yaml(*documents: Document) -> str:
    return "\n---\n".join(json.dumps(document, indent=1) for document in documents)


def iam(name: str) -> str:
    return f"platform/iam/{name}.yaml"


def instance_file(name: str, folder: str = LAB) -> str:
    return f"{folder}/instances/{name}.yaml"


def instance(name: str = "one", **spec: object) -> Document:
    known = {"app": "hello", "version": "1.0.0", "placement_intent": {"allocation": "lease"}}
    return manifest("AppInstance", name, {**known, **spec})


def node(name: str = "gpu-1", **spec: object) -> Document:
    known = {
        "pool": "main",
        "capacity_shape": "baremetal",
        "accelerator_family": "cpu",
        "cpu_cores": 4,
        "memory_mib": 1024,
        "engines": ["docker"],
    }
    return manifest("Node", name, {**known, **spec})


PEOPLE: Mapping[str, str] = {
    iam("people"): yaml(
        identity("ada", emails=["ada@acme.example"])[1],
        identity("nils", emails=["nils@acme.example"])[1],
        identity("zoe", emails=["zoe@acme.example"])[1],
        identity("forge", "forge", vouches_for_author=True)[1],
        stand_in("bot", DEPLOYER)[1],
    ),
    iam("roles"): yaml(
        binding("admins", "platform-admin", "", "ada")[1],
        binding("lab", "project-admin", "acme/lab", "nils")[1],
    ),
    f"{LAB}/service-accounts/deployer.yaml": yaml(account()[1]),
    instance_file("one"): yaml(instance()),
    "platform/nodes/gpu-1.yaml": yaml(node()),
}
"""ada may do everything, nils runs acme/lab, bot is its machine, zoe may do nothing."""


@dataclass(frozen=True)
class Made:
    facts: CommitFacts
    tree: Tree
    signature: Signature


@dataclass
class Repo:
    """Each commit goes on `head` unless told otherwise; dates rise by a minute."""

    commits: dict[Revision, Made] = field(default_factory=dict)
    head: Revision = NOWHERE
    at_ms: int = AT_MS

    def commit(
        self,
        changed: Mapping[str, str | None],
        by: str = "ada",
        message: str = "a change",
        *,
        onto: Iterable[Revision] | None = None,
        at_ms: int | None = None,
        author: str = "",
        signature: Signature | None = None,
    ) -> Revision:
        """`changed` is put on the tree of the first of `onto`; None takes a file away."""
        self.at_ms += MINUTE_MS
        parents = tuple(onto) if onto is not None else (self.head,) if self.head else ()
        tree = dict(self.commits[parents[0]].tree) if parents else {}
        for path, text in changed.items():
            tree.pop(path, None)
            if text is not None:
                tree[path] = text
        revision = Revision(hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest())
        at = self.at_ms if at_ms is None else at_ms
        facts = CommitFacts(revision, parents, by, author or f"{by}@acme.example", at, message)
        signed = signature or Signature("good", key_of(by))
        self.commits[revision] = Made(facts, tree, signed)
        self.head = revision
        return revision

    def merge(
        self,
        *tips: Revision,
        by: str = "ada",
        changed: Mapping[str, str | None] | None = None,
        message: str = "a merge",
        onto: Revision | None = None,
        author: str = "",
    ) -> Revision:
        """As Git would do without a conflict, and `changed` on top of that."""
        first = onto or self.head
        tree: dict[str, str | None] = dict(self.commits[first].tree)
        for tip in tips:
            base = self.commits[self._base(first, tip)].tree
            theirs = self.commits[tip].tree
            for path in {*base, *theirs}:
                if base.get(path) != theirs.get(path):
                    tree[path] = theirs.get(path)
        ours = self.commits[first].tree
        moved = {path: text for path, text in tree.items() if ours.get(path) != text}
        moved |= changed or {}
        return self.commit(moved, by, message, onto=(first, *tips), author=author)

    def chain(self, since: Revision | None, head: Revision | None = None) -> list[ChainStep]:
        line: list[Revision] = []
        at: Revision | None = head or self.head
        while at and at != since:
            line.insert(0, at)
            at = self._onto(at, since)
        return [self._step(revision, since) for revision in line]

    def signatures(self) -> dict[Revision, Signature]:
        return {revision: made.signature for revision, made in self.commits.items()}

    def snapshot(self, revision: Revision) -> Snapshot:
        tree = self.commits[revision].tree
        files = [SourceFile(path, _blob(text), text.encode()) for path, text in tree.items()]
        ordered = tuple(sorted(files, key=lambda file: file.path))
        return Snapshot(revision, ordered, "ada", "a change", 0)

    def _onto(self, revision: Revision, since: Revision | None) -> Revision | None:
        parents = self.commits[revision].facts.parents
        built_on = (one for one in parents if since is None or since in self._history(one))
        return next(built_on, None)

    def _step(self, revision: Revision, since: Revision | None) -> ChainStep:
        made, onto = self.commits[revision], self._onto(revision, since)
        here = self._history(onto) if onto else set()
        beside = [one for one in self.commits if one in self._history(revision) - here]
        side = tuple(
            SideCommit(self.commits[one].facts, self._touched(self._first(one), one))
            for one in beside
            if one != revision and onto
        )
        return ChainStep(made.facts, onto, self._touched(onto, revision), side)

    def _first(self, revision: Revision) -> Revision | None:
        return next(iter(self.commits[revision].facts.parents), None)

    def _history(self, revision: Revision) -> set[Revision]:
        found, left = set[Revision](), [revision]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += self.commits[one].facts.parents
        return found

    def _base(self, one: Revision, other: Revision) -> Revision:
        common = self._history(one) & self._history(other)
        return [revision for revision in self.commits if revision in common][-1]

    def _touched(self, before: Revision | None, after: Revision) -> tuple[TouchedFile, ...]:
        old = self.commits[before].tree if before else {}
        new = self.commits[after].tree
        return tuple(
            TouchedFile(path, _form(old.get(path)), _form(new.get(path)))
            for path in sorted({*old, *new})
            if old.get(path) != new.get(path)
        )


def _blob(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _form(text: str | None) -> FileForm | None:
    return FileForm(_blob(text), text.encode()) if text is not None else None


def known(changed: Mapping[str, str | None] | None = None) -> Repo:
    """A repository whose first commit, signed by the operator, says who everybody is."""
    repo = Repo()
    repo.commit({**PEOPLE, **(changed or {})}, by="operator")
    return repo


def walked(
    repo: Repo,
    last: Accepted | None = None,
    head: Revision | None = None,
    now_ms: int = NOW_MS,
) -> Walked:
    """From what was accepted last, or from the first commit on."""
    last = last or Accepted()
    steps = repo.chain(last.revision, head)
    start = Start(last.objects, last.refused, (OPERATOR,), last.at_ms)
    return walk(steps, repo.signatures(), start, now_ms, LIMITS, head or repo.head)


def seen(repo: Repo, found: Walked, last: Accepted | None = None) -> Candidate:
    """The head as it is to be accepted."""
    candidate = validate(repo.snapshot(found.head), SCHEMAS, ParseLimits())
    return under_authority(candidate, found, last or Accepted())


def accepted(repo: Repo, found: Walked, last: Accepted | None = None) -> Accepted:
    """What is stored of it, as far as objects do not depend on each other: what is well-formed, and
    the last form of what is not.
    """
    assert found.rejection is None
    last = last or Accepted()
    candidate = seen(repo, found, last)
    wrong = {str(ref) for ref in invalid_objects(candidate)}
    fresh = [to_stored(one, found.head) for one in candidate.objects.values()]
    objects = {one.ref: one for one in fresh if one.path not in candidate.broken_paths}
    for subject, stored in last.objects.items():
        unknown = subject in wrong or stored.path in candidate.broken_paths
        if subject not in objects and unknown:
            objects[subject] = stored
    return Accepted(found.head, dict(sorted(objects.items())), found.refused, found.at_ms)


def refusals(found: Walked) -> Iterator[tuple[str, str]]:
    """Subject and code of all that is refused."""
    assert found.rejection is None, found.rejection
    return ((one.subject, one.code) for one in found.refused.values())


def without_times(found: Walked) -> Walked:
    return replace(found, changes=(), commits=0)


# --- what many walks change ----------------------------------------------------------------------

ONE, ONE_FILE = "AppInstance/acme/lab/one", instance_file("one")
NODE, NODE_FILE = "Node/gpu-1", "platform/nodes/gpu-1.yaml"
STOPPED = yaml(instance(desired="stopped"))
CORES = yaml(node(cpu_cores=8))
GRANT = yaml(binding("zoe", "project-admin", "acme/lab", "zoe")[1])


def text(document: Document) -> str:
    return canonical_json(document)
