"""May this instance run what it asks, where it asks? Every reference is known to exist here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from reconciler.core.checks.capacity import Demand, cores_millis
from reconciler.core.checks.catalog import (
    ENGINES,
    NOT_FOR_CHANNEL,
    Launch,
    channel_of,
    in_canary,
)
from reconciler.core.checks.packages import PIP_PACKAGES, requirement_lines, spec_texts
from reconciler.core.checks.parameters import unfit
from reconciler.core.desired import Policy
from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app import AppSpec
from reconciler.core.kinds.app_instance import AppInstanceSpec, Requested
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.entitlement import EntitlementSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.kinds.project import ProjectSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.kinds.tenant import TenantSpec
from reconciler.core.kinds.topology import Service
from reconciler.core.parse import escape
from reconciler.core.schema import Finding as Refusal
from reconciler.core.schema import parameter_problems
from reconciler.core.topology import CPU_MILLIS_MIN, MEMORY_MIB_MIN
from reconciler.core.world import Entry, Findings, Path, World, finding

_PARAMETERS = "/spec/parameters"
_ALLOCATION = "/spec/placement_intent/allocation"
_VERSION = "/spec/version"


class Anchor(NamedTuple):
    """What further members know of the first one: its version as a whole, how it is launched, and
    its node.
    """

    version: AppVersionSpec
    launch: Launch
    node: Entry[NodeSpec]


class ServiceImage(NamedTuple):
    """What one service of a topology would run on the node, as `image` and `standing` say it."""

    service: Service
    image: str | None
    standing: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What all instances of one project, app, version and allocation share, looked up once.

    `image` is what the node's accelerator family would run, `standing` the best state in which
    the project sees that image registered, `blobs` the same of each blob that the version reads,
    `services` both of each service of its topology that has an image of its own,
    `policy` what is decided for those without hints. For further members `version` and `launch`
    are those of their role, and `first` is there.
    """

    environment: EnvironmentSpec
    tenant: Entry[TenantSpec]
    project: Entry[ProjectSpec]
    app: Entry[AppSpec]
    version: Entry[AppVersionSpec]
    launch: Launch
    promotion: Entry[PromotionSpec]
    entitlement: Entry[EntitlementSpec]
    allocation: Entry[AllocationSpec]
    node: Entry[NodeSpec]
    image: str | None
    standing: str
    policy: Policy
    first: Anchor | None = None
    blobs: tuple[str, ...] = ()
    services: tuple[ServiceImage, ...] = ()


class Case(NamedTuple):
    """One instance with everything it refers to. `world` is for what is said, not for whether."""

    world: World
    setting: Setting
    entry: Entry[AppInstanceSpec]
    demand: Demand

    @property
    def environment(self) -> EnvironmentSpec:
        return self.setting.environment

    @property
    def version(self) -> Entry[AppVersionSpec]:
        return self.setting.version

    @property
    def promotion(self) -> Entry[PromotionSpec]:
        return self.setting.promotion

    @property
    def entitlement(self) -> Entry[EntitlementSpec]:
        return self.setting.entitlement

    @property
    def allocation(self) -> Entry[AllocationSpec]:
        return self.setting.allocation

    @property
    def node(self) -> Entry[NodeSpec]:
        return self.setting.node

    @property
    def image(self) -> str | None:
        return self.setting.image

    @property
    def standing(self) -> str:
        return self.setting.standing

    @property
    def owner(self) -> Path:
        """(tenant, project)"""
        return self.entry.path[:2]


def _entitled(case: Case) -> Findings:
    if not case.entitlement.spec.enabled:
        message = f"{case.entitlement.ref} is not enabled"
        yield finding(case.entry, "not_entitled", message, "/spec/app", "an admin may enable it")


