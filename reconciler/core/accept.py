"""Which form of each object counts now: the newest one, or the last one that was accepted.

Rules:
- Acceptance is per object. One with a problem keeps its last accepted form, and so does what
  depends on it; a new one is not accepted. The rest of the revision goes ahead.
- An object in a file that can't be read is neither changed nor deleted, and nothing is removed in
  the scope (project, tenant, app) of a document that is invalid.
- An instance whose last accepted form doesn't resolve either is held: neither launched, nor
  changed, nor removed.
- A revision without one manifest, or without the Environment, changes nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from node_agent.wire import Workload
from reconciler.core.desired import Candidate, Desired, Guards, Instance, StateObject, Target
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import InstanceKey, ObjectRef, Revision, instance_key
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.core.resolve import Holding, Resolution, resolve
from reconciler.core.validate import invalid_objects

ParseAccepted = Callable[[AcceptedObject], StateObject | Problem]
ROUNDS_MAX = 8
"""Rounds of putting back single objects; from then on a project goes back as a whole, so that a
long chain of changes that wait for each other can't stall a pass."""
_COMPETING = ("AppInstance", "Allocation")
_UNREADABLE = "stored_form_unreadable"


@runtime_checkable
class CannotRender(Protocol):
    """A renderer's refusal, as a value."""

    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


Render = Callable[[Instance], Workload | CannotRender]


@dataclass(frozen=True)
class AcceptedState:
    """What counts now. `accepted` is to be stored; `held` says why an instance is left as it is."""

    revision: Revision
    accepted: Accepted
    instances: Mapping[InstanceKey, Instance]
    held: Mapping[InstanceKey, str]
    problems: tuple[Problem, ...]
    nodes: frozenset[str]
    guards: Guards
    environment: EnvironmentSpec | None


def parse_accepted(stored: AcceptedObject) -> StateObject | Problem:
    """A stored document as the object it was; a Problem when the models no longer take it."""
    try:
        ref = ObjectRef.parse(stored.ref)
        document = json.loads(stored.document_json)
        manifest = KINDS[ref.kind].model.model_validate(document)
    except (ValueError, KeyError, ValidationError) as error:
        what = f"the last accepted form can't be read any more ({type(error).__name__})"
        hint = "mend the object in the repo: its newest valid form replaces the stored one"
        return Problem(stored.path, stored.line, 1, _UNREADABLE, what, "", hint, stored.ref)
    return StateObject(ref, stored.path, stored.line, manifest, document)


def to_stored(found: StateObject, revision: Revision) -> AcceptedObject:
    return AcceptedObject(str(found.ref), found.path, found.line, _json(found), revision)


