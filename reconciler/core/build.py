"""An instance's case in, the Instance that a renderer takes out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from node_agent.wire import LAYOUT_PREFIX, SecretFile
from reconciler.core.blobs import blob_files
from reconciler.core.checks.capacity import whole
from reconciler.core.checks.catalog import channel_of
from reconciler.core.checks.instances import Case, packages_of, policy_of
from reconciler.core.desired import Instance, Term, Topology
from reconciler.core.guarding import term_of
from reconciler.core.kinds.app_version import RuntimeProfile
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.members import First, MemberSpec, first_path, host_ports, member_env
from reconciler.core.names import InstanceKey, ObjectRef, instance_key, instance_of
from reconciler.core.topology import COMPOSE


def build_instance(case: Case, gpus: tuple[str, ...]) -> Instance:
    """`gpus` are the UUIDs it got, sorted; a decommissioned one takes none."""
    setting, asked = case.setting, case.demand
    spec, profile = case.version.spec, case.version.spec.runtime_profile
    image = case.image or spec.artifact_ref
    uuids = gpus if case.entry.spec.desired != "decommissioned" else ()
    requested = case.entry.spec.requested
    key, role = instance_key(case.entry.ref), _role(case)
    packages, index = packages_of(case), case.environment.package_index
    services = (one.standing for one in setting.services)
    standings = (case.promotion.spec.state, case.standing, *setting.blobs, *services)
    return Instance(
        key=key,
        ref=case.entry.ref if role.of is None else role.of,
        org_id=setting.tenant.spec.org_id,
        project_id=setting.project.spec.project_id,
        app=case.entry.spec.app,
        version=case.entry.spec.version,
        artifact=setting.launch.keys[image],
        node=case.node.name,
        run=case.entry.spec.desired,
        policy=setting.policy
        if requested is None
        else policy_of(case.environment, case.entitlement.spec, spec, requested),
        registry_endpoint=_registry(case.environment),
        registry_plain_http=case.environment.registry.plain_http,
        registry_token_auth=case.environment.registry.auth == "token",
        channel=(channel := channel_of(case.environment, case.promotion.spec.state)),
        promotion=case.promotion.spec.state if channel else "",
        command=profile.command,
        env={**setting.launch.env, **role.env} if role.env else setting.launch.env,
        ports=_ports(case, role.ports),
        readiness=setting.launch.health,
        stop_grace_s=profile.stop_grace_s,
        cpu_millis=asked.cpu_millis,
        memory_mib=asked.memory_mib,
        shm_mib=profile.shm_mib,
        gpu_vendor=_vendor(case, uuids),
        gpu_uuids=uuids,
        access=setting.launch.access,
        # What is deprecated takes no new instances; running ones go on.
        may_start="deprecated" not in standings,
        depends_on=tuple(_sibling(case, name) for name in case.entry.spec.depends_on),
        moved_from=_sibling(case, former) if (former := case.entry.spec.moved_from) else None,
        suspend=_suspended(case),
        member_of=None if role.of is None else instance_of(key),
        role=role.name,
        port_addresses=dict.fromkeys(role.ports, role.address),
        secrets=_secrets(case) if profile.secrets else (),
        blobs=blob_files(profile) if profile.blobs else (),
        packages=packages,
        package_index=index.url if packages and index is not None else "",
        topology=_topology(case, image) if profile.kind == COMPOSE else None,
    )


def _topology(case: Case, image: str) -> Topology:
    """`image` is that of all services without one of their own."""
    setting, keys = case.setting, case.setting.launch.keys
    own = {one.service.name: one.image or image for one in setting.services}
    names = sorted(one.service.name for one in setting.launch.services)
    profile = case.version.spec.runtime_profile
    return Topology(
        renderer=profile.renderer or "",
        profile=profile,
        images={name: keys[own.get(name, image)] for name in names},
    )


def _ports(case: Case, published: Mapping[str, int]) -> tuple[tuple[str, int, int | None], ...]:
    """`published` are those that other members reach, with their host port."""
    asked = case.demand.host_port
    return tuple(
        [
            (name, port, published.get(name, asked if first else None))
            for name, port, first in case.setting.launch.ports
        ]
    )


def _sibling(case: Case, name: str) -> InstanceKey:
    return InstanceKey("/".join((*case.owner, name)))


def _registry(environment: EnvironmentSpec) -> str:
    """host:port, or `layout:` and a folder, as `wire.Image.registry` takes it."""
    folder = environment.registry.layout_path
    return f"{LAYOUT_PREFIX}{folder}" if folder else environment.registry.endpoint


def _secrets(case: Case) -> tuple[SecretFile, ...]:
    """Without a reference nobody gave: what lacks one is blocked, or is to be removed."""
    found: list[SecretFile] = []
    for secret in case.version.spec.runtime_profile.secrets:
        bound = case.entry.spec.secrets.get(secret.name)
        source = bound if secret.source == "reference" else ""
        if source is not None:
            found.append(_secret(secret.name, source, secret.env or ""))
    return tuple(found)


@lru_cache(maxsize=4096)
def _secret(name: str, source: str, env: str) -> SecretFile:
    return SecretFile(name=name, source=source, env=env)


def _vendor(case: Case, uuids: tuple[str, ...]) -> Literal["nvidia", "amd"] | None:
    if not uuids:
        return None
    found = (gpu.vendor for gpu in case.node.spec.accelerators if gpu.uuid in uuids)
    return next(found, None)


def _suspended(case: Case) -> Term | None:
    """The longest suspension of the instance or its project."""
    found = (case.entry.spec.suspend, case.setting.project.spec.suspend)
    if found == (None, None):
        return None
    terms = [term_of(one) for one in found if one is not None]
    return max(terms, key=lambda term: term.until_ms, default=None)


# --- members -------------------------------------------------------------------------------------


class _Role(NamedTuple):
    """What an instance is among others of its own; nothing where its version has no roles.

    `of` is the manifest of a further member, `ports` are the published ones with their host port.
    """

    name: str = ""
    of: ObjectRef | None = None
    env: Mapping[str, str] = {}
    address: str = ""
    ports: Mapping[str, int] = {}


_ALONE = _Role()


def _role(case: Case) -> _Role:
    spec, profile = case.entry.spec, case.version.spec.runtime_profile
    if isinstance(spec, MemberSpec):
        own = _first(profile, case.demand.host_port, case.node.spec.address)
        ref = case.entry.ref
        return _Role(
            spec.role,
            ObjectRef(ref.kind, first_path(ref.path)),
            member_env(spec.member, spec.role, own, _anchor(case, spec)),
            own.address,
            dict(own.ports),
        )
    if not profile.members:
        return _ALONE
    own = _first(profile, case.demand.host_port, case.node.spec.address)
    env = member_env(profile.role, profile.role, own, own)
    return _Role(profile.role, None, env, own.address, dict(own.ports))


def _first(profile: RuntimeProfile, host_port: int | None, address: str | None) -> First:
    """Without an address nothing is published, and the check of that has said so."""
    ports = host_ports(profile, host_port) if address else ()
    return First(profile.role, address or "", ports)


def _anchor(case: Case, spec: MemberSpec) -> First | None:
    first = case.setting.first
    if first is None:
        return None
    given = spec.first_host_port
    asked = first.launch.form.defaults.get("host_port") if given is None else given
    profile = first.version.runtime_profile
    return _first(profile, whole(asked), first.node.spec.address)