def _version_offered(case: Case) -> Findings:
    state = case.promotion.spec.state
    if state in ("active", "deprecated"):
        return
    project = "/".join(case.owner)
    if state == "canary":
        if not in_canary(case.promotion, case.owner):
            message = f"{case.version.ref} is in canary, and project {project} is not part of it"
            hint = f"name {project} under /spec/canary/projects of {case.promotion.ref}, or wait"
            yield finding(case.entry, "not_in_canary", message, _VERSION, hint)
        return
    offered = case.world.offers.get(case.entry.spec.app, ())[-5:]
    hint = f"versions on offer: {', '.join(offered)}" if offered else "no version is on offer yet"
    message = f"{case.version.ref} is {state}, and takes no instances"
    # A version is not retired while an instance names it.
    waits = (case.promotion.ref,) if state == "retired" else ()
    yield finding(case.entry, "version_not_offered", message, _VERSION, hint, waits)


def _image_visible(case: Case) -> Findings:
    for whose, image, found, variants in _images(case):
        if image is None:
            family = case.node.spec.accelerator_family
            message = f"{whose}{case.version.ref} has no image for {family} ({case.node.ref})"
            hint = f"it has images for {', '.join(sorted(variants))}"
            yield finding(case.entry, "no_image_variant", message, _ALLOCATION, hint)
        elif found == "not_visible":
            message = f"{whose}{image} is not visible to project {'/'.join(case.owner)}"
            hint = "its Artifact says who may use it: visibility project, tenant or platform"
            yield finding(case.entry, "artifact_not_visible", message, _VERSION, hint)


def _image_good(case: Case) -> Findings:
    """What the promotion accepts may still be good in another project's registration only."""
    seen_by = "/".join(case.owner)
    for whose, image, found, _ in _images(case):
        if image is not None and found in ("published", "retired"):
            message = f"{whose}{image} is {found} where project {seen_by} can see it"
            yield finding(case.entry, "artifact_not_promoted", message, _VERSION)
        elif image is not None and found == NOT_FOR_CHANNEL:
            channel = channel_of(case.environment, case.promotion.spec.state)
            message = f"{whose}{image} is not promoted for {channel} where project {seen_by}"
            hint = f"add {channel} to /spec/channels of an Artifact that it sees"
            yield finding(
                case.entry, "artifact_not_in_channel", f"{message} can see it", _VERSION, hint
            )


def _images(case: Case) -> Iterator[tuple[str, str | None, str, Collection[str]]]:
    """(words that say whose, image, standing, families with images of their own)"""
    yield "", case.image, case.standing, case.version.spec.runtime_profile.variants
    for service, image, found in case.setting.services:
        yield f"service {service.name}: ", image, found, service.variants


def _allocation_active(case: Case) -> Findings:
    if case.allocation.spec.state != "active":
        message = f"{case.allocation.ref} is {case.allocation.spec.state}"
        hint = "place the instance on an active allocation"
        yield finding(case.entry, "allocation_not_active", message, _ALLOCATION, hint)


def _capacity_shape(case: Case) -> Findings:
    wanted = case.version.spec.compatibility.requires_capacity_shape
    found = case.node.spec.capacity_shape
    if wanted is not None and wanted != found:
        message = f"{case.version.ref} needs a {wanted} node, {case.node.ref} is {found}"
        yield finding(case.entry, "wrong_capacity_shape", message, _ALLOCATION)


def _accelerator(case: Case) -> Findings:
    supported = case.version.spec.compatibility.supported_accelerators
    found = case.node.spec.accelerator_family
    if supported and found not in supported:
        message = f"{case.version.ref} does not run on {found} ({case.node.ref})"
        hint = f"it runs on {', '.join(sorted(supported))}"
        yield finding(case.entry, "wrong_accelerator", message, _ALLOCATION, hint)


def _exclusive(case: Case) -> Findings:
    needed = case.version.spec.compatibility.requires_exclusive_node
    if needed and not case.allocation.spec.exclusive:
        message = f"{case.version.ref} needs a node to itself, {case.allocation.ref} is shared"
        yield finding(case.entry, "node_not_exclusive", message, _ALLOCATION)


