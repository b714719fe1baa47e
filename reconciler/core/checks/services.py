"""May each service of a topology have what it asks for, and is there enough of it for all?

Rules:
- The main service may have everything; a sidecar what its class allows (`core.topology.CLASSES`).
- What sidecars are limited to is fixed, so that what is left for the main service can be told.
- What depends on an instance's size is told of the instance, the rest of the version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from node_agent.wire import MACHINE_IDENTITY
from reconciler.core.checks.instances import Case, packages_of
from reconciler.core.checks.packages import PIP_PACKAGES
from reconciler.core.kinds.app_version import AppVersionSpec, RuntimeProfile
from reconciler.core.kinds.topology import Service
from reconciler.core.names import nearest
from reconciler.core.topology import (
    CLASSES,
    COMPOSE,
    PROFILE,
    Capability,
    Placed,
    has_own_image,
    services_of,
    topology_endpoints,
)
from reconciler.core.world import Entry, Finding, Findings, finding

Version = Entry[AppVersionSpec]
Check = Callable[[Version], Findings]

RESERVED_PATHS: Final = ("/dev", "/proc", "/run/gpuaas", "/sys")
"""The kernel's, and where secrets and blobs are."""
_PARAMETERS = "/spec/parameters"
_WORDS: Mapping[Capability, str] = MappingProxyType(
    {
        "blobs": "blobs",
        "endpoints": "an endpoint",
        "gpus": "GPUs",
        "read_volumes": "a volume",
        "scratch": "scratch",
        "secrets": "secrets",
        "write_volumes": "a volume to write to",
    }
)
_SECRET_FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "jupyter": (
            "--token",
            "--identityprovider.token",
            "--notebookapp.token",
            "--serverapp.token",
        ),
        "vllm": ("--api-key",),
    }
)
_OWN_SECRETS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "jupyter": ("token_secret", ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE")),
        "vllm": ("api_key_secret", ("VLLM_API_KEY",)),
    }
)
"""Part → its field that names the secret to get in with, and the variables that would hold it."""
_WRITTEN: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "jupyter": {
            "--ip": "",
            "--serverapp.ip": "",
            "--port": "port",
            "--serverapp.port": "port",
            "--port-retries": "",
            "--serverapp.port-retries": "",
            "--no-browser": "",
            "--serverapp.open-browser": "",
            "--serverapp.base-url": "base_path",
        },
        "vllm": {
            "--host": "",
            "--port": "port",
            "--model": "model",
            "--served-model-name": "served_name",
            "--tensor-parallel-size": "tensor_parallel",
            "-tp": "tensor_parallel",
            "--pipeline-parallel-size": "pipeline_parallel",
            "-pp": "pipeline_parallel",
            "--max-model-len": "max_model_len",
            "--gpu-memory-utilization": "gpu_memory_utilization",
            "--dtype": "dtype",
            "--quantization": "quantization",
            "-q": "quantization",
            "--max-num-seqs": "max_num_seqs",
            "--enable-prefix-caching": "enable_prefix_caching",
            "--no-enable-prefix-caching": "enable_prefix_caching",
        },
    }
)
"""Part → flags that renderers write, with the field that says it; said twice, Jupyter fails."""
_OF_RENDERER: Mapping[str, str] = MappingProxyType(
    {"jupyter_with_sidecar": "jupyter", "vllm_openai": "vllm"}
)


# --- what each is, and what its class allows -----------------------------------------------------


def _classes(entry: Version) -> Findings:
    for service, where, made in services_of(entry.spec.runtime_profile):
        if made:
            continue
        if service.role == "main":
            yield from _main_alone(entry, service, where)
        elif service.sidecar_class is None:
            message = f"sidecar {service.name} does not say what sort it is"
            hint = f"say sidecar_class: one of {', '.join(sorted(CLASSES))}"
            yield finding(entry, "sidecar_class", message, where, hint)
        elif service.sidecar_class == "setup" and service.restart == "always":
            message = f"{service.name} is of class setup, which ends, and is always started again"
            hint = "give it restart on_failure or never"
            yield finding(entry, "sidecar_class", message, f"{where}/restart", hint)


def _main_alone(entry: Version, service: Service, where: str) -> Findings:
    """What the version says once is not said of its main service again."""
    if service.sidecar_class is not None:
        message = f"{service.name} is the main service, and no sidecar of any class"
        yield finding(entry, "sidecar_class", message, f"{where}/sidecar_class", "leave it out")
    if has_own_image(service):
        field = "variants" if service.image_ref is None else "image_ref"
        message = f"the main service {service.name} runs what the version itself does"
        hint = f"say it in runtime_profile.{field}"
        yield finding(entry, "image_of_main", message, f"{where}/{field}", hint)


