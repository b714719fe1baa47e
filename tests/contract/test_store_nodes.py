"""Nodes that are revoked and forgotten, and their certificates; on the fake and the real store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.wire import key_id
from reconciler.core.records import AuditEntry, EnrolledNode
from reconciler.errors import Refused
from reconciler.ports import Store
from tests.contract.test_store import enrol

ENTRY = AuditEntry(1, "local/ada", "local", "fleet.node.revoked", "node-1")


class TestRevoking:
    def test_a_revoked_node_stays_known(self, store: Store) -> None:
        node = enrol(store)
        store.save_certificate("node-1", "3a:0f", 900)
        revoked = store.revoke_node("node-1", "stolen", 50, [ENTRY])
        assert revoked == replace(
            node,
            revoked_at_ms=50,
            revoked_reason="stolen",
            certificate_serial="3a:0f",
            certificate_ends_at_ms=900,
        )
        assert store.node("node-1") == store.node_by_key(key_id("1" * 64)) == revoked
        assert store.revoke_node("node-1", "again", 60, [ENTRY]) == revoked
        assert [row.entry for row in store.audit()] == [ENTRY]

    def test_it_joins_anew_with_another_key_only(self, store: Store) -> None:
        enrol(store)
        store.save_report("node-1", "{}", 8, 5, 10)
        store.save_certificate("node-1", "3a:0f", 900)
        store.revoke_node("node-1", "stolen", 50)
        store.add_join_token("hash", "node-1", 100)
        with pytest.raises(Refused) as refused:
            store.redeem_join_token("hash", "node-1", "1" * 64, 60)
        assert str(refused.value) == (
            "node-1: key_revoked: this agent key was revoked "
            "(delete the agent's state folder and join again: it makes a new key)"
        )
        fresh = EnrolledNode("node-1", "2" * 64, 60, last_task_seq=5)
        assert store.redeem_join_token("hash", "node-1", "2" * 64, 60) == fresh
        assert store.nodes() == [fresh]

    @pytest.mark.parametrize("how", ["revoke", "forget"])
    def test_unused_tokens_of_it_let_nobody_in(self, store: Store, how: str) -> None:
        enrol(store)
        store.add_join_token("mine", "node-1", 100)
        store.add_join_token("other", "node-2", 100)
        store.revoke_node("node-1", "", 50) if how == "revoke" else store.forget_node("node-1")
        assert store.redeem_join_token("mine", "node-1", "2" * 64, 60) is None
        assert store.redeem_join_token("other", "node-2", "2" * 64, 60) is not None

    def test_a_forgotten_node_is_as_if_it_had_never_joined(self, store: Store) -> None:
        enrol(store)
        store.save_report("node-1", "{}", 8, 5, 10)
        store.revoke_node("node-1", "stolen", 50)
        store.forget_node("node-1", [ENTRY])
        assert store.nodes() == []
        assert store.node_by_key(key_id("1" * 64)) is None
        assert not store.save_report("node-1", "{}", 9, 5, 60)
        assert [row.entry for row in store.audit()] == [ENTRY]
        assert enrol(store, now_ms=70) == EnrolledNode("node-1", "1" * 64, 70)

    def test_a_node_that_never_joined(self, store: Store) -> None:
        for refuse in (
            lambda: store.revoke_node("node-9", "", 50, [ENTRY]),
            lambda: store.forget_node("node-9", [ENTRY]),
        ):
            with pytest.raises(Refused) as refused:
                refuse()
            assert str(refused.value) == (
                "node-9: no_such_node: no node of that name has joined "
                "(see `gpuaas node list` for those that did)"
            )
        assert store.audit() == []

    def test_the_newest_certificate_is_kept(self, store: Store) -> None:
        node = enrol(store)
        store.save_certificate("node-1", "01", 500)
        store.save_certificate("node-1", "02", 900)
        store.save_certificate("node-9", "03", 900)
        kept = replace(node, certificate_serial="02", certificate_ends_at_ms=900)
        assert store.nodes() == [kept]
        # It is that of the key: joining again with the same one keeps it.
        assert enrol(store, now_ms=20) == kept