def _engine(case: Case) -> Findings:
    engine = ENGINES.get(case.version.spec.runtime_profile.kind)
    if engine is not None and engine not in case.node.spec.engines:
        message = f"{case.version.ref} needs engine {engine}, which {case.node.ref} does not have"
        hint = f"it has {', '.join(sorted(case.node.spec.engines))}"
        yield finding(case.entry, "engine_not_on_node", message, _ALLOCATION, hint)


def _minimum(case: Case) -> Findings:
    least, profile = case.version.spec.compatibility, case.version.spec.runtime_profile.resources
    asked = case.demand
    for found, wanted, unit, name in (
        (asked.gpus, least.min_gpu_count, "GPUs", "gpu_count"),
        (asked.cpu_millis / 1000, profile.min_vcpu, "CPU cores", "cpu_cores"),
        (asked.memory_mib, profile.min_memory_mib, "MiB of memory", "memory_gib"),
    ):
        if found < wanted:
            message = f"{case.version.ref} needs {wanted:.10g} {unit}, {found:.10g} asked"
            yield finding(case.entry, "below_minimum", message, f"{_PARAMETERS}/{name}")


def _fits_allocation(case: Case) -> Findings:
    lease, asked = case.allocation.spec, case.demand
    for found, there, unit, name in (
        (asked.gpus, len(lease.gpus), "GPUs", "gpu_count"),
        (asked.cpu_millis / 1000, cores_millis(lease.cpu_cores) / 1000, "CPU cores", "cpu_cores"),
        (asked.memory_mib, lease.memory_mib, "MiB of memory", "memory_gib"),
    ):
        if found > there:
            message = f"{found:.10g} {unit} asked, {case.allocation.ref} has {there:.10g}"
            yield finding(case.entry, "exceeds_allocation", message, f"{_PARAMETERS}/{name}")


def _parameters_valid(case: Case) -> Findings:
    """By the app's own schema first; what passes it must also be something a launch understands."""
    refused = _refused_parameters(case)
    for found in refused:
        pointer = _PARAMETERS + found.pointer
        hint = found.hint or f"see launch_parameters of {case.version.ref}"
        yield finding(case.entry, found.code, found.message, pointer, hint)
    told = {found.pointer.partition("/")[2].partition("/")[0] for found in refused}
    for name, value in sorted(case.entry.spec.parameters.items()):
        if told and escape(name) in told:
            continue
        for code, message, hint, suffix in unfit(name, value):
            pointer = f"{_PARAMETERS}/{escape(name)}{suffix}"
            yield finding(case.entry, code, message, pointer, hint)


def _refused_parameters(case: Case) -> list[Refusal]:
    validator = case.setting.launch.form.validator
    parameters = case.entry.spec.parameters
    if validator is None or validator.is_valid(parameters):
        return []
    return parameter_problems(case.version.spec.launch_parameters, parameters)


def packages_of(case: Case) -> tuple[str, ...]:
    """pip's requirement lines, in one spelling and order. Most instances have none."""
    value = case.entry.spec.parameters.get(PIP_PACKAGES)
    if value is None:
        value = case.setting.launch.form.defaults.get(PIP_PACKAGES)
    return requirement_lines(spec_texts(value) or ()) if value else ()


def _package_index(case: Case) -> Findings:
    if case.environment.package_index is None and packages_of(case):
        message = "packages are asked for, and the environment names no index to take them from"
        pointer, hint = f"{_PARAMETERS}/{PIP_PACKAGES}", "an admin sets package_index.url there"
        yield finding(case.entry, "no_package_index", message, pointer, hint)


def _holdable(case: Case) -> Findings:
    """Less is no limit that a node can hold something to. Where it stands, it was not asked for."""
    asked = case.demand
    for found, least, what, name in (
        (asked.cpu_millis / 1000, CPU_MILLIS_MIN / 1000, "CPU cores", "cpu_cores"),
        (asked.memory_mib, MEMORY_MIB_MIN, "MiB of memory", "memory_gib"),
    ):
        if found < least and name not in case.entry.spec.parameters:
            message = f"{found:g} {what} are no limit that can be held: {least:g} at least"
            hint = f"state {name}, or raise what {case.version.ref} or {case.allocation.ref} says"
            yield finding(case.entry, "below_minimum", message, f"{_PARAMETERS}/{name}", hint)


