"""Attacks on who signed: none of them makes a revision count."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from reconciler.core.names import Revision
from reconciler.devkit import process
from reconciler.devkit.signing import SigningKey
from tests.cli.signed_state import binding, dumped, identity
from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    FORGE,
    INSTANCE,
    INSTANCE_FILE,
    NOBODY,
    NODE,
    NODE_FILE,
    RedTeam,
    by_forge,
    dated,
    more_memory,
    said,
    stamp,
)

DAY_S = 86_400.0


def unsigned(team: RedTeam) -> Revision:
    return team.commit("", more_memory(team))


def stripped(team: RedTeam) -> Revision:
    team.commit(DEVELOPER, more_memory(team))
    return team.recorded("", "commit", "--quiet", "--amend", "--no-edit")


@pytest.mark.parametrize("attack", [unsigned, stripped])
def test_a_commit_without_a_signature(team: RedTeam, attack: Callable[[RedTeam], Revision]) -> None:
    made = attack(team)
    team.push()
    found = team.rejected("commit_unsigned", said(made, "is not signed"))
    assert found["hint"] == "git config commit.gpgsign true; then rewrite it"


def raw(team: RedTeam, revision: str) -> bytes:
    return team.repo.git("cat-file", "commit", revision).encode("utf-8", "surrogateescape")


def put(team: RedTeam, commit: bytes) -> Revision:
    """A commit of these very bytes as the head."""
    command = ("hash-object", "-t", "commit", "-w", "--literally", "--stdin")
    made = team.repo.git(*command, given=commit).strip()
    team.repo.git("update-ref", "HEAD", made)
    return Revision(made)


def signature_in(commit: bytes) -> bytes:
    found = re.search(rb"^gpgsig .*\n(?: .*\n)+", commit, re.MULTILINE)
    assert found is not None
    return found[0]


def swapped(team: RedTeam) -> Revision:
    good = team.commit(ADMIN, {}, "something the admin signed")
    pasted = signature_in(raw(team, good))
    made = raw(team, team.commit(DEVELOPER, more_memory(team)))
    return put(team, made.replace(signature_in(made), pasted))


def changed_after(team: RedTeam) -> Revision:
    made = raw(team, team.commit(ADMIN, more_memory(team)))
    return put(team, made.replace(b"\n\nedit\n", b"\n\nEdit\n"))


def for_something_else(team: RedTeam) -> Revision:
    """What the admin signed as a file, say for a mail, is no commit of hers."""
    made = raw(team, team.commit(ADMIN, more_memory(team)))
    bare = made.replace(signature_in(made), b"")
    file = team.root / "letter"
    file.write_bytes(bare)
    key = team.keys[ADMIN].private
    made_here = file.with_name("letter.sig")
    made_here.unlink(missing_ok=True)
    process.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(key), str(file)])
    lines = made_here.read_text().strip().split("\n")
    folded = ("gpgsig " + "\n ".join(lines) + "\n").encode()
    return put(team, made.replace(signature_in(made), folded))


def cut(team: RedTeam) -> Revision:
    made = raw(team, team.commit(ADMIN, more_memory(team)))
    middle = signature_in(made).split(b"\n")[2]
    return put(team, made.replace(middle, b" " + b"A" * (len(middle) - 1)))


@pytest.mark.parametrize("attack", [swapped, changed_after, for_something_else, cut])
def test_a_signature_that_is_not_of_this_commit(
    team: RedTeam, attack: Callable[[RedTeam], Revision]
) -> None:
    made = attack(team)
    team.push()
    subject = "Edit" if attack is changed_after else "edit"
    what = "has a signature that is not of this commit: it does not fit the commit"
    team.rejected("signature_bad", said(made, what, subject))


def twice(commit: bytes) -> bytes:
    return commit.replace(signature_in(commit), signature_in(commit) * 2)


def for_another_hash(commit: bytes) -> bytes:
    return commit.replace(b"\ngpgsig ", b"\ngpgsig-sha256 ")


def nonsense(commit: bytes) -> bytes:
    return commit.replace(signature_in(commit), b"gpgsig trust me\n")


@pytest.mark.parametrize(
    ("bend", "why"),
    [
        (twice, "it has several signatures"),
        (for_another_hash, "it is for commits named by SHA-256"),
        (nonsense, "it is neither an SSH nor an OpenPGP signature"),
    ],
)
def test_a_signature_that_can_be_read_in_two_ways(
    team: RedTeam, bend: Callable[[bytes], bytes], why: str
) -> None:
    made = put(team, bend(raw(team, team.commit(ADMIN, more_memory(team)))))
    team.push()
    what = f"has a signature of a kind not taken: {why}"
    team.rejected("signature_unsupported", said(made, what))


def test_a_commit_with_two_authors(team: RedTeam) -> None:
    """Git reads the first and others the last, so that it is not even fetched."""
    commit = raw(team, team.commit(ADMIN, more_memory(team)))
    author = next(line for line in commit.split(b"\n") if line.startswith(b"author "))
    made = put(team, commit.replace(author, author + b"\n" + author))
    team.push()
    why = f"error: object {made}: multipleAuthors: invalid format - multiple 'author' lines"
    team.wait_finding("git_bad_objects", f"the repository holds malformed objects: {why}")
    team.unchanged()


def test_a_key_that_nobody_knows(team: RedTeam) -> None:
    made = team.commit(NOBODY, more_memory(team))
    team.push()
    what = f"is signed with {team.keys[NOBODY].fingerprint}, a key that no Identity has"
    found = team.rejected("signer_unknown", said(made, what))
    assert found["hint"].startswith("somebody known adds it to an Identity first")


def test_the_author_says_that_he_is_the_admin(team: RedTeam) -> None:
    """What counts is the developer's key: he may change his instance, and no node."""
    names = {"GIT_AUTHOR_NAME": "Ada Admin", "GIT_AUTHOR_EMAIL": "ada@acme.example"}
    names |= {name.replace("AUTHOR", "COMMITTER"): text for name, text in names.items()}
    files = more_memory(team) | team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64")
    made = team.commit(DEVELOPER, files, **names)
    team.push()
    message = "user/dora may not change Node/gpu-1: fleet.node.edit is missing on the platform"
    team.refused(made, NODE, "change_not_allowed", message)
    assert team.made_by(INSTANCE) == "user/dora"
    assert team.done_by(made) == {("user/dora", INSTANCE)}


