"""Can what the catalog offers be run, and by whom?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jsonschema_rs

from reconciler.core.access_template import access_template
from reconciler.core.blobs import blob_refs
from reconciler.core.checks.parameters import UNDERSTOOD, Unfit, unfit
from reconciler.core.desired import Revoked
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.members import NOT_INHERITED, published, version_of_role
from reconciler.core.names import ArtifactKey, content_hash
from reconciler.core.schema import compile_schema
from reconciler.core.topology import COMPOSE, Least, Placed, least_of, reached_ports, services_of
from reconciler.core.transfers import place_owner
from reconciler.core.world import Entry, Findings, Path, World, finding

Engine = Literal["docker", "process", "compose"]
ENGINES: Mapping[str, Engine] = {
    "bare_metal": "process",
    "docker_compose": "compose",
    "launchable_oci": "docker",
}
"""The runtime kinds that are offered and the node engine each needs."""

NOT_FOR_CHANNEL = "not_for_channel"
"""Promoted, but for other channels."""
_BEST_FIRST = ("promoted", "deprecated", NOT_FOR_CHANNEL, "published", "retired", "revoked")
_RANK = {state: rank for rank, state in enumerate(_BEST_FIRST)}
_OFFERED = ("canary", "active", "deprecated")
_IMAGE_REF = "/spec/runtime_profile/image_ref"
_NOT_VISIBLE = "not_visible"
_UNREGISTERED = "unregistered"
UNSEEN = frozenset((_NOT_VISIBLE, _UNREGISTERED))
"""What `standing` says of what is not there for the viewer."""


@dataclass(frozen=True)
class Form:
    """`launch_parameters`, compiled; `broken` says why there is no validator.

    `unfit` are defaults that no launch can carry out, by parameter. A default that nothing reads is
    none of them: it is refused where an instance gives a value.
    """

    validator: jsonschema_rs.Draft202012Validator | None
    broken: str
    defaults: Mapping[str, object]
    unfit: tuple[tuple[str, Unfit], ...] = ()


Forms = dict[str, Form]
"""By their text: most often the form of a version is that of the version before."""


@dataclass(frozen=True)
class Launch:
    """What all instances of an AppVersion share, made once.

    `health` is `runtime_profile.health` with defaults filled in, `keys` the artifact of each image
    the version names, `roles` what further members of each role share.
    """

    form: Form
    health: Mapping[str, object]
    env: Mapping[str, str]
    keys: Mapping[str, ArtifactKey]
    least: Least
    roles: Mapping[str, Role] = field(default_factory=dict)
    publishes: bool = False
    """Whether other members reach it at a port of its node."""
    services: tuple[Placed, ...] = ()
    """Of a topology: the one that its renderer makes is the first."""
    ports: tuple[tuple[str, int, bool], ...] = ()
    """(name, port, whether a fixed host port is for it) of what is reached from outside."""
    access: str = ""
    """What people are told, a template."""


@dataclass(frozen=True)
class Role:
    """A version as it is for further members of one role."""

    spec: AppVersionSpec
    launch: Launch


def compile_launch(spec: AppVersionSpec, forms: Forms) -> Launch:
    """Compiles `launch_parameters`, unless `forms` has them; it gets what is new."""
    text = json.dumps(spec.launch_parameters)
    form = forms.get(text)
    if form is None:
        form = forms[text] = _compile_form(spec.launch_parameters)
    keys = {image: ArtifactKey.parse(image) for _, image in images(spec)}
    own = {name: value for name, value in form.defaults.items() if name not in NOT_INHERITED}
    roles = {
        role.role: Role(one, _launch(one, replace(form, defaults=own), keys))
        for role in spec.runtime_profile.members
        for one in [version_of_role(spec, role)]
    }
    return _launch(spec, form, keys, roles)


def _launch(
    spec: AppVersionSpec,
    form: Form,
    keys: Mapping[str, ArtifactKey],
    roles: Mapping[str, Role] | None = None,
) -> Launch:
    profile = spec.runtime_profile
    return Launch(
        form=form,
        health=profile.health.model_dump(mode="json", exclude_none=True),
        env=dict(sorted(profile.env.items())),
        keys=keys,
        roles=roles or {},
        publishes=bool(published(profile)),
        least=least_of(profile),
        services=services_of(profile) if profile.kind == COMPOSE else (),
        ports=reached_ports(profile),
        access=access_template(spec),
    )


def _compile_form(schema: dict[str, Any]) -> Form:
    """Nothing is fetched, patterns run in linear time."""
    properties = schema.get("properties")
    fields = properties if isinstance(properties, dict) else {}
    defaults = {
        name: field["default"]
        for name, field in sorted(fields.items())
        if isinstance(field, dict) and "default" in field
    }
    wrong = [(name, one) for name in UNDERSTOOD if name in defaults
             for one in unfit(name, defaults[name])]  # fmt: skip
    try:
        return Form(compile_schema(schema), "", defaults, tuple(wrong))
    except ValueError as error:
        return Form(None, str(error).partition("\n")[0], defaults)


def images(spec: AppVersionSpec) -> tuple[tuple[str, str], ...]:
    """(pointer, `repository@digest`) of everything the version may pull."""
    profile = spec.runtime_profile
    found = [("/spec/artifact_ref", spec.artifact_ref)]
    if profile.image_ref is not None:
        found.append((_IMAGE_REF, profile.image_ref))
    for family, image in sorted(profile.variants.items()):
        found.append((f"/spec/runtime_profile/variants/{family}", image))
    for index, role in enumerate(profile.members):
        where = f"/spec/runtime_profile/members/{index}"
        if role.image_ref is not None:
            found.append((f"{where}/image_ref", role.image_ref))
        found += [(f"{where}/variants/{f}", image) for f, image in sorted(role.variants.items())]
    for service, where, _ in services_of(profile) if profile.kind == COMPOSE else ():
        if service.image_ref is not None:
            found.append((f"{where}/image_ref", service.image_ref))
        found += [(f"{where}/variants/{f}", image) for f, image in sorted(service.variants.items())]
    return tuple(found)


Registrations = tuple[Entry[ArtifactSpec], ...]


def channel_of(environment: EnvironmentSpec, state: str) -> str:
    """What a version in this state has to be good for there; a canary may be let in on less."""
    trust = environment.trust
    if trust is None:
        return ""
    return (trust.canary_channel if state == "canary" else None) or trust.channel


def standing(registrations: Registrations, viewer: Path | None = None, channel: str = "") -> str:
    """The state that counts for `viewer` (tenant, project) of what is registered in one place.

    Each project has one word on it: `revoked` if any of its registrations is, else the best that
    the viewer may see. Whose word counts:
    - In a place that a project owns, the owner's: no other lifts it, makes it more visible or
      revokes it. A registration of the viewer's own only narrows it, for itself.
    - In nobody's place the viewer's own; without one the best of those it sees. So a revocation
      binds all who may see it while nobody else vouches for the digest, and else its own project.

    Without a viewer everything is seen. Also `unregistered`, `not_visible` and, where `channel` is
    given, `not_for_channel`.
    """
    words = {
        project: _word([one for one in registrations if one.path[:2] == project], viewer, channel)
        for project in sorted({entry.path[:2] for entry in registrations})
    }
    own = words.get(viewer) if viewer is not None else None
    owner = _owner(registrations[0]) if registrations else None
    if owner is not None:
        word = words.get(owner, _UNREGISTERED)
        return max(word, own, key=_RANK.__getitem__) if own and word in _RANK else word
    seen = [own] if own else [word for word in words.values() if word != _NOT_VISIBLE]
    if not seen:
        return _NOT_VISIBLE if words else _UNREGISTERED
    return min(seen, key=_RANK.__getitem__)


def _word(entries: Iterable[Entry[ArtifactSpec]], viewer: Path | None, channel: str) -> str:
    if any(entry.spec.state == "revoked" for entry in entries):
        return "revoked"
    seen = [entry.spec for entry in entries if viewer is None or _visible(entry, viewer)]
    return min((_state_for(s, channel) for s in seen), key=_RANK.__getitem__, default=_NOT_VISIBLE)


def _state_for(spec: ArtifactSpec, channel: str) -> str:
    other = channel and spec.state == "promoted" and spec.channels and channel not in spec.channels
    return NOT_FOR_CHANNEL if other else spec.state


def offered(entry: Entry[ArtifactSpec], registrations: Registrations) -> bool:
    """Whether its project may name the repository: its own, nobody's, or one that is offered to it
    by a registration of the project that owns it.
    """
    owner, own = _owner(entry), entry.path[:2]
    if owner is None or owner == own:
        return True
    return any(one.path[:2] == owner and _visible(one, own) for one in registrations)


def revocations(world: World) -> Revoked:
    """Of the images that versions name: nothing else runs."""
    revoked = {key for key, group in world.registered.items() if _any_revoked(group)}
    if not revoked:
        return {}
    named = {
        (image, app)
        for (app, _), version in world.versions.items()
        for _, image in images(version.spec)
        if image in revoked
    }
    found: dict[tuple[str, str, str], str] = {}
    for image, app in sorted(named):
        group = world.registered[image]
        for project in _bound(world, group):
            found[group[0].spec.digest, app, "/".join(project)] = str(_revoker(group, project).ref)
    return found


def _any_revoked(registrations: Registrations) -> bool:
    return any(entry.spec.state == "revoked" for entry in registrations)


def _bound(world: World, registrations: Registrations) -> Iterable[Path]:
    """The projects for which it is revoked; one empty path for all of them."""
    owner = _owner(registrations[0])
    if owner is None:
        asked: Iterable[Path] = world.projects
    elif standing(registrations) == "revoked":
        return ((),)
    else:
        asked = sorted({entry.path[:2] for entry in registrations})
    return [one for one in asked if standing(registrations, one) == "revoked"]


def _revoker(registrations: Registrations, project: Path) -> Entry[ArtifactSpec]:
    """Of several, that of the owner, else the project's own."""
    revoked = [entry for entry in registrations if entry.spec.state == "revoked"]
    return min(
        revoked,
        key=lambda one: (one.path[:2] != _owner(one), one.path[:2] != project, one.path),
    )


