"""Attacks on the line of commits: what was accepted is never taken back by moving the branch."""

from __future__ import annotations

import time

from reconciler.core.names import Revision
from reconciler.devkit.signing import git_config
from tests.cli.signed_state import dumped, identity
from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    ENVIRONMENT_FILE,
    INSTANCE,
    INSTANCE_FILE,
    NODE,
    NODE_FILE,
    RedTeam,
    more_memory,
    said,
    stamp,
)

AGAIN = "push the branch again as it was, with new commits on top"


def rewritten(accepted: Revision | None, head: Revision) -> str:
    what = "is not among the commits that the head was built on"
    return f"the last accepted revision, {str(accepted)[:12]}, {what} (the head is {head[:12]})"


def test_the_branch_is_put_back_to_an_older_commit(team: RedTeam) -> None:
    """Every commit on it was accepted once; yet what came after is not to be forgotten."""
    older = team.repo.head()
    team.send(ADMIN, more_memory(team), "More memory")
    team.note()
    team.repo.git("reset", "--quiet", "--hard", older)
    team.push()
    found = team.rejected("history_rewritten", rewritten(team.accepted().revision, older))
    assert found["hint"] == AGAIN


def test_an_older_commit_with_a_good_one_on_top(team: RedTeam) -> None:
    older = team.repo.head()
    team.send(ADMIN, more_memory(team), "More memory")
    team.note()
    team.repo.git("reset", "--quiet", "--hard", older)
    made = team.commit(ADMIN, team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64"))
    team.push()
    team.rejected("history_rewritten", rewritten(team.accepted().revision, made))


def test_history_written_anew_with_the_admin_s_own_signature(team: RedTeam) -> None:
    """The same tree and message, another commit: it is not what was accepted."""
    team.send(ADMIN, more_memory(team), "More memory")
    team.note()
    command = ("commit", "--quiet", "--amend", "--no-edit")
    made = team.recorded(ADMIN, *command, GIT_COMMITTER_DATE=f"{int(time.time()) + 5} +0000")
    team.push()
    team.rejected("history_rewritten", rewritten(team.accepted().revision, made))


def test_a_branch_without_any_history_in_common(team: RedTeam) -> None:
    tree = team.repo.git("rev-parse", "HEAD^{tree}").strip()
    options = git_config(team.keys[ADMIN])
    made = team.repo.git(*options, "commit-tree", "-S", tree, given=b"anew").strip()
    team.repo.git("reset", "--quiet", "--hard", made)
    team.push()
    team.rejected("history_rewritten", rewritten(team.accepted().revision, Revision(made)))


def test_pushed_again_as_it_was_it_counts_again(team: RedTeam) -> None:
    """The same branch with a commit on top clears what was said of the rewritten one."""
    before = team.repo.head()
    team.send(ADMIN, more_memory(team), "More memory")
    good = team.repo.head()
    team.note()
    team.repo.git("reset", "--quiet", "--hard", before)
    team.push()
    team.rejected("history_rewritten", rewritten(good, before))
    team.repo.git("reset", "--quiet", "--hard", good)
    team.push()
    team.wait_accepted(good)
    made = team.send(DEVELOPER, team.edited(INSTANCE_FILE, "memory_gib: 5", "memory_gib: 6"))
    assert team.findings("history_rewritten") == []
    assert team.accepted().revision == made


# --- old branches --------------------------------------------------------------------------------


def test_an_old_branch_of_a_removed_key_that_somebody_merges(team: RedTeam) -> None:
    """It was good when it was made; it counts by what is known when it comes in."""
    key = team.person("lena")
    team.repo.git("checkout", "--quiet", "-B", "topic")
    side = team.commit("lena", more_memory(team), "Made in time")
    team.repo.git("checkout", "--quiet", "main")
    team.send(ADMIN, {"platform/iam/lena.yaml": None}, "Lena left")
    team.note()
    team.merge(DEVELOPER, "topic")
    team.push()
    what = f"is signed with {key.fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(side, what, "Made in time"))


def test_the_parents_of_a_merge_in_the_other_order(team: RedTeam) -> None:
    """Whose parent comes first is for who merges to say; what was accepted is the line."""
    team.person("lena")
    team.repo.git("checkout", "--quiet", "-B", "topic")
    side = team.commit("lena", more_memory(team), "Made in time")
    team.repo.git("checkout", "--quiet", "main")
    key = team.keys["lena"]
    who = identity("lena", key)
    who["spec"]["keys"][0]["revoked"] = {"at": stamp(time.time()), "reason": "stolen"}
    team.send(ADMIN, {"platform/iam/lena.yaml": dumped(who)}, "Revoke")
    team.note()
    accepted = team.repo.head()
    team.repo.git("checkout", "--quiet", "topic")
    team.merge(DEVELOPER, "main")
    assert team.repo.git("rev-parse", "HEAD^2").strip() == accepted
    team.push()
    what = "is signed with lena-1 of lena, revoked: stolen"
    team.rejected("key_revoked", said(side, what, "Made in time"))


def test_a_revert_of_a_revocation_on_top_in_the_same_push(team: RedTeam) -> None:
    """Who may not change an Identity takes nothing back: the key is revoked all the same."""
    key = team.person("lena")
    before = team.text("platform/iam/lena.yaml")
    who = identity("lena", key)
    who["spec"]["keys"][0]["revoked"] = {"at": stamp(time.time()), "reason": "stolen"}
    team.note()
    team.commit(ADMIN, {"platform/iam/lena.yaml": dumped(who)}, "Revoke")
    made = team.commit(DEVELOPER, {"platform/iam/lena.yaml": before}, "Tidy up")
    team.push()
    team.wait_accepted(made)
    assert team.accepted().refused["Identity/lena"].revision == made
    form = team.form("Identity/lena")
    assert form is not None
    assert form["spec"]["keys"][0]["revoked"]["reason"] == "stolen"
    team.note()
    late = team.commit("lena", more_memory(team))
    team.push()
    team.rejected("key_revoked", said(late, "is signed with lena-1 of lena, revoked: stolen"))


def test_a_revocation_below_a_commit_that_nobody_signed(team: RedTeam) -> None:
    """The revision is rejected whole, and counts as soon as that commit is gone from it."""
    key = team.person("lena")
    who = identity("lena", key)
    who["spec"]["keys"][0]["revoked"] = {"at": stamp(time.time()), "reason": "stolen"}
    team.note()
    revoked = team.commit(ADMIN, {"platform/iam/lena.yaml": dumped(who)}, "Revoke")
    made = team.commit("", more_memory(team))
    team.push()
    team.rejected("commit_unsigned", said(made, "is not signed"))
    team.repo.git("reset", "--quiet", "--hard", revoked)
    team.push()
    team.wait_accepted(revoked)
    team.note()
    late = team.commit("lena", more_memory(team))
    team.push()
    team.rejected("key_revoked", said(late, "is signed with lena-1 of lena, revoked: stolen"))


# --- refs that stand in for others ---------------------------------------------------------------


def test_a_replacement_of_a_commit_is_not_looked_at(team: RedTeam) -> None:
    """`git replace` shows the good commit in place of the bad one to whoever does not ask twice."""
    good = team.commit(ADMIN, {}, "signed by Ada")
    team.repo.git("reset", "--quiet", "--hard", "HEAD~1")
    bad = team.commit("", more_memory(team))
    team.repo.git("replace", "--force", bad, good)
    team.repo.git("push", "--quiet", "--force", str(team.bare), "refs/replace/*:refs/replace/*")
    team.push()
    team.repo.git("replace", "--delete", bad)
    team.rejected("commit_unsigned", said(bad, "is not signed"))
    team.repo.git("push", "--quiet", str(team.bare), f":refs/replace/{bad}")


def test_a_tag_that_is_named_like_the_branch(team: RedTeam) -> None:
    made = team.send(ADMIN, more_memory(team), "More memory")
    team.note()
    team.repo.git("checkout", "--quiet", "--detach")
    tagged = team.commit("", team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64"))
    target = f"{tagged}:refs/tags/main"
    team.repo.git("push", "--quiet", "--force", str(team.bare), target)
    team.repo.git("checkout", "--quiet", "--force", "main")
    on_top = team.send(DEVELOPER, team.edited(INSTANCE_FILE, "memory_gib: 5", "memory_gib: 6"))
    team.unchanged(NODE)
    assert team.accepted().revision == on_top
    assert made != on_top
    team.repo.git("push", "--quiet", str(team.bare), ":refs/tags/main")


# --- much at once --------------------------------------------------------------------------------


def many(team: RedTeam, who: str, count: int) -> None:
    """So many commits that change nothing."""
    options, made = git_config(team.keys[who]), team.repo.head()
    tree = team.repo.git("rev-parse", "HEAD^{tree}").strip()
    for number in range(count):
        command = ("commit-tree", "-S", "-p", made, tree)
        message = f"small change {number}".encode()
        made = Revision(team.repo.git(*options, *command, given=message).strip())
    team.repo.git("update-ref", "HEAD", made)


def test_one_forbidden_change_among_three_hundred_commits(team: RedTeam) -> None:
    many(team, DEVELOPER, 150)
    files = team.edited(ENVIRONMENT_FILE, "gpu.example", "evil.example")
    forbidden = team.commit(DEVELOPER, files, "Tidy up")
    many(team, DEVELOPER, 150)
    head = team.commit(DEVELOPER, more_memory(team))
    team.push()
    message = (
        "user/dora may not change Environment/eval: platform.environment.edit is missing"
        " on the platform"
    )
    subject = "Environment/eval"
    team.refused(forbidden, subject, "change_not_allowed", message, head=head)
    assert team.made_by(INSTANCE) == "user/dora"


def test_a_message_of_ten_megabytes(team: RedTeam) -> None:
    """It is signed well, and still not read: what it takes to check it is bounded."""
    file = team.root / "message"
    file.write_text("huge\n\n" + "more text\n" * 1_000_000)
    team.write(more_memory(team))
    team.repo.git("add", "--all")
    made = team.recorded(ADMIN, "commit", "--quiet", "--file", str(file))
    size = int(team.repo.git("cat-file", "-s", made))
    team.push()
    what = f"is too large to be looked at: the commit has {size} bytes"
    team.rejected("commit_too_large", said(made, what, "huge"))
