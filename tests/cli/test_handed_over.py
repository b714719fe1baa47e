"""`gpuaas unwrap`, `ssh-key` and the alarm in `status`, on real state folders and servers."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from structlog.testing import capture_logs

from reconciler.adapters.store_sql import SqlStore
from reconciler.cli.ssh_key import ssh_key
from reconciler.cli.status import status
from reconciler.cli.unwrap import unwrap
from reconciler.core.custody.paths import ssh_key_path, ssh_public_path
from reconciler.custody.ssh_keys import new_private_key, public_line
from reconciler.custody.wrap_mac import WrapMac
from reconciler.errors import Refused, Transient
from reconciler.ports import Changes, Secret, Wrapped
from reconciler.settings import Settings
from reconciler.use_cases.handover import token_for
from reconciler.wiring.ports import open_ports
from tests.core.test_ssh_access import LAB, PLACED, WEB, accepted
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.server.harness import Plane, running

Run = Callable[..., Result]
KEY = new_private_key()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """On a state folder where acme/lab has a key, version 1, and acme/web's is not made yet."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    store.commit(Changes(records=tuple(PLACED.values())))
    store.save_accepted(accepted({LAB: 1, WEB: 1}, users={"node-a": "tunnel"}))
    store.close()
    with open_ports(Settings(state_dir=folder)) as ports:
        ports.secrets.write(ssh_key_path(*LAB, 1), KEY)
        ports.secrets.write(ssh_public_path(*LAB, 1), Secret(public_line(KEY)))

    def invoke(command: Any, *arguments: str, given: str = "") -> Result:
        full = [*arguments, "--state-dir", str(folder)]
        return CliRunner().invoke(command, full, input=given, standalone_mode=False)

    return invoke


def refused(result: Result) -> str:
    assert isinstance(result.exception, Refused), result.exception
    return str(result.exception)


def test_a_key_from_hand_to_hand(run: Run, tmp_path: Path) -> None:
    handed = run(ssh_key, "acme/lab", "--to", "ada")
    assert handed.return_value == 0
    assert handed.stdout.startswith("gpuaas-h1.")
    assert handed.stderr.splitlines()[1:] == [
        "  gpuaas unwrap --server URL --out FILE",
        "Port p9001 of acme/lab/a, while this runs at 127.0.0.1:9001:",
        "  ssh -i FILE -N -L 9001:127.0.0.1:9001 tunnel@node-a",
    ]
    assert handed.stderr.startswith("The key of acme/lab, version 1, once, until 20")
    place = tmp_path / "lab"
    taken = run(unwrap, "--out", str(place), given=handed.stdout)
    assert (taken.return_value, taken.stdout) == (0, "")
    assert taken.stderr.replace("\n", "") == f"wrote {place}, for its owner alone"
    assert place.read_text() == KEY.reveal()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert load_ssh_private_key(place.read_bytes(), None)


def test_who_comes_second_is_told_and_so_is_everybody(run: Run, tmp_path: Path) -> None:
    token = run(ssh_key, "acme/lab").stdout
    (tmp_path / "token").write_text(token)
    first = run(unwrap, "--out", "-", "--token-file", str(tmp_path / "token"))
    assert first.stdout == KEY.reveal()
    with capture_logs() as lines:
        second = run(unwrap, "--out", "-", given=token)
    assert [(line["event"], line["log_level"]) for line in lines] == [("wrap_alarm", "error")]
    assert (second.return_value, second.stdout) == (4, "")
    assert second.stderr.startswith("error: ")
    assert "wrap_spent" in second.stderr
    assert "Somebody may have this secret. The alarm is raised" in second.stderr
    shown = run(status).stdout
    assert shown.startswith("ALARM 20")
    assert "ssh/acme/lab/v1: wrap_spent:" in shown
    assert "1 in the last day: change those secrets" in shown
    [alarm] = json.loads(run(status, "--format", "json").stdout)["alarms"]
    assert (alarm["object"], alarm["result"]) == ("ssh/acme/lab/v1", "wrap_spent")


def test_nothing_is_spent_for_what_can_not_be_kept(run: Run, tmp_path: Path) -> None:
    token = run(ssh_key, "acme/lab").stdout
    said = refused(run(unwrap, "--out", str(tmp_path / "none" / "key"), given=token))
    assert "not_written: there is no such folder to write in" in said
    assert "the token is still good" in said
    assert refused(run(unwrap, "--out", "-", given="guess")).startswith(
        "handover_malformed: this is no hand-over token"
    )
    asked = run(unwrap, given=token)
    assert str(asked.exception) == "Missing parameter: place"
    assert run(unwrap, "--out", "-", given=token).return_value == 0


