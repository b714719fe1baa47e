"""`gpuaas access` on a real state folder: what can be pasted, what is hidden, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from node_agent.wire import MACHINE_IDENTITY, Endpoint
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.adapters.store_sql import SqlStore
from reconciler.cli.access import access
from reconciler.cli.common import local_actor
from reconciler.core.names import InstanceKey, secret_path
from reconciler.core.records import Accepted, AcceptedObject, Condition, InstanceRecord, State
from reconciler.errors import Refused
from reconciler.ports import Changes, Secret
from reconciler.views.access import instructions
from tests.core.fleet import REVISION, running, target

HELLO = InstanceKey("acme/research/hello")
VALUE = "hunter2-hunter2"
READY = Condition("Ready", "True", "Ready", "", REVISION, 1)
STARTING = Condition("Ready", "False", "Starting", "pulling the image", REVISION, 1)
TEMPLATE = "ssh -L 8888:127.0.0.1:{host_port} {node}\nhttp://127.0.0.1:8888/?token={secret:token}"
RECORD = replace(
    running(target()),
    endpoints=(Endpoint(name="http", container=8888, host_ip="127.0.0.1", host_port=20001),),
    access=TEMPLATE,
    secrets=("admin", MACHINE_IDENTITY, "token"),
    conditions=(READY,),
)
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command on a state folder with this record; `token` was made, `admin` was not."""

    def invoke(record: InstanceRecord, *arguments: str, address: str | None = None) -> Result:
        store = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
        store.commit(Changes(records=(record,)))
        node = json.dumps({"spec": {"address": address} if address else {}})
        accepted = AcceptedObject("Node/node-a", "platform/nodes/a.yaml", 1, node, REVISION)
        store.save_accepted(Accepted(REVISION, {"Node/node-a": accepted}))
        store.close()
        path = secret_path(record.node, HELLO, "token")
        LocalSecrets(tmp_path / "secrets").ensure(path, Secret(VALUE))
        command = [*(arguments or (HELLO,)), "--state-dir", str(tmp_path)]
        return CliRunner().invoke(access, command, standalone_mode=False)

    return invoke


def refused(result: Result) -> str:
    assert isinstance(result.exception, Refused)
    return str(result.exception)


def test_what_people_see(run: Run) -> None:
    result = run(RECORD)
    assert result.return_value == 0
    assert result.stderr == ""
    assert result.stdout == (
        "acme/research/hello on node-a is ready.\n"
        "\n"
        "ssh -L 8888:127.0.0.1:20001 node-a\n"
        "http://127.0.0.1:8888/?token=***\n"
        "\n"
        "Port http, while this runs at 127.0.0.1:8888:\n"
        "  ssh -N -L 8888:127.0.0.1:20001 node-a\n"
        "\n"
        "Secrets:\n"
        "  admin  ***  (handed over with --wrap)\n"
        "  token  ***  (handed over with --wrap)\n"
    )


def test_secrets_are_shown_to_who_asks_and_it_says_so(run: Run) -> None:
    result = run(RECORD, HELLO, "--show-secrets")
    assert f"http://127.0.0.1:8888/?token={VALUE}\n" in result.stdout
    assert f"  token  {VALUE}\n" in result.stdout
    assert "  admin  not made yet: it is when its node first asks for it\n" in result.stdout
    assert result.stderr == (
        "Secrets are shown below: keep them out of logs, tickets and screen shares.\n"
    )


@pytest.mark.parametrize("show", [False, True])
def test_as_json(run: Run, show: bool) -> None:
    result = run(RECORD, HELLO, "--format", "json", *(["--show-secrets"] if show else []))
    document: dict[str, Any] = json.loads(result.stdout)
    assert (VALUE in result.output) == show
    assert (document["ready"], document["reason"]) == (True, "")
    assert document["secrets"][1] == {
        "name": "token",
        "path": "/run/gpuaas/secrets/token",
        "reference": "",
        "shown": show,
        "value": VALUE if show else None,
        "hand_over": None,
    }


def trail(folder: Path) -> list[tuple[str, str, str]]:
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    rows = [(row.entry.actor, row.entry.action, row.entry.object) for row in store.audit()]
    store.close()
    return rows


def test_what_is_shown_is_in_the_audit_trail_and_looking_is_not(run: Run, tmp_path: Path) -> None:
    run(RECORD)
    assert trail(tmp_path) == []
    run(RECORD, HELLO, "--show-secrets")
    path = secret_path("node-a", HELLO, "token")
    assert trail(tmp_path) == [(local_actor(), "secrets.value.shown", path)]


