"""May this be registered, and from where? Places in registry and store, and sources of blobs.

Rules:
- What stands in the canonical place of a project is that project's. Others may name it as far as
  it is offered to them, and never by writing it in themselves.
- A blob is registered where its project's uploads end up, and nowhere else.
- Where a policy lists sources, a blob comes from one of them: compared as addresses, so that no
  spelling of a path leads out of what was allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from reconciler.core.checks.catalog import offered
from reconciler.core.kinds.artifact import ArtifactSpec
from reconciler.core.transfers import (
    STAGING,
    blob_source,
    canonical_repository,
    repository_owner,
)
from reconciler.core.world import Entry, Findings, World, finding

READS = frozenset(("Artifact", "TrustPolicy"))
_REPOSITORY = "/spec/repository"
_SOURCE = "/spec/source"
_URL = "/spec/source_metadata/repository_url"
_NAME = re.compile(r"[0-9A-Za-z][-_.0-9A-Za-z]*")
_ENCODED = re.compile("%(?:2[ef5]|5c)", re.IGNORECASE)
"""Dots, slashes and percent signs that a server may decode, and then walk."""


def check_artifacts(world: World) -> Findings:
    """Places and sources of all registrations."""
    policies = world.trust_policies.values()
    allowed = sorted({prefix for policy in policies for prefix in policy.spec.blob_sources})
    for entry in world.artifacts.values():
        if entry.spec.repository is not None:
            yield from _repository(world, entry, entry.spec.repository)
        if entry.spec.source is not None:
            yield from _source(entry, entry.spec.source)
            yield from _blob_source(entry, allowed)


def _repository(world: World, entry: Entry[ArtifactSpec], repository: str) -> Findings:
    if f"{repository}/".startswith(f"{STAGING}/"):
        message = f"{repository} is where something was pushed to, and does not stay"
        hint = "complete the publish intent; it says what to register"
        yield finding(entry, "staging_repository", message, _REPOSITORY, hint)
        return
    registrations = world.registered.get(f"{repository}@{entry.spec.digest}", ())
    owner = repository_owner(repository)
    if owner is None or offered(entry, registrations):
        return
    own, project = "/".join(entry.path[:2]), "/".join(owner)
    message = f"{repository} belongs to project {project}, which does not offer it to {own}"
    place = canonical_repository(own, entry.path[2])
    hint = f"an Artifact of {project} may offer it by its visibility; or publish it to {place}"
    yield finding(entry, "foreign_repository", message, _REPOSITORY, hint)


def _source(entry: Entry[ArtifactSpec], source: str) -> Findings:
    tenant, project, app, version, name = entry.path
    place = blob_source(f"{tenant}/{project}", app, version, "")
    if source.startswith(place) and _NAME.fullmatch(source.removeprefix(place)):
        return
    message = f"{source} is not where blobs of project {tenant}/{project} for {app} {version} are"
    yield finding(entry, "foreign_source", message, _SOURCE, f"write it as {place}{name}")


def _blob_source(entry: Entry[ArtifactSpec], allowed: Iterable[str]) -> Findings:
    prefixes = [*allowed]
    metadata = entry.spec.source_metadata
    url = metadata.repository_url if metadata is not None else None
    if not prefixes or (url is not None and is_allowed(url, prefixes)):
        return
    what = f"{url} is no source" if url is not None else "it does not say its source, which is one"
    message = f"{what} that a TrustPolicy allows for blobs"
    yield finding(
        entry, "blob_source_not_allowed", message, _URL, f"allowed: {', '.join(prefixes)}"
    )


def is_allowed(url: str, prefixes: Iterable[str]) -> bool:
    """Whether an address lies below one of the prefixes, however either of them is spelt."""
    found = _address(url)
    if found is None:
        return False
    host, path = found
    for prefix in prefixes:
        above = _address(prefix)
        if above is not None and above[0] == host and path.startswith(above[1]):
            return True
    return False


def _address(url: str) -> tuple[str, str] | None:
    """Host and path; None for what may lead elsewhere than it seems."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    path = parts.path
    tricky = "\\" in url or "@" in parts.netloc or _ENCODED.search(url) is not None
    tricky = tricky or any(one in ("", ".", "..") for one in path.split("/")[1:-1])
    if tricky or path.endswith(("/.", "/..")) or parts.scheme != "https" or not parts.hostname:
        return None
    host = parts.hostname.rstrip(".")
    return (host if port in (None, 443) else f"{host}:{port}"), path or "/"
