"""Why an object is as it is: each field that matters, what decided it, and whose commit that was.

Rules: pure, but for the commits it asks. The value comes from what is accepted, not from the newest
file; what the node reports stands beside it. What nobody could look at is said to be unknown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from node_agent.wire import WorkloadReport
from reconciler.core.accept import AcceptedState
from reconciler.core.changes import ABSENT, dotted, field_changes, value_at
from reconciler.core.checks.references import REFERENCES
from reconciler.core.desired import Instance, StateObject, Target
from reconciler.core.history import Commit
from reconciler.core.names import ObjectRef, Revision, instance_key, nearest
from reconciler.core.observed import Seen, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import InstanceRecord
from reconciler.core.world import Entry
from reconciler.errors import Refused
from reconciler.use_cases.history import Commits, blame
from reconciler.views.changes import (
    VALUE_COLUMNS_MAX,
    value_text,
)

NO_STATE = Unknown("no_state", "no control plane state here")
_DEFAULT = "built-in default"
UNKNOWN = "unknown: "
"""What `Row.observed` begins with where nobody could look; the reason follows."""


@dataclass(frozen=True)
class Deciding:
    """The field that decided a value; `ref` None: nothing that was written did."""

    cause: str
    ref: ObjectRef | None = None
    pointer: str = ""


@dataclass(frozen=True)
class Row:
    """One field. `observed` None: nothing reports it; `differs` when it is not as desired."""

    field: str
    desired: str
    observed: str | None
    deciding: Deciding
    differs: bool = False
    commit: Commit | None = None


@dataclass(frozen=True)
class Live:
    """What a control plane knows of one instance. `says` is what its plan says of it."""

    record: InstanceRecord | None = None
    report: Seen[WorkloadReport | None] = NO_STATE
    says: tuple[str, ...] = ()
    why: str = ""
    """The plan's word in short, a code where there is one, on what is not as desired."""


@dataclass(frozen=True)
class Explanation:
    """`accepted` is the revision whose form counts, `newest` whether that is the head's form."""

    ref: ObjectRef
    head: Revision
    path: str
    line: int
    accepted: Revision | None
    newest: bool
    problems: tuple[Problem, ...]
    says: tuple[str, ...]
    rows: tuple[Row, ...]
    dependents: tuple[ObjectRef, ...] = ()
    instances: tuple[ObjectRef, ...] = ()
    """Every instance that depends on it, by way of others too."""


@dataclass(frozen=True)
class Subject:
    """What an explanation draws on: the forms that count, and the state they resolve to."""

    objects: Mapping[ObjectRef, StateObject]
    state: AcceptedState
    target: Target | None = None
    live: Live = field(default_factory=Live)
    alone: bool = False
    """The state repo was read without a control plane that could have accepted anything."""

    def value(self, ref: ObjectRef | None, pointer: str) -> object:
        found = self.objects.get(ref) if ref else None
        return value_at(found.document, pointer) if found else ABSENT


def explain(ref: ObjectRef, subject: Subject, commits: Commits, head: Revision) -> Explanation:
    """Everything about one object of the accepted state."""
    found = subject.objects.get(ref)
    stored = subject.state.accepted.objects.get(str(ref))
    newest = commits.form(ref, head)
    document = found.document if found else {}
    path = found.path if found else newest.path if newest else ""
    problems = tuple(
        # A file that can't be read names no object.
        problem
        for problem in subject.state.problems
        if (problem.object == str(ref) if problem.object else problem.path == path)
    )
    is_newest = newest is not None and newest.document is not None and found is not None
    is_newest = is_newest and not field_changes(document, newest.document if newest else None)
    is_instance = ref.kind == "AppInstance"
    rows = _instance_rows(ref, subject) if is_instance else _plain_rows(ref, document)
    users = _users(subject.objects)
    return Explanation(
        ref=ref,
        head=head,
        path=path,
        line=found.line if found else 0,
        accepted=stored.revision if stored and not subject.alone else None,
        newest=is_newest,
        problems=problems,
        says=subject.live.says,
        rows=_blamed(rows, subject, commits, head),
        dependents=tuple(sorted(users.get(ref, ()))),
        instances=_instances_above(ref, users),
    )