def _json(found: StateObject) -> str:
    return json.dumps(found.document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass
class _Forms:
    """The forms chosen so far. Objects in `settled` are in their last accepted form, or dropped."""

    last: Mapping[ObjectRef, AcceptedObject]
    parse: ParseAccepted
    chosen: dict[ObjectRef, StateObject] = field(default_factory=dict)
    settled: dict[ObjectRef, str] = field(default_factory=dict)
    unreadable: dict[ObjectRef, Problem] = field(default_factory=dict)

    def put_back(self, ref: ObjectRef, why: str) -> None:
        """Back to the last accepted form; out when there is none."""
        self.settled[ref] = why
        self.chosen.pop(ref, None)
        if ref not in self.last:
            return
        parsed = self.parse(self.last[ref])
        if isinstance(parsed, Problem):
            self.unreadable[ref] = parsed
        else:
            self.chosen[ref] = parsed

    def changed(self, ref: ObjectRef) -> bool:
        """Whether the form chosen now is a new one, so that it can be put back."""
        if ref in self.settled or ref not in self.chosen:
            return False
        stored = self.last.get(ref)
        return stored is None or stored.document_json != _json(self.chosen[ref])

    @property
    def dropped(self) -> frozenset[ObjectRef]:
        """In the repo, but without any accepted form."""
        return frozenset(ref for ref in self.settled if ref not in self.chosen)


def accept(
    candidate: Candidate,
    last: Accepted,
    parse_accepted: ParseAccepted,
    environment: str,
    holding: Holding | None = None,
) -> AcceptedState:
    """Merges a revision into what was accepted before, object by object, and resolves the result.

    `holding` are the GPUs of each instance by its record: pass it, or adding an instance may move
    the GPUs of another in the same allocation. Problems are all those of the revision, sorted.
    """
    forms = _Forms(
        {ObjectRef.parse(ref): stored for ref, stored in last.objects.items()}, parse_accepted
    )
    problems = {*candidate.problems, *_first_choice(candidate, forms)}
    resolution = _settle(forms, environment, candidate.revision, holding or {}, problems)
    problems |= {*forms.unreadable.values()}
    if resolution.environment is None:
        return _nothing_changes(candidate, last, forms, resolution, problems)
    return AcceptedState(
        revision=candidate.revision,
        accepted=_accepted(forms, candidate.revision),
        instances=resolution.instances,
        held=_held(forms, resolution),
        problems=tuple(sorted(problems)),
        nodes=resolution.nodes,
        guards=resolution.guards,
        environment=resolution.environment,
    )


def to_desired(state: AcceptedState, render: Render) -> Desired:
    """The state with a workload for each instance; one that can't be rendered is held."""
    targets: dict[InstanceKey, Target] = {}
    held = dict(state.held)
    for key, instance in sorted(state.instances.items()):
        rendered = render(instance)
        if isinstance(rendered, Workload):
            targets[key] = Target(instance, rendered)
        else:
            held[key] = f"{rendered.code}: {rendered.message}"
    return Desired(state.revision, targets, state.nodes, state.guards, dict(sorted(held.items())))


# --- the first choice: what the files alone decide -----------------------------------------------


def _first_choice(candidate: Candidate, forms: _Forms) -> Iterator[Problem]:
    """Takes what is well-formed, and keeps what the revision can't be believed to have deleted."""
    invalid = invalid_objects(candidate)
    for ref, found in candidate.objects.items():
        if ref not in invalid:
            forms.chosen[ref] = found
    for ref, why in sorted(invalid.items()):
        forms.put_back(ref, why)
    empty = not candidate.objects and bool(forms.last)
    if empty:
        yield _empty_revision(len(forms.last))
    frozen = {_scope(path) for path in (*candidate.broken_paths, *_paths(candidate, invalid))}
    for ref, stored in sorted(forms.last.items()):
        if ref in forms.chosen or ref in forms.settled:
            continue
        above = {*_folders(stored.path)}
        if empty:
            forms.put_back(ref, "the revision holds no manifest")
        elif stored.path in candidate.broken_paths or above & candidate.broken_paths:
            forms.put_back(ref, f"{stored.path} can't be read")
        elif above & frozen:
            forms.put_back(ref, f"{max(above & frozen, key=len)} is in quarantine")
            yield _suspended(stored, max(above & frozen, key=len))


def _paths(candidate: Candidate, invalid: Mapping[ObjectRef, str]) -> Iterator[str]:
    names = {str(ref) for ref in invalid}
    return (problem.path for problem in candidate.problems if problem.object in names)


def _folders(path: str) -> Iterator[str]:
    """Every folder above a file, the root ("") included."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _scope(path: str) -> str:
    """The folder of the project, tenant, app or kind that a file belongs to."""
    parts = path.split("/")
    if parts[0] == "tenants" and len(parts) > 4 and parts[2] == "projects":
        return "/".join(parts[:4])
    if parts[0] in ("tenants", "catalog") and len(parts) > 2:
        return "/".join(parts[:2])
    return path.rpartition("/")[0]


def _suspended(stored: AcceptedObject, scope: str) -> Problem:
    message = f"{stored.ref} is not removed while a document in {scope} is invalid"
    hint = "mend what is invalid there; the removal follows by itself"
    return Problem(stored.path, 0, 0, "removal_suspended", message, "", hint, stored.ref)


def _empty_revision(count: int) -> Problem:
    message = f"the revision holds no readable manifest, {count} were accepted before; all are kept"
    hint = "restore the files; to remove everything, decommission the instances first"
    return Problem(".", 0, 0, "empty_revision", message, "", hint)


# --- the rest: what the objects say of each other ------------------------------------------------


def _settle(
    forms: _Forms,
    environment: str,
    revision: Revision,
    holding: Holding,
    problems: set[Problem],
) -> Resolution:
    """Puts back what has a problem until the rest resolves. Every round puts back one at least."""
    for number in itertools.count():
        found = resolve(
            forms.chosen, environment, revision, quarantined=forms.dropped, holding=holding
        )
        problems |= {*found.problems}
        if found.environment is None:
            return found
        blocked = {_instance_ref(key): why for key, why in found.blocked.items()}
        reasons = {**blocked, **found.blamed}
        back = {ref: why for ref, why in sorted(reasons.items()) if forms.changed(ref)}
        if not back:
            break
        if number >= ROUNDS_MAX:
            back = _widened(forms, back)
        named = {problem.object for problem in found.problems}
        for ref, why in back.items():
            if str(ref) not in named:
                problems.add(_waits(forms.chosen[ref], why))
            forms.put_back(ref, why)
    return found


def _widened(forms: _Forms, back: Mapping[ObjectRef, str]) -> dict[ObjectRef, str]:
    """All that changed in the projects whose instances and allocations go back."""
    owners = {r.path[:2] for r in back if r.kind in _COMPETING}
    more = [r for r in forms.chosen if r.kind in _COMPETING and r.path[:2] in owners]
    why = "too many changes in its project wait for one that has a problem"
    return dict(sorted(({r: why for r in more if forms.changed(r)} | {**back}).items()))


def _instance_ref(key: InstanceKey) -> ObjectRef:
    return ObjectRef("AppInstance", tuple(key.split("/")))


def _waits(found: StateObject, why: str) -> Problem:
    message = f"not accepted: {why}"
    return Problem(found.path, found.line, 1, "not_accepted", message, object=str(found.ref))


def _held(forms: _Forms, resolution: Resolution) -> dict[InstanceKey, str]:
    held = {key: why for key, why in resolution.blocked.items() if _instance_ref(key) in forms.last}
    for ref, problem in forms.unreadable.items():
        if ref.kind == "AppInstance":
            held[instance_key(ref)] = f"{problem.code}: {problem.message}"
    return dict(sorted(held.items()))


def _accepted(forms: _Forms, revision: Revision) -> Accepted:
    """The forms to store. One that didn't change keeps the revision it was accepted in."""
    objects: dict[str, AcceptedObject] = {}
    for ref, found in sorted(forms.chosen.items()):
        stored = forms.last.get(ref)
        if stored is None or (ref not in forms.settled and forms.changed(ref)):
            objects[str(ref)] = to_stored(found, revision)
        elif ref in forms.settled or (stored.path, stored.line) == (found.path, found.line):
            objects[str(ref)] = stored
        else:
            objects[str(ref)] = replace(stored, path=found.path, line=found.line)
    for ref in forms.unreadable:
        objects[str(ref)] = forms.last[ref]
    return Accepted(revision, objects)


def _nothing_changes(
    candidate: Candidate,
    last: Accepted,
    forms: _Forms,
    resolution: Resolution,
    problems: set[Problem],
) -> AcceptedState:
    """Without the Environment no instance resolves: all are held, and nothing is accepted."""
    why = next(f"{p.code}: {p.message}" for p in resolution.problems)
    known = {*forms.last, *candidate.objects}
    keys = sorted(instance_key(ref) for ref in known if ref.kind == "AppInstance")
    return AcceptedState(
        revision=candidate.revision,
        accepted=last,
        instances={},
        held=dict.fromkeys(keys, why),
        problems=tuple(sorted(problems)),
        nodes=resolution.nodes | {ref.name for ref in forms.last if ref.kind == "Node"},
        guards=Guards(),
        environment=None,
    )