def _allowed(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    reached = {one.service for one in topology_endpoints(profile)}
    for service, where, _ in services_of(profile):
        allowed = CLASSES.get(service.sidecar_class) if service.sidecar_class else None
        if service.role == "main" or allowed is None:
            continue
        asked = tuple(_asked(service, where, service.name in reached))
        for what, pointer in asked:
            if what in allowed:
                continue
            message = (
                f"{service.name} is a sidecar of class {service.sidecar_class}, which may not"
                f" have {_WORDS[what]}"
            )
            hint = _class_for(service, [one for one, _ in asked])
            yield finding(entry, "sidecar_not_allowed", message, pointer, hint)


def _asked(service: Service, where: str, reached: bool) -> Iterator[tuple[Capability, str]]:
    """What it makes use of, each once, and where that stands."""
    if reached:
        yield "endpoints", f"{where}/sidecar_class"
    if service.gpus not in (None, 0):
        yield "gpus", f"{where}/gpus"
    volumes: tuple[tuple[Capability, bool], ...] = (
        ("read_volumes", True),
        ("write_volumes", False),
    )
    for what, read_only in volumes:
        indexes = [i for i, one in enumerate(service.mounts) if one.read_only is read_only]
        if indexes:
            yield what, f"{where}/mounts/{indexes[0]}"
    if service.scratch:
        yield "scratch", f"{where}/scratch"
    if service.secrets:
        yield "secrets", f"{where}/secrets"
    if service.blobs:
        yield "blobs", f"{where}/blobs"


def _class_for(service: Service, asked: Sequence[Capability]) -> str:
    """The class that may do least and all of this."""
    for name, allowed in CLASSES.items():
        ends = name != "setup" or service.restart != "always"
        if ends and {*asked} <= {*allowed}:
            return f"class {name} may"
    return "no class may all of what it asks for: make two services of it"


# --- volumes, scratch and limits -----------------------------------------------------------------


def _paths(entry: Version) -> Findings:
    for placed in services_of(entry.spec.runtime_profile):
        known: list[str] = []
        for path, pointer in _where_mounted(placed):
            name = placed.service.name
            taken = next((one for one in known if _overlap(path, one)), None)
            reserved = next((one for one in RESERVED_PATHS if _overlap(path, one)), None)
            if reserved is not None:
                message = f"{path} of {name} would cover, or be in, {reserved}"
                hint = "that is where the system, secrets or blobs are: choose another"
                yield finding(entry, "path_reserved", message, pointer, hint)
            elif taken is not None:
                message = f"{name} has {path} and {taken}, one in the other"
                hint = "give each a path of its own"
                yield finding(entry, "paths_overlap", message, pointer, hint)
            known.append(path)


def _where_mounted(placed: Placed) -> Iterator[tuple[str, str]]:
    service, where, made = placed
    for index, mount in enumerate(service.mounts):
        field = "cache_volume" if where.endswith("/vllm") else "work_path"
        yield mount.path, f"{where}/{field}" if made else f"{where}/mounts/{index}/path"
    for index, scratch in enumerate(service.scratch):
        yield scratch.path, f"{where}/scratch/{index}/path"


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _limits(entry: Version) -> Findings:
    least = entry.spec.runtime_profile.resources
    for service, where, _ in services_of(entry.spec.runtime_profile):
        own, pointer = service.limits, f"{where}/limits"
        if service.role != "main":
            missing = [name for name in ("memory_mib", "vcpu") if getattr(own, name) is None]
            if missing:
                message = f"sidecar {service.name} has no limit for {' and '.join(missing)}"
                hint = "say it: the main service has what the sidecars leave"
                yield finding(entry, "sidecar_unlimited", message, pointer, hint)
        else:
            for name, wanted in (("memory_mib", least.min_memory_mib), ("vcpu", least.min_vcpu)):
                given = getattr(own, name)
                if given is not None and given < wanted:
                    message = f"{service.name} is held to {given:g}, and needs {wanted:g} at least"
                    hint = "raise it, or lower what runtime_profile.resources says"
                    where_it_is = f"{pointer}/{name}"
                    yield finding(entry, "below_minimum", message, where_it_is, hint)
        scratch = sum(one.size_mib for one in service.scratch)
        if own.memory_mib is not None and scratch >= own.memory_mib:
            message = (
                f"{service.name} has {own.memory_mib} MiB of memory, and {scratch} MiB of it are"
                " scratch"
            )
            hint = "scratch is in memory: lower it, or raise limits.memory_mib"
            yield finding(entry, "scratch_too_large", message, f"{where}/scratch", hint)


# --- secrets and blobs ---------------------------------------------------------------------------


def _files(entry: Version) -> Findings:
    """Secrets and blobs: those that a service names are there, and those there are named."""
    profile = entry.spec.runtime_profile
    for field in ("secrets", "blobs"):
        offered = [one.name for one in getattr(profile, field)]
        read: set[str] = set()
        for service, where, _ in services_of(profile):
            for index, name in enumerate(getattr(service, field)):
                read.add(name)
                if name not in offered:
                    yield _unknown(
                        entry, field, service.name, name, offered, f"{where}/{field}/{index}"
                    )
        for index, name in enumerate(offered):
            if name not in read:
                message = f"no service reads {field.removesuffix('s')} {name}"
                hint = f"name it in the {field} of a service, or leave it out"
                pointer = f"{PROFILE}/{field}/{index}"
                yield finding(entry, "nothing_reads_it", message, pointer, hint)


def _unknown(
    entry: Version, field: str, who: str, name: str, offered: Sequence[str], pointer: str
) -> Finding:
    what = field.removesuffix("s")
    near = nearest(name, offered)
    hint = f"did you mean {near}?" if near else f"name it in runtime_profile.{field}"
    if name == MACHINE_IDENTITY:
        hint = "the main service has it without asking, and no other"
    return finding(
        entry,
        f"unknown_{what}",
        f"{who} reads {what} {name}, which this version does not have",
        pointer,
        hint,
    )


def _variables(entry: Version) -> Findings:
    """A variable that a secret fills is not given a value beside."""
    profile = entry.spec.runtime_profile
    filled = {one.name: one.env for one in profile.secrets if one.env is not None}
    for service, where, made in services_of(profile):
        for name in () if made else service.secrets:
            variable = filled.get(name)
            if variable in service.env:
                message = f"{variable} of {service.name} is filled by its secret {name} already"
                pointer = f"{where}/env/{variable}"
                yield finding(entry, "secret_env_taken", message, pointer, "leave one of them out")


def _way_in(entry: Version) -> Findings:
    """The secret that a made main service asks for: it is there, and stands nowhere in sight."""
    profile = entry.spec.runtime_profile
    part = _OF_RENDERER.get(profile.renderer or "", "")
    if not part:
        return
    field, variables = _OWN_SECRETS[part]
    name = getattr(getattr(profile, part), field)
    secret = next((one for one in profile.secrets if one.name == name), None)
    where = f"{PROFILE}/{part}/{field}"
    if name is not None and secret is None:
        offered = [one.name for one in profile.secrets]
        yield _unknown(entry, "secrets", part, name, offered, where)
    elif secret is not None and secret.env not in (None, variables[0]):
        index = profile.secrets.index(secret)
        message = f"{name} is in {variables[0]}, and can't be in {secret.env} as well"
        pointer = f"{PROFILE}/secrets/{index}/env"
        yield finding(entry, "secret_env_taken", message, pointer, "leave env out")
    for index, other in enumerate(profile.secrets):
        if name is not None and other.name != name and other.env in variables:
            message = f"{other.env} is for {name}, which {part}.{field} names"
            pointer = f"{PROFILE}/secrets/{index}/env"
            hint = f"call that of {other.name} otherwise"
            yield finding(entry, "secret_env_taken", message, pointer, hint)
    hint = f"name a secret in {part}.{field}"
    for variable in variables:
        if variable in profile.env:
            message = f"{variable} is a secret, and would stand here for all to read"
            yield finding(entry, "secret_in_env", message, f"{PROFILE}/env/{variable}", hint)
    yield from _in_command(entry, profile, part, hint)


def _in_command(entry: Version, profile: RuntimeProfile, part: str, hint: str) -> Findings:
    for index, word in enumerate(profile.command):
        said = word.partition("=")[0]
        flag = said.replace("_", "-").lower()
        if (written := _WRITTEN[part].get(flag)) is not None:
            message = f"{said} is written by the renderer {profile.renderer}"
            otherwise = f"say it in {part}.{written}" if written else "leave it out"
            yield finding(entry, "field_not_read", message, f"{PROFILE}/command/{index}", otherwise)
        # Programs take a flag by what it begins with.
        if len(flag) > 4 and any(one.startswith(flag) for one in _SECRET_FLAGS[part]):
            message = f"{flag[:80]} shows a secret to whoever lists processes"
            yield finding(entry, "secret_in_command", message, f"{PROFILE}/command/{index}", hint)


# --- GPUs ----------------------------------------------------------------------------------------


def _gpus(entry: Version) -> Findings:
    profile = entry.spec.runtime_profile
    counted = _counted(services_of(profile))
    shared = [one for one in services_of(profile) if isinstance(one.service.gpus, str)]
    resting = [one for one in shared if one.service.gpus == "rest"]
    if len(resting) > 1:
        names = " and ".join(one.service.name for one in resting[:2])
        message = f"{names} both have the rest of the GPUs"
        hint = "say how many one of them has, or all of both"
        yield finding(entry, "gpu_shares", message, f"{resting[1].where}/gpus", hint)
    if (counted or resting) and len(shared) > len(resting):
        one = next(one for one in shared if one.service.gpus == "all")
        other = next(iter(counted), None) or resting[0].service.name
        message = f"{one.service.name} has all GPUs, and {other} some that are no other's"
        hint = "say rest of the one, or all of both"
        yield finding(entry, "gpu_shares", message, f"{one.where}/gpus", hint)
    main = next((one for one in services_of(profile) if one.service.role == "main"), None)
    if resting and main is not None and main.service.gpus is None:
        message = f"{resting[0].service.name} has the rest of the GPUs, which leaves the main none"
        hint = f"say how many {main.service.name} has"
        yield finding(entry, "gpu_shares", message, f"{resting[0].where}/gpus", hint)


def _counted(services: Sequence[Placed]) -> dict[str, int]:
    """Service → the GPUs that it counts for itself."""
    return {one.name: one.gpus for one, _, _ in services if isinstance(one.gpus, int) and one.gpus}


def _enough_gpus(case: Case) -> Findings:
    profile = case.version.spec.runtime_profile
    if profile.kind != COMPOSE:
        return
    services = case.setting.launch.services
    counted, asked = _counted(services), case.demand.gpus
    needed = sum(counted.values())
    more, least = _uncounted(case)
    pointer, hint = f"{_PARAMETERS}/gpu_count", "raise gpu_count"
    left, vllm = asked - needed, profile.vllm
    if left < least:
        message = f"{asked} GPUs asked"
        if counted:
            each = ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))
            noun = "GPU" if needed == 1 else "GPUs"
            message = f"the services of {case.version.ref} count {needed} {noun} ({each}), {asked}"
            message += " asked"
        if more:
            message += f", and {more}" + (" as well" if counted else "")
        yield finding(case.entry, "gpus_too_few", message, pointer, hint)
    elif vllm is not None and vllm.tensor_parallel is None and left % vllm.pipeline_parallel:
        message = f"{left} GPUs for vllm are not the same number {vllm.pipeline_parallel} times"
        hint = "pipeline_parallel has to divide them: choose another gpu_count"
        yield finding(case.entry, "tensor_parallel_uneven", message, pointer, hint)


