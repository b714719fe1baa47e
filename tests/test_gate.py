"""What a pass makes of signed commits: what counts, what is refused, and what goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import yaml

from reconciler.core.authority.facts import Signature
from reconciler.core.authority.public_key import ssh_public_key
from reconciler.core.names import Revision
from reconciler.core.records import AuditRow, State
from reconciler.core.times import time_text
from reconciler.cycle import Pass
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.gate import Gate
from reconciler.loop import Loop
from reconciler.settings import Settings
from tests.core.authority.trust_builders import Written, binding, identity, ssh
from tests.fakes.commit_log import FakeCommitLog
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, World, make_world

POLL, REPORT = frozenset({"poll"}), frozenset({"report"})
IAM = "platform/iam/people.yaml"
PEOPLE = (
    identity("ada"),
    identity("dev"),
    binding("admins", "platform-admin", "", "ada"),
    binding("operators", "app-operator", "acme/research", "dev"),
)


def key_of(name: str) -> str:
    return str(ssh(name)["public_key"])


def manifests(*written: Written) -> bytes:
    return yaml.safe_dump_all([document for _, document in written], sort_keys=False).encode()


class Signed:
    """A world whose commits are signed, and the loop that judges them."""

    def __init__(self, **settings: Any) -> None:
        self.world: World = make_world()
        self.log = FakeCommitLog(self.world.remote)
        self.settings = Settings(environment="dev", admin_keys=(key_of("ada"),), **settings)
        del self.world.remote.branches["main"]
        self.loop = self.start()
        self.commit("ada", **{IAM: manifests(*PEOPLE)})

    def start(self) -> Loop:
        ports = self.world.ports
        gate = Gate(ports.source, self.log, ports.clock, self.settings, SCHEMAS)
        return Loop(ports, self.settings, SCHEMAS, "one", walk=gate.walk)

    def commit(self, by: str, **replaced: bytes | None) -> Revision:
        self.world.commit(**replaced)
        head = self.world.remote.branches["main"]
        key = ssh_public_key(key_of(by)) if by else None
        self.log.signed[head] = Signature("good", key.key_id) if key else Signature("none")
        return head

    def version(self, by: str, version: str) -> Revision:
        text = self.world.files[INSTANCE].decode()
        old = '"1.0.0"' if '"1.0.0"' in text else '"1.1.0"'
        return self.commit(by, **{INSTANCE: text.replace(old, f'"{version}"').encode()})

    def converge(self) -> Pass:
        for _ in range(10):
            self.world.clock.advance(1_000)
            done = self.loop.step(POLL)
            assert done is not None
            if done.summary.result in ("done", "stalled"):
                return done
            self.world.agent.work(self.world.clock.now_ms())
        raise AssertionError("not converged")

    def codes(self, done: Pass) -> list[object]:
        return [finding["code"] for finding in done.summary.findings]

    def told(self) -> list[tuple[str, str, str]]:
        rows: list[AuditRow] = list(self.world.store.audit())
        return [(row.entry.actor, row.entry.action, row.entry.result) for row in rows]


@pytest.fixture
def signed() -> Signed:
    return Signed()


def test_a_signed_commit_counts_and_its_signer_is_kept(signed: Signed) -> None:
    assert signed.converge().summary.result == "done"
    accepted = signed.world.store.accepted()
    assert accepted.objects["AppInstance/acme/research/hello"].by == "user/admin key"
    signed.version("dev", "1.1.0")
    assert signed.converge().summary.result == "done"
    assert signed.world.record.applied_version == "1.1.0"
    accepted = signed.world.store.accepted()
    assert accepted.objects["AppInstance/acme/research/hello"].by == "user/dev"
    assert ("user/dev", "state.appinstance.changed", "done") in signed.told()
    assert ("user/dev", "apps.instance.replace", "done") in signed.told()


def test_an_unsigned_head_changes_nothing_while_repairs_go_on(signed: Signed) -> None:
    signed.converge()
    good = signed.world.remote.branches["main"]
    head = signed.version("", "1.1.0")
    done = signed.converge()
    assert done.summary.revision == good
    assert signed.codes(done) == ["commit_unsigned"]
    assert signed.world.record.applied_version == "1.0.0"
    signed.world.agent.reports.pop(HELLO)
    signed.world.agent.report(signed.world.clock.now_ms())
    repaired = signed.converge()
    assert (signed.world.record.state, signed.codes(repaired)) == (
        State.RUNNING,
        ["commit_unsigned"],
    )
    rejected = [row for row in signed.told() if row[1] == "state.revision.rejected"]
    assert rejected == [("system", "state.revision.rejected", "commit_unsigned")]
    signed.loop = signed.start()
    assert signed.codes(signed.converge()) == ["commit_unsigned"]
    assert [r for r in signed.told() if r[1] == "state.revision.rejected"] == rejected
    assert head not in str(signed.world.store.accepted().revision)


def test_what_its_signer_may_not_change_counts_as_not_made(signed: Signed) -> None:
    signed.converge()
    more = (*PEOPLE, binding("own", "platform-admin", "", "dev"))
    head = signed.commit("dev", **{IAM: manifests(*more)})
    done = signed.converge()
    assert (done.summary.revision, signed.codes(done)) == (head, ["change_not_allowed"])
    assert "RoleBinding/own" not in signed.world.store.accepted().objects
    signed.loop = signed.start()
    assert signed.codes(signed.converge()) == ["change_not_allowed"]
    signed.commit("ada", **{IAM: manifests(*PEOPLE)})
    assert signed.codes(signed.converge()) == []
    assert signed.world.store.accepted().refused == {}
    assert ("user/dev", "state.rolebinding.created", "change_not_allowed") in signed.told()


def test_a_rewritten_history_is_rejected(signed: Signed) -> None:
    signed.converge()
    last = signed.version("ada", "1.1.0")
    signed.converge()
    signed.world.remote.force_push(signed.world.files)
    rewritten = signed.world.remote.branches["main"]
    signed.log.signed[rewritten] = signed.log.signed[last]
    done = signed.converge()
    assert (done.summary.revision, signed.codes(done)) == (last, ["history_rewritten"])


def test_a_trust_root_that_is_named_anew_begins_again(signed: Signed) -> None:
    signed.converge()
    last = signed.world.remote.branches["main"]
    signed.world.remote.force_push(signed.world.files, "moved to another forge")
    root = signed.world.remote.branches["main"]
    signed.log.signed[root] = signed.log.signed[last]
    assert signed.codes(signed.converge()) == ["history_rewritten"]
    signed.settings = signed.settings.model_copy(update={"trust_root": str(root)})
    signed.loop = signed.start()
    assert signed.codes(signed.converge()) == []
    assert signed.world.store.accepted().revision == root


def test_the_trust_root_of_old_does_not_excuse_a_rewind(signed: Signed) -> None:
    first = signed.world.remote.branches["main"]
    signed.settings = signed.settings.model_copy(update={"trust_root": str(first)})
    signed.loop = signed.start()
    signed.converge()
    last = signed.version("ada", "1.1.0")
    signed.converge()
    signed.world.remote.branches["main"] = first
    fork = signed.commit("ada", **{"README.md": b"a branch from the trust root\n"})
    done = signed.converge()
    assert (done.summary.revision, signed.codes(done)) == (last, ["history_rewritten"])
    assert fork != last


def test_nothing_counts_before_somebody_is_named() -> None:
    signed = Signed()
    signed.settings = signed.settings.model_copy(update={"admin_keys": ()})
    signed.loop = signed.start()
    assert signed.loop.step(POLL) is None
    last = signed.world.store.last_pass()
    assert last is not None
    assert last.message == (
        "admin_keys: no_trust_root: nobody is named who may sign the first commit "
        '(gpuaas init --admin-key FILE makes both; signatures = "off" is for trying)'
    )


def test_a_first_commit_by_somebody_else_is_not_begun_with() -> None:
    signed = Signed()
    head = signed.world.remote.branches["main"]
    signed.log.signed[head] = replace(signed.log.signed[head], key="SHA256:other")
    assert signed.loop.step(POLL) is None
    last = signed.world.store.last_pass()
    assert last is not None
    assert "signer_unknown" in last.message
    assert signed.world.store.accepted().revision is None


def test_a_plan_of_a_rejected_revision_is_refused(signed: Signed) -> None:
    from reconciler.use_cases.planning import look_now, plan_revision

    signed.converge()
    head = signed.version("", "1.1.0")
    ports, settings = signed.world.ports, signed.settings
    source = ports.source.snapshot(ports.source.fetch())
    gate = Gate(ports.source, signed.log, ports.clock, settings, SCHEMAS)
    look = look_now(ports, settings, lambda last: gate.walk(head, last))
    with pytest.raises(Refused, match=r"commit_unsigned: the revision .* is rejected"):
        plan_revision(look, source, SCHEMAS, settings)


@pytest.mark.parametrize("family", [Refused, Transient])
def test_what_can_not_be_judged_here_and_now_stops_no_repair(
    signed: Signed, family: type[GpuaasError]
) -> None:
    """gpg is missing, or a disk is full: nobody's fault who signed, and tried again."""
    signed.converge()
    good = signed.world.remote.branches["main"]
    signatures, failure = signed.log.signatures, family("signature_program_missing", "no gpg")
    signed.log.signatures = raising(failure)  # type: ignore[method-assign]
    signed.version("dev", "1.1.0")
    signed.world.agent.reports.pop(HELLO)
    signed.world.agent.report(signed.world.clock.now_ms())
    done = signed.converge()
    assert (done.summary.revision, signed.codes(done)) == (good, ["signature_program_missing"])
    assert signed.world.record.state is State.RUNNING
    signed.log.signatures = signatures  # type: ignore[method-assign]
    assert signed.codes(signed.converge()) == []
    assert signed.world.record.applied_version == "1.1.0"


def test_a_key_that_ended_signs_nothing_whatever_the_date_says(signed: Signed) -> None:
    until = signed.world.clock.now_ms() + 3_600_000
    ended = identity("dev", keys=[ssh("dev", valid_until=time_text(until))])
    signed.commit("ada", **{IAM: manifests(PEOPLE[0], ended, *PEOPLE[2:])})
    signed.converge()
    signed.world.clock.advance(7_200_000)
    signed.loop.step(POLL)
    for _ in range(2):
        signed.version("dev", "1.1.0")
        done = signed.loop.step(POLL)
        assert done is not None
        assert "key_expired" in signed.codes(done)
        signed.loop = signed.start()


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


def test_nothing_is_read_of_what_nobody_signed(signed: Signed) -> None:
    signed.converge()
    head = signed.version("", "1.1.0")
    steps = signed.log.chain(signed.world.store.accepted().revision, head)
    signed.log.commits = lambda *_: [step.facts for step in steps]  # type: ignore[method-assign]
    signed.log.chain = raising(AssertionError("read"))  # type: ignore[method-assign]
    assert signed.codes(signed.converge()) == ["commit_unsigned"]