def speaking(registrations: Registrations) -> Registrations:
    """Those whose word counts for others: the owner's, or all of what is nobody's."""
    owner = _owner(registrations[0]) if registrations else None
    return tuple(one for one in registrations if owner is None or one.path[:2] == owner)


def _owner(entry: Entry[ArtifactSpec]) -> Path | None:
    return place_owner(entry.spec.repository or entry.spec.source or "")


def _visible(entry: Entry[ArtifactSpec], viewer: Path) -> bool:
    depth = {"platform": 0, "tenant": 1, "project": 2}[entry.spec.visibility]
    return entry.path[:depth] == viewer[:depth]


def in_canary(promotion: Entry[PromotionSpec], project: Path) -> bool:
    """Named, or within the percentage; a project stays in as the percentage grows."""
    canary = promotion.spec.canary
    if canary is None:
        return False
    name = "/".join(project)
    share = int(content_hash("canary", promotion.path, name)[:8], 16) % 100
    return name in canary.projects or share < canary.percent


def check_runtime_kind(world: World) -> Findings:
    for entry in world.versions.values():
        kind = entry.spec.runtime_profile.kind
        if kind not in ENGINES:
            offered = ", ".join(ENGINES)
            yield finding(
                entry,
                "runtime_not_offered",
                f"runtime kind {kind} is not offered yet",
                "/spec/runtime_profile/kind",
                f"offered: {offered}",
            )


