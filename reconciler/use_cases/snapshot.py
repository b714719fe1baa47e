"""What is observed and remembered, signed and redacted, so that a plan can be made without us.

Rules:
- What goes in is listed field by field; what is not listed stays here. No manifest, endpoint,
  access text, message, engine's answer, host inventory, envelope or address goes in. Accepted
  manifests are named by commit and hash: who plans offline has them in the state repo. Of secrets
  that instances can refer to, it says which there are, of signing keys which versions, and of
  artifacts whose signatures held.
- Signed with a key of its own (`SNAPSHOT_KEY`). Nothing is read before the signature holds, and
  who reads takes the key from a place the change under review can't write to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.wire import VerifierKey, key_id
from reconciler.artifacts.endpoints import endpoint_of
from reconciler.artifacts.looking import keep, look_at, looked_now
from reconciler.core.accept import parse_accepted, to_stored
from reconciler.core.checks.catalog import images
from reconciler.core.custody.paths import REFERRED
from reconciler.core.desired import Candidate
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ArtifactKey, Revision
from reconciler.core.observed import Known, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.core.times import time_text
from reconciler.core.trust.accepted import rules_accepted
from reconciler.core.trust.evidence import Evidence
from reconciler.core.trust.standing import must_look
from reconciler.custody import signing
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.observe import key_versions, look_up, see_nodes
from reconciler.ports import KEY_KINDS, Ports, Registry, RegistryEndpoint, SecretStore
from reconciler.settings import Settings
from reconciler.use_cases.snapshot_form import (
    SECRETS_NOT_THERE,
    Artifacts,
    Remembered,
    SecretPaths,
    document,
    hash_of,
    parsed,
)

SNAPSHOT_TYPE = "application/vnd.gpuaas.snapshot.v1+json"
SNAPSHOT_KEY = "snapshots"
"""The signing key of snapshots, by its name in the SecretStore."""
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024
ARTIFACTS_MAX = 5_000
LOOKS_MAX = 200
"""Artifacts whose signatures are looked at for one snapshot."""
SECRETS_MAX = 50_000
CLOCKS_APART_MS = 60_000
"""How far two clocks may be apart before a snapshot counts as from the future."""
_OFFERED = ("canary", "active", "deprecated")

ReadDocuments = Callable[[Revision], Mapping[str, str]]
"""A commit → its documents by ref (`documents_of`); empty when it is not at hand."""


# --- taking one ----------------------------------------------------------------------------------


def take(ports: Ports, settings: Settings) -> Remembered:
    """One look at the store, the registry and the paths in the secret store.

    Raises only when our own store does not answer.
    """
    now_ms = ports.clock.now_ms()
    accepted = ports.store.accepted()
    environment = settings.environment
    artifacts = _artifacts(ports, accepted, environment)
    return Remembered(
        environment=environment,
        taken_at_ms=now_ms,
        accepted=accepted,
        records=ports.store.records(),
        intents=tuple(ports.store.open_intents(now_ms)),
        nodes=see_nodes(ports, settings, now_ms).nodes,
        artifacts=artifacts,
        secrets=_secret_paths(ports.secrets),
        keys=key_versions(ports.secrets, KEY_KINDS)[0],
        step_backs=ports.store.step_backs(),
        trust=_evidence(ports, settings, accepted, artifacts, now_ms),
    )


def _secret_paths(secrets: SecretStore) -> SecretPaths:
    try:
        found = frozenset(path for place in REFERRED for path in secrets.paths(place))
    except GpuaasError as error:
        return Unknown(error.code, error.message)
    return Known(found) if len(found) <= SECRETS_MAX else SECRETS_NOT_THERE


def _evidence(
    ports: Ports, settings: Settings, accepted: Accepted, artifacts: Artifacts, now_ms: int
) -> Mapping[ArtifactKey, Evidence]:
    """What is known of their signatures. Some of what a launch would look at is looked at now, and
    kept: the snapshots after this one go on from there.
    """
    named = _spec(accepted, f"Environment/{settings.environment}")
    if not isinstance(named, EnvironmentSpec) or named.trust is None:
        return {}
    trust = named.trust
    asked = _asked(accepted, trust.channel, trust.canary_channel or trust.channel)
    asked = {key: asked[key] for key in sorted(asked.keys() & artifacts.keys())}
    kept = ports.store.evidence(asked.keys())
    there = (key for key in asked if isinstance(one := artifacts[key], Known) and one.value.exists)
    rules, at = rules_accepted(accepted), endpoint_of(named)
    recheck_ms = int(settings.trust_recheck_s * 1000)
    due = [k for k in there if must_look(rules, asked[k], kept.get(k), now_ms, recheck_ms)]
    due.sort(key=lambda key: (key in kept, key))
    looks = dict.fromkeys(due[:LOOKS_MAX], at)
    found = look_at(ports.registry, looks, rules, asked, kept, now_ms)
    fresh = looked_now(found, now_ms)
    keep(ports.store, fresh)
    return {**kept, **{one.artifact: one for one in fresh}}


def _asked(accepted: Accepted, channel: str, canary: str) -> dict[ArtifactKey, frozenset[str]]:
    """As `trust.standing.asked_of` says it, of every version on offer."""
    found: dict[ArtifactKey, set[str]] = {}
    for ref in _offered(accepted):
        promotion = _spec(accepted, ref.replace("AppVersion/", "Promotion/", 1))
        state = str(getattr(promotion, "state", ""))
        word = f"{canary if state == 'canary' else channel}/{state}"
        for key in _images(accepted, ref):
            found.setdefault(key, set()).add(word)
    return {key: frozenset(words) for key, words in found.items()}


def _artifacts(ports: Ports, accepted: Accepted, environment: str) -> Artifacts:
    """The images of every version on offer: what a change may want to launch."""
    named = _spec(accepted, f"Environment/{environment}")
    if not isinstance(named, EnvironmentSpec):
        return {}
    endpoint = endpoint_of(named)
    keys = sorted({key for ref in _offered(accepted) for key in _images(accepted, ref)})
    keys = keys[:ARTIFACTS_MAX]
    silent = _silence(ports.registry, endpoint, keys)
    if silent is not None:
        return dict.fromkeys(keys, silent)
    return look_up(ports.registry, dict.fromkeys(keys, endpoint))


def _silence(
    registry: Registry, endpoint: RegistryEndpoint, keys: Sequence[ArtifactKey]
) -> Unknown | None:
    """Why the registry answers nobody, by asking for one: else each would wait for its own."""
    try:
        for key in keys[:1]:
            registry.look_up(endpoint, key)
    except Transient as error:
        return Unknown(error.code, error.message)
    except Refused:
        return None
    return None


def _offered(accepted: Accepted) -> Iterable[str]:
    """The AppVersions that take instances, or have some."""
    for name in accepted.objects:
        if name.startswith("Promotion/"):
            spec = _spec(accepted, name)
            if getattr(spec, "state", "") in _OFFERED:
                yield name.replace("Promotion/", "AppVersion/", 1)


def _images(accepted: Accepted, ref: str) -> Iterable[ArtifactKey]:
    spec = _spec(accepted, ref)
    if isinstance(spec, AppVersionSpec):
        yield from (ArtifactKey.parse(image) for _, image in images(spec))


def _spec(accepted: Accepted, ref: str) -> object:
    stored = accepted.objects.get(ref)
    found = parse_accepted(stored) if stored is not None else None
    return None if found is None or isinstance(found, Problem) else found.manifest.spec


def sealed(seen: Remembered, secrets: SecretStore) -> bytes:
    """The snapshot as a signed DSSE envelope. Refused when it is larger than anybody would read."""
    payload = json.dumps(document(seen), sort_keys=True, separators=(",", ":")).encode()
    envelope = signing.sealed(secrets, SNAPSHOT_KEY, payload, SNAPSHOT_TYPE)
    raw = json.dumps(envelope, sort_keys=True).encode()
    if len(raw) > SNAPSHOT_BYTES_MAX:
        raise _too_large(len(raw))
    return raw


# --- reading it again ----------------------------------------------------------------------------


def opened(
    raw: bytes,
    keys: Iterable[str],
    environment: str,
    now_ms: int,
    age_ms_max: int,
    read: ReadDocuments,
) -> Remembered:
    """A snapshot that may be believed, now, for this environment; `keys` are public keys, hex.

    The manifests that it names come from `read`, and count only where their hash is the same.

    Refused: bad_key, snapshot_too_large, snapshot_unreadable, snapshot_not_trusted,
    snapshot_environment, snapshot_from_future, snapshot_too_old, snapshot_needs_history.
    """
    if len(raw) > SNAPSHOT_BYTES_MAX:
        raise _too_large(len(raw))
    trusted = [_verifier(key) for key in keys]
    try:
        payload, _ = unseal(raw, SNAPSHOT_TYPE, trusted, bytes_max=SNAPSHOT_BYTES_MAX)
    except EnvelopeRefused as refused:
        if refused.code in ("malformed", "wrong_type"):
            raise Refused(
                "snapshot_unreadable", f"it is no snapshot: {refused.message}", hint=_TAKE_ANOTHER
            ) from None
        raise Refused(
            "snapshot_not_trusted",
            f"not to be believed: {refused.message}",
            hint="`gpuaas snapshot --key` prints the key to put into snapshot_keys; "
            "a file that was edited is never believed",
        ) from None
    try:
        seen = parsed(json.loads(payload))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            "snapshot_unreadable",
            f"written by a version we cannot read ({type(error).__name__})",
            hint="use the gpuaas of the control plane",
        ) from None
    _refuse_untimely(seen, environment, now_ms, age_ms_max)
    return replace(seen, accepted=_filled(seen.accepted, read))


def _filled(named: Accepted, read: ReadDocuments) -> Accepted:
    """The accepted objects with their documents in place of the hashes they were named by."""
    found: dict[str, AcceptedObject] = {}
    missing = dict(named.objects)
    own = sorted({one.revision for one in named.objects.values()})
    for revision in [*([named.revision] if named.revision else []), *own]:
        wanted = [one for one in missing.values() if revision in (named.revision, one.revision)]
        there = read(revision) if wanted else {}
        for one in wanted:
            document_json = there.get(one.ref)
            if document_json is not None and hash_of(document_json) == one.document_json:
                found[one.ref] = replace(one, document_json=document_json)
                del missing[one.ref]
    if missing:
        example = min(missing.values(), key=lambda one: one.ref)
        raise Refused(
            "snapshot_needs_history",
            f"{len(missing)} accepted manifests are not in this checkout, such as {example.ref} "
            f"of commit {example.revision[:12]}",
            hint="fetch the history of the branch: git fetch --unshallow, or in CI fetch-depth: 0 "
            '(GitHub, Gitea, Forgejo) or GIT_DEPTH: "0" (GitLab)',
        )
    forms = {ref: one.document_json for ref, one in found.items()}
    refused = {
        subject: replace(one, form_json=forms.get(subject))
        for subject, one in named.refused.items()
    }
    return replace(named, objects=dict(sorted(found.items())), refused=refused)


def documents_of(candidate: Candidate) -> Mapping[str, str]:
    """The documents of a revision by ref, in the form in which they are accepted."""
    stored = (to_stored(found, candidate.revision) for found in candidate.objects.values())
    return {one.ref: one.document_json for one in stored}


def _verifier(key: str) -> VerifierKey:
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise Refused(
            "bad_key",
            f"{key[:80]!r} is no public key of 64 hex digits",
            hint="`gpuaas snapshot --key` prints it",
        )
    return VerifierKey(key_id=key_id(key), version=1, public_key=key)


_TAKE_ANOTHER = "take another: gpuaas snapshot --out FILE"


def _too_large(size_bytes: int) -> Refused:
    return Refused(
        "snapshot_too_large",
        f"{size_bytes} bytes, more than {SNAPSHOT_BYTES_MAX}",
        hint="plan against live state instead: gpuaas plan without --snapshot",
    )


def _refuse_untimely(seen: Remembered, environment: str, now_ms: int, age_ms_max: int) -> None:
    if seen.environment != environment:
        raise Refused(
            "snapshot_environment",
            f"it is of environment {seen.environment}, the plan is for {environment}",
            hint="take one of the control plane of that environment",
        )
    taken = time_text(seen.taken_at_ms)
    if seen.taken_at_ms > now_ms + CLOCKS_APART_MS:
        raise Refused(
            "snapshot_from_future",
            f"it says it was taken at {taken}, which is still to come",
            hint="set the clocks of this host and the control plane right",
        )
    if now_ms - seen.taken_at_ms > age_ms_max:
        raise Refused(
            "snapshot_too_old",
            f"it was taken at {taken}, more than {age_ms_max // 1000} s ago",
            hint=f"{_TAKE_ANOTHER}; or allow more with --max-age-s",
        )
