"""`gpuaas secret` on a real state folder: what is written, told and refused, and never shown."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from node_agent.wire import MACHINE_IDENTITY
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.adapters.store_sql import SqlStore
from reconciler.cli.access import access
from reconciler.cli.secret import secret
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Accepted, AcceptedObject, AuditRow, InstanceRecord, State
from reconciler.errors import Refused
from reconciler.ports import Changes
from tests.core.fleet import REVISION, running, target

HF = "acme/research/hf-token"
ASKED = "hf-token=secret://project/hf-token"
VALUE = "hunter2-hunter2"
RECORD = replace(running(target()), secrets=(ASKED, MACHINE_IDENTITY, "token"))
ACTOR = f"local/{pwd.getpwuid(os.getuid()).pw_name}"
Run = Callable[..., Result]


def manifest(name: str, *, project: str = "research", **secrets: str) -> AcceptedObject:
    ref = f"AppInstance/acme/{project}/{name}"
    text = json.dumps({"spec": {"app": "hello", "secrets": secrets}})
    return AcceptedObject(ref, f"{name}.yaml", 1, text, Revision(REVISION))


def plain(ref: str) -> AcceptedObject:
    return AcceptedObject(ref, "x.yaml", 1, '{"spec": {}}', Revision(REVISION))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`hello` runs, `later` does not yet; both refer to the token, `later` to a license too."""
    hf, license_key = "secret://project/hf-token", "secret://tenant/license"
    objects = [
        plain("Tenant/acme"),
        plain("Project/acme/research"),
        plain("Project/acme/other"),
        manifest("hello", **{"hf-token": hf}),
        manifest("later", **{"hf-token": hf, "license": license_key}),
        manifest("far", project="other", **{"hf-token": hf}),
        manifest("none"),
    ]
    store = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    store.save_accepted(Accepted(REVISION, {one.ref: one for one in objects}))
    store.commit(Changes(records=(RECORD,)))
    store.close()
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    def invoke(*arguments: str, value: str | bytes | None = None) -> Result:
        command = [*arguments, "--state-dir", str(folder)]
        return CliRunner().invoke(secret, command, input=value, standalone_mode=False)

    return invoke


def kept(folder: Path, path: str = f"projects/{HF}") -> str | None:
    found = LocalSecrets(folder / "secrets").read(path)
    return found.reveal() if found is not None else None


def rows(folder: Path) -> list[AuditRow]:
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    try:
        return [*store.audit()]
    finally:
        store.close()


def requests(folder: Path) -> list[str]:
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    try:
        return [*store.take_requests()]
    finally:
        store.close()


def refused(result: Result) -> str:
    assert isinstance(result.exception, Refused), result.output
    return str(result.exception)


# --- set -----------------------------------------------------------------------------------------


def test_set_says_who_reads_it_and_wakes_the_control_plane(run: Run, folder: Path) -> None:
    result = run("set", HF, value=f"{VALUE}\n")
    assert result.return_value == 0, result.exception
    assert result.stdout == (
        "acme/research/hf-token is set, version 1\n"
        "  acme/research/hello on node-a reads it at its next start\n"
        "  acme/research/later refers to it, and nothing that reads it runs yet\n"
    )
    assert kept(folder) == VALUE
    assert requests(folder) == ["secret"]


def test_who_wrote_it_is_in_the_audit_trail_and_the_value_is_not(run: Run, folder: Path) -> None:
    run("set", HF, value=VALUE)
    (row,) = rows(folder)
    told = (row.entry.action, row.entry.actor, row.entry.requester_type, row.entry.object)
    assert told == ("secrets.value.written", ACTOR, "local", HF)
    assert (row.entry.before, row.entry.after, row.entry.result) == ("", "", "done")
    for file in folder.rglob("*"):
        assert not file.is_file() or VALUE.encode() not in file.read_bytes(), file


