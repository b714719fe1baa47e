"""Attacks on what is remembered, and on a control plane that is killed at the wrong time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    INSTANCE,
    NO_NODE,
    NODE,
    PEOPLE,
    RedTeam,
    more_cores,
    more_memory,
    said,
)
from tests.e2e.platform import Platform, gpuaas

# --- the trail -----------------------------------------------------------------------------------


@contextmanager
def opened(team: RedTeam) -> Iterator[sqlite3.Connection]:
    """The store's file, as somebody on the host can open it."""
    with closing(sqlite3.connect(team.root / "state/store.db")) as connection:
        yield connection
        connection.commit()


def verified(team: RedTeam, *args: str) -> tuple[int, dict[str, object]]:
    done = gpuaas("audit", "verify", "--format", "json", *args, environment=team.environment)
    return done.returncode, json.loads(done.stdout)


def test_what_was_refused_is_told_by_every_command(team: RedTeam) -> None:
    made = team.send(DEVELOPER, more_cores(team) | more_memory(team), "More of all")
    document = json.loads(team.cli("status", "--format", "json"))
    found = [f for f in document["last_pass"]["findings"] if f["code"] == "change_not_allowed"]
    assert [(f["object"], f["message"]) for f in found] == [(NODE, NO_NODE)]
    assert "change_not_allowed" in team.cli("status")
    lines = team.cli("audit", "list", "--object", NODE, "--format", "json").splitlines()
    row = json.loads(lines[-1])
    assert (row["actor"], row["revision"], row["result"], row["reason"]) == (
        "user/dora", made, "change_not_allowed", "More of all",
    )  # fmt: skip
    code, whole = verified(team)
    assert (code, whole["whole"], whole["broken"]) == (0, True, None)


