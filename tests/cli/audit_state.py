"""A state directory with an audit trail, and `gpuaas audit` run on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from click.testing import CliRunner, Result

from reconciler.cli.audit import audit
from reconciler.core.records import AuditEntry
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports

HEAD = "a" * 40
AT_MS = 1_700_000_000_000
ENTRIES = (
    AuditEntry(
        AT_MS,
        "user/ada",
        "user",
        "state.project.created",
        "Project/acme/lab",
        after="h1",
        reason="New lab",
        revision=HEAD,
        key_id="SHA256:abc",
    ),
    AuditEntry(
        AT_MS + 1_000,
        "service_account/acme/lab/deployer",
        "service_account",
        "state.appinstance.changed",
        "AppInstance/acme/lab/hello",
        before="h1",
        after="h2",
        revision=HEAD,
        result="outside_own_project",
        via="forge",
    ),
    AuditEntry(AT_MS + 1_000, "system", "system", "state.revision.accepted", HEAD, revision=HEAD),
    AuditEntry(
        AT_MS + 2_000, "user/ada", "user", "apps.instance.launch", "AppInstance/acme/lab/hello"
    ),
    AuditEntry(
        AT_MS + 3_000, "user/bob", "user", "apps.instance.remove", "AppInstance/acme/labs/other"
    ),
)


def make_state(folder: Path) -> Path:
    """A control plane's folder with five rows in it."""
    folder = folder / "state"
    with open_ports(Settings(state_dir=folder)) as ports:
        ports.store.append_audit(ENTRIES)
    return folder


def run(state: Path, *args: str) -> Result:
    return CliRunner().invoke(audit, [*args, "--state-dir", str(state)], standalone_mode=False)


def said(state: Path, *args: str) -> tuple[int, str]:
    done = run(state, *args)
    assert done.exception is None, done.exception
    return done.return_value, done.stdout


def tamper(state: Path, *statements: str) -> None:
    with closing(sqlite3.connect(state / "store.db")) as raw:
        for statement in statements:
            raw.execute(statement)
        raw.commit()


def append(state: Path, *entries: AuditEntry) -> None:
    with open_ports(Settings(state_dir=state), make=False) as ports:
        ports.store.append_audit(entries)


def head(state: Path) -> tuple[int, str]:
    with open_ports(Settings(state_dir=state), make=False) as ports:
        return ports.store.audit_head()
