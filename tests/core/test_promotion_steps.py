"""Which state may follow on which: every pair there is, and what a refusal says."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.kinds.artifact import ArtifactState
from reconciler.core.kinds.promotion import VersionState
from reconciler.core.names import ObjectRef
from reconciler.core.promotion_steps import (
    ABSENT,
    ARTIFACT_STEPS,
    COMMITS_MAX,
    STEPS,
    VERSION_STEPS,
    changed_in_place,
    illegal,
    way,
)

VERSION = ObjectRef("Promotion", ("hello", "1.1.0"))
IMAGE = ObjectRef("Artifact", ("acme", "lab", "hello", "1.1.0", "image"))
REFS = {"Promotion": VERSION, "Artifact": IMAGE}

# The specification, word by word, beside the tables that the code goes by.
LEGAL = {
    "Promotion": {
        ("", "draft"),
        ("", "staged"),
        ("draft", "staged"),
        ("staged", "canary"),
        ("canary", "active"),
        ("canary", "staged"),
        ("active", "deprecated"),
        ("deprecated", "retired"),
        ("draft", ""),
        ("retired", ""),
    },
    "Artifact": {
        ("", "published"),
        ("published", "promoted"),
        ("promoted", "deprecated"),
        ("deprecated", "retired"),
        ("published", "revoked"),
        ("promoted", "revoked"),
        ("deprecated", "revoked"),
        ("published", ""),
        ("retired", ""),
    },
}
PAIRS = [
    (kind, before, after)
    for kind, steps in STEPS.items()
    for before, after in product(steps, repeat=2)
]


def manifest(state: str, **spec: Any) -> dict[str, Any] | None:
    if state == ABSENT:
        return None
    return {"kind": "x", "spec": {"state": state, "digest": "sha256:" + "a" * 64, **spec}}


def test_the_tables_have_every_state_there_is() -> None:
    assert set(VERSION_STEPS) == {ABSENT, *get_args(VersionState)}
    assert set(ARTIFACT_STEPS) == {ABSENT, *get_args(ArtifactState)}


@pytest.mark.parametrize(("kind", "before", "after"), PAIRS)
def test_every_pair(kind: str, before: str, after: str) -> None:
    wrong = illegal(REFS[kind], manifest(before), manifest(after))
    assert (wrong is None) == (before == after or (before, after) in LEGAL[kind])


@pytest.mark.parametrize(("kind", "before", "after"), PAIRS)
def test_several_commits_make_several_steps(kind: str, before: str, after: str) -> None:
    found = way(kind, before, after)
    reached = next((n for n in range(1, COMMITS_MAX) if _within(kind, before, after, n)), None)
    if found is None:
        assert reached is None
        assert illegal(REFS[kind], manifest(before), manifest(after), None) is not None
    else:
        assert reached == max(1, len(found) - 1)
        assert all(pair in LEGAL[kind] for pair in pairwise(found))
        anyhow = illegal(REFS[kind], manifest(before), manifest(after), None)
        assert (anyhow is None) == (ABSENT not in found[1:-1])


def _within(kind: str, before: str, after: str, steps_max: int) -> bool:
    return illegal(REFS[kind], manifest(before), manifest(after), steps_max) is None


SAID: dict[str, tuple[ObjectRef, str, str, int, str]] = {
    "begins too late": (
        VERSION,
        "",
        "active",
        1,
        "Promotion/hello/1.1.0 can't begin as active: it begins as draft or staged"
        " (one step a commit: new → staged → canary → active)",
    ),
    "skips the canary": (
        VERSION,
        "staged",
        "active",
        1,
        "Promotion/hello/1.1.0 can't go from staged to active: canary may follow"
        " (one step a commit: staged → canary → active)",
    ),
    "goes back": (
        VERSION,
        "active",
        "canary",
        1,
        "Promotion/hello/1.1.0 can't go from active to canary: deprecated may follow"
        " (publish what replaces it as a version of its own)",
    ),
    "too few commits": (
        VERSION,
        "draft",
        "active",
        2,
        "Promotion/hello/1.1.0 takes 3 steps (draft → staged → canary → active), and there are 2"
        " commits (one step a commit)",
    ),
    "removed while it is on offer": (
        VERSION,
        "active",
        "",
        1,
        "Promotion/hello/1.1.0 is active, and can't be removed: deprecated may follow"
        " (one step a commit: active → deprecated → retired → removed)",
    ),
    "back from revoked": (
        IMAGE,
        "revoked",
        "promoted",
        1,
        "Artifact/acme/lab/hello/1.1.0/image is revoked, and stays so"
        " (register what replaces it as an Artifact of its own)",
    ),
    "revoked, and removed": (
        IMAGE,
        "revoked",
        "",
        9,
        "Artifact/acme/lab/hello/1.1.0/image is revoked, and stays so"
        " (register what replaces it as an Artifact of its own)",
    ),
    "retired, and revoked": (
        IMAGE,
        "retired",
        "revoked",
        1,
        "Artifact/acme/lab/hello/1.1.0/image can't go from retired to revoked: removal may follow"
        " (register what replaces it as an Artifact of its own)",
    ),
    "no state": (
        IMAGE,
        "published",
        "promotd",
        1,
        "nobody can tell the state of Artifact/acme/lab/hello/1.1.0/image (did you mean promoted?)",
    ),
}


@pytest.mark.parametrize(
    ("ref", "before", "after", "steps", "said"), SAID.values(), ids=SAID.keys()
)
def test_what_is_said(ref: ObjectRef, before: str, after: str, steps: int, said: str) -> None:
    wrong = illegal(ref, manifest(before), manifest(after), steps)
    assert wrong is not None
    assert f"{wrong.message} ({wrong.hint})" == said


OTHER = "sha256:" + "b" * 64


@pytest.mark.parametrize("state", ["promoted", "deprecated", "retired", "revoked"])
def test_what_was_agreed_to_stays_what_it_is(state: str) -> None:
    """Attempted: a revoked or promoted registration that names another digest from now on."""
    wrong = illegal(IMAGE, manifest(state), manifest(state, digest=OTHER))
    assert wrong is not None
    assert wrong.message == (
        f"Artifact/acme/lab/hello/1.1.0/image has another digest, which can't change any more:"
        f" it is {state}"
    )
    assert illegal(IMAGE, manifest(state), manifest(state, digest=OTHER), None) is not None


def test_while_it_is_published_it_may_be_mended() -> None:
    published, other = manifest("published"), manifest("published", digest=OTHER)
    assert illegal(IMAGE, published, other) is None
    both = illegal(IMAGE, published, manifest("promoted", digest=OTHER))
    assert both is not None
    assert "has another digest, which can't change while it becomes promoted" in both.message
    assert illegal(IMAGE, published, manifest("promoted", digest=OTHER), 2) is None


def test_retired_and_removed_it_may_be_registered_anew() -> None:
    again = manifest("published", digest=OTHER)
    assert illegal(IMAGE, manifest("retired"), again, 1) is not None
    assert illegal(IMAGE, manifest("retired"), again, 2) is None


@pytest.mark.parametrize(
    "spec", [None, "x", [], {"state": 1}, {"state": ["draft"]}, {}, {"state": ""}]
)
def test_a_state_that_cannot_be_told_is_no_step(spec: object) -> None:
    assert illegal(VERSION, manifest("draft"), {"spec": spec}) is not None
    assert illegal(VERSION, {"spec": spec}, manifest("staged")) is None
    assert illegal(VERSION, {"spec": spec}, manifest("active")) is not None


def test_other_fields_and_other_kinds_may_change() -> None:
    assert illegal(VERSION, manifest("active"), manifest("active", reason="x")) is None
    assert illegal(IMAGE, manifest("promoted"), manifest("promoted", channels=["stable"])) is None
    app = ObjectRef("App", ("hello",))
    assert illegal(app, manifest("active"), manifest("draft")) is None


@given(st.sampled_from(sorted(STEPS)), st.data())
def test_a_walk_of_legal_steps_is_legal_in_as_many(kind: str, data: st.DataObject) -> None:
    state, count = ABSENT, 0
    for _ in range(data.draw(st.integers(0, 8))):
        following = STEPS[kind][state]
        if following:
            state, count = data.draw(st.sampled_from(following)), count + 1
    assert illegal(REFS[kind], None, manifest(state), max(1, count)) is None


# --- what a version runs -------------------------------------------------------------------------

APP_VERSION = ObjectRef("AppVersion", ("hello", "1.1.0"))
RUNS: dict[str, Any] = {"spec": {"artifact_ref": "r@sha256:a", "runtime_profile": {"kind": "x"}}}
RUNS_OTHER: dict[str, Any] = {
    "spec": {"artifact_ref": "r@sha256:b", "runtime_profile": {"kind": "x"}}
}
NOT_YET = ("", "draft", "staged")


def at(state: str, reason: str = "") -> dict[str, Any] | None:
    return manifest(state, reason=reason)


@pytest.mark.parametrize("state", VERSION_STEPS)
def test_what_a_version_runs_changes_while_it_is_not_offered_yet(state: str) -> None:
    promotions = (at(state), at(state))
    for forms in ((RUNS, RUNS_OTHER), (None, RUNS_OTHER)):
        assert bool(changed_in_place(APP_VERSION, forms, promotions)) == (state not in NOT_YET)
    gone = changed_in_place(APP_VERSION, (RUNS, None), promotions)
    assert bool(gone) == (state not in (*NOT_YET, "retired"))
    words = {"spec": {**RUNS["spec"], "release_notes": "x"}}
    assert changed_in_place(APP_VERSION, (RUNS, words), promotions) == ()


def test_each_field_is_told() -> None:
    after = {"spec": {"artifact_ref": "r@sha256:b", "runtime_profile": {"kind": "y"}}}
    found = changed_in_place(APP_VERSION, (RUNS, after), (at("active"), at("active")))
    assert [one.pointer for one in found] == ["/spec/artifact_ref", "/spec/runtime_profile"]
    assert found[0].message == (
        "artifact_ref of AppVersion/hello/1.1.0 changes, which is active already"
    )
    for part in ("renderer", "topology", "vllm", "jupyter"):
        after = {"spec": {**RUNS["spec"], "runtime_profile": {"kind": "x", part: {"services": []}}}}
        (found_in_it,) = changed_in_place(APP_VERSION, (RUNS, after), (at("active"), at("active")))
        assert found_in_it.pointer == "/spec/runtime_profile"
    (gone,) = changed_in_place(APP_VERSION, (RUNS, None), (at("canary"), None))
    assert gone[1:] == (
        "AppVersion/hello/1.1.0 can't be removed: it is canary",
        "retire it first: gpuaas retire",
    )


@pytest.mark.parametrize(
    ("before", "after", "commits"),
    [
        ("canary", "staged", 2),  # back, and then the change
        ("canary", "canary", 2),  # the change goes in with the step to canary
        ("canary", "active", 3),
        ("active", "active", 6),
        ("staged", "active", 1),
    ],
)
def test_the_state_before_one_of_the_commits_has_to_allow_it(
    before: str, after: str, commits: int
) -> None:
    promotions = (at(before, "then"), at(after, "now"))
    assert changed_in_place(APP_VERSION, (RUNS, RUNS_OTHER), promotions, commits) == ()
    if commits > 1:
        assert changed_in_place(APP_VERSION, (RUNS, RUNS_OTHER), promotions, commits - 1)
        assert changed_in_place(APP_VERSION, (RUNS, RUNS_OTHER), promotions, None)


def test_a_promotion_that_is_as_it_was_made_no_step() -> None:
    assert changed_in_place(APP_VERSION, (RUNS, RUNS_OTHER), (at("canary"), at("canary")), 9)