def test_an_admin_whose_address_looks_alike(team: RedTeam) -> None:
    """A forge vouches for an address; one with a Cyrillic letter in it is nobody's."""
    alike = "\u0430da@acme.example"
    made = team.commit(FORGE, more_memory(team), **by_forge(("Ada Admin", alike)))
    team.push()
    what = f"was made in forge by <{alike}>, an address that no Identity has"
    team.rejected("forge_author_unknown", said(made, what))


def test_a_name_and_a_subject_that_deceive_the_reader(team: RedTeam) -> None:
    """What turns the direction of writing, or ends a terminal's line, is not passed on."""
    subject = "edit \u202egnp.live\x1b[2K by Ada"
    made = team.commit("", more_memory(team), subject, GIT_AUTHOR_NAME="\u0410da\u202e")
    team.push()
    found = team.rejected(
        "commit_unsigned", said(made, "is not signed", "edit \ufffdgnp.live\ufffd[2K by Ada")
    )
    assert "\u202e" not in found["message"]


# --- keys that counted once ----------------------------------------------------------------------


def test_somebody_who_is_disabled(team: RedTeam) -> None:
    key = team.person("lena")
    gone = dumped(identity("lena", key, disabled=True))
    team.send(ADMIN, {"platform/iam/lena.yaml": gone}, "Lena left")
    team.note()
    made = team.commit("lena", more_memory(team))
    team.push()
    what = "is signed by lena, who is disabled"
    found = team.rejected("signer_disabled", said(made, what))
    assert found["where"] == "platform/iam/lena.yaml"


def test_a_key_that_was_removed(team: RedTeam) -> None:
    key = team.person("lena")
    team.send(ADMIN, {"platform/iam/lena.yaml": None}, "Lena left")
    team.note()
    made = team.commit("lena", more_memory(team))
    team.push()
    what = f"is signed with {key.fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(made, what))


def test_a_key_that_was_revoked_however_old_the_commit(team: RedTeam) -> None:
    key = team.person("lena")
    who = identity("lena", key)
    who["spec"]["keys"][0]["revoked"] = {"at": stamp(time.time()), "reason": "laptop stolen"}
    team.send(ADMIN, {"platform/iam/lena.yaml": dumped(who)}, "Revoke")
    team.note()
    made = team.commit("lena", more_memory(team), **dated(time.time() - 30 * DAY_S))
    team.push()
    what = "is signed with lena-1 of lena, revoked: laptop stolen"
    team.rejected("key_revoked", said(made, what))


def test_an_expired_key_and_a_commit_that_is_backdated(team: RedTeam) -> None:
    until = stamp(time.time() - DAY_S)
    team.person("lena", valid_until=until)
    team.note()
    made = team.commit("lena", more_memory(team), **dated(time.time() - 30 * DAY_S))
    team.push()
    what = f"is signed with lena-1 of lena, which was valid until {until}"
    team.rejected("key_expired", said(made, what))


def test_a_key_that_is_not_valid_yet(team: RedTeam) -> None:
    begins = stamp(time.time() + DAY_S)
    team.person("lena", valid_from=begins)
    team.note()
    made = team.commit("lena", more_memory(team))
    team.push()
    what = f"is signed with lena-1 of lena, which is valid from {begins} on only"
    team.rejected("key_not_yet_valid", said(made, what))


def test_a_commit_from_the_future(team: RedTeam) -> None:
    made = team.commit(DEVELOPER, more_memory(team), **dated(time.time() + 2 * DAY_S))
    team.push()
    team.rejected("commit_from_future", said(made, "has a date in the future"))


def test_one_key_replaces_another_and_both_count_for_a_while(team: RedTeam) -> None:
    """Rotation with an overlap, and an end that is a matter of time."""
    old, ends = team.person("lena"), time.time() + 600
    new = team.keys["lena-new"] = SigningKey.ssh(team.root / "keys", "lena-new")
    who = identity("lena", old)
    who["spec"]["keys"][0]["valid_until"] = stamp(ends)
    who["spec"]["keys"].append(new.identity_key("lena-2"))
    may = binding("lena-may", "lena", "app-operator", {"project": "acme/research"})
    team.send(ADMIN, {"platform/iam/lena.yaml": dumped(who, may)}, "Rotate")
    team.commit("lena", more_memory(team))
    made = team.commit("lena-new", team.edited(INSTANCE_FILE, "memory_gib: 5", "memory_gib: 6"))
    team.push()
    team.wait_accepted(made)
    assert team.made_by(INSTANCE) == "user/lena"
    team.note()
    late = team.commit(
        "lena", team.edited(INSTANCE_FILE, "memory_gib: 6", "memory_gib: 7"), **dated(ends + 60)
    )
    team.push()
    what = f"is signed with lena-1 of lena, which was valid until {stamp(ends)}"
    team.rejected("key_expired", said(late, what))
