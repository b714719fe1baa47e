"""The shapes of publish and pull intents: part of the components of the API's document."""

from __future__ import annotations

from typing import get_args

from reconciler.core.names import NAME, VERSION
from reconciler.core.transfers import (
    ARTIFACT_LENGTH_MAX,
    TAG,
    ContentKind,
    TransferKind,
    TransferState,
)
from reconciler.server.api_schemas import (
    AT_MS,
    COUNT,
    FLAG,
    TEXT,
    Schema,
    closed,
    listed,
    mapped,
    one_of,
    or_null,
    ref,
)
from reconciler.use_cases.transfers import TTL_MIN_S
from reconciler.views.transfers import FORMAT

_DIGEST: Schema = {**TEXT, "pattern": "^sha256:[0-9a-f]{64}$"}
_NAME: Schema = {**TEXT, "pattern": f"^{NAME}$"}
_PROJECT: Schema = {**TEXT, "pattern": f"^{NAME}/{NAME}$", "description": "tenant/project"}
_TTL: Schema = or_null(
    {
        "type": "integer",
        "minimum": TTL_MIN_S,
        "description": "Seconds; `transfer_ttl_s` at most, however long is asked for.",
    }
)
_REGISTRY: Schema = or_null(
    closed("Where the artifact goes or comes from.", endpoint=TEXT, plain_http=FLAG)
)


def intent_schemas() -> dict[str, Schema]:
    """Name → schema."""
    intent = _intent()
    return {
        "PublishIntent": closed(
            "Asks for a place to push an artifact of an app's version to.",
            {
                "name": {**_NAME, "description": "Of its manifest; `image` unless it is given."},
                "kind": one_of(*get_args(ContentKind)),
                "tag": {
                    **TEXT,
                    "pattern": f"^(?:{TAG})?$",
                    "description": "A label; empty: the version.",
                },
                "channel": {
                    **TEXT,
                    "pattern": f"^(?:{NAME})?$",
                    "description": "Empty: the Environment's.",
                },
                "ttl_s": _TTL,
            },
            project=_PROJECT,
            app=_NAME,
            version={**TEXT, "pattern": f"^{VERSION}$"},
        ),
        "PullIntent": closed(
            "Asks for a credential to pull with, on behalf of a project.",
            {"ttl_s": _TTL},
            project=_PROJECT,
            artifact={
                **TEXT,
                "minLength": 1,
                "maxLength": ARTIFACT_LENGTH_MAX,
                "description": "`repository@sha256:…`, `artifact_store://…@sha256:…`, or the path "
                "of its Artifact, tenant/project/app/version/name.",
            },
        ),
        "CompleteIntent": closed("What was pushed.", digest=_DIGEST),
        "Intent": closed("A publish or pull intent. Nothing in it opens anything.", **intent),
        "Intents": closed("Newest first.", intents=listed(ref("Intent"))),
        "OpenedIntent": closed(
            "An intent, and what it takes to go on with it.",
            **intent,
            registry=_REGISTRY,
            credential=or_null(_credential()),
            signature=or_null(_signature()),
            commands={
                **mapped(listed(TEXT)),
                "description": "Shell lines by client; `unwrap` goes before, `complete` after.",
            },
        ),
        "CompletedIntent": closed(
            "A completed intent, and the manifest that registers what was published.",
            **intent,
            registry=_REGISTRY,
            verdict=closed(
                "Whether it is good for the channel as it is now.",
                good=FLAG,
                code=TEXT,
                message=TEXT,
                hint=TEXT,
            ),
            manifest=closed("To be committed to the state repo.", path=TEXT, content=TEXT),
        ),
    }


def _intent() -> dict[str, Schema]:
    return {
        "format": {"const": FORMAT},
        "id": {**TEXT, "pattern": "^[0-9a-f]{26}$"},
        "kind": one_of(*get_args(TransferKind)),
        "content": one_of(*get_args(ContentKind)),
        "state": one_of(*get_args(TransferState), "expired"),
        **dict.fromkeys(("project", "app", "version", "name"), TEXT),
        "repository": {**TEXT, "description": "Where it is, or ends up."},
        "place": {**TEXT, "description": "The only place that the credential opens."},
        "tag": TEXT,
        "digest": or_null(_DIGEST),
        "size_bytes": or_null(COUNT),
        "channel": TEXT,
        "requester": TEXT,
        "created_at_ms": AT_MS,
        "expires_at_ms": AT_MS,
    }


def _credential() -> Schema:
    return closed(
        "To log in to the registry with, as this user; null where it asks for nothing.",
        username=TEXT,
        hand_over={**TEXT, "description": "The hand-over token of the password, good once."},
        unwrap_url={**TEXT, "description": "Where the password is had for it."},
        unwrap_until_ms=AT_MS,
    )


def _signature() -> Schema:
    return closed(
        "What the channel asks of it; null for a pull.",
        channel=TEXT,
        signature_required=FLAG,
        signature_scheme=TEXT,
        signing_key_id=TEXT,
        accepted_key_ids=listed(TEXT),
        provenance_required=FLAG,
        predicate_types=listed(TEXT),
        builders=listed(TEXT),
    )
