"""What is observed and remembered, signed and redacted, so that a plan can be made without us.

Rules:
- What goes in is listed field by field; what is not listed stays here. No manifest, endpoint,
  access text, message, engine's answer, host inventory, envelope or address goes in. Accepted
  manifests are named by commit and hash: who plans offline has them in the state repo.
- Signed with a key of its own (`SNAPSHOT_KEY`). Nothing is read before the signature holds, and
  who reads takes the key from a place the change under review can't write to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from node_agent.envelope import EnvelopeRefused, seal, unseal
from node_agent.wire import (
    LAYOUT_PREFIX,
    FailureReason,
    Inventory,
    Phase,
    Proof,
    VerifierKey,
    WorkloadReport,
    key_id,
)
from reconciler.core.accept import parse_accepted, to_stored
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.desired import Candidate, Desired
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ActionId, ArtifactKey, Digest, InstanceKey, ObjectRef, Revision
from reconciler.core.observed import ArtifactSeen, Known, NodeSeen, Observed, Seen, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject, InstanceRecord, Intent, State
from reconciler.core.times import time_text
from reconciler.errors import Refused, Transient
from reconciler.observe import artifacts_to_launch, endpoint_of, look_up, see_nodes
from reconciler.ports import Ports, Registry, RegistryEndpoint, SecretStore
from reconciler.settings import Settings

FORMAT = "gpuaas.dev/snapshot/v1"
SNAPSHOT_TYPE = "application/vnd.gpuaas.snapshot.v1+json"
SNAPSHOT_KEY = "snapshots"
"""The signing key of snapshots, by its name in the SecretStore."""
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024
ARTIFACTS_MAX = 5_000
CLOCKS_APART_MS = 60_000
"""How far two clocks may be apart before a snapshot counts as from the future."""
_OFFERED = ("canary", "active", "deprecated")
_RECORD_FIELDS = (
    "key", "app", "org_id", "project_id", "node", "epoch", "correlation_id", "revision",
    "target_version", "target_hash", "target_digest", "applied_version", "applied_hash",
    "applied_digest", "applied_revision", "previous_version", "reason", "since_ms", "attempts",
    "runtime_name", "approved", "approved_removals",
)  # fmt: skip
_INTENT_FIELDS = (
    "action_id", "kind", "instance", "node", "task_id", "seq", "correlation_id", "target_hash",
    "created_at_ms", "expires_at_ms", "state",
)  # fmt: skip
_REFUSED_FIELDS = ("subject", "path", "revision", "actor", "code", "message", "hint")
_NODE_WORDS = {
    "node_never_reported": "joined but has not reported yet",
    "node_offline": "did not report any more",
    "report_unreadable": "runs an agent we cannot read",
    "engine_unavailable": "has an engine that is silent",
}


ReadDocuments = Callable[[Revision], Mapping[str, str]]
"""A commit → its documents by ref (`documents_of`); empty when it is not at hand."""

Artifacts = Mapping[ArtifactKey, Seen[ArtifactSeen]]


@dataclass(frozen=True)
class Remembered:
    """Everything a plan is made from besides the revision, at one moment."""

    environment: str
    taken_at_ms: int
    accepted: Accepted
    records: Mapping[InstanceKey, InstanceRecord]
    intents: tuple[Intent, ...]
    nodes: Mapping[str, Seen[NodeSeen]]
    artifacts: Artifacts
    walked: None = None
    """Nobody asks for signatures where there are no commits of the control plane's."""

    @property
    def now_ms(self) -> int:
        """An offline plan is one of the moment the snapshot was taken."""
        return self.taken_at_ms

    def artifacts_for(self, desired: Desired, seen: Observed) -> Artifacts:
        """As the registry was seen; an artifact nobody asked for then is unknown."""
        wanted = artifacts_to_launch(desired, seen)
        return {key: self.artifacts.get(key, _NOT_THERE) for key in wanted}


_NOT_THERE = Unknown(
    "not_in_snapshot",
    "the snapshot was taken before anything needed it; a plan against live state will know",
)


# --- taking one ----------------------------------------------------------------------------------