def chosen(found: Explanation, name: str, subject: Subject, commits: Commits) -> Explanation:
    """The same, of one field: a row by its name, or any field of the manifest by its path."""
    if any(row.field == name for row in found.rows):
        return replace(found, rows=tuple(row for row in found.rows if row.field == name))
    document = subject.objects[found.ref].document if found.ref in subject.objects else {}
    pointers = {dotted(pointer): pointer for pointer in _pointers(document, "")}
    pointer = name if name.startswith("/") else pointers.get(name, "")
    value = value_at(document, pointer) if pointer else ABSENT
    if value is ABSENT:
        known = [*(row.field for row in found.rows), *pointers]
        near = nearest(name, known)
        names = ", ".join(row.field for row in found.rows)
        hint = f"did you mean {near}?" if near else f"there are: {names}"
        raise Refused("no_such_field", f"{found.ref} has no field {name[:120]}", hint=hint)
    row = Row(
        dotted(pointer), value_text(value), None, Deciding("written here", found.ref, pointer)
    )
    return replace(found, rows=_blamed([row], subject, commits, found.head))


def _pointers(value: object, pointer: str) -> Iterator[str]:
    """Every field, mappings included; a list as a whole."""
    if pointer:
        yield pointer
    if isinstance(value, Mapping):
        for key, below in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _pointers(below, f"{pointer}/{name}")


# --- whose commit --------------------------------------------------------------------------------


def _blamed(
    rows: Iterable[Row], subject: Subject, commits: Commits, head: Revision
) -> tuple[Row, ...]:
    """Rows with the commit that last changed what decided them, in the form that counts."""
    rows = tuple(rows)
    wanted: dict[ObjectRef, set[str]] = defaultdict(set)
    for row in rows:
        if row.deciding.ref is not None:
            wanted[row.deciding.ref].add(row.deciding.pointer)
    known = {
        ref: blame(commits, ref, pointers, _start(ref, pointers, subject, commits, head))
        for ref, pointers in sorted(wanted.items())
    }
    return tuple(
        replace(row, commit=known[row.deciding.ref].get(row.deciding.pointer))
        if row.deciding.ref is not None
        else row
        for row in rows
    )


def _start(
    ref: ObjectRef, pointers: set[str], subject: Subject, commits: Commits, head: Revision
) -> Revision:
    """The head, or the revision in which the form that counts was accepted, if that is another."""
    stored = subject.state.accepted.objects.get(str(ref))
    newest = commits.form(ref, head)
    document = newest.document if newest else None
    same = document is not None and not any(
        field_changes(value_at(document, pointer), subject.value(ref, pointer))
        for pointer in pointers
    )
    if same or stored is None:
        return head
    try:
        return commits.resolve(stored.revision)
    except Refused:
        # A force-push may have taken that revision away.
        return head


# --- who depends on it ---------------------------------------------------------------------------

Users = Mapping[ObjectRef, frozenset[ObjectRef]]


def _users(objects: Mapping[ObjectRef, StateObject]) -> Users:
    """Object → the objects that name it."""
    users: dict[ObjectRef, set[ObjectRef]] = defaultdict(set)
    for ref, found in objects.items():
        entry = Entry(found, found.manifest.spec)
        for reference in REFERENCES.get(ref.kind, ()):
            users[ObjectRef(reference.kind, tuple(reference.path(entry)))].add(ref)
    return {ref: frozenset(those) for ref, those in users.items()}


def _instances_above(ref: ObjectRef, users: Users) -> tuple[ObjectRef, ...]:
    seen, left = {ref}, [ref]
    while left:
        more = users.get(left.pop(), frozenset()) - seen
        seen |= more
        left += more
    return tuple(sorted(one for one in seen - {ref} if one.kind == "AppInstance"))


# --- fields --------------------------------------------------------------------------------------


def _plain_rows(ref: ObjectRef, document: Mapping[str, object]) -> Iterator[Row]:
    """One a field of the spec, for kinds that decide nothing by themselves."""
    spec = document.get("spec")
    for key, value in (spec if isinstance(spec, Mapping) else {}).items():
        pointer = f"/spec/{key}"
        yield Row(dotted(pointer), value_text(value), None, Deciding("written here", ref, pointer))


def _instance_rows(ref: ObjectRef, subject: Subject) -> tuple[Row, ...]:
    instance = subject.state.instances.get(instance_key(ref))
    document = subject.objects[ref].document if ref in subject.objects else {}
    if instance is None:
        return tuple(_plain_rows(ref, document))
    return tuple(_Fields(ref, instance, subject).rows())


Options = Sequence[tuple[ObjectRef, str]]


