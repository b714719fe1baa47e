"""Fields changed in place: the rest of a text stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.splice_fields import (
    Steps,
    with_entry,
    with_scalar,
    with_value,
    without_field,
)

TEXT = """# head
spec:   # here
  roles: [viewer]
  keys:
  # the first
  - id: a   # one
    key: |
      line

  - {id: b}
# tail
"""


@pytest.mark.parametrize(
    ("steps", "old", "new"),
    [
        (("spec", "keys", 0, "id"), "id: a   # one", 'id: "x"   # one'),
        (("spec", "keys", 1, "id"), "{id: b}", '{id: "x"}'),
        (("spec", "keys", 1, "until"), "{id: b}", '{id: b, until: "x"}'),
        (("spec", "keys", 0, "until"), "      line\n", '      line\n    until: "x"\n'),
        (("spec", "more"), "  - {id: b}\n", '  - {id: b}\n  more: "x"\n'),
        (("more",), "  - {id: b}\n", '  - {id: b}\nmore: "x"\n'),
    ],
)
def test_scalars(steps: Steps, old: str, new: str) -> None:
    assert with_scalar(TEXT, steps, "x") == TEXT.replace(old, new)


def test_entries() -> None:
    lines = ("id: c", "key: |", "  two", "  three")
    new = "  - id: c\n    key: |\n      two\n      three\n"
    assert with_entry(TEXT, ("spec", "keys"), lines) == TEXT.replace(
        "  - {id: b}\n", f"  - {{id: b}}\n{new}"
    )
    added = with_entry("spec:\n  roles: [a]", ("spec", "keys"), ("id: c",))
    assert added == "spec:\n  roles: [a]\n  keys:\n    - id: c\n"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("spec: {}\n", ("spec", "keys")),
        ("spec: {roles: []}\n", ("spec", "keys")),
        ("spec:\n  keys: [a]\n", ("spec", "keys")),
        ("spec:\n  keys: a\n", ("spec", "keys")),
        ("- a\n", ("spec", "keys")),
        ("", ("spec", "keys")),
        ("a: [\n", ("spec", "keys")),
        ("a: b\n", ("spec", "other", "keys")),
    ],
)
def test_what_can_not_be_done(text: str, steps: Steps) -> None:
    assert with_entry(text, steps, ("id: c",)) is None


def test_a_scalar_in_place_of_a_list() -> None:
    assert with_scalar(TEXT, ("spec", "keys"), "x") is None
    assert with_scalar(TEXT, ("spec", "keys", 7, "id"), "x") is None


_WORDS = st.sampled_from(["a", "b", "c c", "d: d", "#e", "", "1", "true", "ü", "two\nlines", "- x"])
_ENTRY = st.dictionaries(st.sampled_from(["p", "q", "r"]), _WORDS, min_size=1)
_SPEC = st.fixed_dictionaries(
    {"x": _WORDS},
    optional={"keys": st.lists(_ENTRY, max_size=3), "y": st.dictionaries(_WORDS, _WORDS)},
)


@given(_SPEC, st.sampled_from(["x", "z", "flag"]), st.sampled_from(["new", True, 7]))
def test_what_is_written_is_what_is_read(spec: dict[str, Any], field: str, value: Any) -> None:
    """For whatever a YAML writer makes of it: right, or not done at all."""
    text = yaml.safe_dump({"spec": spec}, sort_keys=False, allow_unicode=True)
    found = with_scalar(text, ("spec", field), value)
    if found is not None:
        assert yaml.safe_load(found) == {"spec": {**spec, field: value}}
    assert found is not None or "\n" in spec["x"]


@given(_SPEC)
def test_entries_are_added_at_the_end(spec: dict[str, Any]) -> None:
    text = yaml.safe_dump({"spec": spec}, sort_keys=False, allow_unicode=True)
    found = with_entry(text, ("spec", "keys"), ("id: new", "text: |", "  one"))
    if found is not None:
        keys = [*spec.get("keys", []), {"id": "new", "text": "one\n"}]
        assert yaml.safe_load(found) == {"spec": {**spec, "keys": keys}}
    assert found is not None or spec.get("keys") == []


VALUES = """spec:
  state: staged # for now
  canary:
    # Who has it first.
    projects: [a/b]
    percent: 0
  channels:
    - stable
    - canary
  reason: >
    long
    words
  place: {a: 1, b: [2]}
last: 1
"""
SET: dict[str, tuple[Steps, object, str, str]] = {
    "a word": (("spec", "state"), "canary", "state: staged #", "state: canary #"),
    "a word that is more to YAML": (("spec", "state"), "on", "state: staged #", "state: 'on' #"),
    "text with marks": (("last",), "a: b # c", "last: 1", "last: 'a: b # c'"),
    "below a comment": (("spec", "canary", "percent"), 10, "percent: 0", "percent: 10"),
    "a list on a line": (("spec", "canary", "projects"), ["c/d"], "[a/b]", "[c/d]"),
    "a list in a block": (
        ("spec", "channels"), ["stable"], "channels:\n    - stable\n    - canary\n",
        "channels: [stable]\n",
    ),
    "folded text": (
        ("spec", "reason"), "short", "reason: >\n    long\n    words\n", "reason: short\n"
    ),
    "in a mapping on a line": (("spec", "place", "b"), 3, "b: [2]", "b: 3"),
    "new in a mapping on a line": (("spec", "place", "c"), [4], "b: [2]}", "b: [2], c: [4]}"),
    "new": (
        ("spec", "canary", "step_back"), {"failed_max": 0}, "percent: 0\n",
        "percent: 0\n    step_back: {failed_max: 0}\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "value", "old", "new"), SET.values(), ids=SET.keys())
def test_a_value_of_any_kind(steps: Steps, value: object, old: str, new: str) -> None:
    found = with_value(VALUES, steps, value)
    assert found == VALUES.replace(old, new)
    place = yaml.safe_load(found)
    for step in steps:
        place = place[step]
    assert place == value


def test_a_value_where_there_is_no_place() -> None:
    assert with_value(VALUES, ("spec", "none", "x"), 1) is None
    assert with_value(VALUES, ("spec", "channels", "x"), 1) is None
    assert with_value("a: [", ("a",), 1) is None


@pytest.mark.parametrize(
    ("steps", "gone"),
    [
        (("spec", "channels"), "  channels:\n    - stable\n    - canary\n"),
        (("spec", "state"), "  state: staged # for now\n"),
        (("spec", "canary", "percent"), "    percent: 0\n"),
        (("spec", "reason"), "  reason: >\n    long\n    words\n"),
        (("last",), "last: 1\n"),
    ],
)
def test_a_field_goes(steps: Steps, gone: str) -> None:
    assert without_field(VALUES, steps) == VALUES.replace(gone, "")


@pytest.mark.parametrize("steps", [("none",), ("spec", "place", "a"), ("spec", "channels", 0)])
def test_a_field_that_cannot_go(steps: Steps) -> None:
    assert without_field(VALUES, steps) is None
    assert without_field("a: 1\n", ("a",)) is None
