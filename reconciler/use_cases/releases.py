"""The platform's own releases: which there are, and what of one is to be downloaded.

Rules: what is accepted decides. A withdrawn release is given to nobody, and says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from reconciler.core.accept import parse_accepted
from reconciler.core.desired import StateObject
from reconciler.core.kinds.platform_release import Build, PlatformReleaseSpec
from reconciler.core.names import nearest
from reconciler.core.records import Accepted
from reconciler.errors import Refused

COMPONENTS = ("agent", "cli", "sdk")
ANY = "any"
PUBLISHED = "published"
_PREFIX = "PlatformRelease/"
FILE_NAME = re.compile(r"[0-9A-Za-z][-_.0-9A-Za-z]{0,199}")


@dataclass(frozen=True)
class Release:
    """`builds`: (component, platform) → its build, sorted; the platform is os/arch or `any`."""

    version: str
    spec: PlatformReleaseSpec

    @property
    def builds(self) -> dict[tuple[str, str], Build]:
        return self.spec.components.builds


def releases_of(accepted: Accepted, channel: str = "") -> tuple[Release, ...]:
    """Those that are published, of one channel or all; the newest version first."""
    found = (_release(accepted, ref) for ref in accepted.objects if ref.startswith(_PREFIX))
    shown = [
        one
        for one in found
        if one is not None and one.spec.state == PUBLISHED and channel in ("", one.spec.channel)
    ]
    return tuple(sorted(shown, key=lambda one: _rank(one.version), reverse=True))


def release_of(accepted: Accepted, version: str) -> Release:
    """Refused: no_such_release, release_withdrawn."""
    found = _release(accepted, _PREFIX + version)
    if found is None:
        known = [ref.removeprefix(_PREFIX) for ref in accepted.objects if ref.startswith(_PREFIX)]
        near = nearest(version, known)
        hint = f"did you mean {near}?" if near else "gpuaas release list shows those there are"
        raise Refused("no_such_release", f"there is no release {version[:100]!r}", hint=hint)
    if found.spec.state != PUBLISHED:
        message = f"release {version} was withdrawn: {found.spec.reason}"
        newest = next((o for o in releases_of(accepted, found.spec.channel)), None)
        hint = f"the newest of channel {found.spec.channel} is {newest.version}" if newest else ""
        raise Refused("release_withdrawn", message, hint=hint)
    return found


def build_of(release: Release, component: str, platform: str) -> Build:
    """The one for that os/arch, else the one that runs everywhere. Refused: no_such_build."""
    builds = release.builds
    found = builds.get((component, platform)) or builds.get((component, ANY))
    if found is not None:
        return found
    there = sorted(name for of, name in builds if of == component)
    hint = f"there are: {', '.join(there)}" if there else ""
    components = ", ".join(sorted({of for of, _ in builds}))
    hint = hint or f"it has {components}"
    message = f"release {release.version} has no {component[:40]} for {platform[:80]}"
    raise Refused("no_such_build", message, hint=hint)


def file_name(release: Release, component: str, platform: str, build: Build) -> str:
    """What a download is called: the last word of its source, where that can be a file's name."""
    last = (build.source or "").rpartition("/")[2]
    # A published blob is called by the name of an artifact, which says nothing to who downloads it.
    if "." in last and FILE_NAME.fullmatch(last):
        return last
    return f"gpuaas-{component}-{release.version}-{platform.replace('/', '-')}"


def refuse_bytes(build: Build) -> None:
    """Refused(release_in_registry) for what only the registry gives, by a pull intent."""
    if build.kind == "oci":
        where = f"{build.repository}@{build.digest}"
        raise Refused(
            "release_in_registry",
            f"{where} is an image: it comes from the registry",
            hint=f"gpuaas intent pull {where} gives a credential for it "
            f'(POST /v1/intents/pull with artifact "{where}")',
        )


def _release(accepted: Accepted, ref: str) -> Release | None:
    stored = accepted.objects.get(ref)
    found = parse_accepted(stored) if stored is not None else None
    spec = found.manifest.spec if isinstance(found, StateObject) else None
    if not isinstance(spec, PlatformReleaseSpec):
        return None
    return Release(ref.removeprefix(_PREFIX), spec)


def _rank(version: str) -> tuple[bool, Version, str]:
    """By what versions mean; words that are none come last."""
    try:
        return True, Version(version), version
    except InvalidVersion:
        return False, Version("0"), version
