"""What goes from the cache of blobs when there is no room, row by row and in general."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.blob_room import Kept, Needs, NoRoom, Room, to_evict

OLD, NEW, NEWER = Kept("old", 100, 1), Kept("new", 100, 2), Kept("newer", 100, 3)
ALL = (NEW, NEWER, OLD)
PLENTY = 10_000


@dataclass(frozen=True)
class Case:
    name: str
    expect: tuple[str, ...] | NoRoom
    more_bytes: int = 100
    quota_bytes: int = 300
    free_bytes: int = PLENTY
    promised_bytes: int = 0
    targets: frozenset[str] = frozenset()
    ahead: tuple[tuple[str, int], ...] = ()
    busy: frozenset[str] = frozenset()
    for_target: bool = True


CASES = [
    Case("it fits", (), quota_bytes=400),
    Case("what was used longest ago goes", ("old",)),
    Case("as many as it takes", ("old", "new"), more_bytes=101),
    Case("all of it", ("old", "new", "newer"), more_bytes=300),
    Case("more than there is", NoRoom("quota", 1), more_bytes=301),
    Case("what a workload needs stays", ("new",), targets=frozenset({"old"})),
    Case("whatever is at stake", NoRoom("quota", 100), targets=frozenset({"old", "new", "newer"})),
    Case("nothing goes for what does not fit", NoRoom("quota", 100), more_bytes=200,
         targets=frozenset({"old", "new"})),
    Case("what somebody is at stays", ("new",), busy=frozenset({"old"})),
    Case("what was brought ahead goes after all else", ("new", "newer", "old"), more_bytes=300,
         ahead=(("old", 5),)),
    Case("of those, the one that was asked for first", ("newer", "new", "old"), more_bytes=300,
         ahead=(("old", 6), ("new", 5))),
    Case("one task clears nothing away that another brought", NoRoom("quota", 100),
         ahead=(("old", 1), ("new", 2), ("newer", 3)), for_target=False),
    Case("a task clears away what nobody asked for", ("newer",),
         ahead=(("old", 1), ("new", 2)), for_target=False),
    Case("what others were promised counts", ("old", "new"), promised_bytes=100),
    Case("the disk is full", ("old",), quota_bytes=PLENTY, free_bytes=0),
    Case("the disk has not even that", NoRoom("disk", 200), quota_bytes=PLENTY, free_bytes=0,
         more_bytes=500),
    Case("the disk, with what others were promised", ("old", "new"), quota_bytes=PLENTY,
         free_bytes=150, promised_bytes=250),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_goes(case: Case) -> None:
    needs = Needs(case.targets, dict(case.ahead))
    room = Room(case.quota_bytes, case.free_bytes, case.promised_bytes)
    found = to_evict(ALL, needs, case.busy, room, case.more_bytes, for_target=case.for_target)
    assert found == case.expect


BLOBS = st.lists(
    st.builds(Kept, st.sampled_from("abcdefgh"), st.integers(0, 50), st.integers(0, 5)),
    unique_by=lambda one: one.digest,
)
SOME = st.frozensets(st.sampled_from("abcdefgh"))


@given(
    BLOBS, SOME, SOME, SOME, st.integers(0, 300), st.integers(0, 300), st.integers(0, 200),
    st.booleans(),
)  # fmt: skip
def test_whatever_goes_nobody_needs_it_and_it_is_enough(
    kept: list[Kept],
    targets: frozenset[str],
    ahead: frozenset[str],
    busy: frozenset[str],
    quota_bytes: int,
    free_bytes: int,
    more_bytes: int,
    for_target: bool,
) -> None:
    needs = Needs(targets, dict.fromkeys(ahead, 1))
    room = Room(quota_bytes, free_bytes)
    found = to_evict(kept, needs, busy, room, more_bytes, for_target=for_target)
    sizes = {one.digest: one.size_bytes for one in kept}
    spared = targets | busy | (frozenset() if for_target else ahead)
    if isinstance(found, NoRoom):
        most = sum(size for digest, size in sizes.items() if digest not in spared)
        left = sum(sizes.values()) - most
        assert left + more_bytes > quota_bytes or more_bytes > free_bytes + most
        return
    assert not spared & {*found}
    freed = sum(sizes[digest] for digest in found)
    assert sum(sizes.values()) - freed + more_bytes <= quota_bytes
    assert more_bytes <= free_bytes + freed
    # The last one was needed: without it there would not be room.
    if found:
        less = freed - sizes[found[-1]]
        fits = sum(sizes.values()) - less + more_bytes <= quota_bytes
        assert not (fits and more_bytes <= free_bytes + less)
