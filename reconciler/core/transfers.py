"""An artifact's way in or out: what may be moved, where, by whom, until when. Plain values.

Rules: a publish transfer has a place of its own, where nothing else ever was; from there the
control plane copies by digest. What a credential opens is what its transfer says, nothing more.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from reconciler.core.names import NAME, VERSION
from reconciler.core.trust.rules import TrustRules

TransferKind = Literal["publish", "pull"]
ContentKind = Literal["oci", "blob"]
TransferState = Literal["open", "completed", "closed"]

TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_PROJECT = re.compile(f"{NAME}/{NAME}")
_NAME, _VERSION, _TAG = re.compile(NAME), re.compile(VERSION), re.compile(TAG)

_SIGNATURES = re.compile(r"sha\d+-[0-9a-f]{32,}(\..*)?", re.DOTALL)
TAG_RESERVED = "signatures are kept at tags like this one: name another"

ARTIFACT_LENGTH_MAX = 700
"""Longer names of artifacts to pull are none."""
STAGING = "gpuaas/intents"
"""Before the repositories that publish transfers push to, one each."""
_STORE = "artifact_store://projects/"


@dataclass(frozen=True)
class Transfer:
    """A publish or pull intent that was given out.

    `repository`: canonical, where it is (pull) or ends up (publish); for blobs its
    `artifact_store://` source. `place`: the only one that its credential opens; for pulls the same
    as `repository`. `digest`: of what may be pulled; of what was published once it is completed.
    `credential_hash`: SHA-256 of the password, hex. `owner`: tenant/project, empty for what is the
    platform's. `requester` as in the audit trail.
    """

    id: str
    kind: TransferKind
    content: ContentKind
    owner: str
    app: str
    version: str
    name: str
    repository: str
    place: str
    requester: str
    credential_hash: str
    created_at_ms: int
    expires_at_ms: int
    state: TransferState = "open"
    tag: str = ""
    digest: str = ""
    size_bytes: int | None = None
    channel: str = ""
    """What of the trust policies its publisher was told to satisfy."""

    def is_open(self, now_ms: int) -> bool:
        return self.state != "closed" and now_ms < self.expires_at_ms


@dataclass(frozen=True)
class SignatureNeeds:
    """What publishers are told of the channel that they publish for, all its policies together."""

    channel: str
    signature_required: bool = False
    signature_scheme: str = ""
    signing_key_id: str = ""
    accepted_key_ids: tuple[str, ...] = ()
    provenance_required: bool = False
    predicate_types: tuple[str, ...] = ()
    builders: tuple[str, ...] = ()


def needs_of(rules: TrustRules, channel: str) -> SignatureNeeds | None:
    """None for a channel that no policy describes. An empty channel asks for nothing."""
    if not channel:
        return SignatureNeeds("")
    found = rules.channels.get(channel, ())
    if not found:
        return None
    signed = [one for one in found if one.signature_required] or list(found)
    built = [one for one in found if one.provenance_required]
    keys = [one.accepted_keys for one in signed if one.accepted_keys]
    builders = [one.builders for one in built if one.builders]
    types = [one.predicate_types for one in built]
    return SignatureNeeds(
        channel,
        any(one.signature_required for one in found),
        signed[0].scheme,
        next((one.signing_key for one in signed if one.signing_key), ""),
        tuple(sorted(frozenset.intersection(*keys))) if keys else (),
        bool(built),
        tuple(sorted(frozenset.intersection(*types))) if types else (),
        tuple(sorted(frozenset.intersection(*builders))) if builders else (),
    )


def is_own_repository(project: str, repository: str) -> bool:
    """Whether all of it is that project's (`tenant/project`), by its name alone."""
    return repository.startswith(canonical_repository(project, ""))


def canonical_repository(project: str, app: str) -> str:
    """Where artifacts of an app of a project end up; `project` is `tenant/project`."""
    return f"gpuaas/apps/{project}/{app}"