class _Fields:
    """The rows of one instance: what it comes to, what is seen, and where each value is from."""

    def __init__(self, ref: ObjectRef, instance: Instance, subject: Subject) -> None:
        self._ref = ref
        self._instance = instance
        self._subject = subject
        self._live = subject.live
        lease = subject.value(ref, "/spec/placement_intent/allocation")
        project, at = ref.path[:2], (instance.app, instance.version)
        self._lease = ObjectRef("Allocation", (*project, str(lease)))
        self._version = ObjectRef("AppVersion", at)
        self._promotion = ObjectRef("Promotion", at)
        self._entitlement = ObjectRef("Entitlement", (*project, instance.app))
        self._project = ObjectRef("Project", project)
        self._node = ObjectRef("Node", (instance.node,))

    def rows(self) -> Iterator[Row]:
        one, limits = self._instance, self._limits
        image = f"{one.artifact.repository}@{one.artifact.digest}"
        yield self._row("version", one.version, self._applied(), [(self._ref, "/spec/version")])
        yield self._row("image", value_text(image), self._image(), self._image_options())
        yield self._row("node", one.node, self._seen_node(), [(self._lease, "/spec/node")])
        gpus = " ".join(one.gpu_uuids) or "none"
        yield self._row("gpus", gpus, self._seen_gpus(), self._asked("gpu_count", _GPUS))
        yield self._row("cpu", limits[0], self._as_told(limits[0]), self._asked("cpu_cores", _CPU))
        memory = self._asked("memory_gib", _MEMORY)
        yield self._row("memory", limits[1], self._as_told(limits[1]), memory)
        yield self._row("ports", self._ports(), self._endpoints(), self._port_options())
        yield self._row("run", one.run, self._phase(), [(self._ref, "/spec/desired")])
        yield from self._policy()
        health = [(self._version, "/spec/runtime_profile/health")]
        yield self._row("health", _health(one.readiness), self._ready(), health)
        state = self._subject.value(self._promotion, "/spec/state")
        promotion = [(self._promotion, "/spec/state")]
        yield self._row("promotion", value_text(state), None, promotion)
        yield from self._more()

    def _row(self, name: str, desired: str, observed: str | None, options: Options) -> Row:
        differs = observed is not None and not _agrees(name, desired, observed)
        differs = differs and not observed.startswith(UNKNOWN) if observed else False
        deciding = self._deciding(options)
        if differs and self._live.why:
            deciding = replace(deciding, cause=f"{deciding.cause}; {self._live.why}")
        return Row(name, desired, observed, deciding, differs)

    def _deciding(self, options: Options) -> Deciding:
        """The first of the fields that could decide it which is written somewhere."""
        for ref, pointer in options:
            if self._subject.value(ref, pointer) not in (ABSENT, 0):
                where = "" if ref == self._ref else f"{ref} "
                return Deciding(f"{where}{dotted(pointer)}", ref, pointer)
        return Deciding(_DEFAULT)

    # Where values come from.

    def _image_options(self) -> Options:
        family = str(self._subject.value(self._node, "/spec/accelerator_family"))
        profile = "/spec/runtime_profile"
        names = (f"{profile}/variants/{family}", f"{profile}/image_ref", "/spec/artifact_ref")
        return [(self._version, pointer) for pointer in names]

    def _asked(self, parameter: str, least: tuple[str, str]) -> Options:
        """As `core.checks.capacity.demand_of` goes about it."""
        own, minimum, leased = f"/spec/parameters/{parameter}", *least
        default = f"/spec/launch_parameters/properties/{parameter}/default"
        options = [(self._ref, own), (self._version, default), (self._version, minimum)]
        return [*options, *([(self._lease, leased)] if leased else [])]

    def _port_options(self) -> Options:
        ports = (self._version, "/spec/runtime_profile/ports")
        return [(self._ref, "/spec/parameters/host_port"), ports]

    def _policy(self) -> Iterator[Row]:
        policy = self._instance.policy
        environment = self._environment
        for name, value in (
            ("operating_mode", policy.operating_mode),
            ("control_plane_scope", policy.control_plane_scope),
        ):
            hint = (self._ref, f"/spec/requested/{name}")
            rule = (self._entitlement, f"/spec/policy_overrides/allowed_{name}s")
            default = (environment, f"/spec/defaults/{name}")
            heard = self._subject.value(*hint) == value
            yield self._row(name, value, None, [*([hint] if heard else []), rule, default])
        boundary = [(environment, "/spec/defaults/tenant_boundary_mode")]
        if policy.operating_mode == "tenant_shared":
            boundary = [(self._ref, "/spec/requested/operating_mode"), *boundary]
        yield self._row("tenant_boundary_mode", policy.tenant_boundary_mode, None, boundary)

    @property
    def _environment(self) -> ObjectRef:
        """The one it was resolved for: its spec is that of the state."""
        spec = self._subject.state.environment
        names = (
            ref
            for ref, one in sorted(self._subject.objects.items())
            if ref.kind == "Environment" and one.manifest.spec == spec
        )
        return next(names, ObjectRef("Environment", ("",)))

    def _more(self) -> Iterator[Row]:
        one = self._instance
        if one.depends_on:
            names = " ".join(one.depends_on)
            yield self._row("depends_on", names, None, [(self._ref, "/spec/depends_on")])
        if one.suspend is not None:
            options = [(self._ref, "/spec/suspend"), (self._project, "/spec/suspend")]
            text = f"by {one.suspend.by}: {one.suspend.reason}"
            yield self._row("suspend", value_text(text), None, options)

    # What is seen.

    @property
    def _report(self) -> WorkloadReport | None:
        return None if isinstance(self._live.report, Unknown) else self._live.report.value

    def _unseen(self) -> str | None:
        """Why nothing can be said of what runs; None when its node reported something."""
        seen = self._live.report
        if isinstance(seen, Unknown):
            return f"{UNKNOWN}{seen.reason}"
        return None if seen.value else "nothing there"

    def _applied(self) -> str:
        record = self._live.record
        if record is None:
            return self._unseen() or "nothing there"
        return record.applied_version or "none yet"

    def _image(self) -> str:
        report = self._report
        unseen = self._unseen()
        if unseen or report is None:
            return unseen or ""
        digest = report.image_digest or "nothing pulled yet"
        return value_text(f"{self._instance.artifact.repository}@{digest}")

    def _seen_node(self) -> str:
        record = self._live.record
        return self._unseen() or (record.node if record is not None else self._instance.node)

    def _seen_gpus(self) -> str:
        record = self._live.record
        if record is None:
            return self._unseen() or ""
        return " ".join(record.gpu_uuids) or "none"

    def _as_told(self, desired: str) -> str:
        """Limits are no part of a report: what runs has them when it is the workload wanted."""
        unseen, report, target = self._unseen(), self._report, self._subject.target
        if unseen or report is None or target is None:
            return unseen or ""
        if report.running_hash == target.workload.spec_hash:
            return desired
        return "of an earlier form" if report.running_hash else "does not run"

    def _ports(self) -> str:
        ports = self._instance.ports
        shown = (f"{name} {inside} at {outside or 'any'}" for name, inside, outside in ports)
        return ", ".join(shown) or "none"

    def _endpoints(self) -> str:
        unseen, report = self._unseen(), self._report
        if unseen or report is None:
            return unseen or ""
        found = (f"{e.name} at {e.host_ip}:{e.host_port}" for e in report.endpoints)
        return ", ".join(found) or "none"

    def _phase(self) -> str:
        report = self._report
        return self._unseen() or (report.phase.value if report else "")

    def _ready(self) -> str:
        unseen, report = self._unseen(), self._report
        if unseen or report is None:
            return unseen or ""
        reason = f", {report.reason.value}: {report.message}" if report.reason else ""
        restarts = f", {report.restarts} restart(s)" if report.restarts else ""
        return f"{report.phase.value}{reason}{restarts}"

    @property
    def _limits(self) -> tuple[str, str]:
        one = self._instance
        cpu = f"{one.cpu_millis / 1000:g} cores" if one.cpu_millis else "not limited"
        return cpu, f"{one.memory_mib} MiB" if one.memory_mib else "not limited"


