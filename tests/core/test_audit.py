"""The audit trail: any change to its rows is found, and what is told of commits and tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.actions import Move, Precondition
from reconciler.core.audit import (
    FIRST,
    TEXT_LENGTH_MAX,
    Broken,
    chained,
    entries_of,
    instance_entries,
    row_hash,
    verify,
    verify_end,
)
from reconciler.core.authority.facts import Actor, RefusedChange, SignedChange, Walked
from reconciler.core.names import ActionId, InstanceKey, ObjectRef, Revision, content_hash
from reconciler.core.problems import Problem
from reconciler.core.records import (
    Accepted,
    AcceptedObject,
    AuditEntry,
    AuditRow,
    InstanceRecord,
    Intent,
    State,
)

HEAD = Revision("a" * 40)
KEY = InstanceKey("acme/lab/hello")
TEXTS = [field.name for field in fields(AuditEntry) if field.name != "at_ms"]


def an_entry(number: int = 1) -> AuditEntry:
    return AuditEntry(
        number, "user/ada", "user", "state.app.changed", f"App/a{number}", before="b", after="c"
    )


def rows(count: int) -> list[AuditRow]:
    return chained([an_entry(number) for number in range(1, count + 1)], *FIRST)


def checked(found: Sequence[AuditRow], head: tuple[int, str]) -> Broken | None:
    last = (found[-1].seq, found[-1].row_hash) if found else FIRST
    return verify(found, *FIRST) or verify_end(last, head)


def head_of(found: Sequence[AuditRow]) -> tuple[int, str]:
    return (found[-1].seq, found[-1].row_hash)


class TestChain:
    def test_a_hash_can_be_made_by_anybody(self) -> None:
        second = rows(2)[1]
        said = {
            "action": "state.app.changed",
            "actor": "user/ada",
            "after": "c",
            "at_ms": 2,
            "before": "b",
            "object": "App/a2",
            "requester_type": "user",
            "result": "done",
        }
        text = json.dumps([2, rows(1)[0].row_hash, said], separators=(",", ":"))
        assert second.row_hash == hashlib.sha256(text.encode()).hexdigest()

    def test_rows_go_on_from_where_they_ended(self) -> None:
        whole = rows(5)
        entries = [row.entry for row in whole]
        first = chained(entries[:2], *FIRST)
        assert first + chained(entries[2:], *head_of(first)) == whole
        assert verify(whole[2:], *head_of(first)) is None

    def test_texts_are_made_safe_and_cut(self) -> None:
        entry = replace(an_entry(), reason="a\x00\x1b[31m\n\u202eb\ud800", actor="x" * 5_000)
        (row,) = chained([entry], *FIRST)
        assert row.entry.reason == "a\\x00\\x1b[31m\\n\\u202eb\\ud800"
        assert len(row.entry.actor) == TEXT_LENGTH_MAX
        assert row.entry.actor.endswith("x…")
        assert verify([row], *FIRST) is None

    def test_nothing_is_whole(self) -> None:
        assert verify([], *FIRST) is None
        assert verify_end(FIRST, FIRST) is None


def _without(found: list[AuditRow], *places: int) -> list[AuditRow]:
    return [row for place, row in enumerate(found, 1) if place not in places]


def _rewritten(row: AuditRow, **changed: str) -> AuditRow:
    entry = replace(row.entry, **changed)  # type: ignore[arg-type]
    return replace(row, entry=entry, row_hash=row_hash(row.seq, row.previous_hash, entry))


FIVE = rows(5)
FORGED = chained([an_entry(9), *(row.entry for row in FIVE[1:])], *FIRST)


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        (
            [*FIVE[:2], replace(FIVE[2], entry=an_entry(9)), *FIVE[3:]],
            Broken(
                3,
                "audit_row_changed",
                "row 3 was changed: what it says does not have the hash it was given",
            ),
        ),
        (
            [*FIVE[:2], _rewritten(FIVE[2], actor="user/eve"), *FIVE[3:]],
            Broken(
                4,
                "audit_chain_broken",
                "row 4 was not written after row 3 as it is: one was replaced",
            ),
        ),
        (
            [replace(FIVE[1], seq=1), *FIVE[2:]],
            Broken(
                1,
                "audit_row_changed",
                "row 1 was changed: what it says does not have the hash it was given",
            ),
        ),
        (
            _without(FIVE, 3),
            Broken(3, "audit_row_missing", "row 3 is missing: row 4 comes next"),
        ),
        (
            _without(FIVE, 1, 2, 3),
            Broken(1, "audit_row_missing", "rows 1 to 3 are missing: row 4 comes next"),
        ),
        (
            [*FIVE[:3], FIVE[2], *FIVE[3:]],
            Broken(3, "audit_row_doubled", "row 3 is there twice"),
        ),
        (
            [*FIVE[:4], FIVE[1], FIVE[4]],
            Broken(2, "audit_row_moved", "row 2 comes after row 4: it was moved"),
        ),
        (
            FIVE[:3],
            Broken(
                4, "audit_cut_off", "the last row is 3, but 5 were written: the end was cut off"
            ),
        ),
        (
            [],
            Broken(
                1, "audit_cut_off", "the last row is 0, but 5 were written: the end was cut off"
            ),
        ),
        (
            [*FIVE, *chained([an_entry(6)], *head_of(FIVE))],
            Broken(
                6,
                "audit_head_differs",
                "there are more rows than the 5 that were counted as they were written",
            ),
        ),
        (
            FORGED,
            Broken(
                5,
                "audit_head_differs",
                "row 5 does not have the hash that is kept for the last row: it was replaced",
            ),
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Broken) else f"{len(value)} rows",
)
def test_what_was_done_to_rows(found: list[AuditRow], broken: Broken) -> None:
    assert checked(found, head_of(FIVE)) == broken


entries = st.builds(
    AuditEntry,
    at_ms=st.integers(0, 2**53),
    **{name: st.text(max_size=8) for name in TEXTS},
)
chains = st.lists(entries, min_size=2, max_size=8).map(lambda some: chained(some, *FIRST))


@given(chains)
def test_what_was_written_is_whole(found: list[AuditRow]) -> None:
    assert checked(found, head_of(found)) is None


@given(st.data())
def test_any_single_edit_is_found(data: st.DataObject) -> None:
    found = data.draw(chains)
    place = data.draw(st.integers(0, len(found) - 1))
    row = found[place]
    name = data.draw(st.sampled_from(["at_ms", "seq", "previous_hash", "row_hash", *TEXTS]))
    if name in ("seq", "previous_hash", "row_hash"):
        place_value: Any = st.integers(0, 20) if name == "seq" else st.text("0a", max_size=64)
        edited = replace(row, **{name: data.draw(place_value)})
    else:
        said: Any = st.integers() if name == "at_ms" else st.text()
        edited = replace(row, entry=replace(row.entry, **{name: data.draw(said)}))
    changed = [*found[:place], edited, *found[place + 1 :]]
    assert (checked(changed, head_of(found)) is None) == (edited == row)


@given(st.data())
def test_rows_that_are_gone_doubled_or_swapped_are_found(data: st.DataObject) -> None:
    found = data.draw(chains)
    places = st.integers(0, len(found) - 1)
    one, other = data.draw(places), data.draw(places)
    gone = [*found[:one], *found[one + 1 :]]
    doubled = [*found[: other + 1], found[one], *found[other + 1 :]]
    swapped = list(found)
    swapped[one], swapped[other] = found[other], found[one]
    assert checked(gone, head_of(found)) is not None
    assert checked(doubled, head_of(found)) is not None
    assert (checked(swapped, head_of(found)) is None) == (one == other)


@given(chains, chains)
def test_another_chain_does_not_end_where_this_one_does(
    found: list[AuditRow], other: list[AuditRow]
) -> None:
    assert (checked(other, head_of(found)) is None) == (other == found)


# --- what is told --------------------------------------------------------------------------------

ADA = Actor("user", "ada", "SHA256:abc", "")
BOT = Actor("service_account", "acme/lab/deployer", "SHA256:def", "forge")


def a_change(kind: str, before: str, after: str, actor: Actor, refusal: str = "") -> SignedChange:
    ref = ObjectRef(kind, ("acme", "lab"))
    return SignedChange(ref, "p.yaml", HEAD, actor, 7, "Because.", before, after, refusal)


class TestCommits:
    def test_every_change_and_the_head(self) -> None:
        changes = (
            a_change("Project", "", "h1", ADA),
            a_change("AppInstance", "h1", "h2", BOT, "outside_own_project"),
            a_change("Project", "h1", "", ADA),
        )
        told = entries_of(Walked(HEAD, changes=changes, commits=2), 99)
        assert [(one.action, one.result) for one in told] == [
            ("state.project.created", "done"),
            ("state.appinstance.changed", "outside_own_project"),
            ("state.project.deleted", "done"),
            ("state.revision.accepted", "done"),
        ]
        assert told[1] == AuditEntry(
            at_ms=99,
            actor="service_account/acme/lab/deployer",
            requester_type="service_account",
            action="state.appinstance.changed",
            object="AppInstance/acme/lab",
            before="h1",
            after="h2",
            reason="Because.",
            revision=HEAD,
            correlation_id=content_hash(HEAD, "AppInstance/acme/lab"),
            result="outside_own_project",
            key_id="SHA256:def",
            via="forge",
        )
        head = told[-1]
        assert (head.actor, head.requester_type, head.object) == ("system", "system", HEAD)
        assert head.reason == "2 commits, 3 changes, 1 refused"

    def test_what_could_not_be_read_is_told_once(self) -> None:
        path, subject = "platform/iam/people.yaml", "RoleBinding/admins"
        refused = {
            path: RefusedChange(path, path, HEAD, "user/eve", "unread_change", "no YAML"),
            subject: RefusedChange(subject, path, HEAD, "user/eve", "unread_change", "twice"),
        }
        *told, _ = entries_of(Walked(HEAD, refused=refused, commits=1), 99)
        said = [(one.actor, one.action, one.object, one.reason, one.result) for one in told]
        assert said == [
            ("user/eve", "state.rolebinding.changed", subject, "twice", "unread_change"),
            ("user/eve", "state.file.changed", path, "no YAML", "unread_change"),
        ]
        (head,) = entries_of(Walked(HEAD, refused=refused, commits=1), 99, refused)
        assert head.action == "state.revision.accepted"

    def test_no_commits_are_nothing_to_tell(self) -> None:
        assert entries_of(Walked(HEAD), 99) == ()

    def test_of_a_rejected_head_nothing_else_is_told(self) -> None:
        problem = Problem("", 0, 0, "commit_unsigned", "commit aaaa is not signed", "", "sign it")
        changes = (a_change("Project", "", "h1", ADA),)
        (told,) = entries_of(Walked(HEAD, problem, changes=changes, commits=1), 99)
        assert (told.action, told.object, told.result) == (
            "state.revision.rejected",
            HEAD,
            "commit_unsigned",
        )
        assert told.reason == "commit aaaa is not signed"


def a_record(key: InstanceKey) -> InstanceRecord:
    return InstanceRecord(
        key=key,
        app="hello",
        org_id="o",
        project_id="p",
        node="gpu-1",
        state=State.UPGRADING,
        epoch=2,
        correlation_id="c-2",
        revision=HEAD,
        target_version="2",
        target_hash="new",
        target_digest="d",
        applied_hash="old",
    )


def an_intent(kind: str, key: InstanceKey = KEY, target_hash: str = "new") -> Intent:
    return Intent(ActionId("a"), kind, key, "gpu-1", "t", 1, "c-2", target_hash, "{}", 5, 9)


class TestInstances:
    @pytest.mark.parametrize(
        ("kind", "target_hash", "after"),
        [
            ("launch", "new", "new"),
            ("replace", "new", "new"),
            ("control", "", "old"),
            ("remove", "", ""),
        ],
    )
    def test_what_is_handed_to_a_node(self, kind: str, target_hash: str, after: str) -> None:
        ref = "AppInstance/acme/lab/hello"
        accepted = Accepted(HEAD, {ref: AcceptedObject(ref, "p", 1, "{}", HEAD, "user/ada")})
        (told,) = instance_entries(
            [an_intent(kind, target_hash=target_hash)], {KEY: a_record(KEY)}, accepted, 99
        )
        assert told == AuditEntry(
            at_ms=99,
            actor="user/ada",
            requester_type="user",
            action=f"apps.instance.{kind}",
            object=ref,
            before="old",
            after=after,
            reason="on gpu-1",
            revision=HEAD,
            correlation_id="c-2",
        )

    def test_what_nobody_signed_for_is_the_systems(self) -> None:
        member = InstanceKey(f"{KEY}.w1")
        records = {member: a_record(member)}
        (told,) = instance_entries([an_intent("launch", member)], records, Accepted(), 99)
        assert (told.actor, told.requester_type) == ("system", "system")
        assert (told.object, told.reason) == ("AppInstance/acme/lab/hello", "member w1, on gpu-1")

    def test_a_rename(self) -> None:
        move = Move(KEY, InstanceKey("acme/lab/old"), "gpu-1", 2, "renamed", Precondition("old"))
        (told,) = instance_entries([], {KEY: a_record(KEY)}, Accepted(), 99, [move])
        assert (told.action, told.before, told.after) == ("apps.instance.move", "old", "old")
        assert told.reason == "was acme/lab/old, on gpu-1"
