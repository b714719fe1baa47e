"""An instance's topology, or a version's before there is an instance of it; and its Compose file.

Rules:
- What is shown of an instance is what counts: its accepted form, rendered as its node is asked for
  it, beside the last report of that node.
- A version is shown by an example of an instance, with names in the place of what only a launch
  decides: GPUs, registry, where its secrets are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from node_agent.wire import LAYOUT_PREFIX, SecretFile, Workload, WorkloadReport
from reconciler.core.accept import AcceptedState
from reconciler.core.blobs import blob_files
from reconciler.core.desired import Instance, Policy, StateObject, Topology
from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import (
    ArtifactKey,
    InstanceKey,
    ObjectRef,
    Revision,
    manifest_ref,
    nearest,
)
from reconciler.core.observed import Known, Seen, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, InstanceRecord, node_name
from reconciler.core.step_back import stepped_back
from reconciler.core.topology import (
    COMPOSE,
    image_of,
    least_of,
    millis,
    published_ports,
    services_of,
)
from reconciler.core.topology_view import TopologyView, topology_view
from reconciler.cycle import LoadMemo, load_last
from reconciler.errors import Refused
from reconciler.observe import node_seen
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.views.topology import Document, topology_document
from renderers import CannotRender, render

_REGISTRY = "registry.example"
_NODE = "node"
_NOBODY = "example"
_BY_INSTANCE = "each instance says which"
_NEWEST_SHOWN = 8
_MORE = "gpuaas status and gpuaas validate list what is there"


@dataclass(frozen=True)
class Shown:
    """A topology and the workload that it was read from."""

    view: TopologyView
    workload: Workload


def of_instance(
    key: InstanceKey,
    state: AcceptedState,
    record: InstanceRecord | None = None,
    seen: Seen[WorkloadReport | None] | None = None,
) -> Shown:
    """Refused for one that nobody declared (no_such_instance), and for one that counts, but does
    not come to anything that could run (instance_unresolved).
    """
    instance = state.instances.get(key)
    if instance is None:
        raise _unknown_instance(key, state)
    rendered = render(replace(instance, key=node_name(record)) if record else instance)
    if isinstance(rendered, CannotRender):
        raise _unresolved(key, f"{rendered.code}: {rendered.message}")
    spec = _spec(state.objects, instance.app, instance.version)
    return Shown(topology_view(instance, rendered, spec, record, seen), rendered)


def _unknown_instance(key: InstanceKey, state: AcceptedState) -> Refused:
    if key in state.held:
        return _unresolved(key, state.held[key])
    ref = manifest_ref(key)
    found = next((one for one in state.problems if one.object == str(ref)), None)
    if found is not None:
        return _unresolved(key, f"{found.where}: {found.code}: {found.message}")
    near = nearest(key, state.instances)
    hint = f"did you mean {near}?" if near else _MORE
    return Refused("no_such_instance", f"no instance {key}", hint=hint)


def _unresolved(key: InstanceKey, why: str) -> Refused:
    hint = f"gpuaas explain {key} says more"
    return Refused("instance_unresolved", f"nothing can run for {key}: {why}", hint=hint)


def _spec(objects: Mapping[ObjectRef, StateObject], app: str, version: str) -> AppVersionSpec:
    spec = objects[ObjectRef("AppVersion", (app, version))].manifest.spec
    assert isinstance(spec, AppVersionSpec)
    return spec


# --- a version -----------------------------------------------------------------------------------


def of_version(app: str, version: str, state: AcceptedState) -> Shown:
    """Refused for one that is not there (no_such_version), or can't be rendered."""
    ref = ObjectRef("AppVersion", (app, version))
    if ref not in state.objects:
        raise _unknown_version(ref, state.objects, state.problems)
    spec = _spec(state.objects, app, version)
    instance = example_of(spec, state.environment)
    rendered = render(instance)
    if isinstance(rendered, CannotRender):
        why = f"{rendered.code}: {rendered.message}"
        hint = "gpuaas validate says what is wrong with its manifest"
        raise Refused("version_unrenderable", f"nothing can run of {ref}: {why}", hint=hint)
    view = topology_view(instance, rendered, spec)
    return Shown(replace(view, instance="", node=""), rendered)


def _unknown_version(
    ref: ObjectRef, objects: Mapping[ObjectRef, StateObject], problems: Iterable[Problem]
) -> Refused:
    for problem in problems:
        if problem.object == str(ref):
            why = f"{ref} does not count: {problem.code}: {problem.message}"
            return Refused("no_such_version", why, where=problem.where, hint=problem.hint)
    app, version = ref.path
    known = {one.path for one in objects if one.kind == "AppVersion"}
    own = sorted(one for name, one in known if name == app)
    if own:
        listed = ", ".join(own[-_NEWEST_SHOWN:])
        message = f"{app} has no version {version}" if version else f"which version of {app}?"
        return Refused("no_such_version", message, hint=f"there are {listed}")
    near = nearest(app, {name for name, _ in known})
    hint = f"did you mean {near}?" if near else _MORE
    return Refused("no_such_version", f"no app {app} in the catalog", hint=hint)


