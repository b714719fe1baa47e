"""Publish and pull intents as they are told: documents for programs, commands for people.

Rules: a command is complete and true as it stands, for a shell; what only its reader knows is a
variable in it. No password is in any, nor in an argument that one of them has. PURE.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.transfers import SignatureNeeds, Transfer
from reconciler.core.trust.evidence import Verdict

FORMAT = "gpuaas.dev/transfer/v1"
CLIENTS = ("oras", "skopeo", "docker")
Document = dict[str, Any]

VARIABLES: Mapping[str, str] = {
    "SOURCE": "what to publish, such as oci:build or docker-archive:app.tar",
    "IMAGE": "what to publish, an image that docker has",
    "FILES": "what to publish, files, each with :MEDIA_TYPE behind it if need be",
    "FILE": "the blob to publish",
    "DIGEST": "what was pushed, sha256:…; the lines above say how it is found out",
}
"""What stands in commands for what only their reader knows."""


def transfer_document(transfer: Transfer, now_ms: int) -> Document:
    """`state`: open, completed, closed or expired. Nothing in it opens anything."""
    is_over = transfer.state == "open" and now_ms >= transfer.expires_at_ms
    return {
        "format": FORMAT,
        "id": transfer.id,
        "kind": transfer.kind,
        "content": transfer.content,
        "state": "expired" if is_over else transfer.state,
        "project": transfer.owner,
        "app": transfer.app,
        "version": transfer.version,
        "name": transfer.name,
        "repository": transfer.repository,
        "place": transfer.place,
        "tag": transfer.tag,
        "digest": transfer.digest or None,
        "size_bytes": transfer.size_bytes,
        "channel": transfer.channel,
        "requester": transfer.requester,
        "created_at_ms": transfer.created_at_ms,
        "expires_at_ms": transfer.expires_at_ms,
    }


def opened_document(
    transfer: Transfer,
    environment: EnvironmentSpec,
    needs: SignatureNeeds,
    token: str | None,
    token_expires_at_ms: int | None,
    server: str,
    now_ms: int,
) -> Document:
    """What whoever asked needs to go on with; `token` is the hand-over token of the password."""
    credential = None
    if token is not None:
        credential = {
            "username": transfer.id,
            "hand_over": token,
            "unwrap_url": f"{server}/v1/unwrap",
            "unwrap_until_ms": token_expires_at_ms,
        }
    signature = None
    if transfer.kind == "publish":
        signature = {
            "channel": needs.channel,
            "signature_required": needs.signature_required,
            "signature_scheme": needs.signature_scheme,
            "signing_key_id": needs.signing_key_id,
            "accepted_key_ids": [*needs.accepted_key_ids],
            "provenance_required": needs.provenance_required,
            "predicate_types": [*needs.predicate_types],
            "builders": [*needs.builders],
        }
    at = environment.registry
    registry = {"endpoint": at.endpoint, "plain_http": at.plain_http}
    return {
        **transfer_document(transfer, now_ms),
        "registry": registry if transfer.content == "oci" else None,
        "credential": credential,
        "signature": signature,
        "commands": commands(transfer, environment, server),
    }


def completed_document(
    transfer: Transfer,
    environment: EnvironmentSpec,
    media_type: str,
    verdict: Verdict,
    now_ms: int,
) -> Document:
    """`manifest` is what makes it known to the platform, once it is committed."""
    return {
        **transfer_document(transfer, now_ms),
        "registry": (
            {
                "endpoint": environment.registry.endpoint,
                "plain_http": environment.registry.plain_http,
            }
            if transfer.content == "oci"
            else None
        ),
        "verdict": {
            "good": verdict.good,
            "code": verdict.code,
            "message": verdict.message,
            "hint": verdict.hint,
        },
        "manifest": {
            "path": manifest_path(transfer),
            "content": manifest_text(transfer, media_type),
        },
    }


def manifest_path(transfer: Transfer) -> str:
    tenant, _, project = transfer.owner.partition("/")
    place = f"tenants/{tenant}/projects/{project}/artifacts"
    return f"{place}/{transfer.app}/{transfer.version}/{transfer.name}.yaml"


_BLOB_SOURCE = "  # source_metadata: {repository_url: https://…}  # where blob_sources are listed"


def manifest_text(transfer: Transfer, media_type: str) -> str:
    """The Artifact to commit, YAML."""
    where = "repository" if transfer.content == "oci" else "source"
    lines = [
        "apiVersion: gpuaas.dev/v1",
        "kind: Artifact",
        f"metadata: {{name: {transfer.name}}}",
        "spec:",
        f"  kind: {transfer.content}",
        f"  {where}: {transfer.repository}",
        f'  digest: "{transfer.digest}"',
        *([f'  tag: "{transfer.tag}"'] if transfer.tag else []),
        *([f"  media_type: {media_type}"] if media_type else []),
        *([_BLOB_SOURCE] if transfer.content == "blob" else []),
        "  state: published",
    ]
    return "\n".join(lines) + "\n"


# --- commands ------------------------------------------------------------------------------------


def token_file(transfer: Transfer) -> str:
    return f"intent-{transfer.id}.token"


def password_file(transfer: Transfer) -> str:
    return f"intent-{transfer.id}.password"


def commands(transfer: Transfer, environment: EnvironmentSpec, server: str) -> dict[str, list[str]]:
    """By client: shell lines from the hand-over token (in `token_file`) to the finished transfer.

    `unwrap` and `complete` go before and after those of one client.
    """
    found: dict[str, list[str]] = {}
    if transfer.credential_hash:
        found["unwrap"] = [
            f"gpuaas unwrap --server {shlex.quote(server)} --token-file {token_file(transfer)} "
            f"--out {password_file(transfer)}"
        ]
    if transfer.content == "blob":
        found["gpuaas"] = _blob(transfer, server)
    else:
        for client in CLIENTS:
            lines = _BY_CLIENT[client](transfer, environment)
            found[client] = [*_login(client, transfer, environment), *lines]
    if transfer.kind == "publish":
        found["complete"] = [
            f"gpuaas intent complete {transfer.id} --server {shlex.quote(server)} "
            '--digest "$DIGEST"'
        ]
    return found


def _login(client: str, transfer: Transfer, environment: EnvironmentSpec) -> list[str]:
    if not transfer.credential_hash:
        return []
    insecure = {"oras": " --plain-http", "skopeo": " --tls-verify=false"}.get(client, "")
    insecure = insecure if environment.registry.plain_http else ""
    return [
        f"{client} login{insecure} --username {transfer.id} --password-stdin "
        f"{environment.registry.endpoint} < {password_file(transfer)}"
    ]


def _oras(transfer: Transfer, environment: EnvironmentSpec) -> list[str]:
    insecure = "--plain-http " if environment.registry.plain_http else ""
    at = _at(transfer, environment)
    if transfer.kind == "pull":
        return [f"oras pull {insecure}{at}"]
    return [f"oras push {insecure}{at} $FILES", f'DIGEST="$(oras resolve {insecure}{at})"']


def _skopeo(transfer: Transfer, environment: EnvironmentSpec) -> list[str]:
    plain, at = environment.registry.plain_http, _at(transfer, environment)
    if transfer.kind == "pull":
        insecure = "--src-tls-verify=false " if plain else ""
        return [f"skopeo copy --all {insecure}docker://{at} oci:{transfer.app}:{transfer.version}"]
    insecure = "--dest-tls-verify=false " if plain else ""
    return [
        f'skopeo copy --all --digestfile intent-{transfer.id}.digest {insecure}"$SOURCE" '
        f"docker://{at}",
        f'DIGEST="$(cat intent-{transfer.id}.digest)"',
    ]


def _docker(transfer: Transfer, environment: EnvironmentSpec) -> list[str]:
    at = _at(transfer, environment)
    if transfer.kind == "pull":
        return [f"docker pull {at}"]
    place = f"{environment.registry.endpoint}/{transfer.place}"
    digests = "{{range .RepoDigests}}{{println .}}{{end}}"
    return [
        f'docker tag "$IMAGE" {at}',
        f"docker push {at}",
        f"DIGEST=\"$(docker image inspect --format '{digests}' {at} | sed -n 's|^{place}@||p')\"",
    ]


def _blob(transfer: Transfer, server: str) -> list[str]:
    what = "upload" if transfer.kind == "publish" else "download"
    named = '"$FILE"' if transfer.kind == "publish" else transfer.digest
    command = (
        f"gpuaas blob {what} --server {shlex.quote(server)} --intent {transfer.id} "
        f"--password-file {password_file(transfer)} {named}"
    )
    return [f'DIGEST="$({command})"' if transfer.kind == "publish" else command]


_BY_CLIENT = {"oras": _oras, "skopeo": _skopeo, "docker": _docker}


def _at(transfer: Transfer, environment: EnvironmentSpec) -> str:
    label = f"@{transfer.digest}" if transfer.kind == "pull" else f":{transfer.tag}"
    return f"{environment.registry.endpoint}/{transfer.place}{label}"


def needs_lines(signature: Mapping[str, Any]) -> Sequence[str]:
    """What the signature has to be, in words."""
    channel = signature["channel"]
    if not channel:
        return ["No channel is asked for: it needs no signature here."]
    if not signature["signature_required"] and not signature["provenance_required"]:
        return [f"For channel {channel} it needs neither signature nor provenance."]
    lines = []
    if signature["signature_required"]:
        key = signature["signing_key_id"] or " or ".join(signature["accepted_key_ids"])
        by = f" with key {key}" if key else ""
        lines.append(
            f"For channel {channel} it has to be signed ({signature['signature_scheme']}){by}."
        )
    if signature["provenance_required"]:
        types = " or ".join(signature["predicate_types"]) or "a type that all policies take"
        by = f", by {' or '.join(signature['builders'])}" if signature["builders"] else ""
        lines.append(f"For channel {channel} it needs signed provenance: {types}{by}.")
    return lines
