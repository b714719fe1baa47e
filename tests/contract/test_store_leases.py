"""Who leads, and that nobody else writes: the same for both stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from reconciler.core.names import Revision
from reconciler.core.records import Accepted
from reconciler.errors import Transient
from reconciler.ports import RECONCILER_LEASE, Changes, Store
from tests.contract.test_store import REVISION, a_record, an_event


class TestLeases:
    def test_the_first_holder_keeps_it_until_it_expires(self, store: Store) -> None:
        assert store.lease("pass", "a", 0, 100) == "a"
        assert store.lease("pass", "b", 99, 100) == "a"
        assert store.lease("pass", "b", 100, 100) == "b"
        assert store.lease("pass", "a", 101, 100) == "b"

    def test_renewing_moves_the_expiry(self, store: Store) -> None:
        store.lease("pass", "a", 0, 100)
        assert store.lease("pass", "a", 90, 100) == "a"
        assert store.lease("pass", "b", 150, 100) == "a"

    def test_who_lost_it_stores_nothing_any_more(self, store: Store) -> None:
        store.lease(RECONCILER_LEASE, "a", 0, 100)
        store.commit(Changes(records=[a_record()], holder="a"))
        store.save_accepted(Accepted(REVISION, {}), "a")
        store.lease(RECONCILER_LEASE, "b", 100, 100)  # a stood still; b takes over.
        before = (store.records(), store.accepted(), store.last_cursor())
        late = Changes(records=[a_record(epoch=9)], events=[an_event(9)], holder="a")
        with pytest.raises(Transient, match="somebody else leads by now") as lost:
            store.commit(late)
        assert lost.value.code == "lease_lost"
        with pytest.raises(Transient, match="somebody else leads by now"):
            store.save_accepted(Accepted(Revision("b" * 40), {}), "a")
        assert (store.records(), store.accepted(), store.last_cursor()) == before
        store.commit(replace(late, holder="b"))
        assert store.records() != before[0]

    def test_renewing_takes_it_from_nobody(self, store: Store) -> None:
        assert not store.renew("pass", "a", 0, 100)
        store.lease("pass", "a", 0, 100)
        assert store.renew("pass", "a", 250, 100)  # It lapsed, and nobody had it.
        store.lease("pass", "b", 400, 100)
        assert not store.renew("pass", "a", 900, 100)
        assert store.lease("pass", "b", 901, 100) == "b"

    def test_release_frees_it_at_once_but_only_for_its_holder(self, store: Store) -> None:
        store.lease("pass", "a", 0, 100)
        store.release("pass", "b")
        assert store.lease("pass", "b", 1, 100) == "a"
        store.release("pass", "a")
        assert store.lease("pass", "b", 1, 100) == "b"

    def test_names_are_apart(self, store: Store) -> None:
        assert store.lease("pass", "a", 0, 100) == "a"
        assert store.lease("node/1", "b", 0, 100) == "b"

    def test_one_of_many_wins(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(lambda n: store.lease("pass", f"h{n}", 5, 100), range(16)))
        assert len(set(seen)) == 1
