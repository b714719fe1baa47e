"""Can the secrets that a version names be brought to it, and does each instance say which they are?

That a reference is one, and of no other project, is the schema's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from node_agent.wire import MACHINE_IDENTITY
from reconciler.core.checks.instances import Case
from reconciler.core.kinds.app_version import AppVersionSpec, SecretFile
from reconciler.core.names import nearest
from reconciler.core.world import Entry, Findings, World, finding

CARRY_SECRETS = frozenset(("bare_metal", "docker_compose", "launchable_oci"))
"""The runtime kinds whose engines put files in memory in place before a start."""
PLACEHOLDER = re.compile(r"\{secret:([^{}]*)\}")
"""In access instructions: the value of the secret of that name."""
_RESERVED = re.compile(
    "(?:LD_|PYTHON|GPUAAS_).*|PATH|HOME|SHELL|IFS|ENV|BASH_ENV"
    "|NVIDIA_VISIBLE_DEVICES|NVIDIA_DRIVER_CAPABILITIES|AMD_VISIBLE_DEVICES|CUDA_VISIBLE_DEVICES"
)
"""Variables that decide how a program is started, or that the platform sets itself."""
_SECRETS = "/spec/runtime_profile/secrets"
_BOUND = "/spec/secrets"


# --- versions ------------------------------------------------------------------------------------


def check_secrets(world: World) -> Findings:
    for entry in world.versions.values():
        profile = entry.spec.runtime_profile
        if profile.secrets and profile.kind not in CARRY_SECRETS:
            yield finding(
                entry,
                "secrets_not_carried",
                f"runtime kind {profile.kind} brings no secrets to a workload",
                _SECRETS,
                f"it is done by: {', '.join(sorted(CARRY_SECRETS))}",
            )
        for index, secret in enumerate(profile.secrets):
            yield from _own(entry, index, secret)
        for name, hint in _unknown(entry.spec):
            message = f"the instructions show secret {name!r}, which this version does not have"
            yield finding(entry, "unknown_secret", message, "/spec/access/instructions", hint)


def _own(entry: Entry[AppVersionSpec], index: int, secret: SecretFile) -> Findings:
    if secret.name == MACHINE_IDENTITY:
        message = f"every instance has a secret {MACHINE_IDENTITY} without asking"
        hint = "leave it out, or call yours something else"
        yield finding(entry, "secret_name_reserved", message, f"{_SECRETS}/{index}/name", hint)
    if secret.env is None:
        return
    where = f"{_SECRETS}/{index}/env"
    if _RESERVED.fullmatch(secret.env):
        message = f"{secret.env} decides how programs are started, and can't be a secret"
        hint = "call it something else, or let the program read the file"
        yield finding(entry, "secret_env_reserved", message, where, hint)
    setter = _set_by(entry.spec, secret.env)
    if setter:
        message = f"{secret.env} is set by {setter} already"
        yield finding(entry, "secret_env_taken", message, where, "leave one of them out")


def _set_by(spec: AppVersionSpec, variable: str) -> str:
    """The field that gives the variable a value for all to read; empty when none does."""
    profile = spec.runtime_profile
    if variable in profile.env:
        return "runtime_profile.env"
    roles = (one.role for one in profile.members if variable in one.env)
    return next((f"the env of members of role {role}" for role in roles), "")


def _unknown(spec: AppVersionSpec) -> Iterator[tuple[str, str]]:
    known = [secret.name for secret in spec.runtime_profile.secrets]
    shown = PLACEHOLDER.findall(spec.access.instructions if spec.access else "")
    for name in sorted({*shown} - {*known}):
        near = nearest(name, known)
        add = "name it in runtime_profile.secrets"
        yield name[:80], f"did you mean {near}?" if near else add


# --- instances -----------------------------------------------------------------------------------


def _bound(case: Case) -> Findings:
    """Each reference of the version by one of the instance, and no other."""
    bound, secrets = case.entry.spec.secrets, case.version.spec.runtime_profile.secrets
    if not bound and not secrets:
        return
    source = {secret.name: secret.source for secret in secrets}
    for name in sorted(source):
        if source[name] == "reference" and name not in bound:
            message = f"{case.version.ref} takes its secret {name} by reference, and none is given"
            hint = f"add it: secrets: {{{name}: secret://project/{name}}}"
            yield finding(case.entry, "secret_not_bound", message, _BOUND, hint)
    for name in sorted(bound):
        if name not in source:
            known = [one for one, kind in source.items() if kind == "reference"]
            message = f"{case.version.ref} has no secret {name}"
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else "leave it out"
            yield finding(case.entry, "unknown_secret", message, f"{_BOUND}/{name}", hint)
        elif source[name] == "generated":
            message = (
                f"secret {name} of {case.version.ref} is generated: no reference stands for it"
            )
            hint = "leave it out, or have the version say source: reference"
            yield finding(case.entry, "secret_not_a_reference", message, f"{_BOUND}/{name}", hint)


OWN_CHECKS = (_bound,)
"""Of one instance, with everything it refers to."""
