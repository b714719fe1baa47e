"""`ports.Store` in memory. The contract suite holds it to what the real one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from node_agent.wire import TaskAck
from node_agent.wire import key_id as id_of_key
from reconciler.core.audit import FIRST, chained
from reconciler.core.names import ActionId, ArtifactKey, InstanceKey, instance_of
from reconciler.core.records import (
    REPORT_GAP_MAX_MS,
    Accepted,
    AuditEntry,
    AuditRow,
    EnrolledNode,
    Event,
    InstanceRecord,
    Intent,
    NumberedEvent,
    PassSummary,
    StepBack,
)
from reconciler.core.transfers import Transfer
from reconciler.core.trust.evidence import Evidence
from reconciler.errors import Refused, Transient
from reconciler.ports import RECONCILER_LEASE, Changes
from tests.fakes.store_evidence import MemoryEvidence
from tests.fakes.store_step_backs import MemoryStepBacks
from tests.fakes.store_transfers import MemoryTransfers

P = ParamSpec("P")
R = TypeVar("R")
_OPEN = ("queued", "accepted")
_UNSETTLED = (*_OPEN, "refused")


def _heard_since_ms(known: EnrolledNode, now_ms: int) -> int:
    before_ms = known.reported_at_ms
    if before_ms is None or before_ms < now_ms - REPORT_GAP_MAX_MS:
        return now_ms
    return now_ms if known.heard_since_ms is None else known.heard_since_ms


def _atomic(
    method: Callable[Concatenate[MemoryStore, P], R],
) -> Callable[Concatenate[MemoryStore, P], R]:
    @wraps(method)
    def locked(self: MemoryStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            return method(self, *args, **kwargs)

    return locked


@dataclass(frozen=True)
class _Token:
    node: str
    expires_at_ms: int


class MemoryStore:
    """Set `failure` to make every method raise it, as a store does whose disk is gone."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._lock = threading.RLock()
        self._leases: dict[str, tuple[str, int]] = {}
        self._accepted = Accepted()
        self._records: dict[InstanceKey, InstanceRecord] = {}
        self._events: list[Event] = []
        self._event_ids: set[str] = set()
        self._intents: dict[ActionId, Intent] = {}
        self._tokens: dict[str, _Token] = {}
        self._spent: set[str] = set()
        self._nodes: dict[str, EnrolledNode] = {}
        self._requests: dict[str, int] = {}
        self._last_pass: PassSummary | None = None
        self._audit: list[AuditRow] = []
        self._used: dict[str, int] = {}
        self._transfers = MemoryTransfers()
        self._step_backs = MemoryStepBacks()
        self._evidence = MemoryEvidence()

    @_atomic
    def lease(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> str:
        owner, expires_at_ms = self._leases.get(name, (holder, 0))
        if owner == holder or expires_at_ms <= now_ms:
            self._leases[name] = (holder, now_ms + ttl_ms)
            return holder
        return owner

    @_atomic
    def renew(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> bool:
        mine = self._leases.get(name, ("", 0))[0] == holder
        if mine:
            self._leases[name] = (holder, now_ms + ttl_ms)
        return mine

    @_atomic
    def release(self, name: str, holder: str) -> None:
        if self._leases.get(name, ("", 0))[0] == holder:
            del self._leases[name]

    @_atomic
    def accepted(self) -> Accepted:
        return self._accepted

    @_atomic
    def save_accepted(
        self, accepted: Accepted, holder: str = "", audit: Sequence[AuditEntry] = ()
    ) -> None:
        self._refuse_unless_leading(holder)
        objects = dict(sorted(accepted.objects.items()))
        refused = dict(sorted(accepted.refused.items()))
        saved = Accepted(accepted.revision, objects, refused, accepted.at_ms)
        if saved != self._accepted:
            self._accepted = saved
            self.append_audit(audit)

    @_atomic
    def append_audit(self, entries: Sequence[AuditEntry]) -> None:
        self._audit += chained(entries, *self.audit_head())

    @_atomic
    def audit(self, after: int = 0, limit: int = 1000) -> Sequence[AuditRow]:
        return [row for row in self._audit if row.seq > after][: max(limit, 0)]

    @_atomic
    def audit_head(self) -> tuple[int, str]:
        return (self._audit[-1].seq, self._audit[-1].row_hash) if self._audit else FIRST

    @_atomic
    def use_once(self, name: str, expires_at_ms: int, now_ms: int) -> bool:
        self._used = {one: until for one, until in self._used.items() if until > now_ms}
        first = name not in self._used
        self._used.setdefault(name, expires_at_ms)
        return first

    @_atomic
    def records(self) -> Mapping[InstanceKey, InstanceRecord]:
        return dict(sorted(self._records.items()))

    @_atomic
    def commit(self, changes: Changes) -> None:
        self._refuse_unless_leading(changes.holder)
        self._intents = self._with_intents(changes)
        self._last_pass = changes.summary or self._last_pass
        for event in changes.events:
            if event.event_id not in self._event_ids:
                self._event_ids.add(event.event_id)
                self._events.append(event)
        for record in changes.records:
            self._records[record.key] = record
        for key in changes.forgotten:
            self._records.pop(key, None)
        self._step_backs.write(changes)
        self.append_audit(changes.audit)

    def _refuse_unless_leading(self, holder: str) -> None:
        if holder and self._leases.get(RECONCILER_LEASE, ("", 0))[0] != holder:
            raise Transient("lease_lost", "somebody else leads by now: nothing was stored")

    def _with_intents(self, changes: Changes) -> dict[ActionId, Intent]:
        intents = dict(self._intents)
        for old in list(intents.values()):
            if old.instance in changes.closed and old.state in _UNSETTLED:
                intents[old.action_id] = replace(old, state="superseded")
        for intent in changes.intents:
            known = intents.get(intent.action_id)
            if known is not None and known.state in _OPEN:
                raise Refused(
                    "intent_exists",
                    f"somebody else already acts on {intent.instance} ({intent.kind})",
                    where=intent.action_id,
                )
            others = [other for key, other in intents.items() if key != intent.action_id]
            taken = {(other.node, other.seq) for other in others}
            if (intent.node, intent.seq) in taken or intent.task_id in {o.task_id for o in others}:
                raise Transient("store_conflict", "another process wrote the same thing first")
            intents[intent.action_id] = intent
        return intents

    @_atomic
    def events(
        self, after: int = 0, limit: int = 1000, instance: InstanceKey | None = None
    ) -> Sequence[NumberedEvent]:
        numbered = [NumberedEvent(cursor, one) for cursor, one in enumerate(self._events, 1)]
        wanted = [
            one
            for one in numbered
            if one.cursor > after
            and instance in (None, one.event.instance, instance_of(one.event.instance))
        ]
        return wanted[: max(limit, 0)]

    @_atomic
    def last_cursor(self) -> int:
        return len(self._events)

    @_atomic
    def open_intents(self, now_ms: int) -> Sequence[Intent]:
        for intent in list(self._intents.values()):
            if intent.state == "queued" and intent.expires_at_ms <= now_ms:
                self._intents[intent.action_id] = replace(intent, state="expired")
        return [intent for intent in self._sorted() if intent.state in _UNSETTLED]

    @_atomic
    def intents(self, instance: InstanceKey | None = None) -> Sequence[Intent]:
        return [one for one in self._sorted() if instance in (None, one.instance)]

    def _sorted(self) -> list[Intent]:
        return sorted(
            self._intents.values(), key=lambda one: (one.created_at_ms, one.node, one.seq)
        )

    @_atomic
    def next_seq(self, node: str) -> int:
        queued = [intent.seq for intent in self._intents.values() if intent.node == node]
        reported = self._nodes[node].last_task_seq if node in self._nodes else 0
        return max([0, reported, *queued]) + 1

    @_atomic
    def tasks_for(self, node: str, now_ms: int) -> Sequence[Intent]:
        found = [
            intent
            for intent in self._intents.values()
            if intent.node == node and intent.state == "queued" and intent.expires_at_ms > now_ms
        ]
        return sorted(found, key=lambda intent: intent.seq)

    @_atomic
    def acknowledge(self, node: str, acks: Sequence[TaskAck]) -> None:
        by_task = {ack.task_id: ack for ack in reversed(acks)}
        for intent in list(self._intents.values()):
            ack = by_task.get(intent.task_id)
            if ack is None or intent.node != node or intent.state not in ("queued", "expired"):
                continue
            self._intents[intent.action_id] = replace(
                intent,
                state="accepted" if ack.accepted else "refused",
                detail="" if ack.accepted else f"{ack.code}: {ack.message}",
            )

    @_atomic
    def add_join_token(self, secret_hash: str, node: str, expires_at_ms: int) -> None:
        if secret_hash in self._tokens:
            raise Transient("store_conflict", "another process wrote the same thing first")
        self._tokens[secret_hash] = _Token(node, expires_at_ms)

    @_atomic
    def redeem_join_token(
        self, secret_hash: str, node: str, public_key: str, now_ms: int
    ) -> EnrolledNode | None:
        token = self._tokens.get(secret_hash)
        if token is None or secret_hash in self._spent:
            return None
        if token.node != node or token.expires_at_ms <= now_ms:
            return None
        if any(
            other.public_key == public_key for other in self._nodes.values() if other.name != node
        ):
            raise Refused(
                "key_in_use",
                "this agent key belongs to another node",
                where=node,
                hint="delete the agent's copied state folder and join again: a key is for one node",
            )
        known = self._nodes.get(node)
        same_key = known is not None and known.public_key == public_key
        if known is not None and same_key and known.revoked_at_ms is not None:
            raise Refused(
                "key_revoked",
                "this agent key was revoked",
                where=node,
                hint="delete the agent's state folder and join again: it makes a new key",
            )
        self._spent.add(secret_hash)
        if known is None or known.public_key != public_key:
            last_task_seq = known.last_task_seq if known is not None else 0
            known = EnrolledNode(node, public_key, now_ms, last_task_seq=last_task_seq)
        else:
            known = replace(known, report_json=None, reported_at_ms=None, heard_since_ms=None)
        self._nodes[node] = known
        return known

    @_atomic
    def nodes(self) -> Sequence[EnrolledNode]:
        return [node for _, node in sorted(self._nodes.items())]

    @_atomic
    def node(self, name: str) -> EnrolledNode | None:
        return self._nodes.get(name)

    @_atomic
    def revoke_node(
        self, name: str, reason: str, now_ms: int, audit: Sequence[AuditEntry] = ()
    ) -> EnrolledNode:
        known = self._known_node(name)
        if known.revoked_at_ms is None:
            known = replace(known, revoked_at_ms=now_ms, revoked_reason=reason)
            self._nodes[name] = known
            self.append_audit(audit)
        return known

    @_atomic
    def forget_node(self, name: str, audit: Sequence[AuditEntry] = ()) -> None:
        del self._nodes[self._known_node(name).name]
        self.append_audit(audit)

    def _known_node(self, name: str) -> EnrolledNode:
        """Of which the unused tokens are dropped."""
        known = self._nodes.get(name)
        if known is None:
            hint = "see `gpuaas node list` for those that did"
            raise Refused("no_such_node", "no node of that name has joined", where=name, hint=hint)
        for secret_hash, token in list(self._tokens.items()):
            if token.node == name and secret_hash not in self._spent:
                del self._tokens[secret_hash]
        return known

    @_atomic
    def save_certificate(self, name: str, serial: str, ends_at_ms: int) -> None:
        if name in self._nodes:
            self._nodes[name] = replace(
                self._nodes[name], certificate_serial=serial, certificate_ends_at_ms=ends_at_ms
            )

    @_atomic
    def node_by_key(self, key_id: str) -> EnrolledNode | None:
        found = [one for one in self._nodes.values() if id_of_key(one.public_key) == key_id]
        return found[0] if found else None

    @_atomic
    def save_report(
        self, node: str, report_json: str, report_seq: int, last_task_seq: int, now_ms: int
    ) -> bool:
        known = self._nodes.get(node)
        if known is None or report_seq <= known.report_seq:
            return False
        self._nodes[node] = replace(
            known,
            report_json=report_json,
            reported_at_ms=now_ms,
            heard_since_ms=_heard_since_ms(known, now_ms),
            report_seq=report_seq,
            last_task_seq=max(known.last_task_seq, last_task_seq),
        )
        return True

    @_atomic
    def request_pass(self, reason: str, now_ms: int) -> None:
        self._requests.setdefault(reason, now_ms)

    @_atomic
    def take_requests(self) -> Sequence[str]:
        taken = [reason for reason, _ in sorted(self._requests.items(), key=lambda r: (r[1], r[0]))]
        self._requests.clear()
        return taken

    @_atomic
    def last_pass(self) -> PassSummary | None:
        return self._last_pass

    @_atomic
    def step_backs(self) -> Mapping[str, StepBack]:
        return self._step_backs.listed()

    @_atomic
    def save_transfer(self, transfer: Transfer, audit: Sequence[AuditEntry] = ()) -> None:
        self._transfers.save(transfer)
        self.append_audit(audit)

    @_atomic
    def transfer(self, transfer_id: str) -> Transfer | None:
        return self._transfers.get(transfer_id)

    @_atomic
    def transfers(self, owner: str = "") -> Sequence[Transfer]:
        return self._transfers.listed(owner)

    @_atomic
    def expired_transfers(self, now_ms: int, limit: int) -> Sequence[Transfer]:
        return self._transfers.expired(now_ms, limit)

    @_atomic
    def evidence(self, keys: Collection[ArtifactKey]) -> Mapping[ArtifactKey, Evidence]:
        return self._evidence.get(keys)

    @_atomic
    def save_evidence(
        self, found: Sequence[Evidence], audit: Sequence[AuditEntry] = ()
    ) -> None:
        self._evidence.save(found)
        self.append_audit(audit)
