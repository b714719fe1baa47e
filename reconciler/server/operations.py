"""Every route as a value: path, who may call it, what it takes and what it answers.

Rules: the routes are made from this table and the OpenAPI document is written from it, so that
neither can say what the other does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.artifacts.registry_keys import TOKEN_PATH as REGISTRY_TOKEN_PATH
from reconciler.core.authority.accounts import TOKEN_PATH
from reconciler.server.access_rules import (
    ARTIFACT_REGISTER,
    AUDIT_READ,
    INSTANCE_READ,
    NODE_READ,
    STATUS_READ,
)
from reconciler.server.auth_api import SERVICE_ACCOUNT_PATH
from reconciler.server.operation_form import (
    CALLER,
    KEY,
    MEMBER,
    OWN,
    InstanceName,
    Number,
    Operation,
    Query,
    Text,
    Texts,
)
from reconciler.server.unwrap_api import UNWRAP_PATH

__all__ = ["CALLER", "KEY", "MEMBER", "OPERATIONS", "OWN", "Operation", "Query"]

PAGE_MAX = 1_000
CURSOR_MAX = 2**63 - 1
KEY_ERRORS = ("key_unknown", "key_revoked", "key_not_yet_valid", "key_expired")
BEARER_ERRORS = (
    "token_required", "token_missing", "token_invalid", "token_expired", "account_gone",
    "account_disabled", *KEY_ERRORS,
)  # fmt: skip
_LAST = Number("last", "How many of the newest entries.", 100, PAGE_MAX)
_LIMIT = Number("limit", "Most entries of one page.", 100, PAGE_MAX)
_INSTANCE = "/v1/instances/{tenant}/{project}/{name}"
_MISSING: Mapping[int, tuple[str, ...]] = {404: ("no_such_instance",)}
_AFTER = "The `next_after` of the page before; 0 for the first one."

HEALTHZ = Operation(
    "/healthz", "healthz", "Whether the process is alive.", "Live", tag="probes",
    errors={503: ("loop_silent",)},
)  # fmt: skip
READYZ = Operation(
    "/readyz", "readyz", "Whether passes are being made, by whichever process leads.", "Ready",
    tag="probes", errors={503: ("no_pass_yet", "pass_overdue")},
)  # fmt: skip
OPENAPI = Operation(
    "/openapi.json", "openapi", "This document.", "AnyObject", tag="probes"
)  # fmt: skip
METRICS = Operation(
    "/metrics", "metrics", "Metrics in the Prometheus text format.", "Text",
    tag="probes", access=STATUS_READ, media="text/plain",
)  # fmt: skip
WHOAMI = Operation(
    "/v1/whoami", "whoami", "Who the token stands for, and what he may do.", "Caller",
    access=CALLER,
)  # fmt: skip
STATUS = Operation(
    "/v1/status", "status", "Everything on one page.", "Status", access=STATUS_READ
)  # fmt: skip
INSTANCES = Operation(
    "/v1/instances", "instances", "The instances of all projects that the caller may read.",
    "Instances", access=INSTANCE_READ, by_project=True,
)  # fmt: skip
INSTANCE = Operation(
    _INSTANCE, "instance", "One instance, with its further members.", "Instance",
    access=INSTANCE_READ, by_project=True, errors=_MISSING,
)  # fmt: skip
TIMELINE = Operation(
    f"{_INSTANCE}/timeline", "timeline", "What happened to one instance, and how long it took.",
    "Timeline", access=INSTANCE_READ, by_project=True, query=(_LAST,), errors=_MISSING,
)  # fmt: skip
TOPOLOGY = Operation(
    f"{_INSTANCE}/topology", "topology", "The services of one instance: what each is asked to be, "
    "what it needs, where it is reached, and how its node finds it.",
    "Topology", access=INSTANCE_READ, by_project=True,
    errors={404: (*_MISSING[404], "no_topology"), 409: ("instance_unresolved",)},
)  # fmt: skip
EVENTS = Operation(
    "/v1/events", "events", "A page of the events of all projects that the caller may read. The "
    "stream has been read to its end when `next_after` is what was asked with; a page before "
    "that may be empty.",
    "Events", access=INSTANCE_READ, by_project=True,
    query=(
        Number("after", _AFTER, 0, CURSOR_MAX), _LIMIT,
        InstanceName("instance", "Only events of this instance and its members."),
    ),
)  # fmt: skip
NODES = Operation(
    "/v1/nodes", "nodes", "The nodes by their last reports.", "Nodes", access=NODE_READ
)  # fmt: skip
AUDIT = Operation(
    "/v1/audit", "audit", "A page of the audit log: who did what, chained by hashes.", "Audit",
    access=AUDIT_READ, query=(Number("after", _AFTER, 0, CURSOR_MAX), _LIMIT),
)  # fmt: skip
SNAPSHOT = Operation(
    "/v1/snapshot", "snapshot", "What an offline plan is made from, signed and redacted.",
    "Envelope", access=STATUS_READ, errors={404: ("no_snapshot",)},
)  # fmt: skip

_SIGNED = "a DSSE envelope signed with the key of an enrolled node"
_SHOWN = f"{_SIGNED}, over a connection that shows the certificate of that key"
_BODY = {400: ("malformed", "wrong_type"), 408: ("too_slow",), 413: ("too_large",)}
_FROM_NODE = {
    **_BODY,
    401: ("unknown_node", "bad_signature"),
    403: ("node_revoked", "wrong_node"),
    422: ("invalid_message", "not_fresh"),
}
_NOT_SHOWN = ("certificate_required", "certificate_of_another", *_FROM_NODE[403])
_IN_TOUCH = {**_FROM_NODE, 403: _NOT_SHOWN}
_CSR_ERRORS = ("csr_refused", "csr_of_another_key")
AGENT_OPERATIONS = (
    Operation(
        "/v1/agent/ca", "ca", "The CA certificate, which the join token has the hash of.", "Ca",
        tag="agent",
    ),
    Operation(
        "/v1/agent/certificate", "certificate", "A further certificate for a node's key.",
        "Certificate", "POST", tag="agent", access=OWN, proof=_SIGNED, takes="Envelope",
        errors={
            **_FROM_NODE, 400: (*_BODY[400], *_CSR_ERRORS), 409: ("replayed_request",),
            429: ("too_many_tries",),
        },
    ),
    Operation(
        "/v1/agent/join", "join", "Enrols a node with a join token.", "JoinReply", "POST",
        tag="agent", access=OWN, proof="a join token, once", takes="JoinRequest",
        errors={
            408: ("too_slow",), 413: ("too_large",), 422: ("invalid_message",),
            400: _CSR_ERRORS,
            401: ("token_refused",), 409: ("key_in_use", "key_revoked"), 429: ("too_many_tries",),
            503: ("not_started",),
        },
    ),
    Operation(
        "/v1/agent/report", "report", "Takes a node's report.", "Received", "POST",
        tag="agent", access=OWN, proof=_SHOWN, takes="Envelope",
        errors={**_IN_TOUCH, 409: ("replayed_report",)},
    ),
    Operation(
        "/v1/agent/poll", "poll", "Gives a node its tasks; waits for one.", "PollReply", "POST",
        tag="agent", access=OWN, proof=_SHOWN, takes="Envelope", errors=_IN_TOUCH,
    ),
    Operation(
        "/v1/agent/secrets", "secrets", "Gives a node an instance's secrets, sealed.", "Envelope",
        "POST", tag="agent", access=OWN, proof=_SHOWN, takes="Envelope",
        errors={
            **_FROM_NODE, 403: (*_NOT_SHOWN, "not_placed", "no_such_secret"),
            404: ("secret_missing",), 409: ("replayed_request",),
        },
    ),
    Operation(
        "/v1/agent/pull-token", "pull_token", "Gives a node a registry token to pull the image of "
        "one of its instances with; an empty one where the registry asks for none.",
        "PullToken", "POST", tag="agent", access=OWN, proof=_SHOWN, takes="Envelope",
        errors={**_FROM_NODE, 403: (*_NOT_SHOWN, "not_placed", "not_its_image")},
    ),
)  # fmt: skip
_BLOB_OUT = {206: "Bytes", 304: "", 307: ""}
_RANGE = (
    Text("Range", "Bytes of it: one range, as in RFC 9110."),
    Text("If-Range", "Its ETag: the whole where it is another by now."),
    Text("If-None-Match", "ETags of what is there already."),
)
AGENT_BLOB = Operation(
    "/v1/agent/blob", "agent_blob", "Gives a node a blob that it was told to have, from an offset "
    "on; or says where it is.",
    "Bytes", "POST", tag="agent", access=OWN, proof=_SHOWN, takes="Envelope",
    media="application/octet-stream", further={206: "Bytes", 307: ""},
    errors={
        **_FROM_NODE, 403: (*_NOT_SHOWN, "blob_not_for_node"), 404: ("no_such_blob",),
        409: ("no_blob_store",), 416: ("wrong_offset",),
    },
)  # fmt: skip
_OF_INTENT: Mapping[int, tuple[str, ...]] = {
    401: ("credential_refused",), 403: ("blob_not_opened",), 409: ("no_blob_store",),
    429: ("rate_limited",),
}  # fmt: skip
BLOB_KEPT = Operation(
    "/v1/blobs/uploads/{id}", "blob_upload", "How many bytes of an upload are kept: Upload-Offset. "
    "HEAD says it too.",
    "BlobPart", tag="blobs", access=OWN, errors=_OF_INTENT,
    proof="Basic, the id of a publish intent with its credential",
)  # fmt: skip
BLOB_TAKE = replace(
    BLOB_KEPT, id="blob_append", method="PATCH", status=204, answers="", takes="Bytes",
    takes_as=("application/octet-stream",),
    summary="Adds bytes to an upload, from the offset on that is kept.",
    header=(Text("Upload-Offset", "How many bytes came before: as many as are kept."),),
    errors={
        **_OF_INTENT, 400: ("invalid_message",), 408: ("too_slow",), 413: ("too_large",),
        409: ("wrong_offset", "upload_finished", "upload_busy", *_OF_INTENT[409]),
        503: ("too_many_uploads",), 507: ("blob_store_full",),
    },
)  # fmt: skip
BLOB_FINISH = replace(
    BLOB_KEPT, id="blob_finish", path=f"{BLOB_KEPT.path}/finish", method="POST",
    answers="Blob", takes="BlobDigest", further={202: "BlobHashing"},
    summary="Makes an upload a blob, once all of it hashed to this digest. Asked again, it says "
    "the same.",
    errors={
        **_OF_INTENT, 400: ("invalid_message",), 404: ("no_such_upload",), 408: ("too_slow",),
        413: ("too_large",), 422: ("digest_mismatch",), 507: ("blob_store_full",),
    },
)  # fmt: skip
BLOB_GIVE = Operation(
    "/v1/blobs/{digest}", "blob", "A blob by its digest, whole or from any byte on; or where it "
    "is. HEAD says how large it is.",
    "Bytes", tag="blobs", access=OWN, media="application/octet-stream", header=_RANGE,
    further=_BLOB_OUT, proof="Basic, the id of a pull intent for it with its credential",
    errors={**_OF_INTENT, 404: ("no_such_blob",), 416: ("range_not_satisfiable",)},
)  # fmt: skip
RELEASES = Operation(
    "/v1/releases", "releases", "The published releases of the platform's own programs, newest "
    "first.", "Releases", tag="releases", access=CALLER,
    query=(Text("channel", "Only of this channel."),),
)  # fmt: skip
_NO_RELEASE: Mapping[int, tuple[str, ...]] = {
    404: ("no_such_release",), 410: ("release_withdrawn",),
}  # fmt: skip
RELEASE = Operation(
    "/v1/releases/{version}", "release", "What a release is made of: each build with its digest.",
    "Release", tag="releases", access=CALLER, errors=_NO_RELEASE,
)  # fmt: skip
RELEASE_BUILD = Operation(
    "/v1/releases/{version}/{component}/{os}/{arch}", "release_build", "A build of a release, "
    "whole or from any byte on; or where it is. The one that runs everywhere, where there is none "
    "for that system. HEAD says how large it is.",
    "Bytes", tag="releases", access=CALLER, media="application/octet-stream", header=_RANGE,
    further=_BLOB_OUT,
    errors={
        404: ("no_such_release", "no_such_build", "no_such_blob"), 410: _NO_RELEASE[410],
        409: ("release_in_registry", "no_blob_store"), 416: ("range_not_satisfiable",),
    },
)  # fmt: skip
RELEASE_OPERATIONS = (RELEASES, RELEASE, RELEASE_BUILD)
BLOB_OPERATIONS = (BLOB_KEPT, BLOB_TAKE, BLOB_FINISH, BLOB_GIVE, AGENT_BLOB)
_LOGIN_ERRORS: Mapping[int, tuple[str, ...]] = {
    400: ("service_unknown",), 401: ("credential_refused",), 429: ("rate_limited",),
}  # fmt: skip
REGISTRY_TOKEN = Operation(
    REGISTRY_TOKEN_PATH, "registry_token", "A token for the registry, by the distribution token "
    "protocol. What is asked for beyond what the intent opens is left out.",
    "RegistryToken", tag="tokens", access=OWN, errors=_LOGIN_ERRORS,
    proof="Basic, the id of a publish or pull intent with its credential",
    query=(
        Text("service", "The registry's name for itself, as its challenge has it."),
        Texts("scope", "`repository:<name>:<actions>`; none asks for nothing but a login."),
    ),
)  # fmt: skip
REGISTRY_TOKEN_FORM = replace(
    REGISTRY_TOKEN, id="registry_token_form", method="POST", query=(),
    summary="The same, as OAuth 2 asks for it.", takes="RegistryTokenRequest",
    takes_as=("application/x-www-form-urlencoded",),
    proof="the id of a publish or pull intent with its credential, in the body",
    errors={
        **_LOGIN_ERRORS, 408: ("too_slow",), 413: ("too_large",), 415: ("unsupported_media_type",),
        400: ("invalid_message", "unsupported_grant_type", "service_unknown"),
    },
)  # fmt: skip
_TOKEN_ERRORS: Mapping[int, tuple[str, ...]] = {
    400: ("invalid_message", "unsupported_grant_type", "scope_invalid", "assertion_invalid"),
    401: ("assertion_refused", "assertion_expired", "assertion_replayed"),
    403: ("account_disabled", *KEY_ERRORS),
    408: ("too_slow",),
    413: ("too_large",),
    415: ("unsupported_media_type",),
    429: ("rate_limited",),
}
TOKEN = Operation(
    TOKEN_PATH, "token", "A bearer token for a signed assertion (RFC 7523).", "Token", "POST",
    tag="tokens", access=OWN, takes="TokenRequest",
    takes_as=("application/x-www-form-urlencoded", "application/json"), errors=_TOKEN_ERRORS,
    proof="a JWT signed with a key of the account, good once",
)  # fmt: skip
SERVICE_ACCOUNT_TOKEN = replace(
    TOKEN, path=SERVICE_ACCOUNT_PATH, id="service_account_token",
    summary="The same, under the name it has for service accounts.",
)  # fmt: skip
UNWRAP = Operation(
    UNWRAP_PATH, "unwrap", "The secret that was handed over with a token. It uses up the token: "
    "the one route for people that changes anything.",
    "Unwrapped", "POST", tag="handover", access=OWN, takes="Unwrap",
    proof="a hand-over token, once",
    errors={
        400: ("invalid_message", "handover_malformed"), 403: ("wrap_foreign",),
        408: ("too_slow",), 410: ("wrap_spent",), 413: ("too_large",), 429: ("rate_limited",),
    },
)  # fmt: skip
HOOK = Operation(
    "/v1/hooks/git", "git_hook", "A forge's webhook: look at the state repo now.", "Accepted",
    "POST", 202, tag="webhooks", access=OWN, takes="AnyBody",
    proof="X-Hub-Signature-256, X-Gitea-Signature or X-Gitlab-Token",
    errors={
        401: ("unsigned_webhook", "bad_signature"), 408: ("too_slow",), 413: ("too_large",),
        503: ("webhook_not_configured",),
    },
)  # fmt: skip

INTENT_REFUSALS: Mapping[str, int] = {
    "wish_invalid": 422, "digest_invalid": 422, "channel_unknown": 422,
    "no_such_project": 404, "no_such_app": 404, "no_such_artifact": 404, "no_such_transfer": 404,
    "no_such_blob": 404,
    "artifact_revoked": 409, "artifact_retired": 409, "registry_is_folder": 409,
    "no_environment": 409, "no_blob_store": 409, "no_such_upload": 409, "mount_unsupported": 409,
    "tag_reserved": 409,
    "transfer_not_publish": 409, "transfer_closed": 409, "transfer_completed": 409,
    "not_pushed": 409, "artifact_incomplete": 409, "artifact_too_large": 409,
    "digest_mismatch": 409, "index_nested": 409, "manifest_malformed": 409,
    "manifest_too_large": 409, "manifest_type_unknown": 409, "size_mismatch": 409,
    "too_many_attached": 409, "transfer_expired": 410, "too_many_transfers": 429,
}  # fmt: skip
"""Code → status of what can be wrong with an intent or with what was pushed for it."""
_DONE_HERE = {403: ("not_permitted",), 503: ("no_registry",)}
_TAKEN = {**_DONE_HERE, 408: ("too_slow",), 413: ("too_large",)}


def _intent_errors(codes: str, more: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = dict(more)
    for code in codes.split():
        status = INTENT_REFUSALS[code]
        found[status] = (*found.get(status, ()), code)
    return found


_OPENING = (
    "wish_invalid no_such_project no_environment registry_is_folder no_blob_store "
    "too_many_transfers"
)
_COPIED = (
    "mount_unsupported artifact_incomplete artifact_too_large digest_mismatch index_nested "
    "manifest_malformed manifest_too_large manifest_type_unknown size_mismatch too_many_attached "
    "tag_reserved"
)
PUBLISH = Operation(
    "/v1/intents/publish", "publish_intent", "A place to push one artifact to, with a credential "
    "for that place alone, wrapped.",
    "OpenedIntent", "POST", 201, tag="intents", access=ARTIFACT_REGISTER, by_project=True,
    takes="PublishIntent", errors=_intent_errors(f"{_OPENING} no_such_app channel_unknown", _TAKEN),
)  # fmt: skip
PULL = Operation(
    "/v1/intents/pull", "pull_intent", "A credential to pull one artifact with, wrapped.",
    "OpenedIntent", "POST", 201, tag="intents", access=INSTANCE_READ, by_project=True,
    takes="PullIntent",
    errors=_intent_errors(
        f"{_OPENING} no_such_artifact no_such_blob artifact_revoked artifact_retired {_COPIED}",
        _TAKEN,
    ),
)  # fmt: skip
INTENTS = Operation(
    "/v1/intents", "intents", "The newest intents of all projects that the caller may read.",
    "Intents", tag="intents", access=INSTANCE_READ, by_project=True,
    query=(_LAST, Text("project", "Only of this project, tenant/project.")),
)  # fmt: skip
_ONE_INTENT = "/v1/intents/{id}"
INTENT = Operation(
    _ONE_INTENT, "intent", "One intent.", "Intent", tag="intents", access=INSTANCE_READ,
    by_project=True, errors=_intent_errors("no_such_transfer", {}),
)  # fmt: skip
COMPLETE = Operation(
    f"{_ONE_INTENT}/complete", "complete_intent", "Takes what was pushed into its canonical "
    "repository, by digest, with what is attached to it.",
    "CompletedIntent", "POST", tag="intents", access=ARTIFACT_REGISTER, by_project=True,
    takes="CompleteIntent",
    errors=_intent_errors(
        "wish_invalid digest_invalid no_such_transfer transfer_not_publish transfer_closed "
        "transfer_completed transfer_expired not_pushed no_environment no_blob_store "
        f"no_such_upload {_COPIED}",
        _TAKEN,
    ),
)  # fmt: skip
CLOSE = Operation(
    _ONE_INTENT, "close_intent", "Ends an intent: its credential opens nothing any more. For who "
    "asked for it, too.",
    "Intent", "DELETE", tag="intents", access=ARTIFACT_REGISTER, by_project=True,
    errors=_intent_errors("no_such_transfer", _DONE_HERE),
)  # fmt: skip
INTENT_OPERATIONS = (PUBLISH, PULL, INTENTS, INTENT, COMPLETE, CLOSE)

READ_OPERATIONS = (
    HEALTHZ, READYZ, OPENAPI, METRICS, WHOAMI, STATUS, INSTANCES, INSTANCE, TIMELINE, TOPOLOGY,
    EVENTS, NODES, AUDIT, SNAPSHOT,
)  # fmt: skip
OPERATIONS = (
    *READ_OPERATIONS, TOKEN, SERVICE_ACCOUNT_TOKEN, REGISTRY_TOKEN, REGISTRY_TOKEN_FORM, UNWRAP,
    *INTENT_OPERATIONS, *BLOB_OPERATIONS, *RELEASE_OPERATIONS, *AGENT_OPERATIONS, HOOK,
)  # fmt: skip