def test_secrets_are_handed_over(run: Run, tmp_path: Path) -> None:
    result = run(RECORD, HELLO, "--wrap", "--to", "ada", "--ttl-s", "60", "--format", "json")
    assert VALUE not in result.output
    admin, token = json.loads(result.stdout)["secrets"]
    assert admin["hand_over"] == {"token": None, "expires_at": None}
    assert token["hand_over"]["token"].startswith("gpuaas-h1.")
    path = secret_path("node-a", HELLO, "token")
    assert trail(tmp_path) == [(local_actor(), "secrets.wrap.create", path)]
    text = run(RECORD, HELLO, "--wrap").stdout
    assert "  admin  not made yet: it is when its node first asks for it\n" in text
    [line] = [line for line in text.splitlines() if line.startswith("  token  gpuaas-h1.")]
    assert line.endswith("Z: gpuaas unwrap)")
    both = run(RECORD, HELLO, "--wrap", "--show-secrets")
    assert str(both.exception) == "give one of --wrap and --show-secrets"


def test_where_the_project_has_a_key_tunnels_go_to_its_user(run: Run, tmp_path: Path) -> None:
    run(RECORD)
    store = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    specs = {
        "Node/node-a": {"ssh_user": "tunnel"},
        "Project/acme/research": {"ssh_key": {"version": 1}},
    }
    objects = {
        ref: AcceptedObject(ref, "x.yaml", 1, json.dumps({"spec": spec}), REVISION)
        for ref, spec in specs.items()
    }
    store.save_accepted(Accepted(REVISION, objects))
    store.close()
    command = [HELLO, "--state-dir", str(tmp_path)]
    text = CliRunner().invoke(access, command, standalone_mode=False).stdout
    assert "  ssh -N -L 8888:127.0.0.1:20001 tunnel@node-a\n" in text
    assert (
        "Whoever has the project's key may open these tunnels, and nothing else:\n"
        "  gpuaas ssh-key acme/research\n"
    ) in text


def test_a_node_with_an_address_is_called_by_it(run: Run) -> None:
    result = run(RECORD, address="10.0.0.7")
    assert "\nssh -L 8888:127.0.0.1:20001 10.0.0.7\n" in result.stdout
    assert "  ssh -N -L 8888:127.0.0.1:20001 10.0.0.7\n" in result.stdout


def test_a_port_that_only_root_may_open_gets_another_here(run: Run) -> None:
    web = Endpoint(name="web", container=80, host_ip="::1", host_port=20002)
    result = run(replace(RECORD, access="", secrets=(), endpoints=(web,)))
    assert result.stdout.splitlines()[2:] == [
        "Port web, while this runs at 127.0.0.1:20002:",
        "  ssh -N -L 20002:[::1]:20002 node-a",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditions": (STARTING,)}, "not ready (Starting: pulling the image)"),
        ({"conditions": (), "state": State.DEPLOYING}, "not ready, it is deploying"),
        ({"state": State.DECOMMISSIONED}, "not there, it is decommissioned"),
    ],
)
def test_one_that_is_not_ready(run: Run, changes: dict[str, Any], said: str) -> None:
    result = run(replace(RECORD, endpoints=(), **changes))
    assert result.return_value == 2
    assert result.stdout.splitlines()[0] == f"acme/research/hello on node-a: {said}"
    assert "ssh" not in result.stdout


def test_an_instance_that_is_none(run: Run) -> None:
    assert refused(run(RECORD, "acme/research/helo")) == (
        "no_such_instance: no instance acme/research/helo (did you mean acme/research/hello?)"
    )
    assert refused(run(RECORD, "x")) == "no_such_instance: no instance x (see gpuaas status --all)"


@pytest.mark.parametrize("secrets", [(), (MACHINE_IDENTITY,)])
def test_one_without_secrets_but_its_own_identity(run: Run, secrets: tuple[str, ...]) -> None:
    assert refused(run(replace(RECORD, secrets=secrets), HELLO, "--show-secrets")) == (
        "no_secrets: acme/research/hello has no secrets "
        "(its version names none in runtime_profile.secrets that are made for it)"
    )


def test_a_secret_store_that_can_not_be_read(run: Run, tmp_path: Path) -> None:
    run(RECORD)
    (tmp_path / "secrets" / "key").write_bytes(b"not a key")
    said = refused(run_only(tmp_path))
    assert "secrets_key_wrong: it does not open with this key file" in said
    assert VALUE not in said


def run_only(folder: Path) -> Result:
    command = [HELLO, "--show-secrets", "--state-dir", str(folder)]
    return CliRunner().invoke(access, command, standalone_mode=False)


def test_where_no_control_plane_ever_ran(tmp_path: Path) -> None:
    assert "no_state: no control plane has kept its state here yet" in refused(run_only(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_no_template() -> None:
    """What looks like a placeholder in a value stays as it is."""
    record = replace(RECORD, access="{secret:token} {secret:admin} {node}")
    shown = instructions(record, values={"token": "{node}{secret:admin}", "admin": "\\1"})
    assert shown == "{node}{secret:admin} \\1 node-a"
    assert instructions(record) == "*** *** node-a"