_GPUS = ("/spec/compatibility/min_gpu_count", "")
_CPU = ("/spec/runtime_profile/resources/min_vcpu", "/spec/cpu_cores")
_MEMORY = ("/spec/runtime_profile/resources/min_memory_mib", "/spec/memory_mib")


def _agrees(name: str, desired: str, observed: str) -> bool:
    if name == "run":
        return {"running": "ready", "stopped": "stopped"}.get(desired, "removed") == observed
    if name == "ports":
        return (desired == "none") == (observed == "none")
    if name == "health":
        return observed.startswith(("ready", "stopped"))
    return desired == observed


def _health(readiness: Mapping[str, object]) -> str:
    probe = readiness.get("readiness")
    if not isinstance(probe, Mapping):
        return "once it runs"
    kind, how = next((kind, how) for kind, how in probe.items() if how is not None)
    text = json.dumps(how) if not isinstance(how, Mapping) else _words(how)
    budget_s = readiness.get("start_budget_s")
    shown = f"{budget_s:g}" if isinstance(budget_s, int | float) else budget_s
    return value_text(f"{kind} {text} within {shown} s", VALUE_COLUMNS_MAX * 2)


def _words(how: Mapping[str, object]) -> str:
    port, path, command = how.get("port"), how.get("path", ""), how.get("command")
    if isinstance(command, list | tuple):
        return " ".join(map(str, command))
    return f":{port}{path}"
