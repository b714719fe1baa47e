"""Looks up who has an account, and what he may, in what is accepted at this moment.

Rules:
- Nothing is asked of Git, and nothing is remembered longer than it holds: what is kept goes with
  the accepted state that it was made from.
- Who asks in vain costs as much as who does not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.authority.accounts import (
    INSTANCE_PERMISSIONS,
    Account,
    AccountKey,
    Subject,
    account_of,
    next_change_ms,
)
from reconciler.core.authority.facts import TRUST_KINDS
from reconciler.core.authority.grants import Grant, Rights, rights_of
from reconciler.core.desired import StateObject
from reconciler.core.forms import parse_accepted
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject, InstanceRecord
from reconciler.ports import SecretStore, Store
from reconciler.server.machine_identity import (
    called,
    identity_key,
    instance_account,
    may_have_one,
)

_LIVES_MAX = 20_000
_Life = tuple[InstanceKey, str, str, int, str]


@dataclass(frozen=True)
class Seen:
    """Trust and rights by one accepted state, from one time to another (excluded)."""

    accepted: Accepted
    trust: Mapping[ObjectRef, StateObject]
    rights: Rights
    from_ms: int
    until_ms: int
    accounts: dict[Subject, Account] = field(default_factory=dict, compare=False)
    grants: dict[Subject, tuple[Grant, ...]] = field(default_factory=dict, compare=False)
    """What was looked up already, of those who are there."""

    def account(self, subject: Subject) -> Account | None:
        known = self.accounts.get(subject)
        if known is None and (known := account_of(subject, self.trust)) is not None:
            self.accounts[subject] = known
        return known

    def grants_of(self, account: Account) -> tuple[Grant, ...]:
        known = self.grants.get(account.subject)
        if known is None:
            known = self.grants[account.subject] = self.rights.of(account.actor())
        return known


class Accounts:
    """Safe to use from several threads."""

    def __init__(self, store: Store, secrets: SecretStore) -> None:
        self._store = store
        self._secrets = secrets
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._parsed: dict[str, tuple[AcceptedObject, StateObject | Problem]] = {}
        self._lives: OrderedDict[_Life, AccountKey] = OrderedDict()

    def claimed(self, subject: Subject, key_id: str, now_ms: int) -> Account | None:
        """Who asks for a token under this name, to be proved with the key of this id."""
        if subject.type != "instance":
            return self.seen(now_ms).account(subject)
        records = called(subject.name, self._store.records())
        found: Account | None = None
        for record in records or (None,):
            key = identity_key(self._secrets, record)
            if record is not None and key is not None and key.id == key_id:
                found = instance_account(record, key)
        return found

    def holder(self, subject: Subject, now_ms: int) -> tuple[Account, tuple[Grant, ...]] | None:
        """Who has a token of this name, and what he may. The store is asked once."""
        if subject.type == "instance":
            record = self._store.records().get(InstanceKey(subject.name))
            found = self._instance(record) if record is not None and may_have_one(record) else None
            return (found, _of_instance(found)) if found is not None else None
        seen = self.seen(now_ms)
        account = seen.account(subject)
        return (account, seen.grants_of(account)) if account is not None else None

    def grants(self, account: Account, now_ms: int) -> tuple[Grant, ...]:
        if account.subject.type == "instance":
            return _of_instance(account)
        return self.seen(now_ms).grants_of(account)

    def seen(self, now_ms: int) -> Seen:
        accepted, seen = self._store.accepted(), self._seen
        if (
            seen is None
            or seen.accepted is not accepted
            or not seen.from_ms <= now_ms < seen.until_ms
        ):
            with self._lock:
                trust = self._trust(accepted)
            until_ms = next_change_ms(trust, now_ms)
            seen = Seen(accepted, trust, rights_of(trust, now_ms), now_ms, until_ms)
            self._seen = seen
        return seen

    def _trust(self, accepted: Accepted) -> dict[ObjectRef, StateObject]:
        """What can't be read any more gives nothing to anybody."""
        before, self._parsed = self._parsed, {}
        for ref, stored in accepted.objects.items():
            if ref.partition("/")[0] in TRUST_KINDS:
                known = before.get(ref)
                if known is None or known[0] != stored:
                    known = (stored, parse_accepted(stored))
                self._parsed[ref] = known
        parsed = (found for _, found in self._parsed.values())
        return {found.ref: found for found in parsed if isinstance(found, StateObject)}

    def _instance(self, record: InstanceRecord) -> Account | None:
        """Its key is looked up once an operation: in between, nothing makes another."""
        life = (record.key, record.node, record.runtime_name, record.epoch, record.correlation_id)
        with self._lock:
            known = self._lives.get(life)
        if known is None:
            known = identity_key(self._secrets, record)
            if known is None:
                return None
            with self._lock:
                self._lives[life] = known
                if len(self._lives) > _LIVES_MAX:
                    self._lives.popitem(last=False)
        return instance_account(record, known)


def _of_instance(account: Account) -> tuple[Grant, ...]:
    home, why = account.subject.home, "every instance reads its own project"
    return tuple(Grant(permission, home, why) for permission in sorted(INSTANCE_PERMISSIONS))
