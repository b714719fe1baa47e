"""Can what the catalog offers be run, and by whom?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jsonschema_rs

from reconciler.core.checks.parameters import UNDERSTOOD, Unfit, unfit
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.members import NOT_INHERITED, published, version_of_role
from reconciler.core.names import ArtifactKey, content_hash
from reconciler.core.schema import compile_schema
from reconciler.core.world import Entry, Findings, Path, World, finding

Engine = Literal["docker", "process"]
ENGINES: Mapping[str, Engine] = {"bare_metal": "process", "launchable_oci": "docker"}
"""The runtime kinds that are offered and the node engine each needs."""

_RANK = {"promoted": 0, "deprecated": 1, "published": 2, "retired": 3}
_IMAGE_REF = "/spec/runtime_profile/image_ref"
_NOT_VISIBLE = "not_visible"
_UNREGISTERED = "unregistered"


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
    roles: Mapping[str, Role] = field(default_factory=dict)
    publishes: bool = False
    """Whether other members reach it at a port of its node."""


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
    return tuple(found)


def standing(registrations: tuple[Entry[ArtifactSpec], ...], viewer: Path | None = None) -> str:
    """The best state among the registrations `viewer` (tenant, project) may see; revoked wins.

    Also `unregistered` and `not_visible`. Without a viewer everything is seen.
    """
    if not registrations:
        return _UNREGISTERED
    if any(entry.spec.state == "revoked" for entry in registrations):
        return "revoked"
    seen = [e.spec.state for e in registrations if viewer is None or _visible(e, viewer)]
    return min(seen, key=_RANK.__getitem__) if seen else _NOT_VISIBLE


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
    """From staged on, every image is registered; from canary on, it is promoted."""
    for path, promotion in world.promotions.items():
        version = world.versions.get(path)
        if version is None or promotion.spec.state in ("draft", "retired"):
            continue
        for pointer, image in images(version.spec):
            yield from _image_stands(world, promotion, version, pointer, image)


def _image_stands(
    world: World,
    promotion: Entry[PromotionSpec],
    version: Entry[AppVersionSpec],
    pointer: str,
    image: str,
) -> Findings:
    registrations = world.registered.get(image, ())
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
