"""`gpuaas events` on a store: which are shown, and that a part is not taken for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.events import events
from reconciler.core.names import InstanceKey
from reconciler.core.records import Event
from reconciler.ports import Changes
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.core.fleet import NOW_MS, REVISION

KEY = InstanceKey("acme/research/hello")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control plane's folder with five events in it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "state"
    with open_ports(Settings(state_dir=folder, repo=str(tmp_path), environment="dev")) as ports:
        happened = [
            Event(f"e{n}", "apps.instance.running", KEY, "c", REVISION, NOW_MS + n, {})
            for n in range(5)
        ]
        ports.store.commit(Changes(events=happened))
    return folder


def shown(state: Path, *args: str) -> tuple[list[int], str]:
    """The cursors that are printed, and what is said beside them."""
    given = ["--state-dir", str(state), "--repo", ".", "-e", "dev"]
    done: Result = CliRunner().invoke(events, [*args, *given], standalone_mode=False)
    assert done.return_value == 0, done.output
    return [int(line.split()[0]) for line in done.stdout.splitlines()], done.stderr


def test_all_of_them_and_nothing_to_add(state: Path) -> None:
    assert shown(state) == ([1, 2, 3, 4, 5], "")


def test_the_newest(state: Path) -> None:
    assert shown(state, "--last", "2") == ([4, 5], "")
    assert shown(state, "--last", "99") == ([1, 2, 3, 4, 5], "")


def test_a_part_is_said_to_be_one(state: Path) -> None:
    cursors, said = shown(state, "--limit", "2")
    assert cursors == [1, 2]
    assert said == "there may be more: --after 2 goes on, --last 50 shows the newest (5)\n"


def test_a_name_that_nothing_bears_is_not_met_with_silence(state: Path) -> None:
    assert shown(state, "--instance", "acme/research/helo") == (
        [],
        "no events of acme/research/helo here\n",
    )
