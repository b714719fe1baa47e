"""What a channel makes of an artifact, by the policies of a working tree or those accepted.

Rules: policies come from the state repo and from nowhere else. A tree whose policies can't all be
read has none: what is left of them could be laxer than what was written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reconciler.artifacts.endpoints import endpoint_of
from reconciler.artifacts.verifying import look
from reconciler.core.desired import StateObject
from reconciler.core.forms import parse_accepted
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.trust_policy import TrustPolicySpec
from reconciler.core.names import ArtifactKey, nearest
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from reconciler.core.trust.build import rules_of
from reconciler.core.trust.evidence import Evidence, Verdict
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustRules
from reconciler.errors import Refused
from reconciler.ports import Registry, RegistryEndpoint
from reconciler.settings import Settings
from reconciler.use_cases.validation import check_path

_READ = ("Environment", "TrustPolicy")
_TOLD = ("channel_closed", "channel_unknown", "unknown_environment")
"""What is accepted as it is written: nothing gets into such a channel, and that is an answer. And
which Environments there are is asked by name here, whichever one this host works on.
"""


@dataclass(frozen=True)
class Policies:
    """The rules of one revision, and the registry of one Environment (None: none was asked for)
    with the channel that its artifacts have to be good for (empty: nothing is asked there).
    """

    revision: str
    rules: TrustRules
    endpoint: RegistryEndpoint | None
    channel: str = ""


@dataclass(frozen=True)
class Verified:
    """What was found on an artifact, and what the channel makes of it."""

    artifact: ArtifactKey
    channel: str
    verdict: Verdict
    evidence: Evidence


def parse_artifact(text: str) -> ArtifactKey:
    """Refused("bad_artifact") for a tag, and anything else that names no artifact."""
    try:
        return ArtifactKey.parse(text)
    except ValueError as error:
        hint = "a tag may be another artifact a moment later; a push says the digest"
        raise Refused("bad_artifact", str(error), hint=hint) from None


def policies_of_tree(path: Path, environment: str, settings: Settings) -> Policies:
    """By the files of a folder, committed or not. Refused("policies_invalid")."""
    checked = check_path(path, None, settings)
    wrong = [
        problem
        for problem in checked.problems
        if problem.path.startswith(("platform/trust/", "environments/"))
        and problem.code not in _TOLD
    ]
    if wrong:
        first = wrong[0]
        hint = f"gpuaas validate {path}"
        message = f"{first.code}: {first.message}"
        raise Refused("policies_invalid", message, where=f"{first.path}:{first.line}", hint=hint)
    return _policies(checked.revision, checked.candidate.objects.values(), environment)


def policies_accepted(accepted: Accepted, environment: str) -> Policies:
    """By what the control plane accepted last. Refused("policies_invalid")."""
    objects: list[StateObject] = []
    for ref, stored in sorted(accepted.objects.items()):
        if ref.partition("/")[0] in _READ:
            form = parse_accepted(stored)
            if isinstance(form, Problem):
                raise Refused("policies_invalid", form.message, where=form.path, hint=form.hint)
            objects.append(form)
    return _policies(str(accepted.revision or ""), objects, environment)


def _policies(revision: str, objects: Iterable[StateObject], environment: str) -> Policies:
    policies: list[tuple[str, TrustPolicySpec]] = []
    environments: dict[str, EnvironmentSpec] = {}
    for one in objects:
        spec = one.manifest.spec
        if isinstance(spec, TrustPolicySpec):
            policies.append((one.ref.name, spec))
        elif isinstance(spec, EnvironmentSpec):
            environments[one.ref.name] = spec
    rules = rules_of(policies)
    if not environment:
        return Policies(revision, rules, None)
    spec = _named(environments, environment)
    channel = spec.trust.channel if spec.trust is not None else ""
    return Policies(revision, rules, endpoint_of(spec), channel)


def _named(environments: dict[str, EnvironmentSpec], name: str) -> EnvironmentSpec:
    spec = environments.get(name)
    if spec is None:
        near, there = nearest(name, environments), ", ".join(sorted(environments))
        hint = f"did you mean {near!r}?" if near else f"there are {there}"
        if not environments:
            hint = "none is there at all: is that a checkout of the state repo? See --tree"
        raise Refused("no_such_environment", f"there is no Environment {name!r}", hint=hint)
    return spec


def verify_artifact(
    registry: Registry,
    endpoint: RegistryEndpoint,
    key: ArtifactKey,
    rules: TrustRules,
    channel: str,
    now_ms: int,
    known: Evidence | None = None,
) -> Verified:
    """Looks at the registry now, hashing the artifact's manifests and all that is attached to it.

    Refused("artifact_missing", "no_such_channel"); what the registry raises.
    """
    if channel not in rules.channels:
        near = nearest(channel, rules.channels)
        hint = f"did you mean {near!r}?" if near else "describe it in a TrustPolicy"
        message = f"no TrustPolicy says what the channel {channel!r} needs"
        raise Refused("no_such_channel", message, hint=hint)
    if not registry.look_up(endpoint, key).exists:
        raise Refused("artifact_missing", "it is not in the registry", where=str(key))
    evidence = look(registry, endpoint, key, rules, known, now_ms)
    return Verified(key, channel, judge(rules, channel, evidence, now_ms), evidence)
