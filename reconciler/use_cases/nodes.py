"""Who belongs to the fleet: join tokens, and nodes that are revoked or forgotten.

Rules:
- The store is the truth: who is revoked there is believed no more from then on. That the CA says so
  too may take until it answers.
- A join token leaves here wrapped, and only the hash of what is inside is kept.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from node_agent.membership import JoinToken
from node_agent.wire import Report
from reconciler.core.custody.paths import join_secret
from reconciler.core.names import NAME
from reconciler.core.records import AuditEntry, EnrolledNode, State
from reconciler.custody.wrap_mac import WrapMac, join_text
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import Ports, Secret

_NUMBER_MAX = 10**12
_NAMED_MAX = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MadeToken:
    """`text` is what the agent is given, base64url; good once, until then."""

    text: Secret
    expires_at_ms: int


@dataclass(frozen=True)
class NodeRow:
    """A node that joined. `agent_version` is None before its first report, `config_digest` where
    its agent knows of no NodeConfig.
    """

    node: EnrolledNode
    agent_version: str | None
    config_digest: str | None


def make_join_token(ports: Ports, name: str, url: str, lifetime_s: float, actor: str) -> MadeToken:
    """Raises Refused for a name that no node can have, and what custody and store raise."""
    if not re.fullmatch(NAME, name):
        hint = "lower-case letters, digits and '-', up to 63, as in the Node manifest"
        raise Refused("invalid_node_name", f"{name[:80]!r} can't be a node's name", hint=hint)
    root = ssl.PEM_cert_to_DER_cert(ports.ca.root())
    number, secret = str(secrets.randbelow(_NUMBER_MAX)), secrets.token_urlsafe(32)
    path = join_secret(name, number)
    ports.secrets.write(path, Secret(secret))
    wrapped = ports.secrets.wrap(path, lifetime_s)
    now_ms = ports.clock.now_ms()
    expires_at_ms = now_ms + int(lifetime_s * 1000)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    ports.store.add_join_token(digest, name, expires_at_ms)
    ports.store.append_audit([_entry(now_ms, actor, "secrets.wrap.create", path, f"for {name}")])
    token = JoinToken(
        server=url,
        node=name,
        secret=join_text(WrapMac(ports.secrets, ports.clock).given(path, wrapped)),
        ca_hash=hashlib.sha256(root).hexdigest(),
    )
    text = base64.urlsafe_b64encode(token.canonical()).decode()
    return MadeToken(Secret(text), expires_at_ms)


def list_nodes(ports: Ports) -> tuple[NodeRow, ...]:
    return tuple(_row(node) for node in ports.store.nodes())


def _row(node: EnrolledNode) -> NodeRow:
    try:
        report = Report.model_validate_json(node.report_json or "")
    except ValidationError:
        return NodeRow(node, None, None)
    return NodeRow(node, report.agent_version, report.config.digest if report.config else None)


def revoke_node(ports: Ports, name: str, reason: str, actor: str) -> bool:
    """From now on nothing of it is believed. False while its certificate is not on the CA's list:
    the control plane's passes try again. Refused("no_such_node").
    """
    now_ms = ports.clock.now_ms()
    entry = _entry(now_ms, actor, "fleet.node.revoked", name, reason)
    ports.store.revoke_node(name, reason, now_ms, [entry])
    _drop_join_secrets(ports, name)
    ports.store.request_pass("node revoked", now_ms)
    return finish_revocations(ports)


def forget_node(ports: Ports, name: str, actor: str, even_with_instances: bool) -> None:
    """As if it had never joined. Refused: no_such_node, and node_in_use where instances are placed
    there, unless that is meant.
    """
    placed = sorted(
        record.key
        for record in ports.store.records().values()
        if record.node == name and record.state is not State.DECOMMISSIONED
    )
    if placed and not even_with_instances:
        raise _in_use(name, placed)
    node = ports.store.node(name)
    if node is not None and node.certificate_serial:
        _revoke_certificate(ports, node)
    now_ms = ports.clock.now_ms()
    reason = f"with {len(placed)} instances placed there" if placed else ""
    ports.store.forget_node(name, [_entry(now_ms, actor, "fleet.node.forgotten", name, reason)])
    _drop_join_secrets(ports, name)
    ports.store.request_pass("node forgotten", now_ms)


def _in_use(name: str, placed: Sequence[str]) -> Refused:
    more = len(placed) - _NAMED_MAX
    named = ", ".join(placed[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return Refused(
        "node_in_use",
        f"{named} placed there: nothing could be said of what runs on it any more",
        where=name,
        hint="remove or move them with a commit first; for a host that is gone for good: "
        "--even-with-instances",
    )


def finish_revocations(ports: Ports) -> bool:
    """Puts the certificates of revoked nodes on the CA's list. False while any is left: one that
    the CA refuses keeps no other off the list.
    """
    finished = True
    for node in ports.store.nodes():
        if node.revoked_at_ms is None or not node.certificate_serial:
            continue
        ends_at_ms = node.certificate_ends_at_ms or 0
        if ends_at_ms > ports.clock.now_ms() and not _revoke_certificate(ports, node):
            finished = False
            continue
        ports.store.save_certificate(node.name, "", ends_at_ms)
    return finished


def _revoke_certificate(ports: Ports, node: EnrolledNode) -> bool:
    try:
        ports.ca.revoke(node.certificate_serial)
    except GpuaasError as error:
        log.warning("certificate_not_revoked", node=node.name, code=error.code)
        return False
    log.info("certificate_revoked", node=node.name, serial=node.certificate_serial)
    return True


def _drop_join_secrets(ports: Ports, name: str) -> None:
    """The store knows their hashes no more; what is left of them is of use to nobody."""
    prefix = join_secret(name, "").rstrip("/")
    try:
        for path in ports.secrets.paths(prefix):
            ports.secrets.delete(path)
    except GpuaasError as error:
        log.warning("join_secrets_left", node=name, code=error.code)


def _entry(now_ms: int, actor: str, action: str, subject: str, reason: str) -> AuditEntry:
    return AuditEntry(
        at_ms=now_ms,
        actor=actor,
        requester_type=actor.partition("/")[0],
        action=action,
        object=subject,
        reason=reason,
    )
