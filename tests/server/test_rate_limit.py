"""Token buckets: how many, how soon again, and in how much memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.server.rate_limit import Buckets, peer_of


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_who_an_address_stands_for(address: str, peer: str) -> None:
    assert peer_of(address) == peer


def test_a_bucket_fills_again() -> None:
    buckets = Buckets(2, 1.0, names_max=10)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, 1000]
    assert buckets.wait_ms("a", 400) == 600
    assert buckets.take("b", 400) == 0
    assert [buckets.take("a", 1000) for _ in range(2)] == [0, 1000]
    buckets.give_back("a", 1000)
    assert buckets.take("a", 1000) == 0
    assert [buckets.take("a", 1_000_000) for _ in range(3)] == [0, 0, 1000]


def test_only_so_many_names_are_kept() -> None:
    buckets = Buckets(1, 1.0, names_max=3)
    for number in range(100):
        buckets.take(f"name-{number}", 0)
    assert buckets.names_count == 3
    assert buckets.take("name-99", 0) > 0


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3_000)), max_size=60),
)
def test_never_more_than_the_rate(burst: int, tries: list[tuple[str, int]]) -> None:
    buckets, now_ms = Buckets(burst, 1.0, names_max=2), 0
    let: dict[str, int] = {"a": 0, "b": 0}
    for name, later_ms in tries:
        now_ms += later_ms
        wait_ms = buckets.wait_ms(name, now_ms)
        took = buckets.take(name, now_ms)
        assert took == wait_ms
        let[name] += took == 0
        assert let[name] <= burst + now_ms / 1000 + 1e-6
        assert took == 0 or buckets.wait_ms(name, now_ms + took) == 0
