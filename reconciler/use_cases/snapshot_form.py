"""What a snapshot holds, and the form in which it is written down and read again. Pure.

Rule: what goes in is listed field by field; what is not listed stays here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from node_agent.wire import (
    BlobSeen,
    ConfigSeen,
    FailureReason,
    Inventory,
    Phase,
    Proof,
    ServicePhase,
    WorkloadReport,
)
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.desired import Desired
from reconciler.core.names import ActionId, ArtifactKey, Digest, InstanceKey, ObjectRef, Revision
from reconciler.core.observed import ArtifactSeen, Known, NodeSeen, Observed, Seen, Unknown
from reconciler.core.records import (
    Accepted,
    AcceptedObject,
    InstanceRecord,
    Intent,
    State,
    StepBack,
)
from reconciler.core.trust.evidence import Evidence
from reconciler.core.trust.evidence import Proof as TrustProof
from reconciler.core.trust.standing import in_use
from reconciler.observe import artifacts_to_launch, secrets_to_launch

FORMAT = "gpuaas.dev/snapshot/v1"
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
_PROOF_FIELDS = (
    "kind", "form", "key_id", "key_hash", "scheme", "document", "first_seen_ms", "predicate_type",
    "builder",
)  # fmt: skip
_REFUSED_FIELDS = ("subject", "path", "revision", "actor", "code", "message", "hint")
_NODE_WORDS = {
    "node_never_reported": "joined but has not reported yet",
    "node_offline": "did not report any more",
    "report_unreadable": "runs an agent we cannot read",
    "engine_unavailable": "has an engine that is silent",
    "node_revoked": "was revoked",
}

Artifacts = Mapping[ArtifactKey, Seen[ArtifactSeen]]
SecretPaths = Seen[frozenset[str]]
"""The paths of all secrets that an instance could refer to."""


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
    secrets: SecretPaths
    keys: Mapping[str, Seen[tuple[int, ...]]] = field(default_factory=dict)
    """By name, the versions of signing keys."""
    trust: Mapping[ArtifactKey, Evidence] = field(default_factory=dict)
    """What was known of signatures."""
    step_backs: Mapping[str, StepBack] = field(default_factory=dict)
    """Canaries that went back, by their Promotion."""
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

    def secrets_for(self, desired: Desired, seen: Observed) -> Mapping[str, Seen[bool]]:
        """By path, whether there was one."""
        wanted = secrets_to_launch(desired, seen)
        if isinstance(self.secrets, Unknown):
            return dict.fromkeys(wanted, self.secrets)
        return {path: Known(path in self.secrets.value) for path in wanted}

    def with_trust(self, desired: Desired, seen: Observed) -> Observed:
        """As it was known then; what other keys than those could tell, nobody knows here."""
        asked = in_use(desired, self.records)
        to_launch = artifacts_to_launch(desired, seen) if asked else {}
        found: dict[ArtifactKey, Seen[Evidence]] = {}
        for key in asked:
            known = self.trust.get(key)
            if known is not None and known.keys_hash == desired.trust.keys_hash:
                found[key] = Known(known)
            elif key in to_launch:
                found[key] = _NOT_THERE
        return replace(seen, trust=found)

    def with_keys(self, desired: Desired, seen: Observed) -> Observed:
        """The versions that there were; which one signed what is queued, nobody knows here."""
        return replace(seen, keys={n: self.keys.get(n, KEYS_NOT_THERE) for n in desired.keys})


_NOT_THERE = Unknown(
    "not_in_snapshot",
    "the snapshot was taken before anything needed it; a plan against live state will know",
)

KEYS_NOT_THERE = Unknown(_NOT_THERE.code, "the snapshot does not say which versions there are")
SECRETS_NOT_THERE = Unknown(_NOT_THERE.code, "the snapshot does not say which secrets there are")


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
                "document": hash_of(one.document_json),
            }
            for _, one in sorted(seen.accepted.objects.items())
        ],
        "refused": [_refused(one) for _, one in sorted(seen.accepted.refused.items())],
        "records": [_record(record) for _, record in sorted(seen.records.items())],
        "intents": [_intent(intent) for intent in seen.intents],
        "nodes": {name: _node(node) for name, node in sorted(seen.nodes.items())},
        "artifacts": {str(key): _artifact(one) for key, one in sorted(seen.artifacts.items())},
        "secrets": {"unknown": seen.secrets.code}
        if isinstance(seen.secrets, Unknown)
        else {"paths": sorted(seen.secrets.value)},
        "keys": {name: _key(versions) for name, versions in sorted(seen.keys.items())},
        "trust": [_evidence(one) for _, one in sorted(seen.trust.items())],
        "step_backs": [_step_back(back) for _, back in sorted(seen.step_backs.items())],
    }


def _step_back(back: StepBack) -> dict[str, Any]:
    return {**vars(back), "failed": list(back.failed)}


def _key(versions: Seen[tuple[int, ...]]) -> dict[str, Any]:
    if isinstance(versions, Unknown):
        return {"unknown": versions.code}
    return {"versions": list(versions.value)}


def _refused(one: RefusedChange) -> dict[str, str]:
    """What counts instead is what is accepted, and is filled in from there."""
    return {name: getattr(one, name) for name in _REFUSED_FIELDS}


def hash_of(document_json: str) -> str:
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
        "target_images": list(record.target_images),
        "applied_images": list(record.applied_images),
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
        "key_version": found.config.newest_version if found.config else 0,
        "blobs": [_blob(blob) for blob in found.blobs],
        "workloads": [_workload(report) for _, report in sorted(found.workloads.items())],
    }


def _blob(blob: BlobSeen) -> dict[str, Any]:
    return {**blob.model_dump(), "error": _code(blob.error)}


def _workload(report: WorkloadReport) -> dict[str, Any]:
    return {
        "instance": report.instance,
        "target_hash": report.target_hash,
        "running_hash": report.running_hash,
        "phase": report.phase.value,
        "reason": report.reason.value if report.reason else None,
        "retained": report.retained,
        "proved": report.proof is not None and report.proof.clean,
        "services": [
            {"name": one.name, "phase": one.phase, "vital": one.vital} for one in report.services
        ],
    }


def _evidence(found: Evidence) -> dict[str, Any]:
    """What was refused stays here: it is what somebody wrote, and decides nothing."""
    return {
        "artifact": str(found.artifact),
        "keys_hash": found.keys_hash,
        "checked_at_ms": found.checked_at_ms,
        "asked": list(found.asked),
        "proofs": [
            {**{name: getattr(proof, name) for name in _PROOF_FIELDS},
             "sources": list(proof.sources)}
            for proof in found.proofs
        ],
    }  # fmt: skip


def _artifact(seen: Seen[ArtifactSeen]) -> dict[str, Any]:
    return {"unknown": seen.code} if isinstance(seen, Unknown) else {"exists": seen.value.exists}


# --- reading it again ----------------------------------------------------------------------------


def parsed(found: Any) -> Remembered:
    """ValueError, KeyError, TypeError or AttributeError for what `document` did not make."""
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
        secrets=_parsed_secrets(found.get("secrets")),
        keys={name: _parsed_key(one) for name, one in found.get("keys", {}).items()},
        trust={one.artifact: one for one in map(_parsed_evidence, found.get("trust", ()))},
        step_backs={
            one["promotion"]: StepBack(**{**one, "failed": tuple(one["failed"])})
            for one in found.get("step_backs", ())
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
        target_images=_images(one.get("target_images", ())),
        applied_images=_images(one.get("applied_images", ())),
        depends_on=tuple(one["depends_on"]),
    )


def _images(found: Any) -> tuple[str, ...]:
    return tuple(str(ArtifactKey.parse(image)) for image in found)


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
            config=ConfigSeen(newest_version=int(one.get("key_version", 0))),
            blobs=tuple(BlobSeen.model_validate(blob) for blob in one.get("blobs", ())),
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
        services=tuple(map(ServicePhase.model_validate, one.get("services", ()))),
    )


def _parsed_secrets(one: Any) -> SecretPaths:
    """None in snapshots from before there were references."""
    if one is None:
        return SECRETS_NOT_THERE
    if "unknown" in one:
        return Unknown(one["unknown"], "the secret store did not say when the snapshot was taken")
    return Known(frozenset(map(str, one["paths"])))


def _parsed_evidence(one: Any) -> Evidence:
    return Evidence(
        artifact=ArtifactKey.parse(one["artifact"]),
        keys_hash=one["keys_hash"],
        checked_at_ms=int(one["checked_at_ms"]),
        proofs=tuple(
            TrustProof(
                **{name: proof[name] for name in _PROOF_FIELDS}, sources=tuple(proof["sources"])
            )
            for proof in one["proofs"]
        ),
        asked=tuple(one["asked"]),
    )


def _parsed_key(one: Any) -> Seen[tuple[int, ...]]:
    if "unknown" in one:
        return Unknown(one["unknown"], "the secret store did not say when the snapshot was taken")
    return Known(tuple(map(int, one["versions"])))


def _parsed_artifact(one: Any) -> Seen[ArtifactSeen]:
    if "unknown" in one:
        return Unknown(one["unknown"], "the registry did not say when the snapshot was taken")
    return Known(ArtifactSeen(exists=bool(one["exists"])))
