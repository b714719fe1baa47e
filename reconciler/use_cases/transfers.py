"""Publish and pull intents: what somebody may move, with a credential for that and nothing else.

Rules:
- What is published comes to a place of its own, made for it; from there it is copied by digest.
  Nothing that a credential can do reaches what others pull.
- A credential is handed over wrapped, once; of it only a hash is kept. What was wrapped is deleted
  from custody at once. Neither it nor a token is in the log or the audit trail.
- Who asks has to hold the permission before anything of this is called (`server.intents_api`).
- What is not visible to a project can't be told from what is not there.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from reconciler.artifact_ports import NO_SUCH_BLOB, PUBLISH_IT, BlobStore, Registry
from reconciler.artifacts.endpoints import endpoint_of
from reconciler.artifacts.verifying import look
from reconciler.core.checks.catalog import UNSEEN, standing
from reconciler.core.custody.paths import transfer_secret
from reconciler.core.desired import StateObject
from reconciler.core.forms import parse_accepted
from reconciler.core.kinds.artifact import Artifact, ArtifactSpec
from reconciler.core.kinds.environment import Environment, EnvironmentSpec
from reconciler.core.names import ArtifactKey, Digest, ObjectRef
from reconciler.core.records import Accepted, AuditEntry
from reconciler.core.times import time_text
from reconciler.core.transfers import (
    PublishWish,
    PullWish,
    SignatureNeeds,
    Transfer,
    admits,
    blob_source,
    canonical_repository,
    hash_of,
    is_own_repository,
    needs_of,
    opens,
    staging_repository,
)
from reconciler.core.trust.accepted import rules_accepted
from reconciler.core.trust.evidence import Verdict
from reconciler.core.trust.judge import judge
from reconciler.core.world import Entry
from reconciler.errors import Refused, Transient
from reconciler.ports import Clock, Secret, SecretStore, Store
from reconciler.settings import Settings
from reconciler.use_cases.handover import Asker, HandedOver, hand_over

OPENED, COMPLETED, CLOSED = (
    f"artifacts.transfer.{what}" for what in ("opened", "completed", "closed")
)
"""Actions in the audit trail."""
OPEN_MAX = 200
"""Intents of one project that may be open at once."""
TTL_MIN_S = 60
_PASSWORD_BYTES = 32
_ID_BYTES = 13
_ALONE_MS = 300_000
_NONE = "\0"
"""In no document."""
_DEPTHS = {"platform": 0, "tenant": 1, "project": 2}
_NO_PULL = {"revoked": "artifact_revoked", "retired": "artifact_retired"}


@dataclass(frozen=True)
class Desk:
    """What transfers are opened and completed with. `blobs` None: this one keeps none."""

    store: Store
    secrets: SecretStore
    clock: Clock
    registry: Registry
    settings: Settings
    blobs: BlobStore | None = None


@dataclass(frozen=True)
class Opened:
    """`handed` None: the registry asks for no credential, and nothing was made."""

    transfer: Transfer
    environment: EnvironmentSpec
    needs: SignatureNeeds
    handed: HandedOver | None


@dataclass(frozen=True)
class Completed:
    """`media_type` is empty for blobs. `verdict`: whether it is good for the channel, as it is
    now; it is not in the way of completing.
    """

    transfer: Transfer
    environment: EnvironmentSpec
    media_type: str
    verdict: Verdict


def opened_by(
    store: Store, transfer_id: str, password: str, now_ms: int
) -> Mapping[str, tuple[str, ...]] | None:
    """Repository → actions that this credential opens; None for none that is good now."""
    transfer = store.transfer(transfer_id)
    if not admits(transfer, password, now_ms):
        return None
    return (opens(transfer) if transfer is not None else None) or None


# --- opening -------------------------------------------------------------------------------------


def open_publish(desk: Desk, wish: PublishWish, asker: Asker) -> Opened:
    """Refused: wish_invalid, no_such_project, no_such_app, channel_unknown, registry_is_folder,
    too_many_transfers, no_blob_store.
    """
    _refuse_malformed(wish.problem())
    _refuse_missing(desk, f"Project/{wish.project}", f"App/{wish.app}")
    accepted, environment = _standing(desk)
    channel = _channel(wish, environment)
    needs = needs_of(rules_accepted(accepted), channel)
    if needs is None:
        message = f"no TrustPolicy says what the channel {channel} needs"
        raise Refused("channel_unknown", message, hint="name one of theirs, or describe it there")
    transfer = _drawn_up(desk, wish.project, asker, wish.ttl_s)
    source = blob_source(wish.project, wish.app, wish.version, wish.name)
    is_blob = wish.content == "blob"
    transfer = replace(
        transfer,
        kind="publish",
        content=wish.content,
        app=wish.app,
        version=wish.version,
        name=wish.name,
        repository=source if is_blob else canonical_repository(wish.project, wish.app),
        place=source if is_blob else staging_repository(transfer.id),
        tag="" if is_blob else wish.label,
        channel=channel,
    )
    return _opened(desk, transfer, environment, needs, asker)


def _channel(wish: PublishWish, environment: EnvironmentSpec) -> str:
    """Nobody looks at signatures of blobs, so nothing is asked of them."""
    if wish.content == "blob":
        return ""
    return wish.channel or (environment.trust.channel if environment.trust is not None else "")


def open_pull(desk: Desk, wish: PullWish, asker: Asker) -> Opened:
    """Refused: wish_invalid, no_such_project, no_such_artifact (also for one that the project may
    not see), artifact_revoked, artifact_retired, no_such_blob (also for one that was not published
    as that source), and what a publish intent and a copy raise.
    """
    _refuse_malformed(wish.problem())
    _refuse_missing(desk, f"Project/{wish.project}")
    accepted, environment = _standing(desk)
    ref, spec = _visible_artifact(accepted, wish)
    place = spec.repository or spec.source or ""
    transfer = replace(
        _drawn_up(desk, wish.project, asker, wish.ttl_s),
        kind="pull",
        content=spec.kind,
        app=ref.path[2],
        version=ref.path[3],
        name=ref.path[4],
        repository=place,
        place=place,
        tag=spec.tag or "",
        digest=spec.digest,
        size_bytes=_blob_size(desk, spec),
    )
    limited = environment.registry.auth == "token"
    if spec.kind == "oci" and limited and not is_own_repository(wish.project, place):
        # A credential is good for a whole repository. In another project's there may be more than
        # this one may see, so the artifact gets a place where nothing else is.
        transfer = replace(transfer, place=staging_repository(transfer.id))
        key = ArtifactKey(place, Digest.parse(spec.digest))
        desk.registry.copy(endpoint_of(environment), key, transfer.place, transfer.tag)
    return _opened(desk, transfer, environment, SignatureNeeds(""), asker)


def _drawn_up(desk: Desk, owner: str, asker: Asker, ttl_s: int | None) -> Transfer:
    """Without what it is for. Refused("too_many_transfers")."""
    now_ms, longest_s = desk.clock.now_ms(), int(desk.settings.transfer_ttl_s)
    lasts_s = longest_s if ttl_s is None else min(ttl_s, longest_s)
    if lasts_s < min(TTL_MIN_S, longest_s):
        raise Refused("wish_invalid", f"ttl_s: expected {TTL_MIN_S} or more")
    known = desk.store.transfers(owner)
    if sum(one.state == "open" and one.is_open(now_ms) for one in known) >= OPEN_MAX:
        message = f"{OPEN_MAX} intents of {owner} are open: close some, or wait until they end"
        raise Refused("too_many_transfers", message)
    return Transfer(
        id=secrets.token_hex(_ID_BYTES),
        kind="pull",
        content="oci",
        owner=owner,
        app="",
        version="",
        name="",
        repository="",
        place="",
        requester=asker.actor,
        credential_hash="",
        created_at_ms=now_ms,
        expires_at_ms=now_ms + lasts_s * 1000,
    )


def _opened(
    desk: Desk,
    transfer: Transfer,
    environment: EnvironmentSpec,
    needs: SignatureNeeds,
    asker: Asker,
) -> Opened:
    """Stored once its credential is wrapped: of one that failed nothing is left."""
    if transfer.content == "oci" and environment.registry.layout_path is not None:
        message = "the registry of this Environment is a folder: nothing is pushed there or pulled"
        raise Refused("registry_is_folder", message)
    if transfer.content == "blob" and desk.blobs is None:
        raise Refused("no_blob_store", "this control plane keeps no blobs")
    handed = None
    if transfer.content == "blob" or environment.registry.auth == "token":
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        transfer = replace(transfer, credential_hash=hash_of(password))
        handed = _handed_over(desk, transfer, Secret(password), asker)
    told = f"{transfer.kind} {named(transfer)} at {transfer.place}"
    reason = f"{told}, until {time_text(transfer.expires_at_ms)}"
    desk.store.save_transfer(transfer, [entry_of(desk, OPENED, transfer, asker, reason)])
    return Opened(transfer, environment, needs, handed)


def _handed_over(desk: Desk, transfer: Transfer, password: Secret, asker: Asker) -> HandedOver:
    path = transfer_secret(transfer.id)
    desk.secrets.write(path, password)
    try:
        lasts_s = (transfer.expires_at_ms - transfer.created_at_ms) / 1000
        ttl_s = min(lasts_s, desk.settings.wrap_ttl_s)
        return hand_over(desk, path, asker, ttl_s, transfer.requester)
    finally:
        desk.secrets.delete(path)


def _visible_artifact(accepted: Accepted, wish: PullWish) -> tuple[ObjectRef, ArtifactSpec]:
    """Of the registrations that the project may see, the one in the best state."""
    viewer = tuple(wish.project.split("/"))
    place, _, digest = wish.artifact.rpartition("@")
    by_path = accepted.objects.get(f"Artifact/{wish.artifact}")
    named = [
        entry
        for entry in _artifacts(accepted, by_path, digest if place else _NONE)
        if by_path is not None or _place_of(entry) == (place, digest)
    ]
    seen = [entry for entry in named if _is_visible(entry, viewer)]
    same = _artifacts(accepted, None, seen[0].spec.digest) if seen else []
    state = standing(
        tuple(entry for entry in same if _place_of(entry) == _place_of(seen[0])), viewer
    )
    if state in UNSEEN:
        message = f"no artifact {wish.artifact[:300]!r} is registered that {wish.project} may see"
        raise Refused("no_such_artifact", message)
    if state in _NO_PULL:
        raise Refused(_NO_PULL[state], f"{wish.artifact} is {state}")
    best = min(seen, key=lambda entry: (entry.spec.state in _NO_PULL, entry.path))
    return best.ref, best.spec


def is_withdrawn(accepted: Accepted, transfer: Transfer) -> bool:
    """Whether what a pull intent gave would not be given to its project by now: it was revoked or
    retired since, or is not shown to it any more.
    """
    place = transfer.repository, transfer.digest
    same = tuple(one for one in _artifacts(accepted, None, place[1]) if _place_of(one) == place)
    found = standing(same, tuple(transfer.owner.split("/"))) if same else ""
    return found in _NO_PULL or found in UNSEEN


def sources_seen(accepted: Accepted, digest: str, by: Collection[tuple[str, ...]]) -> set[str]:
    """Those of Artifacts with this digest that one of these projects (tenant, project) may see."""
    found = _artifacts(accepted, None, digest)
    return {one.spec.source or "" for one in found if any(_is_visible(one, who) for who in by)}


def sources_ahead(accepted: Accepted, digest: str) -> set[str]:
    """The same of those that are brought to nodes ahead of any need."""
    found = _artifacts(accepted, None, digest)
    return {entry.spec.source or "" for entry in found if entry.spec.prefetch}


def _artifacts(accepted: Accepted, only: object, digest: str) -> list[Entry[ArtifactSpec]]:
    """Those with this digest, or `only` that one. Few are read, however many there are."""
    found = []
    for ref, stored in accepted.objects.items():
        wanted = stored is only if only is not None else digest in stored.document_json
        if ref.startswith("Artifact/") and wanted:
            parsed = parse_accepted(stored)
            if isinstance(parsed, StateObject) and isinstance(parsed.manifest, Artifact):
                found.append(Entry(parsed, parsed.manifest.spec))
    return found


def _place_of(entry: Entry[ArtifactSpec]) -> tuple[str | None, str]:
    return entry.spec.repository or entry.spec.source, entry.spec.digest


def _is_visible(entry: Entry[ArtifactSpec], viewer: tuple[str, ...]) -> bool:
    depth = _DEPTHS[entry.spec.visibility]
    return entry.path[:depth] == viewer[:depth]


def _blob_size(desk: Desk, spec: ArtifactSpec) -> int | None:
    """None for what is no blob, or where none are kept. Refused("no_such_blob")."""
    if spec.source is None or desk.blobs is None:
        return None
    digest = Digest.parse(spec.digest)
    size_bytes = desk.blobs.size_bytes(digest)
    if size_bytes is None or not desk.blobs.claimed(spec.source, digest):
        raise Refused("no_such_blob", NO_SUCH_BLOB, where=spec.source, hint=PUBLISH_IT)
    return size_bytes


# --- completing and closing ----------------------------------------------------------------------


def complete(desk: Desk, transfer_id: str, digest: str, asker: Asker) -> Completed:
    """Copies what was pushed into the canonical repository, by digest. The same again is harmless.

    Refused: no_such_transfer, transfer_not_publish, transfer_closed, transfer_expired,
    transfer_completed (with another digest), not_pushed, digest_invalid, mount_unsupported.
    """
    wanted = _digest(digest)
    with alone(desk, known(desk.store, transfer_id)) as transfer:
        _refuse_ended(transfer, str(wanted), desk.clock.now_ms())
        accepted, environment = _standing(desk)
        if transfer.content == "blob":
            done, media_type, verdict = _take_blob(desk, transfer, wanted), "", Verdict(True)
        else:
            done, media_type, verdict = _take(desk, transfer, wanted, accepted, environment)
        done = replace(done, state="completed", digest=str(wanted))
        if done != transfer:
            told = verdict.code or "good"
            reason = f"{named(done)} into {done.repository}"
            reason = f"{reason}, for {done.channel}: {told}" if done.channel else reason
            entry = replace(
                entry_of(desk, COMPLETED, done, asker, reason), after=f"{done.repository}@{wanted}"
            )
            desk.store.save_transfer(done, [entry])
    return Completed(done, environment, media_type, verdict)


def close(desk: Desk, transfer_id: str, asker: Asker) -> Transfer:
    """Its credential opens nothing from now on. Harmless when it is closed."""
    with alone(desk, known(desk.store, transfer_id)) as transfer:
        closed = replace(transfer, state="closed")
        if closed != transfer:
            desk.store.save_transfer(closed, [entry_of(desk, CLOSED, closed, asker, named(closed))])
        discard_parts(desk, closed)
        return closed


def discard_parts(desk: Desk, transfer: Transfer) -> None:
    """What was uploaded for it and never became a blob. Harmless when it was done before."""
    if desk.blobs is not None and transfer.content == "blob":
        desk.blobs.discard(transfer.id)


def known(store: Store, transfer_id: str) -> Transfer:
    transfer = store.transfer(transfer_id)
    if transfer is None:
        raise Refused("no_such_transfer", "there is no such intent")
    return transfer


@contextmanager
def alone(desk: Desk, transfer: Transfer) -> Iterator[Transfer]:
    """The transfer as it is while nobody else completes one into the same repository.

    Transient("transfer_busy") while somebody does.
    """
    name, me = f"transfer/{transfer.repository}", secrets.token_hex(8)
    if desk.store.lease(name, me, desk.clock.now_ms(), _ALONE_MS) != me:
        message = f"another intent for {transfer.repository} is being completed"
        raise Transient("transfer_busy", message)
    try:
        yield known(desk.store, transfer.id)
    finally:
        desk.store.release(name, me)


def _take(
    desk: Desk,
    transfer: Transfer,
    digest: Digest,
    accepted: Accepted,
    environment: EnvironmentSpec,
) -> tuple[Transfer, str, Verdict]:
    endpoint, pushed = endpoint_of(environment), ArtifactKey(transfer.place, digest)
    seen = desk.registry.look_up(endpoint, pushed)
    if not seen.exists:
        message = f"nothing with the digest {digest} was pushed to {transfer.place}"
        raise Refused("not_pushed", message, hint="push it there first, and name its digest")
    rules, verdict = rules_accepted(accepted), Verdict(True)
    if transfer.channel:
        now_ms = desk.clock.now_ms()
        evidence = look(desk.registry, endpoint, pushed, rules, None, now_ms)
        verdict = judge(rules, transfer.channel, evidence, now_ms)
    desk.registry.copy(endpoint, pushed, transfer.repository, transfer.tag)
    return replace(transfer, size_bytes=seen.size_bytes), seen.media_type, verdict


def _take_blob(desk: Desk, transfer: Transfer, digest: Digest) -> Transfer:
    if desk.blobs is None:
        raise Refused("no_blob_store", "this control plane keeps no blobs")
    size_bytes = desk.blobs.finish(transfer.id, digest)
    # Whose blob it is, is told by who sent its bytes: naming its digest gives nobody a share in it.
    desk.blobs.claim(transfer.repository, digest)
    return replace(transfer, size_bytes=size_bytes)


def _refuse_ended(transfer: Transfer, digest: str, now_ms: int) -> None:
    if transfer.kind != "publish":
        raise Refused("transfer_not_publish", "a pull intent has nothing to complete")
    if now_ms >= transfer.expires_at_ms:
        until = time_text(transfer.expires_at_ms)
        raise Refused("transfer_expired", f"the intent ended at {until}: open another one")
    if transfer.state == "closed":
        raise Refused("transfer_closed", "the intent was closed: open another one")
    if transfer.state == "completed" and transfer.digest != digest:
        message = f"it was completed with {transfer.digest}: open another intent for another digest"
        raise Refused("transfer_completed", message)


# --- what is accepted ----------------------------------------------------------------------------


def _standing(desk: Desk) -> tuple[Accepted, EnvironmentSpec]:
    accepted, name = desk.store.accepted(), desk.settings.environment
    stored = accepted.objects.get(f"Environment/{name}")
    parsed = parse_accepted(stored) if stored is not None else None
    if not isinstance(parsed, StateObject) or not isinstance(parsed.manifest, Environment):
        message = f"no Environment {name!r} is accepted yet"
        raise Refused("no_environment", message, hint="start gpuaas run --environment NAME")
    return accepted, parsed.manifest.spec


def _refuse_missing(desk: Desk, *refs: str) -> None:
    objects = desk.store.accepted().objects
    for ref in refs:
        if ref not in objects:
            kind, _, name = ref.partition("/")
            raise Refused(f"no_such_{kind.lower()}", f"no {kind} {name} is accepted")


def _refuse_malformed(problem: str) -> None:
    if problem:
        raise Refused("wish_invalid", problem)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise Refused("digest_invalid", str(error), hint="sha256: and 64 hex digits") from None


def named(transfer: Transfer) -> str:
    return f"{transfer.owner}: {transfer.app} {transfer.version} {transfer.name}"


def entry_of(desk: Desk, action: str, transfer: Transfer, asker: Asker, reason: str) -> AuditEntry:
    return AuditEntry(
        at_ms=desk.clock.now_ms(),
        actor=asker.actor,
        requester_type=asker.requester_type,
        action=action,
        object=f"Transfer/{transfer.id}",
        reason=reason,
        correlation_id=asker.correlation_id,
    )