def take(ports: Ports, settings: Settings) -> Remembered:
    """One look at the store and the registry. Raises only when our own store does not answer."""
    now_ms = ports.clock.now_ms()
    accepted = ports.store.accepted()
    environment = settings.environment
    return Remembered(
        environment=environment,
        taken_at_ms=now_ms,
        accepted=accepted,
        records=ports.store.records(),
        intents=tuple(ports.store.open_intents(now_ms)),
        nodes=see_nodes(ports, settings, now_ms).nodes,
        artifacts=_artifacts(ports, accepted, environment),
    )


def _artifacts(ports: Ports, accepted: Accepted, environment: str) -> Artifacts:
    """The images of every version on offer: what a change may want to launch."""
    named = _spec(accepted, f"Environment/{environment}")
    if not isinstance(named, EnvironmentSpec):
        return {}
    registry = named.registry
    at = f"{LAYOUT_PREFIX}{registry.layout_path}" if registry.layout_path else registry.endpoint
    endpoint = endpoint_of(at, registry.plain_http)
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
        profile = spec.runtime_profile
        found = (spec.artifact_ref, profile.image_ref, *profile.variants.values())
        yield from (ArtifactKey.parse(image) for image in found if image)


def _spec(accepted: Accepted, ref: str) -> object:
    stored = accepted.objects.get(ref)
    found = parse_accepted(stored) if stored is not None else None
    return None if found is None or isinstance(found, Problem) else found.manifest.spec


# --- writing it down -----------------------------------------------------------------------------


def document(seen: Remembered) -> dict[str, Any]:
    """The redacted form: every field that goes in is named here."""
    return {
        "format": FORMAT,
        "environment": seen.environment,
        "taken_at_ms": seen.taken_at_ms,
        "revision": seen.accepted.revision,
        "objects": [
            {
                "ref": one.ref,
                "path": one.path,
                "line": one.line,
                "revision": one.revision,
                "document": _hash(one.document_json),
            }
            for _, one in sorted(seen.accepted.objects.items())
        ],
        "refused": [_refused(one) for _, one in sorted(seen.accepted.refused.items())],
        "records": [_record(record) for _, record in sorted(seen.records.items())],
        "intents": [_intent(intent) for intent in seen.intents],
        "nodes": {name: _node(node) for name, node in sorted(seen.nodes.items())},
        "artifacts": {str(key): _artifact(one) for key, one in sorted(seen.artifacts.items())},
    }


def _refused(one: RefusedChange) -> dict[str, str]:
    """What counts instead is what is accepted, and is filled in from there."""
    return {name: getattr(one, name) for name in _REFUSED_FIELDS}


def _hash(document_json: str) -> str:
    return str(Digest.of(document_json.encode()))


def _record(record: InstanceRecord) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in _RECORD_FIELDS}
    return {
        **fields,
        "state": record.state.value,
        "gpu_uuids": list(record.gpu_uuids),
        "host_ports": list(record.host_ports),
        "former_gpu_uuids": list(record.former_gpu_uuids),
        "former_host_ports": list(record.former_host_ports),
        "depends_on": list(record.depends_on),
    }


def _intent(intent: Intent) -> dict[str, Any]:
    fields = {name: getattr(intent, name) for name in _INTENT_FIELDS}
    return {**fields, "code": _code(intent.detail)}


def _code(detail: str) -> str:
    """The agent's stable code, without what it says besides."""
    word = detail.partition(":")[0]
    return word if word.replace("_", "").isalnum() and word.islower() else ""


def _node(node: Seen[NodeSeen]) -> dict[str, Any]:
    if isinstance(node, Unknown):
        return {"unknown": node.code}
    found = node.value
    return {
        "age_ms": found.age_ms,
        "refusal": _code(found.refusal),
        "workloads": [_workload(report) for _, report in sorted(found.workloads.items())],
    }


def _workload(report: WorkloadReport) -> dict[str, Any]:
    return {
        "instance": report.instance,
        "target_hash": report.target_hash,
        "running_hash": report.running_hash,
        "phase": report.phase.value,
        "reason": report.reason.value if report.reason else None,
        "retained": report.retained,
        "proved": report.proof is not None and report.proof.clean,
    }


