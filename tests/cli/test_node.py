"""`gpuaas node`: tokens for hosts, who joined, and how one is shut out or forgotten."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from node_agent.membership import JoinToken
from node_agent.wire import ConfigSeen
from reconciler.cli.node import node
from reconciler.core.names import InstanceKey
from reconciler.core.records import State
from reconciler.custody.wrap_mac import Given, WrapMac
from reconciler.errors import Refused, Transient
from reconciler.ports import Changes, Ports, Secret
from reconciler.settings import Settings
from reconciler.use_cases.nodes import finish_revocations, forget_node, revoke_node
from reconciler.wiring.ports import open_ports
from tests.contract.test_store import a_record, enrol
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.server.harness import Agent

HELLO = InstanceKey("acme/research/hello")


def run(folder: Path, *arguments: str) -> str:
    command = [*arguments, "--state-dir", str(folder)]
    done = CliRunner().invoke(node, command, standalone_mode=False, catch_exceptions=False)
    return done.stdout


@contextmanager
def ports_of(folder: Path) -> Iterator[Ports]:
    with open_ports(Settings(state_dir=folder)) as ports:
        yield ports


def joined(folder: Path, name: str = "node-a") -> Agent:
    agent = Agent(name)
    with ports_of(folder) as ports:
        enrol(ports.store, name, agent.public_key)
        issued = ports.ca.sign_agent(name, agent.csr(), 3600)
        ports.store.save_certificate(name, issued.serial, issued.not_after_ms)
        seen = ConfigSeen(digest="c0ffee" * 8, newest_version=1, min_version=1)
        report = agent.make_report(config=seen).canonical().decode()
        ports.store.save_report(name, report, 1, 0, ports.clock.now_ms())
    return agent


class TestJoin:
    def test_the_token_pins_the_ca_and_is_wrapped(self, tmp_path: Path) -> None:
        text = run(tmp_path, "join", "node-a").strip()
        token = JoinToken.model_validate_json(base64.urlsafe_b64decode(text))
        number, wrapping, ends_ms, mac = token.secret.split(":")
        with ports_of(tmp_path) as ports:
            root = ssl.PEM_cert_to_DER_cert(ports.ca.root())
            path = f"joins/node-a/{number}"
            given = Given(path, Secret(wrapping), int(ends_ms), mac)
            assert WrapMac(ports.secrets, ports.clock).holds(given)
            secret = ports.secrets.unwrap(Secret(wrapping), path).reveal()
            digest = hashlib.sha256(secret.encode()).hexdigest()
            now_ms = ports.clock.now_ms()
            (row,) = ports.store.audit()
            assert ports.store.redeem_join_token(digest, "node-a", "1" * 64, now_ms)
        assert (token.server, token.node) == ("https://127.0.0.1:8471", "node-a")
        assert token.ca_hash == hashlib.sha256(root).hexdigest()
        entry = row.entry
        assert (entry.action, entry.object, entry.requester_type) == (
            "secrets.wrap.create",
            path,
            "local",
        )

    def test_as_json(self, tmp_path: Path) -> None:
        arguments = ("--server", "https://plane.example:8471", "--ttl-s", "60")
        document = json.loads(run(tmp_path, "join", "node-a", *arguments, "--format", "json"))
        assert sorted(document) == ["expires_in_s", "node", "server", "token"]
        assert document["server"] == "https://plane.example:8471"
        assert document["expires_in_s"] == 60

    @pytest.mark.parametrize(
        ("url", "code", "message"),
        [
            (
                "http://10.0.0.7:8470",
                "insecure_server",
                "agents speak TLS only, and http://10.0.0.7:8470 is not",
            ),
            (
                "http://127.0.0.1:1",
                "insecure_server",
                "agents speak TLS only, and http://127.0.0.1:1 is not",
            ),
            ("ftp://x", "server_invalid", "not a URL to dial: ftp://x"),
            ("https://", "server_invalid", "not a URL to dial: https://"),
            ("https://[::1", "server_invalid", "not a URL to dial: https://[::1"),
            (
                "https://0.0.0.0:8471",
                "server_unknown",
                "https://0.0.0.0:8471 is every address of this host, and none that an agent could "
                "dial",
            ),
        ],
    )
    def test_a_server_that_no_agent_could_dial_in_safety(
        self, tmp_path: Path, url: str, code: str, message: str
    ) -> None:
        with pytest.raises(Refused) as refused:
            run(tmp_path, "join", "node-a", "--server", url)
        assert (refused.value.code, refused.value.message) == (code, message)

    def test_a_name_that_no_node_can_have(self, tmp_path: Path) -> None:
        with pytest.raises(Refused) as refused:
            run(tmp_path, "join", "Node/A")
        assert refused.value.code == "invalid_node_name"
        assert refused.value.message == "'Node/A' can't be a node's name"


class TestList:
    def test_what_is_known_of_each(self, tmp_path: Path) -> None:
        joined(tmp_path)
        with ports_of(tmp_path) as ports:
            enrol(ports.store, "node-b", "2" * 64)
        run(tmp_path, "revoke", "node-b", "--reason", "stolen [red]x")
        listed = run(tmp_path, "list").splitlines()
        assert listed[0].split("  ")[0] == "NODE"
        assert all(word in listed[2] for word in ("node-a", "0.1.0", " s ago", "c0ffeec0ffee "))
        assert all(word in listed[3] for word in ("node-b", "never", "none yet", "stolen [red]x"))
        document = json.loads(run(tmp_path, "list", "--format", "json"))
        assert document["format"] == "gpuaas.dev/nodes/v1"
        first, second = document["nodes"]
        assert (first["name"], first["agent_version"], first["revoked_at"]) == (
            "node-a",
            "0.1.0",
            None,
        )
        assert first["config_digest"] == "c0ffee" * 8
        assert first["certificate_ends_at"] > first["reported_at"]
        assert (second["revoked_reason"], second["certificate_ends_at"]) == ("stolen [red]x", None)

    def test_who_only_looks_makes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(Refused) as refused:
            run(tmp_path / "none", "list")
        assert refused.value.code == "no_state"


class TestRevoke:
    def test_from_then_on_nothing_is_believed(self, tmp_path: Path) -> None:
        joined(tmp_path)
        said = run(tmp_path, "revoke", "node-a", "--reason", "disk sold")
        assert said.endswith("node-a is revoked: nothing of it is believed any more\n")
        with ports_of(tmp_path) as ports:
            known = ports.store.node("node-a")
            assert known is not None
            assert known.revoked_reason == "disk sold"
            assert known.certificate_serial == ""
            entry = ports.store.audit()[-1].entry
            assert ports.store.take_requests() == ["node revoked"]
        assert (entry.action, entry.object, entry.reason) == (
            "fleet.node.revoked",
            "node-a",
            "disk sold",
        )
        assert entry.actor.startswith("local/")

    def test_a_node_that_never_joined(self, tmp_path: Path) -> None:
        joined(tmp_path)
        with pytest.raises(Refused) as refused:
            run(tmp_path, "revoke", "node-b", "--reason", "x")
        assert refused.value.code == "no_such_node"


@dataclass
class World:
    """Ports of fakes, and one node with a certificate."""

    ports: Ports
    ca: FakeCa
    secrets: FakeSecrets

    @classmethod
    def make(cls) -> World:
        clock = FakeClock()
        store, secrets, ca = MemoryStore(), FakeSecrets(clock), FakeCa(clock)
        unused: object = None
        ports = Ports(unused, unused, secrets, ca, store, clock)  # type: ignore[arg-type]
        enrol(store, "node-a", "1" * 64)
        issued = ca.sign_agent("node-a", Agent("node-a").csr(), 3600)
        store.save_certificate("node-a", issued.serial, issued.not_after_ms)
        return cls(ports, ca, secrets)

    def serial(self, name: str) -> str:
        node = self.ports.store.node(name)
        assert node is not None
        return node.certificate_serial


class TestTheCasList:
    def test_a_ca_that_is_away_is_asked_until_it_has_it(self) -> None:
        world = World.make()
        known = world.ports.store.node("node-a")
        assert known is not None
        world.ca.failure = Transient("custody_sealed", "sealed")
        assert not revoke_node(world.ports, "node-a", "stolen", "local/ada")
        assert not finish_revocations(world.ports)
        world.ca.failure = None
        assert finish_revocations(world.ports)
        assert world.ca.revoked() == (known.certificate_serial,)
        world.ca.failure = Transient("custody_sealed", "sealed")
        assert finish_revocations(world.ports)

    def test_one_that_is_refused_keeps_no_other_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World.make()
        store, revoke = world.ports.store, world.ca.revoke
        serials = {"node-a": world.serial("node-a")}
        for name in ("node-b", "node-c"):
            enrol(store, name, name[-1] * 64)
            issued = world.ca.sign_agent(name, Agent(name).csr(), 3600)
            store.save_certificate(name, issued.serial, issued.not_after_ms)
            serials[name] = issued.serial

        def fussy(serial: str) -> None:
            if serial in (serials["node-a"], serials["node-b"]):
                raise Refused("custody_malformed", "no such serial")
            revoke(serial)

        monkeypatch.setattr(world.ca, "revoke", fussy)
        for name in serials:
            store.revoke_node(name, "stolen", 1)
        with capture_logs() as lines:
            assert not finish_revocations(world.ports)
        assert world.ca.revoked() == (serials["node-c"],)
        told = [(line["event"], line["node"], line.get("code")) for line in lines]
        assert told == [
            ("certificate_not_revoked", "node-a", "custody_malformed"),
            ("certificate_not_revoked", "node-b", "custody_malformed"),
            ("certificate_revoked", "node-c", None),
        ]

    def test_a_certificate_that_has_ended_needs_no_list(self) -> None:
        world = World.make()
        world.ca.failure = Transient("custody_sealed", "sealed")
        assert not revoke_node(world.ports, "node-a", "stolen", "local/ada")
        clock = world.ports.clock
        assert isinstance(clock, FakeClock)
        clock.advance(3_600_000)
        assert finish_revocations(world.ports)

    def test_what_a_token_is_made_of_goes_with_it(self) -> None:
        world = World.make()
        for path in ("joins/node-a/1", "joins/node-ab/1"):
            world.secrets.write(path, Secret("x"))
        revoke_node(world.ports, "node-a", "stolen", "local/ada")
        assert world.secrets.paths("joins") == ("joins/node-ab/1",)

    def test_a_node_that_is_not_revoked_is_left_alone(self) -> None:
        world = World.make()
        assert finish_revocations(world.ports)
        assert world.ca.revoked() == ()


class TestForget:
    def test_it_is_as_if_it_had_never_joined(self, tmp_path: Path) -> None:
        joined(tmp_path)
        assert run(tmp_path, "forget", "node-a").endswith("node-a is forgotten\n")
        with ports_of(tmp_path) as ports:
            assert ports.store.nodes() == []
            entry = ports.store.audit()[-1].entry
        assert (entry.action, entry.object) == ("fleet.node.forgotten", "node-a")

    def test_not_while_instances_are_placed_there(self, tmp_path: Path) -> None:
        joined(tmp_path)
        keys = [InstanceKey(f"acme/research/app-{number}") for number in range(5)]
        placed = [a_record(key, node="node-a") for key in keys]
        elsewhere = a_record(HELLO, node="node-b")
        with ports_of(tmp_path) as ports:
            ports.store.commit(Changes(records=[*placed, elsewhere]))
        with pytest.raises(Refused) as refused:
            run(tmp_path, "forget", "node-a")
        assert str(refused.value) == (
            "node-a: node_in_use: acme/research/app-0, acme/research/app-1, acme/research/app-2 "
            "and 2 more placed there: nothing could be said of what runs on it any more (remove or "
            "move them with a commit first; for a host that is gone for good: "
            "--even-with-instances)"
        )
        run(tmp_path, "forget", "node-a", "--even-with-instances")
        with ports_of(tmp_path) as ports:
            assert ports.store.nodes() == []

    def test_what_is_proved_gone_holds_nothing(self) -> None:
        world = World.make()
        gone = a_record(HELLO, node="node-a", state=State.DECOMMISSIONED)
        world.ports.store.commit(Changes(records=[gone]))
        forget_node(world.ports, "node-a", "local/ada", even_with_instances=False)
        assert world.ports.store.nodes() == []
        assert len(world.ca.revoked()) == 1

    def test_a_node_that_never_joined(self, tmp_path: Path) -> None:
        joined(tmp_path)
        with pytest.raises(Refused) as refused:
            run(tmp_path, "forget", "node-b")
        assert refused.value.code == "no_such_node"