def test_the_actor_is_the_hosts_word(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    run("set", HF, value=VALUE)
    assert rows(folder)[0].entry.actor == ACTOR


def test_a_second_time_is_the_next_version(run: Run, folder: Path) -> None:
    run("set", HF, value="first")
    document = json.loads(run("set", HF, "--format", "json", value=VALUE).stdout)
    assert document == {
        "format": "gpuaas.dev/secret-change/v1",
        "name": HF,
        "reference": "secret://project/hf-token",
        "version": 2,
        "read_at_next_start_by": ["acme/research/hello"],
        "waited_for_by": ["acme/research/later"],
        "note": "",
    }
    assert kept(folder) == VALUE


def test_a_tenants_secret(run: Run, folder: Path) -> None:
    result = run("set", "acme/license", value=VALUE)
    assert result.stdout == (
        "acme/license is set, version 1\n"
        "  acme/research/later refers to it, and nothing that reads it runs yet\n"
    )
    assert kept(folder, "tenants/acme/license") == VALUE


@pytest.mark.parametrize(
    ("given", "options", "value"),
    [
        ("x\n", (), "x"),
        ("x\r\n", (), "x"),
        ("x\n\n", (), "x\n"),
        ("x\r", (), "x\r"),
        ("x\n", ("--keep-newline",), "x\n"),
        (" x ", (), " x "),
        ("ü\n", (), "ü"),
        ("k" * 64 * 1024 + "\n", (), "k" * 64 * 1024),
    ],
)
def test_one_newline_is_taken_off_unless_it_is_to_stay(
    run: Run, folder: Path, given: str, options: tuple[str, ...], value: str
) -> None:
    file = folder / "value"
    file.write_bytes(given.encode())
    assert run("set", HF, "--file", str(file), *options).return_value == 0
    assert kept(folder) == value
    assert run("set", HF, "--file", "-", *options, value=given.encode()).return_value == 0
    assert kept(folder) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "secret_empty: the value is empty (pass it on standard input, or with --file)"),
        (b"\n", "secret_empty: the value is empty (pass it on standard input, or with --file)"),
        (b"\xff\xfe", "secret_not_text: the value is not text in UTF-8"),
        (b"a\0b", "secret_not_text: the value is not text in UTF-8"),
        (b"k" * (64 * 1024 + 1), "secret_too_large: more than 65536 bytes"),
        (b"k" * 1024 * 1024, "secret_too_large: more than 64 KiB"),
    ],
)
def test_a_value_that_is_none(run: Run, folder: Path, given: bytes, said: str) -> None:
    assert said in refused(run("set", HF, value=given))
    assert (kept(folder), rows(folder), requests(folder)) == (None, [], [])


@pytest.mark.parametrize(
    "name", ["hf-token", "a/b/c/d", "acme/research/HF", "acme/../x", "/acme/x", "acme/x/", "a//b"]
)
def test_a_name_that_is_none(run: Run, name: str) -> None:
    assert refused(run("set", name, value=VALUE)) == (
        f"bad_secret_name: {name!r} names no secret "
        "(TENANT/PROJECT/NAME of a project's secret, TENANT/NAME of a tenant's; a-z, 0-9 and -)"
    )


def test_there_is_no_way_to_pass_a_value_as_an_argument(run: Run) -> None:
    assert isinstance(run("set", HF, VALUE).exception, click.UsageError)
    options = {option for param in secret.commands["set"].params for option in param.opts}
    assert not options & {"--value", "--secret", "--literal"}


def test_a_file_that_can_not_be_read(run: Run, folder: Path) -> None:
    said = refused(run("set", HF, "--file", str(folder / "none")))
    assert said == f"{folder / 'none'}: secret_unreadable: No such file or directory"


def test_a_project_that_is_not_accepted_may_be_a_typing_error(run: Run, folder: Path) -> None:
    result = run("set", "acme/reserch/hf-token", value=VALUE)
    assert result.return_value == 0
    assert result.stderr == (
        "note: no project acme/reserch is accepted yet; did you mean acme/research?\n"
    )
    assert kept(folder, "projects/acme/reserch/hf-token") == VALUE


# --- on a terminal -------------------------------------------------------------------------------


class Terminal:
    """What somebody types where it is not shown; `shows` for a terminal that can't hide it."""

    def __init__(self, *typed: str, shows: bool = False) -> None:
        self._typed = [*typed]
        self._shows = shows

    def getpass(self, prompt: str) -> str:
        assert prompt in ("Value: ", "Once more: ")
        if self._shows:
            warnings.warn("can not control echo", getpass.GetPassWarning, stacklevel=2)
        if not self._typed:
            raise EOFError
        return self._typed.pop(0)


def on(terminal: Terminal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(getpass, "getpass", terminal.getpass)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    command = ["set", HF, "--state-dir", str(folder)]
    return secret.main(command, standalone_mode=False)


def test_it_is_typed_twice_and_not_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on(Terminal(VALUE, VALUE), folder, monkeypatch) == 0
    assert kept(folder) == VALUE
    said = capsys.readouterr()
    assert VALUE not in said.out + said.err


@pytest.mark.parametrize(
    ("terminal", "said"),
    [
        (Terminal(VALUE, "other"), "secret_differs: the two values typed are not the same"),
        (Terminal("", ""), "secret_empty: the value is empty"),
        (
            Terminal(VALUE, VALUE, shows=True),
            "secret_would_show: this terminal would show what is typed "
            "(pass the value on standard input, or with --file)",
        ),
    ],
)
def test_refused_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal, said: str
) -> None:
    with pytest.raises(Refused) as refusal:
        on(terminal, folder, monkeypatch)
    assert said in str(refusal.value)
    assert VALUE not in str(refusal.value)
    assert kept(folder) is None


def test_who_goes_away_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.Abort):
        on(Terminal(VALUE), folder, monkeypatch)
    assert kept(folder) is None


# --- list ----------------------------------------------------------------------------------------


