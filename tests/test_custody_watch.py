"""What a control plane says of its Vault, and that no pass waits for it."""

from __future__ import annotations

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.custody.diff import Change, FieldDrift
from reconciler.core.schema import SchemaSet
from reconciler.custody.watch import CustodyWatch, Mended
from reconciler.devkit import state_repo
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.loop import Loop
from reconciler.ports import Ports
from reconciler.settings import Settings
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

DRIFT = Change("change", "role", "gpuaas-ci", (FieldDrift("token_ttl", "9h", "900s"),))
LOST = Change("create", "root", "gpuaas-pki")
STRANGE = Change("foreign", "role", "evil")
AWAY = Transient("custody_sealed", "it is sealed")
SHUT_OUT = Refused("custody_forbidden", "its policy does not let this login read x", hint="plan")


class Vault:
    """`holds` is what differs, or why nobody can look; mending leaves what needs a person."""

    def __init__(self, *holds: Change) -> None:
        self.holds = holds
        self.look_error: GpuaasError | None = None
        self.mend_error: GpuaasError | None = None
        self.mended = 0

    def look(self) -> tuple[Change, ...]:
        if self.look_error is not None:
            raise self.look_error
        return self.holds

    def mend(self) -> Mended:
        if self.mend_error is not None:
            raise self.mend_error
        done = tuple(change for change in self.holds if change == DRIFT)
        self.holds = tuple(change for change in self.holds if change != DRIFT)
        self.look_error = None
        self.mended += 1
        return Mended(done, self.holds)


def codes(watch: CustodyWatch) -> list[str]:
    return [finding.code for finding in watch.findings()]


def test_nothing_is_said_of_a_vault_that_is_as_it_should_be() -> None:
    vault = Vault()
    watch = CustodyWatch(vault.look, vault.mend)
    assert watch.check(leading=True, now_ms=1) == ()
    assert (watch.findings(), vault.mended) == ((), 0)


def test_drift_is_told_with_what_is_and_what_should_be() -> None:
    watch = CustodyWatch(Vault(DRIFT, LOST, STRANGE).look)
    watch.check(leading=True, now_ms=1)
    assert [(f.code, f.object, f.message) for f in watch.findings()] == [
        ("vault_drift", "role gpuaas-ci", "found → wanted: token_ttl: 9h → 900s"),
        ("vault_drift", "root gpuaas-pki", "it is not there"),
        (
            "vault_foreign",
            "role evil",
            "nobody declared it, and it is where only the control plane's things are",
        ),
    ]
    assert {f.level for f in watch.findings()} == {"info"}


def test_a_vault_that_is_away_has_not_drifted_and_what_was_known_stays() -> None:
    vault = Vault()
    vault.look_error = AWAY
    watch = CustodyWatch(vault.look, vault.mend)
    assert watch.check(leading=True, now_ms=1) == ()
    assert watch.findings() == ()

    vault.look_error, vault.holds = None, (LOST,)
    watch.check(leading=True, now_ms=2)
    known = watch.findings()
    vault.look_error, vault.holds = AWAY, ()
    watch.check(leading=True, now_ms=3)
    assert watch.findings() == known
    vault.look_error = None
    watch.check(leading=True, now_ms=4)
    assert watch.findings() == ()


def test_who_leads_mends_and_tells_the_audit() -> None:
    vault = Vault(DRIFT, STRANGE)
    watch = CustodyWatch(vault.look, vault.mend)
    assert watch.check(leading=False, now_ms=1) == ()
    assert codes(watch) == ["vault_drift", "vault_foreign"]
    (entry,) = watch.check(leading=True, now_ms=2)
    assert (entry.action, entry.object, entry.reason, entry.at_ms, entry.actor) == (
        "custody.vault.mended",
        "role gpuaas-ci",
        "token_ttl",
        2,
        "system",
    )
    assert codes(watch) == ["vault_foreign"]


def test_a_right_to_look_that_was_taken_away_is_told_and_given_back() -> None:
    vault = Vault(DRIFT)
    vault.look_error = SHUT_OUT
    alone = CustodyWatch(vault.look)
    alone.check(leading=True, now_ms=1)
    (finding,) = alone.findings()
    assert (finding.code, finding.message, finding.hint) == (
        "custody_forbidden",
        "its policy does not let this login read x",
        "plan",
    )
    mends = CustodyWatch(vault.look, vault.mend)
    assert len(mends.check(leading=True, now_ms=2)) == 1
    assert mends.findings() == ()


@pytest.mark.parametrize("error", [AWAY, SHUT_OUT])
def test_drift_that_can_not_be_mended_is_told_with_why(error: GpuaasError) -> None:
    vault = Vault(DRIFT)
    vault.mend_error = error
    watch = CustodyWatch(vault.look, vault.mend)
    assert watch.check(leading=True, now_ms=1) == ()
    assert codes(watch) == ["vault_drift", error.code]


def test_a_pass_tells_what_the_last_look_found_and_drift_holds_nothing_up() -> None:
    remote, store, clock = FakeRemote(), MemoryStore(), FakeClock()
    remote.push(state_repo.first_files())
    ports = Ports(FakeStateSource(remote), FakeRegistry(), FakeSecrets(), FakeCa(), store, clock)
    vault = Vault(DRIFT)
    watch = CustodyWatch(vault.look, vault.mend)
    schemas = SchemaSet.build(load_schemas())
    loop = Loop(ports, Settings(environment="dev"), schemas, "one", custody=watch)
    before = loop.step(frozenset({"poll"}))
    assert before is not None

    vault.mend_error = AWAY
    loop.check_custody()
    assert loop.wakeups.take(0) == {"custody"}
    done = loop.step(frozenset({"custody"}))
    assert done is not None
    told = [f for f in done.summary.findings if f["code"] == "vault_drift"]
    assert [(f["object"], f["type"]) for f in told] == [("role gpuaas-ci", "finding")]
    assert done.summary.result == before.summary.result
    last = store.last_pass()
    assert last is not None
    assert told[0] in last.findings

    vault.mend_error = None
    loop.check_custody()
    assert [row.entry.action for row in store.audit()][-1:] == ["custody.vault.mended"]
    after = loop.step(loop.wakeups.take(0))
    assert after is not None
    assert [f for f in after.summary.findings if f["code"] == "vault_drift"] == []
    loop.check_custody()
    assert loop.wakeups.take(0) == frozenset()