def _uncounted(case: Case) -> tuple[str, int]:
    """Who needs GPUs beside those that are counted, in words, and how many at least."""
    vllm = case.version.spec.runtime_profile.vllm
    if vllm is not None and vllm.tensor_parallel is None:
        # One process alone can do without any, on the CPU.
        alone = case.demand.gpus == 0 and vllm.pipeline_parallel == 1
        return f"vllm needs {vllm.pipeline_parallel}", 0 if alone else vllm.pipeline_parallel
    rest = [one.service.name for one in case.setting.launch.services if one.service.gpus == "rest"]
    return (f"{rest[0]} is to have some", 1) if rest else ("", 0)


def _enough_room(case: Case) -> Findings:
    """What the sidecars leave is enough for the main service."""
    least, asked = case.setting.launch.least, case.demand
    if case.version.spec.runtime_profile.kind != COMPOSE:
        return
    for there, beside, needed, per, unit, name in (
        (
            asked.cpu_millis,
            least.beside_cpu_millis,
            least.main_cpu_millis,
            1000,
            "CPU cores",
            "cpu_cores",
        ),
        (
            asked.memory_mib,
            least.beside_memory_mib,
            least.main_memory_mib,
            1,
            "MiB of memory",
            "memory_gib",
        ),
    ):
        if there < beside + needed:
            message = (
                f"{there / per:.10g} {unit} asked; the sidecars of {case.version.ref} take"
                f" {beside / per:.10g}, and its main service needs {needed / per:.10g}"
            )
            yield finding(
                case.entry, "below_minimum", message, f"{_PARAMETERS}/{name}", f"raise {name}"
            )


def _no_packages(case: Case) -> Findings:
    if case.version.spec.runtime_profile.kind == COMPOSE and packages_of(case):
        message = f"the runtime kind {COMPOSE} puts no packages into its services"
        hint = "put them into the image"
        pointer = f"{_PARAMETERS}/{PIP_PACKAGES}"
        yield finding(case.entry, "packages_not_carried", message, pointer, hint)


SERVICE_CHECKS: tuple[Check, ...] = (
    _classes,
    _allowed,
    _paths,
    _limits,
    _files,
    _variables,
    _way_in,
    _gpus,
)
OWN_CHECKS: tuple[Callable[[Case], Findings], ...] = (_enough_gpus, _enough_room, _no_packages)
"""Of one instance, with everything it refers to."""