def test_no_command_takes_a_token_as_an_argument() -> None:
    """Arguments are read by whoever lists processes."""
    assert [p.name for p in unwrap.params if "token" in (p.name or "")] == ["token_file"]
    assert [type(p).__name__ for p in unwrap.params].count("Argument") == 0


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("acme/web", "ssh_key_not_made: the key of acme/web is not made yet (a pass makes it; "),
        ("acme/lob", "no_such_project: no project acme/lob (did you mean acme/lab?)"),
        ("x", "no_such_project: no project x (name it as TENANT/PROJECT)"),
    ],
)
def test_keys_that_there_are_none_of(run: Run, project: str, said: str) -> None:
    assert refused(run(ssh_key, project)).startswith(said)


def test_a_project_that_asks_for_none(tmp_path: Path, run: Run) -> None:
    store = SqlStore.open(f"sqlite:///{tmp_path / 'state' / 'store.db'}")
    store.save_accepted(accepted({WEB: 1}))
    store.close()
    assert refused(run(ssh_key, "acme/lab")) == (
        "no_ssh_key: acme/lab asks for no SSH key "
        "(put ssh_key: {version: 1} into the spec of its project.yaml)"
    )
    store = SqlStore.open(f"sqlite:///{tmp_path / 'state' / 'store.db'}")
    store.save_accepted(accepted({}))
    store.close()
    assert "no project has a key" in run(ssh_key, "list").stderr


def test_the_list(run: Run) -> None:
    assert run(ssh_key, "list").stdout.splitlines() == [
        "acme/lab  version 1",
        "  node-a  tunnel@node-a  not known, it does not report",
        "    opens 127.0.0.1:9001",
        "  node-b  node-b  its manifest has no ssh_user: no key lets anybody in there",
        "    opens 127.0.0.1:9002",
        "acme/web  version 1",
        "  no instance of it is on any node",
    ]
    listed = json.loads(run(ssh_key, "list", "--format", "json").stdout)
    assert [(one["project"], [at["state"] for at in one["nodes"]]) for one in listed] == [
        ("acme/lab", ["unknown", "no_user"]),
        ("acme/web", []),
    ]
    handed = json.loads(run(ssh_key, "acme/lab", "--format", "json").stdout)
    assert handed["token"].startswith("gpuaas-h1.")
    assert handed["tunnels"][0]["instance"] == "acme/lab/a"


# --- from another host ---------------------------------------------------------------------------


@pytest.fixture
def plane() -> Iterator[Plane]:
    with running(MemoryStore()) as plane:
        yield plane


def a_token() -> str:
    """As another control plane hands it out."""
    clock = FakeClock()
    wrapped = Wrapped(Secret("hvs.x"), clock.now_ms() + 60_000)
    return token_for(WrapMac(FakeSecrets(clock), clock), "ssh/acme/lab/v1", wrapped).reveal()


def test_one_of_another_control_plane(run: Run, plane: Plane) -> None:
    server = str(plane.client.base_url)
    said = refused(run(unwrap, "--out", "-", "--server", server, given=a_token()))
    assert "handover_malformed: it was not handed out by this control plane, or was changed" in said


def test_over_http(run: Run, plane: Plane) -> None:
    plane.keys.write("ssh/acme/lab/v1", KEY)
    wrapped, macs = plane.keys.wrap("ssh/acme/lab/v1", 60), WrapMac(plane.keys, plane.clock)
    token, server = token_for(macs, "ssh/acme/lab/v1", wrapped).reveal(), str(plane.client.base_url)
    result = run(unwrap, "--out", "-", "--server", server, given=token)
    assert (result.return_value, result.stdout) == (0, KEY.reveal())
    with capture_logs():
        result = run(unwrap, "--out", "-", "--server", server, given=token)
    assert (result.return_value, result.stdout) == (4, "")
    assert "wrap_spent" in result.stderr
    plane.keys.failure = Transient("custody_sealed", "it is sealed")
    result = run(unwrap, "--out", "-", "--server", server, given=token)
    assert isinstance(result.exception, Transient)
    assert str(result.exception).endswith("/v1/unwrap: custody_sealed: it is sealed")


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("http://gpuaas.example", "secret_in_the_clear: a secret is not asked for over plain HTTP"),
        ("gpuaas.example", "bad_server: no address: 'gpuaas.example'"),
        ("https://ada:pw@gpuaas.example", "bad_server: no address: 'gpuaas.example'"),
    ],
)
def test_servers_that_are_not_asked(run: Run, server: str, said: str) -> None:
    token = a_token()
    assert said in refused(run(unwrap, "--out", "-", "--server", server, given=token))


def test_a_server_that_is_none(run: Run, plane: Plane) -> None:
    token = a_token()
    server = f"{plane.client.base_url}/elsewhere"
    said = refused(run(unwrap, "--out", "-", "--server", server, given=token))
    assert "not_found: there is nothing at this path" in said
    result = run(unwrap, "--out", "-", "--server", "http://127.0.0.1:1", given=token)
    assert "not_unwrapped: no answer (ConnectError)" in str(result.exception)