def _artifact(seen: Seen[ArtifactSeen]) -> dict[str, Any]:
    return {"unknown": seen.code} if isinstance(seen, Unknown) else {"exists": seen.value.exists}


def sealed(seen: Remembered, secrets: SecretStore) -> bytes:
    """The snapshot as a signed DSSE envelope. Refused when it is larger than anybody would read."""
    key = secrets.ensure_signing_key(SNAPSHOT_KEY)
    payload = json.dumps(document(seen), sort_keys=True, separators=(",", ":")).encode()
    envelope = seal(
        payload, SNAPSHOT_TYPE, key.key_id, lambda it: secrets.sign(SNAPSHOT_KEY, it).signature
    )
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
        seen = _parsed(json.loads(payload))
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
            if document_json is not None and _hash(document_json) == one.document_json:
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


def _parsed(found: Any) -> Remembered:
    if found["format"] != FORMAT:
        raise ValueError(found["format"])
    revision = found["revision"]
    objects = (
        AcceptedObject(
            ref=str(ObjectRef.parse(one["ref"])),
            path=one["path"],
            line=one["line"],
            document_json=one["document"],
            revision=Revision(one["revision"]),
        )
        for one in found["objects"]
    )
    refused = {
        one["subject"]: RefusedChange(**{name: one[name] for name in _REFUSED_FIELDS})
        for one in found.get("refused", ())
    }
    records = (_parsed_record(one) for one in found["records"])
    return Remembered(
        environment=found["environment"],
        taken_at_ms=int(found["taken_at_ms"]),
        accepted=Accepted(revision, {one.ref: one for one in objects}, refused),
        records={record.key: record for record in records},
        intents=tuple(_parsed_intent(one) for one in found["intents"]),
        nodes={name: _parsed_node(name, one) for name, one in found["nodes"].items()},
        artifacts={
            ArtifactKey.parse(key): _parsed_artifact(one) for key, one in found["artifacts"].items()
        },
    )


def _parsed_record(one: Any) -> InstanceRecord:
    fields = {name: one[name] for name in _RECORD_FIELDS}
    return InstanceRecord(
        **fields,
        state=State(one["state"]),
        gpu_uuids=tuple(one["gpu_uuids"]),
        host_ports=tuple(one["host_ports"]),
        former_gpu_uuids=tuple(one.get("former_gpu_uuids", ())),
        former_host_ports=tuple(one.get("former_host_ports", ())),
        depends_on=tuple(one["depends_on"]),
    )


def _parsed_intent(one: Any) -> Intent:
    fields = {name: one[name] for name in _INTENT_FIELDS}
    fields["action_id"] = ActionId(one["action_id"])
    return Intent(**fields, envelope="", detail=one["code"])


def _parsed_node(name: str, one: Any) -> Seen[NodeSeen]:
    if "unknown" in one:
        words = _NODE_WORDS.get(one["unknown"], "could not be looked at")
        return Unknown(one["unknown"], f"node {name} {words} when the snapshot was taken")
    reports = (_parsed_workload(report) for report in one["workloads"])
    return Known(
        NodeSeen(
            name=name,
            agent_version="",
            age_ms=one["age_ms"],
            connected_at_ms=0,
            inventory=_NO_INVENTORY,
            workloads={InstanceKey(report.instance): report for report in reports},
            refusal=one["refusal"],
        )
    )


_NO_INVENTORY = Inventory(
    engines=(), cpu_count=0, memory_mib=0, disk_free_mib=0, architecture="", operating_system=""
)


def _parsed_workload(one: Any) -> WorkloadReport:
    proof = Proof(checked_at_ms=0, containers=0, networks=0, volumes=0, paths=0)
    return WorkloadReport(
        instance=one["instance"],
        target_hash=one["target_hash"],
        running_hash=one["running_hash"],
        phase=Phase(one["phase"]),
        reason=FailureReason(one["reason"]) if one["reason"] else None,
        retained=one["retained"],
        proof=proof if one["proved"] else None,
    )


def _parsed_artifact(one: Any) -> Seen[ArtifactSeen]:
    if "unknown" in one:
        return Unknown(one["unknown"], "the registry did not say when the snapshot was taken")
    return Known(ArtifactSeen(exists=bool(one["exists"])))
