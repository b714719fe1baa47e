"""Registers an artifact: looks at it where it is served, and writes the manifest that says so.

Rules: nothing is taken on anybody's word. What is not there, or is not what its digest says, is not
registered; nor is what would bring the state repo a new problem. It begins as published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from reconciler.artifacts.endpoints import endpoint_of
from reconciler.core.checks.catalog import images
from reconciler.core.desired import StateObject
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ArtifactKey, Digest, ObjectRef, nearest
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import next_states
from reconciler.core.source import Snapshot
from reconciler.errors import Refused
from reconciler.ports import BlobStore, Registry, RegistryEndpoint
from reconciler.use_cases.rollback import Check, in_the_way

Objects = Mapping[ObjectRef, StateObject]
_STORE = "artifact_store://"
_PLACE = re.compile(
    r"(?P<place>(?:artifact_store://)?[-_./0-9A-Za-z]+)@(?P<digest>sha256:[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Asked:
    """`place` is a repository, or an `artifact_store://` source; the rest as in the manifest."""

    ref: ObjectRef
    place: str
    digest: Digest
    visibility: str = "project"
    tag: str = ""
    media_type: str = ""
    source: tuple[tuple[str, str], ...] = ()

    @property
    def is_blob(self) -> bool:
        return self.place.startswith(_STORE)


@dataclass(frozen=True)
class Registration:
    """A new file of the state repo. `proof` says what was looked at, `in_the_way` which problems
    the repo would have then and has not now.
    """

    ref: ObjectRef
    path: str
    text: str
    proof: str
    in_the_way: tuple[Problem, ...]


def asked_for(text: str, project: str, app: str, version: str, name: str) -> Asked:
    """`REPOSITORY@DIGEST` or `artifact_store://…@DIGEST`, and what it is registered as."""
    found = _PLACE.fullmatch(text)
    if found is None:
        tagged = "@" not in text and ":" in text.rpartition("/")[2]
        hint = "gpuaas intent complete says it, and so does skopeo inspect"
        if tagged:
            hint = "name it by digest: a tag may be another tomorrow"
        elif _PLACE.fullmatch(text.partition("/")[2]):
            hint = f"leave {text.partition('/')[0]} out: the Environment says which registry it is"
        raise Refused("not_by_digest", f"{text[:200]!r} is no REPOSITORY@sha256:…", hint=hint)
    ref = ObjectRef("Artifact", (*project.split("/"), app, version, name))
    path = KINDS["Artifact"].path_of(ref.path) if len(ref.path) == 5 else ""
    if not path or not KINDS["Artifact"].pattern.fullmatch(path):
        message = f"{'/'.join(ref.path)} names no artifact"
        hint = "--project TENANT/PROJECT --app APP --version VERSION --name NAME"
        raise Refused("no_such_object", message, hint=hint)
    return Asked(ref, found["place"], Digest.parse(found["digest"]))


def endpoint_in(objects: Objects, environment: str) -> RegistryEndpoint:
    """The registry of an Environment; of the only one, where none is named."""
    named = {ref.name: o.manifest.spec for ref, o in objects.items() if ref.kind == "Environment"}
    if not environment and len(named) == 1:
        environment = next(iter(named))
    spec = named.get(environment)
    if not isinstance(spec, EnvironmentSpec):
        near = nearest(environment, named) if environment else None
        known = ", ".join(sorted(named))
        hint = f"did you mean {near}?" if near else f"--environment, one of: {known}"
        message = f"no Environment {environment}" if environment else "whose registry?"
        raise Refused("no_environment", message, hint=hint)
    return endpoint_of(spec)


def seen_in_registry(
    asked: Asked, registry: Registry, endpoint: RegistryEndpoint
) -> tuple[Asked, str]:
    """With the media type that it has, and what was looked at. Refused for what is not there."""
    seen = registry.look_up(endpoint, ArtifactKey(asked.place, asked.digest))
    if not seen.exists:
        raise Refused(
            "artifact_not_found",
            f"{asked.place} has no {asked.digest}",
            where=endpoint.endpoint,
            hint="push it first: gpuaas intent publish says where and with which credential",
        )
    platforms = f", for {', '.join(seen.platforms)}" if seen.platforms else ""
    proof = f"{seen.size_bytes} bytes{platforms}, hashed as {endpoint.endpoint} serves it"
    return replace(asked, media_type=asked.media_type or seen.media_type), proof


def seen_in_store(asked: Asked, store: BlobStore) -> tuple[Asked, str]:
    """The store hashed it when it took it; what was not published as this is not there."""
    size_bytes = store.size_bytes(asked.digest)
    if size_bytes is None or not store.claimed(asked.place, asked.digest):
        raise Refused(
            "artifact_not_found",
            f"the artifact store has no {asked.digest} that was published as this",
            where=asked.place,
            hint="first gpuaas intent publish --kind blob, blob upload, intent complete",
        )
    return asked, f"{size_bytes} bytes, hashed by the artifact store"


def registration(asked: Asked, proof: str, snapshot: Snapshot, check: Check) -> Registration:
    """The manifest. Refused where the object, or its file, is there already."""
    path = KINDS["Artifact"].path_of(asked.ref.path)
    if any(file.path == path for file in snapshot.files):
        message = f"{asked.ref} is registered already"
        hint = "a digest is registered once: give this one another --name, or a version of its own"
        raise Refused("artifact_exists", message, where=path, hint=hint)
    text = _text(asked)
    problems = in_the_way(snapshot, {path: text.encode()}, check)
    return Registration(asked.ref, path, text, proof, problems)


def _text(asked: Asked) -> str:
    spec: dict[str, Any] = {"kind": "blob" if asked.is_blob else "oci"}
    spec["source" if asked.is_blob else "repository"] = asked.place
    spec["digest"] = str(asked.digest)
    if asked.tag:
        spec["tag"] = asked.tag
    if asked.media_type:
        spec["media_type"] = asked.media_type
    if asked.source:
        spec["source_metadata"] = dict(asked.source)
    spec |= {"visibility": asked.visibility, "state": "published"}
    manifest = {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "Artifact",
        "metadata": {"name": asked.ref.name},
        "spec": spec,
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=1000)
    return text


# --- what is registered --------------------------------------------------------------------------


@dataclass(frozen=True)
class Registered:
    """One Artifact, with the versions that name it."""

    ref: ObjectRef
    path: str
    spec: ArtifactSpec
    versions: tuple[str, ...]

    @property
    def name(self) -> str:
        return "/".join(self.ref.path)

    @property
    def place(self) -> str:
        return self.spec.repository or self.spec.source or ""

    @property
    def next_states(self) -> tuple[str, ...]:
        """What may follow; `removed` for that its file goes."""
        return tuple(state or "removed" for state in next_states("Artifact", self.spec.state))


def registered_in(objects: Objects, project: str = "", state: str = "") -> tuple[Registered, ...]:
    """All Artifacts, or those of one project or in one state, by name."""
    users: dict[str, list[str]] = {}
    for ref, found in sorted(objects.items()):
        spec = found.manifest.spec
        if isinstance(spec, AppVersionSpec):
            for named in _named_by(spec):
                users.setdefault(named, []).append(str(ref))
    listed = []
    for ref, found in sorted(objects.items()):
        spec = found.manifest.spec
        if not isinstance(spec, ArtifactSpec) or state not in ("", spec.state):
            continue
        if project in ("", "/".join(ref.path[:2])):
            image = f"{spec.repository or spec.source}@{spec.digest}"
            listed.append(Registered(ref, found.path, spec, tuple(users.get(image, ()))))
    return tuple(listed)


def _named_by(spec: AppVersionSpec) -> set[str]:
    return {blob.ref for blob in spec.runtime_profile.blobs} | {image for _, image in images(spec)}


def registered_as(text: str, objects: Objects) -> Registered:
    """One by name or place and digest; Refused with the nearest."""
    every = registered_in(objects)
    name = text.removeprefix("Artifact/")
    found = [one for one in every if text == f"{one.place}@{one.spec.digest}" or one.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(one.name for one in found)
        raise Refused("ambiguous_object", f"several Artifacts are {text}: {named}", hint="name one")
    near = nearest(name, [one.name for one in every])
    hint = f"did you mean {near}?" if near else "gpuaas artifact list shows what there is"
    raise Refused("no_such_object", f"there is no Artifact {text[:200]}", hint=hint)
