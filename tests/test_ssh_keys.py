"""SSH keys of projects in whole passes: made, told to nodes, rotated, deleted; custody away."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from node_agent.membership import SshKey
from node_agent.wire import ConfigSeen
from reconciler.core.custody.paths import ssh_key_path, ssh_public_path
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Observed
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, EnrolledNode, PassSummary
from reconciler.core.ssh_access import Doubt
from reconciler.custody.ssh_keys import (
    SshKept,
    SshMemo,
    keep_ssh_keys,
    new_private_key,
    public_line,
)
from reconciler.errors import GpuaasError, Transient
from reconciler.ports import Changes, Secret
from reconciler.server.ssh_keys import SshKeysSource
from tests.core.fleet import NOW_MS, REVISION, node
from tests.core.test_ssh_access import LAB, PLACED, accepted
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.test_cycle import World, make_world

SEALED = Transient("custody_sealed", "the custody is sealed", hint="unseal it")


class Fleet:
    """Two nodes that take what they are told when `report` is called for them."""

    def __init__(self) -> None:
        self.secrets, self.memo, self.passes = CountedSecrets(), SshMemo(), 0
        self.store = MemoryStore()
        self.source = SshKeysSource(self.store, self.secrets)
        self.configs = dict.fromkeys(("node-a", "node-b"), ConfigSeen())
        self.manifests, self.doubt = Accepted(), Doubt()
        self.store.commit(Changes(records=tuple(PLACED.values())))
        for number, name in enumerate(self.configs):
            self.store.add_join_token(name, name, NOW_MS + 1)
            self.store.redeem_join_token(name, name, f"{number:064x}", NOW_MS)
        self.want(1)

    def want(self, version: int | None) -> None:
        self.manifests = accepted({} if version is None else {LAB: version})
        self.store.save_accepted(self.manifests)

    def run_pass(self) -> SshKept:
        seen = node()
        assert isinstance(seen, Known)
        nodes = {
            name: Known(replace(seen.value, name=name, config=config))
            for name, config in self.configs.items()
        }
        self.passes += 1
        now_ms = NOW_MS + self.passes
        kept = keep_ssh_keys(
            self.secrets,
            self.manifests,
            PLACED,
            Observed(nodes=nodes),
            now_ms,
            self.memo,
            self.doubt,
        )
        summary = PassSummary("done", REVISION, now_ms, 1)
        self.store.commit(Changes(summary=summary))
        return kept

    def report(self, *names: str, error: str = "") -> None:
        told = self.source()
        for name in names or self.configs:
            ids = tuple(key.id for key in told.get(name, ()))
            self.configs[name] = ConfigSeen(ssh_keys=ids, ssh_error=error)
            said = json.dumps({"config": {"ssh_keys": ids}})
            number = (self.store.node(name) or EnrolledNode(name, "", 0)).report_seq + 1
            self.store.save_report(name, said, number, 0, NOW_MS)

    def told(self, name: str = "node-a") -> list[str]:
        return [key.id for key in self.source().get(name, ())]

    @property
    def pairs(self) -> list[str]:
        return [path for path in self.secrets.paths("ssh") if not path.endswith("/public")]


class CountedSecrets(FakeSecrets):
    """Remembers which paths were read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def read(self, path: str) -> Secret | None:
        self.asked.append(path)
        return super().read(path)

    def paths(self, prefix: str) -> tuple[str, ...]:
        self.asked.append(prefix)
        return super().paths(prefix)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def told(kept: SshKept) -> list[tuple[str, str, str]]:
    return [(entry.action, entry.object, entry.reason) for entry in kept.audit]


def test_made_once_and_told_to_nodes(fleet: Fleet) -> None:
    assert fleet.told() == []
    kept = fleet.run_pass()
    assert told(kept) == [("keys.ssh_key.created", "Project/acme/lab", "version 1")]
    private = fleet.secrets.secrets[ssh_key_path(*LAB, 1)]
    assert load_ssh_private_key(private.reveal().encode(), None)
    line = public_line(private)
    assert fleet.source()["node-a"] == (
        SshKey(user="tunnel", id="acme/lab/1", public_key=line, permit_open=("127.0.0.1:9001",)),
    )
    assert told(fleet.run_pass()) == []


