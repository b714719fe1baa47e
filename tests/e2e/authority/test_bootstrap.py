"""Attacks on how trust begins: by the operator's word, and by nothing else."""

from __future__ import annotations

import json

from tests.cli.signed_state import binding, dumped, identity
from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    INSTANCE,
    NOBODY,
    NODE,
    OPERATOR,
    PEOPLE,
    RedTeam,
    changed_identity,
    first_files,
    more_cores,
    more_memory,
    said,
)


def test_the_operator_s_key_counts_for_nothing_once_somebody_is_there(team: RedTeam) -> None:
    made = team.commit(OPERATOR, more_memory(team))
    team.push()
    what = f"is signed with {team.keys[OPERATOR].fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(made, what))


def test_the_operator_s_key_does_not_come_back_when_the_admin_is_attacked(team: RedTeam) -> None:
    """Were the last admin to go, the operator's key would count: so she can't be made to."""
    text = changed_identity(team.text(PEOPLE), ADMIN, disabled=True)
    team.send(DEVELOPER, {PEOPLE: text})
    team.note()
    made = team.commit(OPERATOR, more_memory(team))
    team.push()
    what = f"is signed with {team.keys[OPERATOR].fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(made, what))


def nothing_begun(fresh: RedTeam, code: str, message: str) -> None:
    """It runs, accepts nothing, and says why."""
    fresh.start(ready=False)
    fresh.wait_failed(f"{code}: {message}")
    assert fresh.accepted().revision is None
    assert fresh.accepted().objects == {}


def test_a_first_commit_that_somebody_else_signed(fresh: RedTeam) -> None:
    made = fresh.commit(NOBODY, first_files(fresh.keys, fresh.pairs), "The first one")
    fresh.push()
    what = f"is signed with {fresh.keys[NOBODY].fingerprint}, a key that no Identity has"
    nothing_begun(fresh, "signer_unknown", said(made, what, "The first one"))


def test_a_first_commit_that_makes_its_own_signer_the_admin(fresh: RedTeam) -> None:
    """Who is in the repository only is nobody yet: it takes the operator's word."""
    files = first_files(fresh.keys, fresh.pairs)
    made = fresh.commit(ADMIN, files, "I am the admin")
    fresh.push()
    what = f"is signed with {fresh.keys[ADMIN].fingerprint}, a key that no Identity has"
    nothing_begun(fresh, "signer_unknown", said(made, what, "I am the admin"))


def test_without_any_word_of_the_operator(fresh: RedTeam) -> None:
    fresh.environment["GPUAAS_ADMIN_KEYS"] = "[]"
    fresh.commit(ADMIN, first_files(fresh.keys, fresh.pairs))
    fresh.push()
    nothing_begun(fresh, "no_trust_root", "nobody is named who may sign the first commit")


def test_a_trust_root_and_an_unsigned_past(fresh: RedTeam) -> None:
    """All up to the named commit counts on the operator's word, and no commit after it does. Naming
    an older one later takes nothing back.
    """
    first = fresh.commit("", first_files(fresh.keys, fresh.pairs), "Unsigned, long ago")
    root = fresh.commit("", more_cores(fresh), "Unsigned too")
    fresh.environment |= {"GPUAAS_ADMIN_KEYS": "[]", "GPUAAS_TRUST_ROOT": root}
    fresh.push()
    fresh.start()
    fresh.wait_accepted(root)
    fresh.new_test()
    made = fresh.send(ADMIN, more_memory(fresh))
    assert fresh.done_by(made) == {("user/ada", INSTANCE)}
    fresh.note()
    unsigned = fresh.commit("", {})
    fresh.push()
    fresh.rejected("commit_unsigned", said(unsigned, "is not signed"))
    fresh.kill()
    fresh.environment["GPUAAS_TRUST_ROOT"] = first
    fresh.repo.git("reset", "--quiet", "--hard", first)
    fresh.push_only()
    fresh.start()
    what = "is not among the commits that the head was built on"
    message = f"the last accepted revision, {made[:12]}, {what} (the head is {first[:12]})"
    fresh.rejected("history_rewritten", message)
    fresh.unchanged(NODE)


def test_begun_with_openpgp_in_the_hands_of_another_admin(fresh: RedTeam) -> None:
    """The operator's first commit may name somebody whose key is of another kind than his."""
    gina = fresh.openpgp_key("gina")
    files = first_files(fresh.keys, fresh.pairs)
    files["platform/iam/gina.yaml"] = dumped(
        identity("gina", gina), binding("gina-may", "gina", "platform-admin", {"platform": True})
    )
    fresh.base = fresh.commit(OPERATOR, files, "The first one")
    made = fresh.commit("gina", more_cores(fresh))
    fresh.push()
    fresh.start()
    fresh.wait_accepted(made)
    assert not fresh.accepted().refused
    assert fresh.made_by(NODE) == "user/gina"
    assert json.loads(fresh.cli("audit", "verify", "--format", "json"))["whole"] is True