def repository_owner(repository: str) -> tuple[str, ...] | None:
    """(tenant, project) of a canonical repository; None for any other."""
    parts = tuple(repository.split("/"))
    return parts[2:4] if parts[:2] == ("gpuaas", "apps") and len(parts) > 4 else None


def place_owner(place: str) -> tuple[str, ...] | None:
    """The same of a place in registry or artifact store."""
    if place.startswith(_STORE):
        parts = tuple(place.removeprefix(_STORE).split("/"))
        return parts[:2] if len(parts) > 2 else None
    return repository_owner(place)


def is_for_signatures(tag: str) -> bool:
    """Whether clients keep there what is attached to a digest: `sha256-<hex>`, and `.sig`, `.att`
    and the like behind it. What is copied to such a tag takes that away.
    """
    return _SIGNATURES.fullmatch(tag) is not None


def staging_repository(transfer_id: str) -> str:
    return f"{STAGING}/{transfer_id}"


def blob_source(project: str, app: str, version: str, name: str) -> str:
    """`project` is `tenant/project`."""
    return f"{_STORE}{project}/artifacts/{app}/{version}/{name}"


def hash_of(password: str) -> str:
    """What is kept of a credential: it is random and long, so that a plain hash tells nothing."""
    return sha256(password.encode()).hexdigest()


def admits(transfer: Transfer | None, password: str, now_ms: int) -> bool:
    """Whether this credential opens anything now: it is the transfer's, and that goes on."""
    given = hash_of(password)
    # Compared for no transfer as for one, so that time tells nobody which ids there are.
    kept = transfer.credential_hash if transfer is not None else hash_of("")
    right = hmac.compare_digest(kept, given)
    if transfer is None or not right:
        return False
    return transfer.state == "open" and transfer.is_open(now_ms)


def opens(transfer: Transfer) -> Mapping[str, tuple[str, ...]]:
    """Repository → actions of an open transfer's credential; none for blobs."""
    if transfer.content != "oci":
        return {}
    return {transfer.place: ("pull", "push") if transfer.kind == "publish" else ("pull",)}


@dataclass(frozen=True)
class PublishWish:
    """What somebody wants to publish: an Artifact that is to be, by its place in the state repo.

    `project` is tenant/project. Empty `tag`: the version. Empty `channel`: the Environment's.
    `ttl_s` None: as long as the settings allow.
    """

    project: str
    app: str
    version: str
    name: str
    content: ContentKind = "oci"
    tag: str = ""
    channel: str = ""
    ttl_s: int | None = None

    def problem(self) -> str:
        """What is wrong with the first field that is no good; empty when all are."""
        well = {
            "project": _PROJECT.fullmatch(self.project),
            "app": _NAME.fullmatch(self.app),
            "version": _VERSION.fullmatch(self.version),
            "name": _NAME.fullmatch(self.name),
            "tag": not self.tag or _TAG.fullmatch(self.tag),
            "channel": not self.channel or _NAME.fullmatch(self.channel),
        }
        wrong = next((field for field, good in well.items() if not good), "")
        if wrong:
            return _not_well_formed(wrong)
        tags = {"tag": self.tag, "version": self.version}
        taken = next((field for field, tag in tags.items() if is_for_signatures(tag)), "")
        return f"{taken}: {TAG_RESERVED}" if taken else ""

    @property
    def label(self) -> str:
        """The tag: a version may have a `+`, which no tag has."""
        return self.tag or self.version.replace("+", "_")


@dataclass(frozen=True)
class PullWish:
    """What somebody wants to pull for a project: `repository@sha256:…`, `artifact_store://…@…`, or
    an Artifact by its path (`tenant/project/app/version/name`).
    """

    project: str
    artifact: str
    ttl_s: int | None = None

    def problem(self) -> str:
        """As of a PublishWish."""
        if not _PROJECT.fullmatch(self.project):
            return _not_well_formed("project")
        if not 0 < len(self.artifact) <= ARTIFACT_LENGTH_MAX:
            return _not_well_formed("artifact")
        return ""


def _not_well_formed(field: str) -> str:
    return f"{field}: not well-formed, see the API's description"
