"""An instance's case in, the Instance that a renderer takes out."""

from __future__ import annotations

from typing import Literal

from node_agent.wire import LAYOUT_PREFIX
from reconciler.core.checks.instances import Case, policy_of
from reconciler.core.desired import Instance, Term
from reconciler.core.guarding import term_of
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import InstanceKey, instance_key


def build_instance(case: Case, gpus: tuple[str, ...]) -> Instance:
    """`gpus` are the UUIDs it got, sorted; a decommissioned one takes none."""
    setting, asked = case.setting, case.demand
    spec, profile = case.version.spec, case.version.spec.runtime_profile
    image = case.image or spec.artifact_ref
    uuids = gpus if case.entry.spec.desired != "decommissioned" else ()
    requested = case.entry.spec.requested
    return Instance(
        key=instance_key(case.entry.ref),
        ref=case.entry.ref,
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
        command=profile.command,
        env=setting.launch.env,
        ports=tuple(
            [
                (port.name, port.container, asked.host_port if index == 0 else None)
                for index, port in enumerate(profile.ports)
            ]
        ),
        readiness=setting.launch.health,
        stop_grace_s=profile.stop_grace_s,
        cpu_millis=asked.cpu_millis,
        memory_mib=asked.memory_mib,
        shm_mib=profile.shm_mib,
        gpu_vendor=_vendor(case, uuids),
        gpu_uuids=uuids,
        access=spec.access.instructions if spec.access else "",
        # What is deprecated takes no new instances; running ones go on.
        may_start="deprecated" not in (case.promotion.spec.state, case.standing),
        depends_on=tuple(_sibling(case, name) for name in case.entry.spec.depends_on),
        moved_from=_sibling(case, former) if (former := case.entry.spec.moved_from) else None,
        suspend=_suspended(case),
    )


def _sibling(case: Case, name: str) -> InstanceKey:
    return InstanceKey("/".join((*case.owner, name)))


def _registry(environment: EnvironmentSpec) -> str:
    """host:port, or `layout:` and a folder, as `wire.Image.registry` takes it."""
    folder = environment.registry.layout_path
    return f"{LAYOUT_PREFIX}{folder}" if folder else environment.registry.endpoint


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
