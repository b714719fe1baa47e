"""The shapes of everything that the API answers, as JSON Schema: the components of its document.

Rules: a shape is made from the type it is stored or sent as, where there is one, so that a field
that is added there is added here. Objects are closed: what is not named is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from node_agent import wire
from reconciler.core.authority.accounts import AccountType
from reconciler.core.health import Health
from reconciler.core.kinds.role_binding import Permission
from reconciler.core.names import NAME
from reconciler.core.records import (
    AuditEntry,
    Condition,
    Event,
    InstanceRecord,
    PassSummary,
    State,
)
from reconciler.server.access_rules import READS
from reconciler.server.auth_api import GRANT_TYPE

Schema = dict[str, Any]
REF = "#/components/schemas/"

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
AT_MS: Schema = {**COUNT, "description": "Milliseconds since the epoch; 0 for never."}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}


def components() -> dict[str, Schema]:
    """Name → schema, sorted by name."""
    found = {
        **_of_errors(),
        **_of_probes(),
        **_of_callers(),
        **_of_instances(),
        **_of_nodes(),
        **_of_the_control_plane(),
        **_of_agents(),
        **_of_releases(),
    }
    return dict(sorted(found.items()))


def ref(name: str) -> Schema:
    return {"$ref": REF + name}


def closed(
    describes: str, optional: Mapping[str, Schema] | None = None, **fields: Schema
) -> Schema:
    """An object with exactly these fields, and perhaps the optional ones."""
    return {
        "type": "object",
        "description": describes,
        "properties": {**fields, **(optional or {})},
        "required": [*fields],
        "additionalProperties": False,
    }


def listed(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def mapped(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": [*words]}


def of_type(kind: type, describes: str, leave_out: tuple[str, ...] = (), **more: Schema) -> Schema:
    """The closed schema of a type as it is sent, without some fields, and with more."""
    found = _tidy(TypeAdapter(kind).json_schema(mode="serialization", ref_template=REF + "{model}"))
    properties = {
        name: schema for name, schema in found["properties"].items() if name not in leave_out
    }
    return closed(describes, **{**more, **properties})


def _tidy(schema: Any) -> Any:
    """Without titles, which only repeat names, and defaults, which mean nothing in an answer."""
    if isinstance(schema, list):
        return [_tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    left = {
        name: _tidy(value)
        for name, value in schema.items()
        if not (name == "title" and isinstance(value, str)) and name not in ("default", "$defs")
    }
    if "properties" in left:
        left = {**left, "required": [*left["properties"]], "additionalProperties": False}
    return left


def _of_errors() -> dict[str, Schema]:
    return {
        "Error": closed(
            "The one shape of every failure.",
            error=closed(
                "Why.",
                code={**TEXT, "pattern": "^[a-z][a-z0-9_]*$", "description": "Stable."},
                message={**TEXT, "description": "For people; may get better."},
                correlation_id={**TEXT, "description": "Names the request in our log."},
            ),
        ),
        "AnyObject": ANY_OBJECT,
        "Text": TEXT,
    }


def _of_probes() -> dict[str, Schema]:
    results = one_of(*_literals(PassSummary, "result"))
    return {
        "Live": closed(
            "The process is alive.",
            {"heartbeat_age_s": {"type": "number", "minimum": 0}},
            status={"const": "live"},
        ),
        "Ready": closed(
            "Passes are being made.",
            {"role": one_of("leading", "standing_by")},
            status={"const": "ready"},
            last_pass_age_s={"type": "number", "minimum": 0},
            last_pass_result=results,
        ),
    }


def _of_callers() -> dict[str, Schema]:
    scope = {**TEXT, "description": "Empty for the platform, tenant, or tenant/project."}
    return {
        "Grant": closed(
            "A right, until when it is held, and what gives it.",
            permission=one_of(*get_args(Permission)),
            scope=scope,
            until_ms=or_null(AT_MS),
            why=TEXT,
        ),
        "Caller": closed(
            "Who asks. `local` is who reads on the control plane's host without a token, and then "
            f"may {', '.join(READS)}.",
            actor=TEXT,
            type=one_of(*get_args(AccountType), "local"),
            grants=listed(ref("Grant")),
            expires_at_ms=or_null(AT_MS),
        ),
        "TokenRequest": closed(
            "Asks for a token.",
            {"scope": {**TEXT, "description": "Permissions, with blanks between; all when empty."}},
            grant_type={"const": GRANT_TYPE},
            assertion={**TEXT, "minLength": 1, "description": "A compact JWT, signed."},
        ),
        "Token": closed(
            "A token, to be sent as Authorization: Bearer. It says who asks; what he may is looked "
            "up each time.",
            access_token=TEXT,
            token_type={"const": "Bearer"},
            expires_in={**COUNT, "description": "Seconds."},
            scope={**TEXT, "description": "The permissions it is good for, with blanks between."},
        ),
        "RegistryTokenRequest": closed(
            "Asks for a token of the registry.",
            {"service": TEXT, "scope": TEXT, "client_id": TEXT, "access_type": TEXT},
            grant_type={"const": "password"},
            username={**TEXT, "description": "The id of an intent."},
            password={**TEXT, "description": "Its credential."},
        ),
        "RegistryToken": closed(
            "A token, to be sent to the registry as Authorization: Bearer.",
            token=TEXT,
            access_token={**TEXT, "description": "The same: OAuth 2 calls it so."},
            expires_in={**COUNT, "description": "Seconds."},
            issued_at={**TEXT, "format": "date-time"},
        ),
        "Unwrap": closed(
            "Asks for a secret, once.",
            token={**TEXT, "minLength": 1, "description": "A hand-over token, as it was printed."},
        ),
        "Unwrapped": closed("What was handed over. Nobody gets it a second time.", value=TEXT),
    }


def _of_instances() -> dict[str, Schema]:
    health = one_of(*(word.value for word in Health), "")
    name = {**TEXT, "description": "tenant/project/name[.member]"}
    instance = of_type(
        InstanceRecord,
        "An instance as it is remembered: `target_*` is what the operation under way goes for, "
        "`applied_*` what last became ready.",
        ("key",),
        instance=name,
        tenant=TEXT,
        project=TEXT,
        name=TEXT,
        member=TEXT,
        member_of=TEXT,
        health={**health, "description": "Empty for what is gone."},
        health_since_ms=AT_MS,
    )
    instance["properties"]["members"] = listed(ref("Member"))
    return {
        "State": one_of(*(state.value for state in State)),
        "Condition": of_type(Condition, "One judgement on an instance."),
        "Change": closed(
            "What a commit changed of it and has not come true yet.",
            revision=TEXT,
            seen_at_ms=AT_MS,
            wanted=TEXT,
        ),
        "Endpoint": of_type(wire.Endpoint, "A port, and where its node publishes it."),
        "ServicePhase": of_type(wire.ServicePhase, "One service of an instance, as its node says."),
        "Member": closed(
            "A further member of an instance.",
            instance=name,
            member=TEXT,
            role=TEXT,
            node=TEXT,
            state=ref("State"),
            ready=one_of("True", "False", "Unknown"),
        ),
        "Instance": instance,
        "Instances": closed("By name.", instances=listed(ref("Instance"))),
        "Event": of_type(Event, "Something that happened once.", cursor=COUNT),
        "Events": closed("A page.", events=listed(ref("Event")), next_after=COUNT),
        **_of_timelines(health),
    }


def _of_timelines(health: Schema) -> dict[str, Schema]:
    awaits = closed("A commit to come true.", revision=TEXT, seen_at_ms=AT_MS, waited_ms=COUNT)
    counted = ("running", "upgraded", "rolled_back", "failed", "decommissioned", "restarts")
    texts = (
        "event_id", "what", "version_from", "version", "digest_from", "digest", "node", "reason",
        "message", "operation", "revision",
    )  # fmt: skip
    told = ("why", "version", "digest", "target_version", "reason", "message", "page")
    took: Schema = or_null({"type": "integer", "description": "Milliseconds."})
    return {
        "TimelineEntry": closed(
            "An event, with how long its step and its whole operation took.",
            cursor=COUNT,
            at_ms=AT_MS,
            **dict.fromkeys(texts, TEXT),
            step_ms=took,
            operation_ms=took,
            since_commit_seen=FLAG,
            commit=or_null(
                closed("As it says itself.", author=TEXT, subject=TEXT, committed_at_ms=AT_MS)
            ),
        ),
        "Timeline": closed(
            "The life of one instance, oldest first.",
            format={"const": "gpuaas.dev/timeline/v1"},
            instance=TEXT,
            generated_at_ms=AT_MS,
            now=or_null(
                closed(
                    "How it stands.",
                    state=ref("State"),
                    since_ms=AT_MS,
                    health=health,
                    health_since_ms=AT_MS,
                    **dict.fromkeys(told, TEXT),
                    restarts=COUNT,
                    awaits=or_null(awaits),
                )
            ),
            totals=closed(
                "Of all entries, also those left out.",
                **dict.fromkeys(counted, COUNT),
                failures_by_reason=mapped(COUNT),
            ),
            entries=listed(ref("TimelineEntry")),
            left_out=COUNT,
        ),
    }


def _of_nodes() -> dict[str, Schema]:
    reason = or_null(one_of(*(reason.value for reason in wire.FailureReason)))
    return {
        "Gpu": of_type(wire.Gpu, "A GPU that a node has."),
        "Stray": of_type(wire.Stray, "Something with our label that no task asked for."),
        "BlobSeen": closed(
            "A blob in a node's cache, or on its way there.",
            digest=TEXT,
            state=one_of("ready", "pulling", "failed"),
            bytes_done=COUNT,
            size_bytes=or_null(COUNT),
            error=TEXT,
        ),
        "Workload": closed(
            "What a node says of one instance.",
            instance=TEXT,
            phase=one_of(*(phase.value for phase in wire.Phase)),
            reason=reason,
        ),
        "Node": closed(
            "A node by its last report.",
            name=TEXT,
            state=one_of("online", "offline", "never_reported", "unreadable_report", "revoked"),
            joined_at_ms=AT_MS,
            reported_at_ms=or_null(AT_MS),
            report_age_ms=or_null(COUNT),
            agent_version=or_null(TEXT),
            complete=or_null(FLAG),
            engines=listed(TEXT),
            engine_errors=mapped(TEXT),
            gpus=listed(ref("Gpu")),
            cpu_count=or_null({"type": "integer"}),
            memory_mib=or_null({"type": "integer"}),
            disk_free_mib=or_null({"type": "integer"}),
            workloads=listed(ref("Workload")),
            strays=listed(ref("Stray")),
            blobs=listed(ref("BlobSeen")),
        ),
        "Nodes": closed("By name.", nodes=listed(ref("Node"))),
    }


def _of_the_control_plane() -> dict[str, Schema]:
    states = closed("One count a state.", **{state.value: COUNT for state in State})
    return {
        "Pass": of_type(PassSummary, "How the last pass ended.", age_ms=COUNT),
        "Status": closed(
            "Everything on one page.",
            generated_at_ms=AT_MS,
            summary=closed("How many there are.", instances=COUNT, by_state=states),
            last_pass=or_null(ref("Pass")),
            instances=listed(ref("Instance")),
            nodes=listed(ref("Node")),
        ),
        "AuditRow": of_type(
            AuditEntry,
            "What was done or refused, by whom. `row_hash` covers it, its number and the hash "
            "before it.",
            seq=COUNT,
            at={**TEXT, "description": "`at_ms` in words, UTC."},
            previous_hash=TEXT,
            row_hash=TEXT,
        ),
        "Audit": closed(
            "A page of the log. `head` is its newest row: what was cut off shows.",
            rows=listed(ref("AuditRow")),
            next_after=COUNT,
            head=closed("The newest row.", seq=COUNT, row_hash=TEXT),
        ),
    }


def _of_releases() -> dict[str, Schema]:
    return {
        "ReleaseBuild": closed(
            "What a release has for one system, or for all of them (`any`).",
            component=one_of("agent", "cli", "sdk"),
            platform={**TEXT, "description": "os/arch, or any."},
            kind=one_of("oci", "blob"),
            digest={**TEXT, "pattern": "^sha256:[0-9a-f]{64}$"},
            size_bytes=COUNT,
            media_type=or_null(TEXT),
            file_name=or_null(TEXT),
            path=or_null({**TEXT, "description": "Where its bytes are given."}),
            reference=or_null({**TEXT, "description": "`repository@digest` of an image."}),
        ),
        "Release": closed(
            "One version of the platform's own programs.",
            version=TEXT,
            channel=TEXT,
            released_at=or_null(TEXT),
            notes=TEXT,
            builds=listed(ref("ReleaseBuild")),
        ),
        "Releases": closed("Newest first.", releases=listed(ref("Release"))),
    }


def _of_agents() -> dict[str, Schema]:
    base64 = {**TEXT, "contentEncoding": "base64"}
    key = {**TEXT, "pattern": "^[0-9a-f]{64}$"}
    digest = {**TEXT, "pattern": "^sha256:[0-9a-f]{64}$"}
    return {
        "Envelope": closed(
            "A DSSE envelope: a signed message.",
            payload=base64,
            payloadType=TEXT,
            signatures=listed(closed("Who signed.", keyid=TEXT, sig=base64)),
        ),
        "JoinRequest": closed(
            "Redeems a join token. `public_key` is the agent's own ed25519 key.",
            token=TEXT,
            node={**TEXT, "pattern": f"^{NAME}$"},
            public_key=key,
            csr={**TEXT, "maxLength": 8192, "description": "PKCS #10 of that key, PEM."},
        ),
        "Ca": closed("Whom to believe.", ca={**TEXT, "description": "PEM."}),
        "Certificate": closed(
            "A certificate, and whom to believe from now on; PEM.", certificate=TEXT, ca=TEXT
        ),
        "VerifierKey": closed(
            "Signs tasks.", key_id=TEXT, version={"type": "integer"}, public_key=key
        ),
        "JoinReply": closed(
            "What tells a genuine task from another, and a certificate unless it has to wait.",
            node=TEXT,
            verifiers=listed(ref("VerifierKey")),
            min_version={"type": "integer"},
            certificate=TEXT,
            ca=TEXT,
        ),
        "PullToken": closed(
            "A registry's bearer token; empty where it asks for none.",
            token=TEXT,
            expires_at_ms=AT_MS,
        ),
        "Received": closed("Taken.", report_seq=COUNT, received_at_ms=AT_MS),
        "PollReply": closed(
            "Signed tasks, oldest first, and what holds for the node where that changed.",
            {"config": ref("Envelope")},
            tasks=listed(ref("Envelope")),
        ),
        "Accepted": closed("Heard.", accepted={"const": True}),
        "Bytes": {"description": "As they are."},
        "BlobDigest": closed("What an upload is to hash to.", digest=digest),
        "Blob": closed("A blob that is there whole.", digest=digest, size_bytes=COUNT),
        "BlobPart": closed("How much of an upload is kept.", bytes_done=COUNT),
        "BlobHashing": closed("It goes on: ask again.", hashing={"const": True}),
        "AnyBody": {"description": "Whatever the forge sends."},
    }


def _literals(kind: type, field: str) -> tuple[str, ...]:
    found: tuple[str, ...] = tuple(TypeAdapter(kind).json_schema()["properties"][field]["enum"])
    return found