def example_of(spec: AppVersionSpec, environment: EnvironmentSpec | None = None) -> Instance:
    """An instance of the version as small as it may be."""
    profile = spec.runtime_profile
    family, least = _family(spec), least_of(profile)
    image = ArtifactKey.parse(image_of(spec, None, family) or spec.artifact_ref)
    name = InstanceKey(f"{_NOBODY}/{_NOBODY}/{spec.slug}")
    gpus = tuple(f"gpu-{number}" for number in range(1, _gpus_needed(spec) + 1))
    return Instance(
        key=name,
        ref=manifest_ref(name),
        org_id=_NOBODY,
        project_id=_NOBODY,
        app=spec.slug,
        version=spec.version,
        artifact=image,
        node=_NODE,
        run="running",
        policy=Policy("tenant_dedicated", "project", profile.kind, "project_isolated"),
        registry_endpoint=_registry(environment),
        registry_plain_http=environment is not None and environment.registry.plain_http,
        command=profile.command,
        env=dict(sorted(profile.env.items())),
        ports=_ports(profile),
        readiness=profile.health.model_dump(mode="json", exclude_none=True),
        stop_grace_s=profile.stop_grace_s,
        cpu_millis=millis(least.vcpu) or None,
        memory_mib=least.memory_mib or None,
        shm_mib=profile.shm_mib,
        gpu_vendor=("amd" if family.startswith("amd") else "nvidia") if gpus else None,
        gpu_uuids=gpus,
        blobs=blob_files(profile),
        secrets=tuple(
            SecretFile(
                name=one.name,
                source=_BY_INSTANCE if one.source == "reference" else "",
                env=one.env or "",
            )
            for one in profile.secrets
        ),
        topology=_topology(spec, family),
    )


def _registry(environment: EnvironmentSpec | None) -> str:
    if environment is None:
        return _REGISTRY
    folder = environment.registry.layout_path
    return f"{LAYOUT_PREFIX}{folder}" if folder else environment.registry.endpoint


def _ports(profile: RuntimeProfile) -> tuple[tuple[str, int, int | None], ...]:
    if profile.kind == COMPOSE:
        return published_ports(profile, None)
    return tuple((one.name, one.container, None) for one in profile.ports)


def _topology(spec: AppVersionSpec, family: str) -> Topology | None:
    profile = spec.runtime_profile
    if profile.kind != COMPOSE or profile.renderer is None:
        return None
    images = {}
    for service, _, made in services_of(profile):
        image = image_of(spec, None if made else service, family)
        if image is not None:
            images[service.name] = ArtifactKey.parse(image)
    return Topology(profile.renderer, profile, dict(sorted(images.items())))


def _gpus_needed(spec: AppVersionSpec) -> int:
    """As many as its services count, and some for who takes all or the rest."""
    profile = spec.runtime_profile
    asked = [one.service.gpus for one in services_of(profile)]
    some = int(any(isinstance(one, str) for one in asked))
    counted = sum(one for one in asked if isinstance(one, int))
    least = spec.compatibility.min_gpu_count
    if profile.vllm is None or profile.vllm.tensor_parallel is not None:
        return max(least, counted + some)
    # As many for each stage.
    stages = profile.vllm.pipeline_parallel
    return counted + max(1, -(-(least - counted) // stages)) * stages


def _family(spec: AppVersionSpec) -> str:
    """An accelerator family that it runs on; the first for which all its images are there."""
    profile = spec.runtime_profile
    services = [one.service for one in services_of(profile)]
    named = {*profile.variants, *(family for one in services for family in one.variants)}
    possible = sorted(spec.compatibility.supported_accelerators) or sorted(named) or [""]
    for family in possible:
        if all(image_of(spec, one, family) is not None for one in (None, *services)):
            return family
    return possible[0]


# --- live ----------------------------------------------------------------------------------------


class Topologies:
    """The topologies of what a control plane accepted, with its nodes' last reports.

    What is accepted is resolved again when it is another; askers wait for each other.
    """

    def __init__(self, ports: Ports, settings: Settings) -> None:
        self._ports = ports
        self._settings = settings
        self._offline_after_ms = int(settings.node_offline_after_s * 1000)
        self._lock = threading.Lock()
        self._memo = LoadMemo()
        self._last: tuple[Accepted, AcceptedState] | None = None

    def document(self, key: InstanceKey) -> Document:
        """Raises as `of_instance`."""
        return topology_document(self.shown(key).view)

    def shown(self, key: InstanceKey) -> Shown:
        """Raises as `of_instance`."""
        store = self._ports.store
        records = store.records()
        with self._lock:
            state = self._state()
            backs = store.step_backs()
            state = stepped_back(state, backs, records, self._memo.stepped)
        record = records.get(key)
        if record is not None or key in state.instances:
            return of_instance(key, state, record, self._seen(key, record, state))
        return of_instance(key, state)

    def state(self) -> AcceptedState:
        """All that counts now."""
        with self._lock:
            return self._state()

    def _state(self) -> AcceptedState:
        accepted = self._ports.store.accepted()
        if self._last is None or self._last[0] is not accepted:
            asked = Problem("", 0, 0, "not_read", "only what was accepted is asked for")
            head = accepted.revision or Revision("")
            state = load_last(head, asked, self._ports, self._settings, self._memo)
            problems = tuple(one for one in state.problems if one is not asked)
            self._last = (accepted, replace(state, problems=problems))
        return self._last[1]

    def _seen(
        self, key: InstanceKey, record: InstanceRecord | None, state: AcceptedState
    ) -> Seen[WorkloadReport | None]:
        name = record.node if record is not None else state.instances[key].node
        node = self._ports.store.node(name)
        if node is None:
            return Unknown("node_never_joined", f"node {name} never joined")
        seen = node_seen(node, self._ports.clock.now_ms(), self._offline_after_ms)
        if isinstance(seen, Unknown):
            return seen
        asked = node_name(record) if record is not None else key
        return Known(seen.value.workloads.get(asked))
