"""What holds for a node as a whole: whose NodeConfig is believed, and what comes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from node_agent.authorized_keys import Installed
from node_agent.envelope import EnvelopeRefused
from node_agent.link import AgentKey
from node_agent.membership import NODE_CONFIG_TYPE, NodeConfig, SshKey
from node_agent.node_config import ConfigKeeper, believed
from node_agent.state import Identity, StateStore
from node_agent.wire import TASK_TYPE, ConfigSeen
from tests.agent.authority import Authority
from tests.agent.cases import NODE, NOW_MS, verifier

FIRST, SECOND, THIRD, STRANGER = (AgentKey.generate() for _ in range(4))
SSH = SshKey(user="ubuntu", id="acme/research/1", public_key="ssh-ed25519 AAAA")


def config(**changes: Any) -> NodeConfig:
    fields: dict[str, Any] = {
        "node": NODE,
        "issued_at_ms": NOW_MS,
        "verifiers": (verifier(FIRST, 1), verifier(SECOND, 2)),
    }
    return NodeConfig(**{**fields, **changes})


def identity(**changes: Any) -> Identity:
    """Of a node that knows versions 1 and 2, by a config in force."""
    fields: dict[str, Any] = {
        "node": NODE, "server": "https://127.0.0.1:1", "private_key": FIRST.reveal_private(),
        "verifiers": config().verifiers, "min_version": 1, "joined_at_ms": 0, "config": config(),
    }  # fmt: skip
    return Identity(**{**fields, **changes})


def sealed(what: NodeConfig, key: AgentKey = SECOND, payload_type: str = NODE_CONFIG_TYPE) -> bytes:
    return key.seal(what.canonical(), payload_type)


NEWER = (verifier(SECOND, 2), verifier(THIRD, 3))

REFUSED: dict[str, tuple[bytes, Identity, str]] = {
    "stranger": (sealed(config(), STRANGER), identity(), "unknown_key: signed by no key"),
    "by a key that it brings itself": (
        sealed(config(verifiers=NEWER), THIRD), identity(), "unknown_key: signed by no key",
    ),
    "by a retired key": (
        sealed(config(), FIRST), identity(min_version=2),
        "key_retired: signed with key version 1, too old",
    ),
    "a task": (
        sealed(config(), payload_type=TASK_TYPE), identity(), "wrong_type: expected",
    ),
    "no config": (
        SECOND.seal(b"{}", NODE_CONFIG_TYPE), identity(), "malformed: signed, but not a NodeConfig",
    ),
    "foreign": (
        sealed(config(node="n2")), identity(), "wrong_node: for node n2, this is n1",
    ),
    "future": (
        sealed(config(issued_at_ms=NOW_MS + 90_000)), identity(),
        "issued_in_future: issued 90 s ahead of our clock",
    ),
    "played again": (
        sealed(config(issued_at_ms=NOW_MS - 1)), identity(),
        "outdated: issued before the one in force",
    ),
    "a retired version once more": (
        sealed(config()), identity(min_version=2),
        "outdated: it would believe version 1 again, which was retired",
    ),
    "without the newest": (
        sealed(config(verifiers=(verifier(FIRST, 1),))), identity(),
        "outdated: its newest key, version 1, is older than one that is known",
    ),
    "with a CA that nobody can read": (
        sealed(config(ca="-----BEGIN CERTIFICATE-----")), identity(),
        "ca_malformed: the control plane gave no CA certificate as PEM",
    ),
    "with none that is good": (
        sealed(config(min_version=3)), identity(),
        "outdated: its newest key, version 2, is older than one that is known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_that_is_not_believed(case: str) -> None:
    raw, who, words = REFUSED[case]
    with pytest.raises(EnvelopeRefused) as refused:
        believed(raw, who, NOW_MS)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("before", [config(), None])
def test_one_that_goes_forwards_is_believed(before: NodeConfig | None) -> None:
    forwards = config(verifiers=NEWER, min_version=2, issued_at_ms=NOW_MS + 1, ssh_keys=(SSH,))
    assert believed(sealed(forwards), identity(config=before), NOW_MS) == forwards


class Clock:
    def now_ms(self) -> int:
        return NOW_MS


class Bench:
    def __init__(self, folder: Path) -> None:
        self.store = StateStore(folder, NOW_MS)
        self.store.save_identity(identity(config=None))
        self.installed: list[Sequence[SshKey]] = []
        self.error = ""
        self.told = threading.Semaphore(0)
        self.keeper = ConfigKeeper(self.store, Clock(), self.install, self.told.release)

    def install(self, keys: tuple[SshKey, ...]) -> Installed:
        self.installed.append(keys)
        return Installed(tuple(key.id for key in keys), self.error)

    def adopt(self, what: NodeConfig, key: AgentKey = SECOND) -> str:
        return self.keeper.adopt(json.loads(sealed(what, key)))

    @property
    def ca(self) -> str:
        identity = self.store.identity
        assert identity is not None
        return identity.ca

    def tellings(self) -> int:
        told = 0
        while self.told.acquire(blocking=False):
            told += 1
        return told


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_before_there_is_one_nothing_of_anybody_is_touched(bench: Bench) -> None:
    bench.keeper.bring_about()
    seen = bench.keeper.seen()
    assert (bench.keeper.digest, seen) == ("", ConfigSeen(newest_version=2, min_version=1))
    assert bench.installed == []


def test_adopted_it_is_on_disk_and_told_of(bench: Bench, tmp_path: Path) -> None:
    newer = config(verifiers=NEWER, min_version=2, ssh_keys=(SSH,))
    assert bench.adopt(newer) == ""
    stored = Identity.model_validate_json((tmp_path / "agent.json").read_bytes())
    retired = (verifier(FIRST, 1),)
    assert (stored.config, stored.verifiers) == (newer, (*retired, *NEWER))
    assert stored.min_version == 2
    seen = bench.keeper.seen()
    assert (seen.digest, seen.newest_version, seen.min_version) == (newer.digest, 3, 2)
    assert bench.keeper.digest == newer.digest
    assert bench.tellings() == 1


def test_its_keys_are_put_in_place_and_that_is_told_once(bench: Bench) -> None:
    bench.adopt(config(ssh_keys=(SSH,)))
    bench.tellings()
    for _ in range(3):
        bench.keeper.bring_about()
    assert bench.installed == [(SSH,)] * 3
    assert (bench.keeper.seen().ssh_keys, bench.tellings()) == (("acme/research/1",), 1)


def test_what_went_wrong_is_told(bench: Bench) -> None:
    bench.adopt(config(ssh_keys=(SSH,)))
    bench.error = "no user ubuntu here" + "!" * 600
    bench.keeper.bring_about()
    assert bench.keeper.seen().ssh_error.startswith("no user ubuntu here")
    assert len(bench.keeper.seen().ssh_error) == 500
    bench.error = ""
    bench.keeper.bring_about()
    assert bench.keeper.seen().ssh_error == ""


def test_refused_the_one_before_stays(bench: Bench) -> None:
    bench.adopt(config())
    assert bench.adopt(config(issued_at_ms=NOW_MS - 1)) == (
        "config_refused: outdated: issued before the one in force"
    )
    assert bench.keeper.digest == config().digest


def test_only_its_word_changes_whose_certificates_are_believed(bench: Bench) -> None:
    first, second = Authority("first").pem, Authority("second").pem
    bench.adopt(config(ca=first))
    assert bench.ca == first
    assert bench.adopt(config(ca=second), STRANGER).startswith("config_refused: unknown_key")
    assert bench.ca == first
    assert bench.adopt(config(issued_at_ms=NOW_MS + 1)) == ""
    assert bench.ca == first, "who names none means the same as before"
    assert bench.adopt(config(issued_at_ms=NOW_MS + 2, ca=second + first)) == ""
    assert bench.ca == second + first


def test_the_ca_is_part_of_what_it_says() -> None:
    assert config(ca=Authority().pem).digest != config().digest


def test_what_can_not_be_written_is_not_in_force(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.store, "save_identity", full)
    with pytest.raises(OSError, match="No space left"):
        bench.adopt(config())
    assert (bench.keeper.digest, bench.tellings()) == ("", 0)