def check_launch_schema(world: World, launches: Mapping[Path, Launch]) -> Findings:
    for path, entry in world.versions.items():
        if broken := launches[path].form.broken:
            message = f"launch_parameters is no usable JSON Schema: {broken}"
            yield finding(entry, "invalid_launch_parameters", message, "/spec/launch_parameters")
        for name, wrong in launches[path].form.unfit:
            pointer = f"/spec/launch_parameters/properties/{name}/default"
            message = f"the default can't be carried out: {wrong.message}"
            yield finding(entry, wrong.code, message, pointer, wrong.hint)


def check_promoted_images(world: World) -> Findings:
    """From staged on, every image and blob is registered; from canary on, it is promoted."""
    for path, promotion in world.promotions.items():
        version = world.versions.get(path)
        if version is None or promotion.spec.state in ("draft", "retired"):
            continue
        for pointer, image in (*images(version.spec), *blob_refs(version.spec)):
            yield from _image_stands(world, promotion, version, pointer, image)


def check_channels(world: World, environment: EnvironmentSpec) -> Findings:
    """What is offered in the environment is promoted for the channel that it takes."""
    if environment.trust is None:
        return
    for path, promotion in world.promotions.items():
        version, state = world.versions.get(path), promotion.spec.state
        if version is None or state not in _OFFERED:
            continue
        channel = channel_of(environment, state)
        for pointer, image in (*images(version.spec), *blob_refs(version.spec)):
            registrations = speaking(world.registered.get(image, ()))
            if standing(registrations, channel=channel) != NOT_FOR_CHANNEL:
                continue
            there = sorted({one for entry in registrations for one in entry.spec.channels})
            message = (
                f"version is {state}, but {image} ({version.ref}{pointer}) is promoted for"
                f" {', '.join(there)}, and not for {channel}"
            )
            hint = f"add {channel} to /spec/channels of {registrations[0].ref}"
            waits = (entry.ref for entry in registrations if entry.spec.state == "promoted")
            involved = (version.ref, *waits)
            yield finding(
                promotion, "artifact_not_in_channel", message, "/spec/state", hint, involved
            )


def _image_stands(
    world: World,
    promotion: Entry[PromotionSpec],
    version: Entry[AppVersionSpec],
    pointer: str,
    image: str,
) -> Findings:
    registrations = speaking(world.registered.get(image, ()))
    found = standing(registrations)
    wanted = promotion.spec.state
    accepted = {"promoted", "deprecated"}
    if wanted not in ("canary", "active"):
        accepted.add("published")
    if found in accepted:
        return
    hint = {
        _UNREGISTERED: "register it as an Artifact, by repository and digest",
        "published": "promote the Artifact first",
    }.get(found, "point the version at an artifact in good standing, or retire it")
    # A retirement waits while a version uses the artifact; a revocation does not wait.
    waits = registrations if found == "retired" else ()
    yield finding(
        promotion,
        f"artifact_{found}" if found != "published" else "artifact_not_promoted",
        f"version is {wanted}, but {image} ({version.ref}{pointer}) is {found}",
        "/spec/state",
        hint,
        (version.ref, *(entry.ref for entry in waits)),
    )