def test_list_shows_names_and_who_uses_them_and_what_is_missing(run: Run) -> None:
    run("set", HF, value=VALUE)
    run("set", "acme/research/unused", value=VALUE)
    result = run("list")
    assert VALUE not in result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["NAME", "VERSION", "CHANGED", "USED", "BY"]
    assert [(line[0], line[1]) for line in lines[1:]] == [
        ("acme/license", "not"),
        ("acme/other/hf-token", "not"),
        ("acme/research/hf-token", "1"),
        ("acme/research/unused", "1"),
    ]
    assert lines[3][-2:] == ["acme/research/hello", "acme/research/later"]
    assert lines[1][-1] == "acme/research/later"


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("acme/research", ["acme/research/hf-token"]),
        ("acme", ["acme/license", "acme/other/hf-token", "acme/research/hf-token"]),
        ("borealis", []),
        ("acme/res", []),
    ],
)
def test_list_of_a_project_or_tenant(run: Run, scope: str, names: list[str]) -> None:
    run("set", HF, value=VALUE)
    found = json.loads(run("list", scope, "--format", "json").stdout)
    assert found["format"] == "gpuaas.dev/secrets/v1"
    assert [one["name"] for one in found["secrets"]] == names
    if HF in names:
        (one,) = (one for one in found["secrets"] if one["name"] == HF)
        assert one.pop("changed_at_ms") > 0
        assert one == {
            "name": HF,
            "reference": "secret://project/hf-token",
            "version": 1,
            "used_by": ["acme/research/hello", "acme/research/later"],
        }


def test_list_of_nothing_and_of_what_is_no_scope(run: Run) -> None:
    assert run("list", "borealis").stdout == "There is no secret here.\n"
    assert refused(run("list", "a/b/c")) == (
        "bad_scope: 'a/b/c' names no project or tenant (TENANT or TENANT/PROJECT)"
    )


# --- delete --------------------------------------------------------------------------------------


def test_delete_is_refused_while_instances_refer_to_it(run: Run, folder: Path) -> None:
    run("set", HF, value=VALUE)
    assert refused(run("delete", HF)) == (
        "secret_in_use: acme/research/hf-token is referred to by acme/research/hello, "
        "acme/research/later "
        "(take the reference out first; with --force what runs keeps what it has read, "
        "and is not started again)"
    )
    assert kept(folder) == VALUE
    result = run("delete", HF, "--force")
    assert result.stdout == (
        "deleted acme/research/hf-token\n"
        "  acme/research/hello still refers to it\n"
        "  acme/research/later still refers to it\n"
    )
    assert kept(folder) is None
    assert [row.entry.action for row in rows(folder)] == [
        "secrets.value.written",
        "secrets.value.deleted",
    ]


def test_delete_of_one_that_nobody_uses(run: Run, folder: Path) -> None:
    run("set", "acme/research/unused", value=VALUE)
    document = json.loads(run("delete", "acme/research/unused", "--format", "json").stdout)
    assert (document["deleted"], document["used_by"]) == (True, [])
    assert refused(run("delete", "acme/research/unused")) == (
        "no_such_secret: there is no secret acme/research/unused (see gpuaas secret list)"
    )


def test_delete_of_one_that_is_misspelt(run: Run) -> None:
    run("set", HF, value=VALUE)
    assert refused(run("delete", "acme/research/hf-tokn")) == (
        "no_such_secret: there is no secret acme/research/hf-tokn "
        "(did you mean acme/research/hf-token?)"
    )


def test_what_a_former_version_read_still_counts_as_used(run: Run, folder: Path) -> None:
    """Its node may have to go back to that version."""
    record: InstanceRecord = replace(RECORD, secrets=("old=secret://project/old",))
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    store.commit(Changes(records=(record,)))
    run("set", "acme/research/old", value=VALUE)
    said = refused(run("delete", "acme/research/old"))
    assert said.startswith("secret_in_use: acme/research/old is referred to by acme/research/hello")
    store.commit(Changes(records=(replace(record, state=State.DECOMMISSIONED),)))
    store.close()
    assert run("delete", "acme/research/old").return_value == 0


@pytest.mark.parametrize("command", [("set", HF), ("list",), ("delete", HF)])
def test_where_no_control_plane_ever_ran(tmp_path: Path, command: tuple[str, ...]) -> None:
    arguments = [*command, "--state-dir", str(tmp_path)]
    result = CliRunner().invoke(secret, arguments, input=VALUE, standalone_mode=False)
    assert "no_state: no control plane has kept its state here yet" in refused(result)
    assert list(tmp_path.iterdir()) == []


# --- elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--format", "json")])
def test_access_shows_the_reference_and_never_the_value(
    run: Run, folder: Path, options: tuple[str, ...]
) -> None:
    run("set", HF, value=VALUE)
    command = [InstanceKey("acme/research/hello"), "--state-dir", str(folder), *options]
    result = CliRunner().invoke(access, command, standalone_mode=False)
    assert VALUE not in result.output
    if not options:
        assert "  token     ***  " in result.stdout
        assert "  hf-token  secret://project/hf-token\n" in result.stdout
        return
    own, referred = json.loads(result.stdout)["secrets"]
    assert (own["name"], own["reference"]) == ("token", "")
    assert (referred["name"], referred["reference"]) == ("hf-token", "secret://project/hf-token")
    assert (referred["shown"], referred["value"]) == (False, None)
