"""Canaries that went back, as `ports.Store` keeps them: the fake and the real one."""

from __future__ import annotations

import pytest

from reconciler.core.records import StepBack
from reconciler.errors import Transient
from reconciler.ports import RECONCILER_LEASE, Changes, Store

ONE = StepBack("Promotion/hello/2.0.0", "c1", 5, ("acme/research/a", "acme/lab/b"), "2 of 3 failed")
TWO = StepBack("Promotion/hello/3.0.0", "c2", 6, (), "é\u2028½")


def test_nothing_at_first(store: Store) -> None:
    assert store.step_backs() == {}


def test_they_come_back_exactly_in_order(store: Store) -> None:
    store.commit(Changes(step_backs=[TWO, ONE]))
    found = store.step_backs()
    assert found == {ONE.promotion: ONE, TWO.promotion: TWO}
    assert list(found) == [ONE.promotion, TWO.promotion]


def test_one_that_is_there_is_left_as_it_is(store: Store) -> None:
    store.commit(Changes(step_backs=[ONE]))
    store.commit(Changes(step_backs=[StepBack(ONE.promotion, "c1", 99, (), "again")]))
    assert store.step_backs() == {ONE.promotion: ONE}


def test_one_that_is_over_is_forgotten_and_may_come_again(store: Store) -> None:
    store.commit(Changes(step_backs=[ONE, TWO]))
    again = StepBack(ONE.promotion, "c9", 99, (), "again")
    store.commit(Changes(step_backs=[again], steps_over=[ONE.promotion, "Promotion/x/1"]))
    assert store.step_backs() == {ONE.promotion: again, TWO.promotion: TWO}
    store.commit(Changes(steps_over=[ONE.promotion]))
    assert store.step_backs() == {TWO.promotion: TWO}


def test_nothing_is_stored_once_somebody_else_leads(store: Store) -> None:
    store.lease(RECONCILER_LEASE, "b", 1, 1000)
    with pytest.raises(Transient, match="lease_lost"):
        store.commit(Changes(step_backs=[ONE], holder="a"))
    assert store.step_backs() == {}
