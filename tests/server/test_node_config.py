"""What nodes are told of keys and tunnels, and when they are told nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from node_agent.envelope import unseal
from node_agent.membership import NODE_CONFIG_TYPE, NodeConfig
from reconciler.custody.signing import newest_verifier
from reconciler.custody.task_key import TaskKey
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import TASK_KEY
from reconciler.server.node_config import RETRY_MS, ROOT_FRESH_MS, NodeConfigs
from tests.fakes.ca import FakeCa
from tests.rotation_world import SEALED, SETTINGS, World, make_world


@pytest.fixture
def world() -> World:
    return make_world()


def test_nobody_is_told_anything_while_custody_is_away(world: World) -> None:
    configs = NodeConfigs(world.ports, SETTINGS)
    world.secrets.failure = SEALED
    assert configs("node-a", "") is None
    with pytest.raises(Transient, match="custody_sealed"):
        configs.seal(b"{}", "type")
    world.secrets.failure = None
    world.clock.advance(RETRY_MS)
    assert configs("node-a", "") is not None


def test_told_once_and_in_order(world: World) -> None:
    digest = world.agents["node-a"].config
    assert digest is not None
    assert world.configs("node-a", digest.digest) is None
    first = world.configs("node-a", "")
    assert first is not None
    assert world.configs("node-a", "") == first, "signed once for each form"
    world.secrets.rotate(TASK_KEY)
    world.clock.advance(-60_000)
    world.clock.advance(1_500)
    second = world.configs("node-a", digest.digest)
    assert second is not None
    issued = [_config(world, one).issued_at_ms for one in (first, second)]
    assert issued[0] < issued[1], "also when the clock is put back"
    assert [key.version for key in _config(world, second).verifiers] == [1, 2]


def test_who_can_not_be_asked_is_not_taken_for_nobody(world: World) -> None:
    """Tunnels that are open stay so while nobody can say whose they are."""

    def silent() -> dict[str, tuple[()]]:
        raise SEALED

    configs = NodeConfigs(world.ports, SETTINGS, silent)
    assert configs("node-a", "") is None


def test_signed_anew_with_what_is_left(world: World) -> None:
    """Another process retired the version that this one was about to sign with."""
    world.secrets.rotate(TASK_KEY)
    look = world.configs._looked()
    assert look is not None
    world.configs._look = replace(look, key=TaskKey(world.secrets, look.verifiers[0]))
    world.secrets.retire(TASK_KEY, 2)
    sealed = world.configs.seal(b"{}", "type")
    assert sealed["signatures"][0]["keyid"] == newest_verifier(world.secrets, TASK_KEY).key_id


def test_which_ca_to_believe(world: World) -> None:
    configs, root = NodeConfigs(world.ports, SETTINGS), world.ports.ca.root()
    assert _ca(world, configs) == root
    newer = FakeCa(world.clock)
    configs._ports = replace(world.ports, ca=newer)
    assert _ca(world, configs) == root, "it is asked once a minute"
    world.clock.advance(ROOT_FRESH_MS)
    newer.failure = SEALED
    assert _ca(world, configs) == root, "who is away takes nothing back"
    world.clock.advance(ROOT_FRESH_MS)
    newer.failure = None
    assert _ca(world, configs) == newer.root() + root, "the server may show either"
    world.clock.advance(ROOT_FRESH_MS)
    assert _ca(world, configs) == newer.root() + root


@pytest.mark.parametrize("failure", [SEALED, Refused("custody_forbidden", "may not")])
def test_a_ca_that_gives_no_answer_holds_nothing_up(world: World, failure: GpuaasError) -> None:
    ca = FakeCa(world.clock)
    ca.failure = failure
    configs = NodeConfigs(replace(world.ports, ca=ca), SETTINGS)
    assert _ca(world, configs) == "", "agents keep what they have"
    ca.failure = None
    world.clock.advance(ROOT_FRESH_MS)
    assert _ca(world, configs) == ca.root()


def _ca(world: World, configs: NodeConfigs) -> str:
    envelope = configs("node-a", "another")
    assert envelope is not None
    return _config(world, envelope).ca


def _config(world: World, envelope: object) -> NodeConfig:
    keys = world.secrets.verifier_keys(TASK_KEY)
    payload, _ = unseal(json.dumps(envelope).encode(), NODE_CONFIG_TYPE, keys)
    return NodeConfig.model_validate_json(payload)
