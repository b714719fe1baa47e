"""`gpuaas history`, as people and programs see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.store_sql import SqlStore
from reconciler.cli.history import history
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Event
from reconciler.errors import Refused
from reconciler.ports import Changes
from tests.cli.state_repo import HELLO, INSTANCE, StateRepo, make, run


@pytest.fixture
def state(tmp_path: Path) -> StateRepo:
    return make(tmp_path / "state")


def remember(folder: Path, *events: tuple[str, Revision, str]) -> Path:
    """A control plane's state that holds these events: type, revision, reason."""
    folder.mkdir()
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    made = [
        Event(
            event_id=f"e{number}",
            type=f"apps.instance.{name}",
            instance=InstanceKey("acme/research/hello"),
            correlation_id="c",
            revision=revision,
            at_ms=1_700_000_000_000 + number * 1000,
            data={"reason": reason} if reason else {},
        )
        for number, (name, revision, reason) in enumerate(events)
    ]
    store.commit(Changes(events=made))
    store.close()
    return folder


def test_commits_newest_first(state: StateRepo) -> None:
    done = run(history, HELLO, "--repo", state.folder)
    ids = [state.repo.head(f"HEAD~{n}")[:12] for n in range(3)]
    who = "Ada Admin <ada@acme.example>  (unsigned)"
    assert done.output.splitlines() == [
        f"{HELLO}: 3 commits",
        "",
        f"{ids[0]}  2023-11-14T22:16:20Z  {who}",
        "    More memory for hello",
        "    ~ spec.parameters.memory_gib  0.25 → 0.5",
        "",
        f"{ids[1]}  2023-11-14T22:15:20Z  {who}",
        "    Move hello to 1.1.0",
        "    ~ spec.version  1.0.0 → 1.1.0",
        "",
        f"{ids[2]}  2023-11-14T22:14:20Z  {who}",
        "    The platform, one app and one instance",
        f"    + added as {HELLO}",
    ]


def test_what_came_of_them(state: StateRepo, tmp_path: Path) -> None:
    """An event belongs to the object's newest commit in the head that it names."""
    upgrade = state.repo.head("HEAD~1")
    later = state.repo.commit({"README.md": "x"}, "something else")
    kept = remember(
        tmp_path / "kept",
        ("upgrade_requested", upgrade, ""),
        ("failed", upgrade, "not_ready_in_time"),
        ("running", later, ""),
        ("requested", Revision("f" * 40), ""),
    )
    done = run(history, HELLO, "--repo", state.folder, "--state-dir", kept)
    lines = done.output.splitlines()
    first, second = [line for line in lines if "⇒" in line]
    assert first == "    ⇒ running 22:13:22Z"
    assert second == "    ⇒ upgrade_requested 22:13:20Z, failed 22:13:21Z (not_ready_in_time)"
    assert lines.index(first) < lines.index("    Move hello to 1.1.0") < lines.index(second)


def test_a_state_dir_that_was_asked_for_must_be_there(state: StateRepo, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no_state"):
        run(history, HELLO, "--repo", state.folder, "--state-dir", tmp_path / "none")


def test_a_file_and_the_short_name_of_an_instance(state: StateRepo) -> None:
    state.edit(INSTANCE, "apiVersion", "# a comment\napiVersion", "comment")
    file = run(history, INSTANCE, "--repo", state.folder)
    assert [line for line in file.output.splitlines() if line.startswith("    ")] == [
        "    comment",
        "    More memory for hello",
        "    Move hello to 1.1.0",
        "    The platform, one app and one instance",
        "    + added",
    ]
    short = run(history, "acme/research/hello", "--repo", state.folder)
    assert short.output.startswith(f"{HELLO}: 3 commits\n")


def test_removed_and_unreadable(state: StateRepo) -> None:
    state.repo.commit({INSTANCE: "kind: [hello\n"}, "break")
    state.repo.commit({INSTANCE: None}, "remove")
    lines = run(history, HELLO, "--repo", state.folder, "--limit", "2").output.splitlines()
    assert lines[0] == f"{HELLO}: 2 commits at least"
    assert lines[4] == "    - removed"
    assert f"    ! can't be read from here on: {INSTANCE}" in lines
    assert lines[-1] == "There may be more: --limit shows more."


def test_a_shallow_clone_says_so(state: StateRepo, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    state.repo.git("clone", "--quiet", "--depth", "1", state.folder.as_uri(), str(clone))
    lines = run(history, HELLO, "--repo", clone).output.splitlines()
    assert lines[-1] == (
        f"This clone is shallow: what was before {state.repo.head()[:12]} is not here. "
        "`git fetch --unshallow` brings it."
    )


def test_json(state: StateRepo, tmp_path: Path) -> None:
    kept = remember(tmp_path / "kept", ("running", state.repo.head(), ""))
    done = run(
        history, HELLO, "--repo", state.folder, "--state-dir", kept, "--limit", "1",
        "--format", "json",
    )  # fmt: skip
    found = done.document
    assert (found["format"], found["target"], found["end"]) == (
        "gpuaas.dev/history/v1", HELLO, "limit",
    )  # fmt: skip
    (commit,) = found["commits"]
    assert commit["revision"] == state.repo.head()
    assert commit["signature"] == "absent"
    assert commit["path"] == INSTANCE
    assert commit["fields"][0]["new"] == 0.5
    assert [event["type"] for event in commit["events"]] == ["apps.instance.running"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("acme/research/hallo", f"no_such_object: .*hallo is not there, .*did you mean {HELLO}"),
        ("App/helo", "no_such_object: App/helo is not there, .*did you mean App/hello"),
        ("AppInstnce/acme/research/hello", f"bad_object_name.*did you mean {HELLO}"),
        ("Node/a/b", "bad_object_name: .*a Node is named Node/name"),
        ("hello", "bad_object_name: .*tenant/project/name for an instance"),
        ("App/", "bad_object_name: .*an? App is named App/name"),
        (INSTANCE.replace("hello", "hallo"), f"no_such_object: .*did you mean {INSTANCE}"),
    ],
)
def test_names_that_nothing_answers_to(state: StateRepo, name: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        run(history, name, "--repo", state.folder)


def test_text_from_commits_does_nothing_to_a_terminal(state: StateRepo) -> None:
    state.edit(INSTANCE, "0.5", "0.25", "\x1b[2J[red]gone\u202e")
    output = run(history, HELLO, "--repo", state.folder).output
    assert [c for c in output if not c.isprintable() and c != "\n"] == []
    assert "[red]gone" in output
