"""What differs between two readings of the state repo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.changes import (
    ABSENT,
    FieldChange,
    changes,
    dotted,
    field_changes,
    unread,
    value_at,
)
from reconciler.core.desired import StateObject
from reconciler.core.names import ObjectRef
from tests.core.builders import (
    INSTANCE_FILE,
    NODE_FILE,
    PROJECT,
    PROMOTION_FILE,
    Documents,
    add_instance,
    candidate,
    objects,
    world,
)

ONE = ObjectRef.parse("AppInstance/acme/research/one")
TWO = ObjectRef.parse("AppInstance/acme/research/two")

CASES: dict[str, tuple[Any, Any, list[tuple[str, Any, Any]]]] = {
    "nothing": ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, []),
    "a value": ({"a": 1, "b": 2}, {"a": 1, "b": 3}, [("/b", 2, 3)]),
    "order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
    "added and removed": ({"a": 1}, {"b": 2}, [("/a", 1, ABSENT), ("/b", ABSENT, 2)]),
    "null is a value": ({"a": None}, {}, [("/a", None, ABSENT)]),
    "true is not 1": ({"a": 1}, {"a": True}, [("/a", 1, True)]),
    "true in a list": ({"a": [1]}, {"a": [True]}, [("/a/0", 1, True)]),
    "5.0 is 5": ({"a": 5}, {"a": 5.0}, []),
    "another type": ({"a": [1]}, {"a": "x"}, [("/a", [1], "x")]),
    "odd names": ({"a/b~c": 1}, {"a/b~c": 2}, [("/a~1b~0c", 1, 2)]),
    "named entries, moved": ([{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}], []),
    "named entries": (
        [{"name": "a", "x": 1}, {"name": "b", "x": 1}],
        [{"name": "b", "x": 2}, {"name": "c"}],
        [
            ("/a", {"name": "a", "x": 1}, ABSENT),
            ("/b/x", 1, 2),
            ("/c", ABSENT, {"name": "c"}),
        ],
    ),
    "entries by uuid": ([{"uuid": "G", "m": 1}], [{"uuid": "G", "m": 2}], [("/G/m", 1, 2)]),
    "a name twice": (
        [{"name": "a"}, {"name": "a"}],
        [{"name": "a"}, {"name": "b"}],
        [("/1/name", "a", "b")],
    ),
    "one of a set": (["a", "b", "c"], ["a", "c"], [("/b", "b", ABSENT)]),
    "one more": (["a"], ["b", "a"], [("/b", ABSENT, "b")]),
    "an argument replaced": (["serve", "-x"], ["serve", "-y"], [("/1", "-x", "-y")]),
    "order of arguments": (["a", "b"], ["b", "a"], [("", ["a", "b"], ["b", "a"])]),
    "the same argument twice": (["a", "a"], ["a"], [("", ["a", "a"], ["a"])]),
    "lists of lists": ([[1], [2]], [[1], [3], [4]], [("/1/0", 2, 3), ("/2", ABSENT, [4])]),
}


@pytest.mark.parametrize(("old", "new", "found"), CASES.values(), ids=CASES.keys())
def test_fields(old: Any, new: Any, found: list[tuple[str, Any, Any]]) -> None:
    assert field_changes(old, new) == tuple(FieldChange(*one) for one in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab/~", max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("ab/~"), below, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON)
def test_nothing_differs_only_where_nothing_does(old: Any, new: Any) -> None:
    assert field_changes(old, old) == ()
    there, back = field_changes(old, new), field_changes(new, old)
    assert (not there) == (not back)
    assert {one.pointer for one in there} == {one.pointer for one in back}
    if repr(old) != repr(new) and old != new:
        assert there != ()


@given(st.dictionaries(st.text("ab/~.", min_size=1), JSON, max_size=4))
def test_a_pointer_finds_its_value(document: dict[str, Any]) -> None:
    for change in field_changes({}, document):
        assert value_at(document, change.pointer) == change.new
        assert value_at({}, change.pointer) is ABSENT


@pytest.mark.parametrize(
    ("pointer", "text"),
    [
        ("/spec/runtime_profile/ports/http/container", "spec.runtime_profile.ports.http.container"),
        ("/metadata/labels/acme.example~1team", 'metadata.labels["acme.example/team"]'),
        ("/spec/command/1", "spec.command.1"),
        ("", ""),
    ],
)
def test_pointers_for_people(pointer: str, text: str) -> None:
    assert dotted(pointer) == text


# --- objects -------------------------------------------------------------------------------------


def kinds(before: Documents, after: Documents) -> dict[str, str]:
    found = changes(objects(before), objects(after))
    return {str(change.ref): change.kind for change in found}


def test_the_same_objects_read_twice() -> None:
    assert kinds(world(), world()) == {}


def test_an_object_in_another_file() -> None:
    before, after = world(), world()
    after["platform/nodes/all.yaml"] = after.pop(NODE_FILE)
    (found,) = changes(objects(before), objects(after))
    assert (found.kind, found.path_before, found.path) == (
        "moved", NODE_FILE, "platform/nodes/all.yaml",
    )  # fmt: skip


def test_what_is_new_gone_and_changed_is_sorted_by_object() -> None:
    before, after = world(), world()
    add_instance(after, "two", cpu_cores=1)
    after[NODE_FILE]["spec"]["accelerators"].pop()
    del after[PROMOTION_FILE]
    found = changes(objects(before), objects(after))
    assert [(str(one.ref), one.kind) for one in found] == [
        ("AppInstance/acme/research/two", "added"),
        ("Node/gpu-1", "changed"),
        ("Promotion/hello/1.0.0", "removed"),
    ]
    (field,) = found[1].fields
    assert (field.pointer, field.new) == ("/spec/accelerators/GPU-3", ABSENT)


def renamed(moved_from: str = "", **parameters: Any) -> tuple[Documents, Documents]:
    before, after = world(), world()
    del after[INSTANCE_FILE]
    add_instance(after, "two", **parameters)
    if moved_from:
        after[f"{PROJECT}/instances/two.yaml"]["spec"]["moved_from"] = moved_from
    return before, after


def test_a_removed_and_an_added_instance_that_say_the_same() -> None:
    before, after = renamed()
    added = {change.ref: change for change in changes(objects(before), objects(after))}[TWO]
    assert (added.renamed_from, added.declared, added.fields) == (ONE, False, ())


def test_a_rename_that_is_declared_may_change_something_too() -> None:
    before, after = renamed("one", cpu_cores=7)
    added = {change.ref: change for change in changes(objects(before), objects(after))}[TWO]
    assert (added.renamed_from, added.declared) == (ONE, True)
    assert [field.pointer for field in added.fields] == ["/spec/parameters/cpu_cores"]


def test_another_spec_is_another_instance() -> None:
    before, after = renamed(cpu_cores=7)
    added = {change.ref: change for change in changes(objects(before), objects(after))}[TWO]
    assert added.renamed_from is None


def test_each_removed_instance_is_the_former_self_of_one() -> None:
    before, after = renamed()
    add_instance(after, "three")
    sources = [change.renamed_from for change in changes(objects(before), objects(after))]
    assert sources.count(ONE) == 1


@pytest.mark.parametrize("how", ["broken", "invalid"])
def test_what_cannot_be_read_is_not_removed(how: str) -> None:
    before, documents = candidate(world()), world()
    broken, invalid = ([INSTANCE_FILE], []) if how == "broken" else ([], [INSTANCE_FILE])
    after = candidate(documents, broken=broken, invalid=invalid)
    hidden = unread(after, before.objects)
    assert hidden == {ONE}
    (found,) = changes(before.objects, after.objects, unread_after=hidden)
    assert (found.ref, found.kind) == (ONE, "unreadable")
    (back,) = changes(after.objects, before.objects, unread_before=unread(after, before.objects))
    assert (back.ref, back.kind) == (ONE, "readable")


def test_a_folder_that_cannot_be_read_hides_all_in_it() -> None:
    before = candidate(world())
    gone = {ref: one for ref, one in before.objects.items() if ref != ONE}
    after = replace(before, objects=gone, broken_paths=frozenset({f"{PROJECT}/instances"}))
    assert unread(after, before.objects) == {ONE}


def test_objects_that_are_the_same_are_not_looked_into() -> None:
    """Fast on ten thousand: documents are compared by identity first."""

    class Untouchable(dict[str, object]):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None

    (first, *_) = objects(world()).values()
    untouched: StateObject = replace(first, document=Untouchable())
    same = replace(untouched, line=99)
    assert changes({first.ref: untouched}, {first.ref: same}) == ()
