"""The audit trail and names used once: the same for both stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.core.audit import FIRST, chained, verify
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.records import Accepted, AcceptedObject, AuditEntry
from reconciler.errors import Refused, Transient
from reconciler.ports import RECONCILER_LEASE, Changes, Store
from tests.contract.test_store import REVISION, a_record, an_intent


def an_entry(number: int) -> AuditEntry:
    return AuditEntry(
        at_ms=number,
        actor="user/ada",
        requester_type="user",
        action="state.app.changed",
        object=f"App/a{number}",
        before="b",
        after="c",
        reason="Because é ½.",
        revision=REVISION,
        correlation_id="c-1",
        result="change_not_allowed",
        key_id="SHA256:abc",
        via="forge",
    )


def entries(first: int, last: int) -> list[AuditEntry]:
    return [an_entry(number) for number in range(first, last + 1)]


def refused(subject: str, **fields: object) -> RefusedChange:
    change = RefusedChange(
        subject, "p.yaml", REVISION, "user/eve", "change_not_allowed", "no", "ask", '{"a":1}'
    )
    return replace(change, **fields)  # type: ignore[arg-type]


class TestAuthority:
    """What signed commits add to what is accepted."""

    def test_who_and_what_was_refused_come_back(self, store: Store) -> None:
        one = AcceptedObject("App/a", "a.yaml", 1, "{}", REVISION, "user/ada")
        changes = {"App/b": refused("App/b"), "c.yaml": refused("c.yaml", form_json=None)}
        accepted = Accepted(REVISION, {one.ref: one}, changes, 1_700_000_000_000)
        store.save_accepted(accepted)
        assert store.accepted() == accepted

    def test_each_is_replaced_by_itself(self, store: Store) -> None:
        one = AcceptedObject("App/a", "a.yaml", 1, "{}", REVISION, "user/ada")
        first = Accepted(REVISION, {one.ref: one}, {"App/b": refused("App/b")}, 5)
        for next_one in (
            replace(first, objects={one.ref: replace(one, by="user/bob")}),
            replace(first, refused={"App/b": refused("App/b", actor="user/bob")}),
            replace(first, refused={"App/c": refused("App/c")}),
            replace(first, refused={}),
            replace(first, at_ms=6),
            Accepted(),
        ):
            store.save_accepted(first)
            store.save_accepted(next_one)
            assert store.accepted() == next_one


class TestAudit:
    def test_nothing_at_first(self, store: Store) -> None:
        assert store.audit() == []
        assert store.audit_head() == FIRST
        store.append_audit([])
        assert store.audit_head() == FIRST

    def test_rows_come_back_as_one_chain(self, store: Store) -> None:
        store.append_audit(entries(1, 2))
        store.append_audit(entries(3, 3))
        rows = store.audit()
        assert list(rows) == chained(entries(1, 3), *FIRST)
        assert store.audit_head() == (3, rows[2].row_hash)
        assert verify(rows, *FIRST) is None

    def test_paging(self, store: Store) -> None:
        store.append_audit(entries(1, 1_203))
        seen, after = [], 0
        while page := store.audit(after, 500):
            assert len(page) <= 500
            seen += [row.seq for row in page]
            after = page[-1].seq
        assert seen == [*range(1, 1_204)]
        assert store.audit(limit=0) == []
        assert store.audit(limit=-1) == []
        assert store.audit(after=1_203) == []

    def test_of_an_accepted_revision_it_is_told_once(self, store: Store) -> None:
        accepted = Accepted(REVISION, {}, at_ms=7)
        store.save_accepted(accepted, audit=entries(1, 2))
        store.save_accepted(accepted, audit=entries(1, 2))
        store.save_accepted(replace(accepted), audit=entries(1, 2))
        assert [row.entry for row in store.audit()] == entries(1, 2)
        store.save_accepted(Accepted(), audit=entries(3, 3))
        assert [row.entry for row in store.audit()] == entries(1, 3)

    def test_it_is_stored_with_what_it_tells_of_or_not_at_all(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)], audit=entries(1, 1)))
        with pytest.raises(Refused):
            store.commit(Changes(intents=[an_intent(1)], audit=entries(2, 2)))
        store.lease(RECONCILER_LEASE, "b", 0, 100)
        with pytest.raises(Transient):
            store.commit(Changes(records=[a_record()], audit=entries(3, 3), holder="a"))
        with pytest.raises(Transient):
            store.save_accepted(Accepted(REVISION, {}), "a", entries(4, 4))
        assert [row.entry for row in store.audit()] == entries(1, 1)
        assert store.audit_head()[0] == 1

    def test_many_write_one_chain(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.append_audit(entries(n, n)), range(1, 41)))
        rows = store.audit()
        assert verify(rows, *FIRST) is None
        assert store.audit_head() == (40, rows[-1].row_hash)
        assert sorted(row.entry.at_ms for row in rows) == [*range(1, 41)]

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(reason=st.text(st.characters(), max_size=50))
    def test_any_text_can_be_told(self, store: Store, reason: str) -> None:
        head = store.audit_head()
        store.append_audit([replace(an_entry(1), reason=reason)])
        assert verify(store.audit(head[0]), *head) is None


class TestUseOnce:
    def test_a_name_is_good_once(self, store: Store) -> None:
        assert store.use_once("a", 100, 1)
        assert not store.use_once("a", 100, 2)
        assert not store.use_once("a", 500, 99)
        assert store.use_once("b", 100, 2)

    def test_it_is_forgotten_once_it_is_expired(self, store: Store) -> None:
        assert store.use_once("a", 100, 1)
        assert store.use_once("b", 300, 1)
        assert store.use_once("a", 200, 100)
        assert not store.use_once("a", 900, 199)
        assert store.use_once("c", 900, 250)
        assert not store.use_once("b", 900, 299)

    def test_one_of_many_uses_it(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            used = list(pool.map(lambda _: store.use_once("a", 100, 1), range(24)))
        assert sum(used) == 1