def test_a_rotation_from_end_to_end(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.report()
    fleet.want(2)
    kept = fleet.run_pass()
    assert told(kept) == [("keys.ssh_key.created", "Project/acme/lab", "version 2")]
    assert [(f.code, f.object, f.message) for f in kept.findings] == [
        (
            "ssh_key_rotating",
            "Project/acme/lab",
            "version 2 of its SSH key is not on node-a, node-b yet: the one before goes on until "
            "it is",
        )
    ]
    assert fleet.told() == ["acme/lab/1", "acme/lab/2"]
    fleet.report("node-a")
    [finding] = fleet.run_pass().findings
    assert finding.message.startswith("version 2 of its SSH key is not on node-b yet")
    assert fleet.told() == ["acme/lab/1", "acme/lab/2"]
    fleet.report("node-b")
    assert fleet.run_pass().findings == ()
    assert fleet.told() == fleet.told("node-b") == ["acme/lab/2"]
    assert fleet.pairs == [ssh_key_path(*LAB, 1), ssh_key_path(*LAB, 2)]
    fleet.report()
    kept = fleet.run_pass()
    assert told(kept) == [("keys.ssh_key.deleted", "Project/acme/lab", "version 1")]
    assert fleet.secrets.paths("ssh") == (ssh_key_path(*LAB, 2), ssh_public_path(*LAB, 2))


def test_a_project_that_asks_for_none_any_more(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.report()
    fleet.want(None)
    assert told(fleet.run_pass()) == []
    assert fleet.told() == []
    fleet.report()
    assert told(fleet.run_pass()) == [("keys.ssh_key.deleted", "Project/acme/lab", "version 1")]
    fleet.want(1)
    fleet.run_pass()
    first = fleet.source()["node-a"][0].public_key
    assert first == public_line(fleet.secrets.secrets[ssh_key_path(*LAB, 1)])


def test_what_is_doubted_is_deleted_once_the_doubt_ends(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.want(None)
    fleet.report()
    broken = Problem("tenants/acme/projects/lab/project.yaml", 1, 1, "bad_yaml", "cut off", "",
                     "", "Project/acme/lab")  # fmt: skip
    fleet.doubt = Doubt((broken,))
    assert [told(fleet.run_pass()) for _ in range(2)] == [[], []]
    fleet.doubt = Doubt()
    assert told(fleet.run_pass()) == [("keys.ssh_key.deleted", "Project/acme/lab", "version 1")]


def test_custody_is_asked_only_when_something_changed(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.told()
    fleet.report()
    fleet.run_pass()
    fleet.told()
    fleet.secrets.asked.clear()
    for _ in range(3):
        fleet.run_pass()
        assert fleet.told() == ["acme/lab/1"]
    assert fleet.secrets.asked == []


def test_who_tells_nodes_reads_no_private_key(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.secrets.asked.clear()
    fleet.told()
    assert fleet.secrets.asked == [ssh_public_path(*LAB, 1)]


def test_while_custody_is_away_all_stays_as_it_is(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.told()
    fleet.report()
    fleet.want(2)
    fleet.secrets.failure = SEALED
    kept = fleet.run_pass()
    assert [(f.level, f.code, f.message, f.hint) for f in kept.findings if not f.object] == [
        ("info", "ssh_keys_wait", "SSH keys stay as they are: the custody is sealed", "unseal it")
    ]
    with pytest.raises(GpuaasError, match="sealed"):
        fleet.source()
    fleet.secrets.failure = None
    assert told(fleet.run_pass()) == [("keys.ssh_key.created", "Project/acme/lab", "version 2")]
    assert fleet.told() == ["acme/lab/1", "acme/lab/2"]


def test_without_any_key_custody_is_never_asked(fleet: Fleet) -> None:
    fleet.want(None)
    fleet.secrets.failure = SEALED
    assert fleet.run_pass() == SshKept()
    assert fleet.source() == {}


@pytest.mark.parametrize("half", ["", "/public"])
def test_what_a_crash_left_half_is_made_whole(fleet: Fleet, half: str) -> None:
    """A half of another pair must not end up beside the new one."""
    stale = new_private_key()
    value = Secret(public_line(stale)) if half else stale
    fleet.secrets.write(ssh_key_path(*LAB, 1) + half, value)
    assert told(fleet.run_pass()) == [("keys.ssh_key.created", "Project/acme/lab", "version 1")]
    private = fleet.secrets.secrets[ssh_key_path(*LAB, 1)]
    assert (private is stale) == (not half)
    assert fleet.source()["node-a"][0].public_key == public_line(private)


def test_what_a_node_could_not_install_is_told(fleet: Fleet) -> None:
    fleet.run_pass()
    fleet.report("node-a", error="user tunnel: there is no such user\x1b[2J on this host")
    [finding] = fleet.run_pass().findings
    assert (finding.level, finding.code, finding.object) == (
        "info", "ssh_keys_not_installed", "Node/node-a",
    )  # fmt: skip
    assert finding.message == "user tunnel: there is no such user\\x1b[2J on this host"


def test_a_store_that_was_lost_costs_no_key() -> None:
    """The project's manifest is broken just then: nothing says any more that it asks for a key."""
    path = "tenants/acme/projects/research/project.yaml"
    fresh: World = make_world()
    whole = fresh.files[path] + b"  ssh_key:\n    version: 1\n"
    pair = ssh_key_path("acme", "research", 1)
    fresh.ports.secrets.ensure(pair, new_private_key())
    fresh.ports.secrets.ensure(f"{pair}/public", Secret("ssh-ed25519 x"))
    first = fresh.ports.secrets.read(pair)
    # Another one does ask for a key, so that custody is looked through.
    other = whole.replace(b"name: research", b"name: second")
    fresh.commit(**{"tenants/acme/projects/second/project.yaml": other})
    fresh.commit(**{path: whole.replace(b"version: 1", b"version: one")})
    fresh.converge()
    assert fresh.ports.secrets.read(pair) == first
    fresh.commit(**{path: whole})
    fresh.converge()
    assert fresh.ports.secrets.read(pair) == first


def test_in_a_pass_of_the_control_plane() -> None:
    """The key is there, told of in the audit trail, and the fleet has converged."""
    world: World = make_world()
    path = "tenants/acme/projects/research/project.yaml"
    world.commit(**{path: world.files[path] + b"  ssh_key:\n    version: 1\n"})
    done = world.converge()
    assert done.summary.result == "done"
    owner = ("acme", "research")
    assert world.ports.secrets.seen(ssh_key_path(*owner, 1)) is not None
    actions = [row.entry.action for row in world.store.audit(0, 1000)]
    assert actions.count("keys.ssh_key.created") == 1
    assert InstanceKey("acme/research/hello") in world.store.records()