REFUSED_ROW = "result = 'change_not_allowed'"
EDITS: dict[str, tuple[str, str]] = {
    "changed": (
        f"UPDATE audit SET actor = 'user/ada' WHERE {REFUSED_ROW}",
        "audit_row_changed",
    ),
    "deleted": (f"DELETE FROM audit WHERE {REFUSED_ROW}", "audit_row_missing"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_row_of_the_trail_that_somebody_edits(team: RedTeam, edit: str) -> None:
    """The one that tells what he tried."""
    team.send(DEVELOPER, more_cores(team))
    statement, code = EDITS[edit]
    with opened(team) as store:
        columns = [row[1] for row in store.execute("PRAGMA table_info(audit)")]
        before = store.execute(f"SELECT * FROM audit WHERE {REFUSED_ROW}").fetchall()
        store.execute(statement)
    assert before
    status, document = verified(team)
    with opened(team) as store:
        store.execute(f"DELETE FROM audit WHERE {REFUSED_ROW}")
        places = ", ".join("?" * len(columns))
        store.executemany(f"INSERT INTO audit VALUES ({places})", before)
    broken = document["broken"]
    assert isinstance(broken, dict)
    assert (status, document["whole"], broken["code"]) == (1, False, code)
    assert verified(team)[0] == 0


# --- killed --------------------------------------------------------------------------------------


def refused_state(team: RedTeam) -> Callable[[], None]:
    made = team.send(DEVELOPER, more_cores(team))

    def check() -> None:
        team.refused(made, NODE, "change_not_allowed", NO_NODE)
        team.unchanged()

    return check


def rejected_state(team: RedTeam) -> Callable[[], None]:
    made = team.commit("", more_memory(team))
    team.push()
    return lambda: _rejected(team, made)


def unread_state(team: RedTeam) -> Callable[[], None]:
    made = team.send(DEVELOPER, {PEOPLE: "kind: [\n"})

    def check() -> None:
        team.wait_accepted(made)
        assert list(team.accepted().refused) == [PEOPLE]
        assert [one["path"] for one in team.findings("unread_change")] == [PEOPLE]
        team.unchanged()

    return check


def rewound_state(team: RedTeam) -> Callable[[], None]:
    older = team.repo.head()
    accepted = team.send(ADMIN, more_memory(team))
    team.note()
    team.repo.git("reset", "--quiet", "--hard", older)
    team.push()
    what = "is not among the commits that the head was built on"
    message = f"the last accepted revision, {accepted[:12]}, {what} (the head is {older[:12]})"
    return lambda: _said_once(team, "history_rewritten", message)


def malformed_state(team: RedTeam) -> Callable[[], None]:
    """A signature of another object format, which Git does not see at all."""
    good = team.repo.git("cat-file", "commit", team.commit(ADMIN, more_memory(team)))
    bent = good.replace("\ngpgsig ", "\ngpgsig-sha256 ").encode()
    made = team.repo.git("hash-object", "-t", "commit", "-w", "--stdin", given=bent).strip()
    team.repo.git("reset", "--quiet", "--hard", made)
    team.push()
    what = "has a signature of a kind not taken: it is for commits named by SHA-256"
    return lambda: _said_once(team, "signature_unsupported", said(made, what))


def unreadable_state(team: RedTeam) -> Callable[[], None]:
    """Somebody known signed it, and it goes deeper than anything is read."""
    team.commit(DEVELOPER, {"/".join(["d"] * 100) + "/x.yaml": "a: 1\n"})
    team.push()
    return lambda: _said_once(team, "too_deep", "folders more than 64 deep")


def _rejected(team: RedTeam, made: str) -> None:
    _said_once(team, "commit_unsigned", said(made, "is not signed"))


def _said_once(team: RedTeam, code: str, message: str) -> None:
    """Also after a restart there is one row for the head in the trail."""
    team.rejected(code, message)


STATES = (
    refused_state,
    rejected_state,
    unread_state,
    rewound_state,
    malformed_state,
    unreadable_state,
)


@pytest.mark.parametrize("state", STATES)
def test_killed_and_started_again_it_says_the_same(
    team: RedTeam, state: Callable[[RedTeam], Callable[[], None]]
) -> None:
    check = state(team)
    check()
    team.kill()
    team.start()
    check()


def test_killed_before_it_looked(team: RedTeam) -> None:
    """What was pushed meanwhile is walked to from where it stopped, however it ended."""
    team.kill()
    refused = team.commit(DEVELOPER, more_cores(team))
    good = team.commit(DEVELOPER, more_memory(team))
    team.repo.git("push", "--quiet", str(team.bare), "HEAD:refs/heads/main")
    team.start()
    team.refused(refused, NODE, "change_not_allowed", NO_NODE, head=good)
    assert team.made_by(INSTANCE) == "user/dora"


# --- meanwhile -----------------------------------------------------------------------------------


def test_what_runs_is_kept_running_while_a_revision_is_rejected(
    process_platform: Callable[..., Platform],
) -> None:
    platform = process_platform()
    platform.start()
    platform.wait_settled("running")
    platform.wait(lambda: platform.instance()["health"] == "ready")
    repo, key = platform.repo, platform.repo.key
    repo.key = None
    platform.edit_instance("1.0.0", "1.1.0")
    platform.commit("Nobody signed this")
    platform.wait(lambda: [f for f in platform.findings() if f["code"] == "commit_unsigned"])
    before = set(platform.workload_processes())
    assert before
    platform.kill_workload()
    platform.wait(lambda: set(platform.workload_processes()) - before)
    platform.wait(lambda: platform.page() == "1.0.0")
    assert [f["code"] for f in platform.findings()] == ["commit_unsigned"]
    repo.key = key


def test_the_state_folder_is_nobody_else_s(team: RedTeam) -> None:
    """What remembers signatures, and all other state, is for its owner alone."""
    folder = team.root / "state"
    assert folder.stat().st_mode & 0o077 == 0
    files = [path for path in folder.iterdir() if path.is_file()]
    assert {path.name for path in files if path.stat().st_mode & 0o022} == set()
