"""Publish and pull intents that were given out; on the fake and the real store."""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.records import AuditEntry
from reconciler.core.transfers import Transfer, hash_of
from reconciler.ports import Store

ENTRY = AuditEntry(1, "user/ada", "user", "artifacts.transfer.opened", "ab12")
OPEN = Transfer(
    id="ab12",
    kind="publish",
    content="oci",
    owner="acme/lab",
    app="notebook",
    version="1.0.0",
    name="image",
    repository="gpuaas/apps/acme/lab/notebook",
    place="gpuaas/intents/ab12",
    requester="user/ada",
    credential_hash=hash_of("password"),
    created_at_ms=10,
    expires_at_ms=110,
)


def test_one_that_nobody_saved_is_not_there(store: Store) -> None:
    assert store.transfer("ab12") is None
    assert list(store.transfers()) == []


def test_it_comes_back_as_it_was_with_what_is_told_of_it(store: Store) -> None:
    store.save_transfer(OPEN, [ENTRY])
    assert store.transfer("ab12") == OPEN
    assert [row.entry for row in store.audit()] == [ENTRY]


def test_saving_again_replaces(store: Store) -> None:
    store.save_transfer(OPEN)
    done = replace(OPEN, state="completed", digest="sha256:" + "1" * 64, size_bytes=5)
    store.save_transfer(done)
    assert store.transfer("ab12") == done
    assert list(store.transfers()) == [done]


def test_newest_first_and_by_project(store: Store) -> None:
    later = replace(OPEN, id="cd34", created_at_ms=20)
    beside = replace(OPEN, id="ef56", created_at_ms=15, owner="acme/other")
    platform = replace(OPEN, id="aa00", created_at_ms=20, owner="")
    for one in (OPEN, later, beside, platform):
        store.save_transfer(one)
    assert list(store.transfers()) == [platform, later, beside, OPEN]
    assert list(store.transfers("acme/lab")) == [later, OPEN]
    assert list(store.transfers("acme")) == []


def test_what_is_open_and_over_is_found_the_first_to_expire_first(store: Store) -> None:
    sooner = replace(OPEN, id="cd34", expires_at_ms=100)
    done = replace(OPEN, id="ef56", state="completed", expires_at_ms=50)
    closed = replace(OPEN, id="aa00", state="closed", expires_at_ms=50)
    for one in (OPEN, sooner, done, closed):
        store.save_transfer(one)
    assert list(store.expired_transfers(99, 10)) == []
    assert list(store.expired_transfers(100, 10)) == [sooner]
    assert list(store.expired_transfers(110, 10)) == [sooner, OPEN]
    assert list(store.expired_transfers(110, 1)) == [sooner]