def _host_port(case: Case) -> Findings:
    fixed = case.demand.host_port is not None
    if fixed and not any(first for _, _, first in case.setting.launch.ports):
        message = f"{case.version.ref} has no port that host_port could be for"
        yield finding(case.entry, "no_port", message, f"{_PARAMETERS}/host_port")


def policy_of(
    environment: EnvironmentSpec,
    entitlement: EntitlementSpec,
    version: AppVersionSpec,
    requested: Requested | None,
) -> Policy:
    """What is effective, by environment and entitlement; hints choose within what is allowed."""
    defaults, overrides = environment.defaults, entitlement.policy_overrides
    mode = _effective(
        requested.operating_mode if requested else None,
        overrides.allowed_operating_modes if overrides else None,
        defaults.operating_mode,
    )
    scope = _effective(
        requested.control_plane_scope if requested else None,
        overrides.allowed_control_plane_scopes if overrides else None,
        defaults.control_plane_scope,
    )
    return Policy(
        operating_mode=mode,
        control_plane_scope=scope,
        runtime_backend=version.runtime_profile.kind,
        # What several projects share keeps no project apart, whatever the default says.
        tenant_boundary_mode="tenant_shared"
        if mode == "tenant_shared"
        else defaults.tenant_boundary_mode,
    )


def _effective(hint: str | None, allowed: tuple[str, ...] | None, default: str) -> str:
    choices = allowed or (default,)
    if hint in choices and hint is not None:
        return hint
    return default if default in choices else choices[0]


def _hints_allowed(case: Case) -> Findings:
    requested = case.entry.spec.requested
    if requested is None:
        return
    defaults, overrides = case.environment.defaults, case.entitlement.spec.policy_overrides
    for field, hint, allowed, default in (
        (
            "operating_mode",
            requested.operating_mode,
            overrides.allowed_operating_modes if overrides else None,
            defaults.operating_mode,
        ),
        (
            "control_plane_scope",
            requested.control_plane_scope,
            overrides.allowed_control_plane_scopes if overrides else None,
            defaults.control_plane_scope,
        ),
    ):
        choices: tuple[str, ...] = allowed or (default,)
        if hint and hint not in choices:
            message = f"{field} {hint} is not allowed for project {'/'.join(case.owner)}"
            advice = f"allowed: {', '.join(choices)}; {case.entitlement.ref} may allow more"
            pointer = f"/spec/requested/{field}"
            yield finding(case.entry, "hint_not_allowed", message, pointer, advice)


def _attached(case: Case) -> Findings:
    requested, tenant = case.entry.spec.requested, case.setting.tenant
    policy = (
        case.setting.policy
        if requested is None
        else policy_of(case.environment, case.entitlement.spec, case.version.spec, requested)
    )
    if policy.operating_mode == "tenant_shared" and case.owner[1] not in (
        tenant.spec.attached_projects
    ):
        message = f"a tenant_shared runtime, but {case.setting.project.ref} is not attached to it"
        hint = f"name {case.owner[1]} under /spec/attached_projects of {tenant.ref}"
        yield finding(case.entry, "project_not_attached", message, "/spec/requested", hint)


Check = Callable[[Case], Findings]

SHARED_CHECKS: tuple[Check, ...] = (
    _entitled,
    _version_offered,
    _image_visible,
    _image_good,
    _allocation_active,
    _capacity_shape,
    _accelerator,
    _exclusive,
    _engine,
)
"""Whether they find something depends on the setting alone: one instance answers for all in it."""

OWN_CHECKS: tuple[Check, ...] = (
    _minimum,
    _fits_allocation,
    _parameters_valid,
    _package_index,
    _holdable,
    _host_port,
    _hints_allowed,
    _attached,
)
"""Whether they find something depends on the instance, its demand and its setting."""
