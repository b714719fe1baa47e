"""Every route as a value: path, who may call it, what it takes and what it answers.

Rules: the routes are made from this table and the OpenAPI document is written from it, so that
neither can say what the other does not do. A parameter that is not in here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.datastructures import QueryParams

from reconciler.core.authority.accounts import TOKEN_PATH
from reconciler.core.names import NAME, InstanceKey
from reconciler.server.access_rules import AUDIT_READ, INSTANCE_READ, NODE_READ, STATUS_READ
from reconciler.server.auth_api import SERVICE_ACCOUNT_PATH
from reconciler.server.errors import ApiError
from reconciler.server.unwrap_api import UNWRAP_PATH

PAGE_MAX = 1_000
CURSOR_MAX = 2**63 - 1
MEMBER = rf"{NAME}(?:\.{NAME})?"
KEY = re.compile(rf"{NAME}/{NAME}/{MEMBER}")


@dataclass(frozen=True)
class Number:
    """A whole number in the query."""

    name: str
    says: str
    default: int
    maximum: int

    @property
    def schema(self) -> dict[str, Any]:
        limits = {"minimum": 0, "maximum": self.maximum, "default": self.default}
        return {"type": "integer", **limits}

    def read(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > self.maximum:
            expected = f"expected a number from 0 to {self.maximum}"
            raise ApiError(422, "invalid_parameter", f"{self.name}: {expected}")
        return int(text)


@dataclass(frozen=True)
class InstanceName:
    """An instance's key in the query."""

    name: str
    says: str
    default: None = None

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{KEY.pattern}$"}

    def read(self, text: str) -> InstanceKey:
        if not KEY.fullmatch(text):
            message = f"{self.name}: expected tenant/project/name[.member]"
            raise ApiError(422, "invalid_parameter", message)
        return InstanceKey(text)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    `access` is what lets somebody call it: `public`, `caller` (any who proves who he is), a read
    permission for the platform, or one that is asked for each project (`by_project`). What has its
    own way to prove who calls is `own`; `proof` says which. `answers` names schema components, and
    `errors` those codes of refusals, by status, that access and parameters alone don't explain.
    """

    path: str
    id: str
    summary: str
    answers: str
    method: str = "GET"
    status: int = 200
    tag: str = "read"
    access: str = "public"
    by_project: bool = False
    query: tuple[Number | InstanceName, ...] = ()
    errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    takes: str = ""
    takes_as: tuple[str, ...] = ("application/json",)
    proof: str = ""
    media: str = "application/json"

    @property
    def needs_token(self) -> bool:
        return self.access not in ("public", "own")


CALLER, OWN = "caller", "own"
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

READ_OPERATIONS = (
    HEALTHZ, READYZ, OPENAPI, METRICS, WHOAMI, STATUS, INSTANCES, INSTANCE, TIMELINE, EVENTS,
    NODES, AUDIT, SNAPSHOT,
)  # fmt: skip
OPERATIONS = (*READ_OPERATIONS, TOKEN, SERVICE_ACCOUNT_TOKEN, UNWRAP, *AGENT_OPERATIONS, HOOK)


class Query:
    """The parameters of one request, read by the table."""

    def __init__(self, operation: Operation, given: QueryParams) -> None:
        """ApiError 422 for one that is unknown, given twice, or not well-formed."""
        known = {one.name: one for one in operation.query}
        self._values: dict[str, Any] = {name: one.default for name, one in known.items()}
        if operation.tag == "probes":
            return  # Probes and scrapers add what they like.
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                message = f"a parameter that is not known here; those known: {there}"
                raise ApiError(422, "unknown_parameter", message)
            if len(given.getlist(name)) > 1:
                raise ApiError(422, "invalid_parameter", f"{name}: given more than once")
            self._values[name] = known[name].read(given[name])

    def number(self, name: str) -> int:
        return int(self._values[name])

    def instance(self) -> InstanceKey | None:
        found: InstanceKey | None = self._values["instance"]
        return found
