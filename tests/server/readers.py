"""Two projects that know nothing of each other, and people with tokens to look at them."""

from __future__ import annotations

from dataclasses import replace

from node_agent.wire import Endpoint, Phase, WorkloadReport
from reconciler.core.authority.accounts import Subject
from reconciler.core.forms import to_stored
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import (
    Accepted,
    AuditEntry,
    Change,
    Condition,
    Event,
    InstanceRecord,
    PassSummary,
    State,
)
from reconciler.ports import Changes, Store
from reconciler.server.tokens import Tokens
from tests.core.authority.trust_builders import DEPLOYER, binding, identity, people, ssh
from tests.server.harness import NOW_MS, Agent, Keys, StillClock, settings_of

REVISION = Revision("a" * 40)
OWN, OWN_MEMBER = InstanceKey("acme/lab/notebook"), InstanceKey("acme/lab/notebook.w1")
BESIDE = InstanceKey("acme/lab-2/beside")
FOREIGN_KEY = InstanceKey("globex/vault/crown-jewels")
FOREIGN_WORDS = ("globex", "vault", "crown-jewels")
"""None of these may reach somebody of acme/lab."""
EVENTS_COUNT = 12


def record(key: InstanceKey, **fields: object) -> InstanceRecord:
    known = InstanceRecord(
        key=key,
        app="hello",
        org_id="org-1",
        project_id="project-1",
        node="node-1",
        state=State.RUNNING,
        epoch=1,
        correlation_id="c-1",
        revision=REVISION,
        target_version="1.0.0",
        target_hash="sha256:" + "b" * 64,
        target_digest="sha256:" + "c" * 64,
        endpoints=(Endpoint(name="web", container=80, host_ip="127.0.0.1", host_port=8080),),
        conditions=(Condition("Ready", "True", "Ready", "", REVISION, 5),),
    )
    return replace(known, **fields)  # type: ignore[arg-type]


def populate(store: Store) -> None:
    """Instances, events, a node, a pass and an audit trail of both projects."""
    waits = f"waits for GPUs or ports still held by {FOREIGN_KEY}, Allocation/globex/vault/big"
    held = Condition("Converged", "False", "ResourceInUse", waits, REVISION, 7)
    records = [
        record(OWN, conditions=(held,), change=Change(REVISION, NOW_MS - 5, "h"), message=waits),
        record(OWN_MEMBER, role="worker", state=State.FAILED, reason="exited", conditions=()),
        record(BESIDE),
        record(FOREIGN_KEY, node="node-1"),
    ]
    summary = PassSummary("waiting", REVISION, NOW_MS - 3_000, 1_000, 1, 1, blocked={"held": 1},
                          findings=({"code": "x", "message": waits},))  # fmt: skip
    store.commit(Changes(records=records, events=[*_events()], summary=summary))
    objects = people(
        identity("olga"),
        identity("eve"),
        identity("mallory", keys=[ssh("mallory"), ssh("lost", revoked={"at": "2020-01-01T00:00:00Z",
                                                                        "reason": "lost"})]),
        binding("ops", "viewer", "", "olga"),
        binding("vault", "viewer", "globex/vault", "mallory"),
    )  # fmt: skip
    stored = [to_stored(one, REVISION) for one in objects.values()]
    entry = AuditEntry(NOW_MS, "user/mallory", "user", "state.object.changed",
                       f"AppInstance/{FOREIGN_KEY}", after="sha256:" + "d" * 64)  # fmt: skip
    store.save_accepted(Accepted(REVISION, {one.ref: one for one in stored}), audit=[entry] * 3)
    _a_node(store)


def _events() -> list[Event]:
    keys = [OWN, FOREIGN_KEY, FOREIGN_KEY, OWN_MEMBER, FOREIGN_KEY, BESIDE]
    found = []
    for number in range(EVENTS_COUNT):
        key = keys[number % len(keys)]
        what, data = "running", {"node": "node-1"}
        if number >= len(keys):
            what, data = "failed", {"reason": "exited", "message": f"beside {FOREIGN_KEY}"}
        found.append(
            Event(f"e-{number}", f"apps.instance.{what}", key, "c-1", REVISION, NOW_MS, data)
        )
    return found


def _a_node(store: Store) -> None:
    agent = Agent("node-1")
    store.add_join_token("hash", "node-1", NOW_MS + 1)
    assert store.redeem_join_token("hash", "node-1", agent.public_key, NOW_MS) is not None
    workload = WorkloadReport(
        instance=FOREIGN_KEY, target_hash="h", running_hash="h", phase=Phase.READY
    )
    report = agent.make_report(workloads=(workload,)).model_dump_json()
    assert store.save_report("node-1", report, 1, 0, NOW_MS)


def token_of(store: Store, subject: str = "", key: str = "") -> dict[str, str]:
    """The header that `identity:NAME` or tenant/project/name sends."""
    tokens = Tokens(store, Keys(), StillClock(), settings_of())
    found = tokens.accounts.holder(Subject.parse(subject) or Subject("user", ""), NOW_MS)
    assert found is not None
    issued = tokens.issue(found[0], key or subject.partition(":")[2], None)
    return {"Authorization": f"Bearer {issued.access_token}"}


ADA, GRACE, NILS, OLGA, EVE, MALLORY = (
    f"identity:{name}" for name in ("ada", "grace", "nils", "olga", "eve", "mallory")
)
MACHINE = DEPLOYER
