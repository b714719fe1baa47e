"""Do the services of a version make one app: what they are to each other and to their renderer?

Rules:
- All is told of the version, at the field; nothing of it depends on where an instance is placed.
- A field that nobody reads is a problem: whoever wrote it believes that it does something.
- What one service may have is asked in `checks.services`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from node_agent.wire_base import SERVICES_MAX
from reconciler.core.access_template import HOST_PORT
from reconciler.core.checks.graph import cycles_of
from reconciler.core.checks.services import SERVICE_CHECKS
from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.kinds.topology import Dependency, RendererName, TopologyEndpoint
from reconciler.core.names import nearest
from reconciler.core.topology import (
    COMPOSE,
    MADE,
    PROFILE,
    SERVICES,
    Placed,
    main_service,
    reached_ports,
    services_of,
    topology_endpoints,
    vital_services,
)
from reconciler.core.world import Entry, Finding, Findings, Path, World, finding

Version = Entry[AppVersionSpec]
Check = Callable[[Version], Findings]

ENDPOINTS = f"{PROFILE}/topology/endpoints"
VOLUMES = f"{PROFILE}/topology/volumes"
PARTS: Mapping[RendererName, str] = MappingProxyType(
    {
        "generic_services": "topology",
        "jupyter_with_sidecar": "jupyter",
        "vllm_openai": "vllm",
    }
)
"""The part of the profile that each renderer needs."""
_OF_COMPOSE = ("renderer", "topology", "vllm", "jupyter")
_READ_BY_NONE = ("ports", "role")
_READ_BY_MADE = ("command", "env", "health", "shm_mib", "stop_grace_s")
"""Of the main service, where its renderer makes that; others say it of themselves."""
_NOTHING_SAID = RuntimeProfile(kind=COMPOSE)
_SAID_INSTEAD = {"ports": "say it under topology.endpoints"}
_HTTP = ("http", "https")
_PORT_SHOWN = re.compile(r"\{host_port:([^{}]*)\}")
"""In access instructions: the host port of the endpoint of that name."""
_ADDRESS = re.compile(r"[0-9]+|0x[0-9a-f]+")
"""A name that resolvers take for an IPv4 address, and ask nobody for."""
_SHOWN_MAX = 8


def check_topologies(world: World) -> Findings:
    for entry in world.versions.values():
        profile = entry.spec.runtime_profile
        if profile.kind != COMPOSE:
            yield from _not_for_kind(entry)
        elif (renderer := profile.renderer) is None or getattr(profile, PARTS[renderer]) is None:
            yield from _unrendered(entry)
        else:
            for check in (*CHECKS, *SERVICE_CHECKS):
                yield from check(entry)
        if entry.spec.access is not None and "{host_port" in entry.spec.access.instructions:
            yield from _instructions(entry)


# --- the renderer and what it reads --------------------------------------------------------------


def _not_for_kind(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    for name in _OF_COMPOSE:
        if getattr(profile, name) is not None:
            message = f"{name} is for the runtime kind {COMPOSE}, and this is {profile.kind}"
            hint = f"leave it out, or say kind: {COMPOSE}"
            yield finding(entry, "field_not_read", message, f"{PROFILE}/{name}", hint)


def _unrendered(entry: Version) -> Findings:
    renderer = entry.spec.runtime_profile.renderer
    if renderer is None:
        message = f"{COMPOSE} without a renderer: nobody makes services of this"
        hint = f"say renderer: one of {', '.join(sorted(PARTS))}"
        yield finding(entry, "renderer_missing", message, PROFILE, hint)
    else:
        part = PARTS[renderer]
        message = f"the renderer {renderer} makes services of {part}, which is not there"
        yield finding(entry, "renderer_missing", message, PROFILE, f"add runtime_profile.{part}")


def _read(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    assert profile.renderer is not None
    renderer = profile.renderer
    unread = [part for part in ("jupyter", "vllm") if part != PARTS[renderer]]
    unread += [*_READ_BY_NONE, *(() if renderer in MADE else _READ_BY_MADE)]
    for name in unread:
        if getattr(profile, name) != getattr(_NOTHING_SAID, name):
            message = f"{name} is not read by the renderer {renderer}"
            otherwise = "leave it out" if name not in _READ_BY_MADE else "say it of the service"
            hint = _SAID_INSTEAD.get(name, otherwise)
            yield finding(entry, "field_not_read", message, f"{PROFILE}/{name}", hint)


def _main(entry: Version) -> Findings:
    """There is one, and where the renderer makes it, no other."""
    profile = entry.spec.runtime_profile
    services = services_of(profile)
    mains = [one for one in services if one.service.role == "main"]
    if not mains:
        message = "no service is the main one: which of them is the app?"
        yield finding(entry, "main_service", message, SERVICES, "say role: main of one of them")
    for service, where, _ in mains[1:]:
        message = f"{service.name} is a main service, and {mains[0].service.name} is one already"
        yield finding(entry, "main_service", message, f"{where}/role", "make it a sidecar")
    for service, where, _ in mains[:1]:
        if service.restart != "always":
            message = (
                f"{service.name} is the main service: once it ended well the app would count as"
                " ready, without it"
            )
            yield finding(entry, "main_service", message, f"{where}/restart", "leave restart out")
    if len(services) > SERVICES_MAX:
        message = f"{len(services)} services with that of the renderer, at most {SERVICES_MAX}"
        hint = "make several apps of it"
        yield finding(entry, "too_many_services", message, SERVICES, hint)


def _names(entry: Version) -> Findings:
    """Each is its own, and one that the others can reach."""
    profile = entry.spec.runtime_profile
    made = MADE.get(profile.renderer) if profile.renderer else None
    for service, where, is_made in services_of(profile):
        pointer, hint = f"{where}/name", "call it something else"
        if service.name == made and not is_made:
            message = f"{made} is the service that the renderer {profile.renderer} makes"
            yield finding(entry, "service_name_taken", message, pointer, hint)
        if service.name == "localhost":
            message = "localhost is every service's name for itself, so no other reaches this one"
            yield finding(entry, "service_name_taken", message, pointer, hint)
        if _ADDRESS.fullmatch(service.name):
            message = f"{service.name} is read as an address, so no other service reaches this one"
            yield finding(entry, "service_name_taken", message, pointer, hint)


# --- who waits for whom --------------------------------------------------------------------------


def _dependencies(entry: Version) -> Findings:
    services = services_of(entry.spec.runtime_profile)
    by_name = {one.service.name: one for one in services}
    for service, where, made in services:
        if made:
            continue
        counted = Counter(one.service for one in service.depends_on)
        for index, needed in enumerate(service.depends_on):
            pointer = f"{where}/depends_on/{index}"
            if needed.service not in by_name:
                yield _no_service(entry, needed.service, by_name, f"{pointer}/service")
            elif counted[needed.service] > 1:
                message = f"{service.name} waits for {needed.service} more than once"
                hint = "say it once, with the condition that is meant"
                yield finding(entry, "dependency_twice", message, pointer, hint)
                del counted[needed.service]
            else:
                yield from _can_hold(entry, needed, by_name[needed.service], pointer)


def _can_hold(entry: Version, needed: Dependency, there: Placed, pointer: str) -> Findings:
    service, where = there.service, f"{pointer}/condition"
    if needed.condition == "completed" and service.restart == "always":
        message = f"{service.name} never completes: its restart is always"
        hint = "give it restart on_failure or never, or wait for it to be healthy"
        if service.role == "main":
            hint = "wait for it to be healthy"
        yield finding(entry, "condition_never_holds", message, where, hint)
    if needed.condition == "healthy" and not there.made and service.health.readiness is None:
        message = f"{service.name} says nowhere when it is healthy"
        hint = "give it health.readiness, or wait for it to be started"
        yield finding(entry, "condition_never_holds", message, where, hint)


def _circles(entry: Version) -> Findings:
    services = services_of(entry.spec.runtime_profile)
    known = {one.service.name: one for one in services}
    edges: dict[Path, list[Path]] = {
        (name,): [(d.service,) for d in one.service.depends_on if d.service in known]
        for name, one in known.items()
    }
    for circle in cycles_of(edges):
        names = [path[0] for path in circle]
        first = known[names[0]]
        targets = [one.service for one in first.service.depends_on]
        index = targets.index(names[1 % len(names)])
        shown = [*names, names[0]]
        if len(shown) > _SHOWN_MAX:
            shown[_SHOWN_MAX - 2 : -1] = [f"({len(shown) - _SHOWN_MAX + 1} more)"]
        message = f"services wait for each other: {' → '.join(shown)}"
        pointer = f"{first.where}/depends_on/{index}"
        hint = "take one of these out of a depends_on"
        yield finding(entry, "service_cycle", message, pointer, hint)


def _vital(entry: Version) -> Findings:
    services = services_of(entry.spec.runtime_profile)
    vital = vital_services(one.service for one in services)
    spared = {one.service.name: one for one in services if one.service.vital is False}
    for name, one in spared.items():
        if one.service.role == "main":
            message = f"{name} is the main service, without which there is no app"
            yield finding(entry, "vital_after_all", message, f"{one.where}/vital", "leave it out")
            continue
        waiting = [
            other.service.name
            for other in services
            if other.service.name in vital
            for needed in other.service.depends_on
            if needed.service == name and needed.condition != "started"
        ]
        if waiting:
            message = f"{name} is said not to be vital, and {waiting[0]} does not start without it"
            hint = "leave vital out, or have that one wait for it to be started alone"
            yield finding(entry, "vital_after_all", message, f"{one.where}/vital", hint)


# --- endpoints and volumes -----------------------------------------------------------------------


def _endpoints(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    services = {one.service.name for one in services_of(profile)}
    every = topology_endpoints(profile)
    made = len(every) - len(profile.topology.endpoints if profile.topology is not None else ())
    for index, one in enumerate(every[made:]):
        pointer, earlier = f"{ENDPOINTS}/{index}", every[: made + index]
        if one.service not in services:
            yield _no_service(entry, one.service, services, f"{pointer}/service")
        if one.name in {other.name for other in every[:made]}:
            message = f"{one.name} is the endpoint that the renderer {profile.renderer} makes"
            hint = "call this one something else"
            yield finding(entry, "endpoint_name_taken", message, f"{pointer}/name", hint)
        yield from _spoken(entry, one, pointer)
        clash = next((other for other in earlier if _clash(one, other)), None)
        if clash is not None:
            message = f"port {one.port} of {one.service} is the endpoint {clash.name} already"
            hint = (
                "endpoints at one port speak the same, have paths of their own,"
                " and one of them at most is reached from outside"
            )
            yield finding(entry, "endpoint_port_taken", message, f"{pointer}/port", hint)


def _spoken(entry: Version, one: TopologyEndpoint, pointer: str) -> Findings:
    if one.protocol in _HTTP:
        return
    if one.path != "/":
        message = f"{one.protocol} has no paths"
        hint = "leave path out"
        yield finding(entry, "endpoint_not_http", message, f"{pointer}/path", hint)
    if one.expose == "embedded_ui_gateway":
        message = f"the gateway shows pages, and {one.name} speaks {one.protocol}"
        hint = "expose it as private"
        yield finding(entry, "endpoint_not_http", message, f"{pointer}/expose", hint)


def _clash(one: TopologyEndpoint, other: TopologyEndpoint) -> bool:
    if (one.service, one.port) != (other.service, other.port):
        return False
    both_out = "internal" not in (one.expose, other.expose)
    return both_out or one.protocol != other.protocol or one.path == other.path


def _volumes(entry: Version) -> Findings:
    """Those that are mounted are there, and those that are there are mounted."""
    profile = entry.spec.runtime_profile
    volumes = profile.topology.volumes if profile.topology is not None else ()
    known, mounted = [one.name for one in volumes], set[str]()
    for service, where, made in services_of(profile):
        for index, mount in enumerate(service.mounts):
            mounted.add(mount.volume)
            if mount.volume in known:
                continue
            field = "cache_volume" if where.endswith("/vllm") else "work_volume"
            pointer = f"{where}/{field}" if made else f"{where}/mounts/{index}/volume"
            near = nearest(mount.volume, known)
            hint = f"did you mean {near}?" if near else f"add it under {VOLUMES}"
            message = f"{service.name} mounts the volume {mount.volume}, which is not there"
            yield finding(entry, "unknown_volume", message, pointer, hint)
    for index, name in enumerate(known):
        if name not in mounted:
            message = f"no service mounts the volume {name}"
            hint = "mount it, or leave it out"
            yield finding(entry, "nothing_reads_it", message, f"{VOLUMES}/{index}", hint)


def _packages(entry: Version) -> Findings:
    properties = entry.spec.launch_parameters.get("properties")
    if isinstance(properties, dict) and "pip_packages" in properties:
        message = f"the runtime kind {COMPOSE} puts no packages into its services"
        pointer = "/spec/launch_parameters/properties/pip_packages"
        yield finding(entry, "packages_not_carried", message, pointer, "put them into the image")


def _instructions(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    known = [port.name for port in profile.ports]
    if profile.kind == COMPOSE:
        known = [one.name for one in topology_endpoints(profile) if one.expose != "internal"]
    assert entry.spec.access is not None
    text = entry.spec.access.instructions
    entrance = any(first for _, _, first in reached_ports(profile))
    if profile.kind == COMPOSE and HOST_PORT in text and not entrance:
        main = main_service(profile)
        message = f"the instructions show {HOST_PORT}, and no endpoint of {main} is reached from"
        pointer, hint = "/spec/access/instructions", "say expose: private of one"
        yield finding(entry, "unknown_endpoint", f"{message} outside", pointer, hint)
    for name in sorted({*_PORT_SHOWN.findall(text)} - {*known}):
        near = nearest(name, known)
        there = f"those there are: {', '.join(known)}" if known else "say expose: private of it"
        hint = f"did you mean {near}?" if near else there
        message = f"the instructions show the port of {name[:80]!r}, which nobody outside reaches"
        yield finding(entry, "unknown_endpoint", message, "/spec/access/instructions", hint)


def _no_service(entry: Version, name: str, known: Collection[str], pointer: str) -> Finding:
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"services there are: {', '.join(sorted(known))}"
    return finding(entry, "unknown_service", f"there is no service {name}", pointer, hint)


CHECKS: tuple[Check, ...] = (
    _read,
    _main,
    _names,
    _dependencies,
    _circles,
    _vital,
    _endpoints,
    _volumes,
    _packages,
)
