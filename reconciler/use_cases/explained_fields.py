"""The rows of an explained instance or member: what it comes to, what is seen, what decided it.

Rules: as in `use_cases.explain`. Of the fields that could decide a value, the first that is written
somewhere is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from node_agent.wire import WorkloadReport
from reconciler.core.accept import AcceptedState
from reconciler.core.changes import ABSENT, dotted, value_at
from reconciler.core.desired import Instance, StateObject, Target
from reconciler.core.history import Commit
from reconciler.core.names import ObjectRef, member_name
from reconciler.core.observed import Seen, Unknown
from reconciler.core.records import InstanceRecord
from reconciler.views.changes import VALUE_COLUMNS_MAX, value_text

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
class Subject:
    """What an explanation draws on: the forms that count, and the state they resolve to."""

    objects: Mapping[ObjectRef, StateObject]
    state: AcceptedState
    target: Target | None = None
    live: Live = field(default_factory=Live)
    alone: bool = False
    """The state repo was read without a control plane that could have accepted anything."""
    member: str = ""
    """The further member that is asked about; empty: the instance, which is the first."""

    def value(self, ref: ObjectRef | None, pointer: str) -> object:
        found = self.objects.get(ref) if ref else None
        return value_at(found.document, pointer) if found else ABSENT


Options = Sequence[tuple[ObjectRef, str]]


class Fields:
    """The rows of one instance: what it comes to, what is seen, and where each value is from."""

    def __init__(self, ref: ObjectRef, instance: Instance, subject: Subject) -> None:
        self._ref = ref
        self._instance = instance
        self._subject = subject
        self._live = subject.live
        self._own, self._profile = _places(ref, instance, subject)
        lease = subject.value(ref, self._placed)
        project, at = ref.path[:2], (instance.app, instance.version)
        self._lease = ObjectRef("Allocation", (*project, str(lease)))
        self._version = ObjectRef("AppVersion", at)
        self._promotion = ObjectRef("Promotion", at)
        self._entitlement = ObjectRef("Entitlement", (*project, instance.app))
        self._project = ObjectRef("Project", project)
        self._node = ObjectRef("Node", (instance.node,))

    @property
    def _placed(self) -> str:
        return f"{self._own}/allocation" if self._own else "/spec/placement_intent/allocation"

    def rows(self) -> Iterator[Row]:
        one, limits = self._instance, self._limits
        image = f"{one.artifact.repository}@{one.artifact.digest}"
        yield self._row("version", one.version, self._applied(), [(self._ref, "/spec/version")])
        yield self._row("image", value_text(image), self._image(), self._image_options())
        yield from self._services()
        yield self._row("node", one.node, self._seen_node(), [(self._lease, "/spec/node")])
        gpus = " ".join(one.gpu_uuids) or "none"
        yield self._row("gpus", gpus, self._seen_gpus(), self._asked("gpu_count", _GPUS))
        yield self._row("cpu", limits[0], self._as_told(limits[0]), self._asked("cpu_cores", _CPU))
        memory = self._asked("memory_gib", _MEMORY)
        yield self._row("memory", limits[1], self._as_told(limits[1]), memory)
        yield self._row("ports", self._ports(), self._endpoints(), self._port_options())
        yield self._row("run", one.run, self._phase(), [(self._ref, "/spec/desired")])
        yield from self._policy()
        health = [(self._version, f"{self._profile}/health")]
        yield self._row("health", _health(one.readiness), self._ready(), health)
        state = self._subject.value(self._promotion, "/spec/state")
        promotion = [(self._promotion, "/spec/state")]
        yield self._row("promotion", value_text(state), None, promotion)
        if one.channel:
            trust = [(self._environment, f"/spec/trust/{name}") for name in self._channels()]
            yield self._row("trust", f"good for {one.channel}", self._trusted(), trust)
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
        first = "/spec/runtime_profile"
        places = dict.fromkeys((self._profile, first))
        names = [f"{at}/{one}" for at in places for one in (f"variants/{family}", "image_ref")]
        names.append("/spec/artifact_ref")
        return [(self._version, pointer) for pointer in names]

    def _services(self) -> Iterator[Row]:
        topology = self._instance.topology
        for name, key in sorted(topology.images.items()) if topology is not None else ():
            options = self._service_options(name)
            image, seen = value_text(str(key)), self._service(name, str(key.digest))
            yield self._row(f"services.{name}", image, seen, options)

    def _service_options(self, name: str) -> Options:
        """Its own image, else the version's; a main service that is made has none of its own."""
        family = str(self._subject.value(self._node, "/spec/accelerator_family"))
        at = f"{self._profile}/topology/services/{name}"
        own = [(self._version, f"{at}/{one}") for one in (f"variants/{family}", "image_ref")]
        return [*own, *self._image_options()]

    def _asked(self, parameter: str, least: tuple[str, str]) -> Options:
        """As `core.checks.capacity.demand_of` goes about it."""
        minimum, leased = least
        default = f"/spec/launch_parameters/properties/{parameter}/default"
        minimum = minimum.replace("/spec/runtime_profile", self._profile)
        options = [(self._ref, f"/spec/parameters/{parameter}")]
        if self._own:
            options.insert(0, (self._ref, f"{self._own}/parameters/{parameter}"))
        options += [(self._version, default), (self._version, minimum)]
        return [*options, *([(self._lease, leased)] if leased else [])]

    def _port_options(self) -> Options:
        ports = (self._version, f"{self._profile}/ports")
        return [(self._ref, f"{self._own or '/spec'}/parameters/host_port"), ports]

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

    def _members(self) -> Iterator[Row]:
        one = self._instance
        if not one.role:
            return
        role = [(self._ref, f"{self._own}/role")] if self._own else []
        yield self._row("role", one.role, None, role or [(self._version, f"{self._profile}/role")])
        all_of = sorted(
            (member_name(key), other.role)
            for key, other in self._subject.state.instances.items()
            if other.member_of == one.key
        )
        if all_of:
            shown = " ".join(f"{name}({role})" for name, role in all_of)
            yield self._row("members", shown, None, [(self._ref, "/spec/members")])

    def _more(self) -> Iterator[Row]:
        one = self._instance
        yield from self._members()
        if one.depends_on and one.member_of is None:
            names = " ".join(one.depends_on)
            yield self._row("depends_on", names, None, [(self._ref, "/spec/depends_on")])
        if one.secrets:
            by = [(self._ref, "/spec/secrets"), (self._version, "/spec/runtime_profile/secrets")]
            shown = (f"{secret.name} {secret.source or 'generated'}" for secret in one.secrets)
            yield self._row("secrets", ", ".join(shown), None, by)
        if one.suspend is not None:
            options = [(self._ref, "/spec/suspend"), (self._project, "/spec/suspend")]
            text = f"by {one.suspend.by}: {one.suspend.reason}"
            yield self._row("suspend", value_text(text), None, options)

    def _channels(self) -> tuple[str, ...]:
        canary = self._instance.promotion == "canary"
        return ("canary_channel", "channel") if canary else ("channel",)

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

    def _trusted(self) -> str:
        """Of what runs; for what is yet to run, the plan says it."""
        found = self._live.record.conditions if self._live.record is not None else ()
        known = next((one for one in found if one.type == "Trusted"), None)
        if known is None:
            return f"{UNKNOWN}nothing of it runs yet, or nobody looked at its signatures"
        return known.message if known.status == "True" else f"not good: {known.message}"

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

    def _service(self, name: str, digest: str) -> str:
        """How it does, by its node's word; and with what image, where that is another one."""
        unseen, report = self._unseen(), self._report
        if unseen or report is None:
            return unseen or ""
        found = next((one for one in report.services if one.name == name), None)
        if found is None:
            return "not there" if report.services else f"{UNKNOWN}its node tells of no service"
        other = found.image_digest not in (None, digest)
        image = f"image {value_text(found.image_digest or '')}, " if other else ""
        detail = f", {found.detail}" if found.detail else ""
        restarts = f", {found.restarts} restart(s)" if found.restarts else ""
        return f"{image}{found.phase}{detail}{restarts}"

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
        at = {name: f"{_bracketed(a)}:" for name, a in self._instance.port_addresses.items()}
        shown = (
            f"{name} {inside} at {at.get(name, '')}{outside or 'any'}"
            for name, inside, outside in ports
        )
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


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _places(ref: ObjectRef, instance: Instance, subject: Subject) -> tuple[str, str]:
    """Where a further member stands in its manifest, empty for the first, and where its role does
    in the version.
    """
    profile = "/spec/runtime_profile"
    if not subject.member:
        return "", profile
    version = ObjectRef("AppVersion", (instance.app, instance.version))
    index = _index(subject.value(ref, "/spec/members"), "name", subject.member)
    role = _index(subject.value(version, f"{profile}/members"), "role", instance.role)
    return f"/spec/members/{index}", f"{profile}/members/{role}"


def _index(entries: object, field_name: str, value: str) -> int:
    found = entries if isinstance(entries, list | tuple) else ()
    named = (one.get(field_name) if isinstance(one, Mapping) else None for one in found)
    return next((index for index, name in enumerate(named) if name == value), 0)


_GPUS = ("/spec/compatibility/min_gpu_count", "")
_CPU = ("/spec/runtime_profile/resources/min_vcpu", "/spec/cpu_cores")
_MEMORY = ("/spec/runtime_profile/resources/min_memory_mib", "/spec/memory_mib")


def _agrees(name: str, desired: str, observed: str) -> bool:
    if name == "run":
        return {"running": "ready", "stopped": "stopped"}.get(desired, "removed") == observed
    if name == "ports":
        return (desired == "none") == (observed == "none")
    if name == "trust":
        return observed.startswith(desired)
    if name.startswith("services."):
        return observed.startswith(("ready", "completed", "stopped"))
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
