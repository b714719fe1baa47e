"""What is in use, looked at again: when, what is told of it, and who keeps whom waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from reconciler.artifact_ports import RegistryEndpoint
from reconciler.artifacts.recheck import AT_ONCE_MIN, Recheck
from reconciler.core.accept import AcceptedState
from reconciler.core.names import ArtifactKey, Digest, InstanceKey
from reconciler.core.observed import ArtifactSeen
from reconciler.core.records import State
from reconciler.core.trust.evidence import AHEAD_MS
from reconciler.errors import Refused, Transient
from reconciler.loop import Loop
from reconciler.ports import RECONCILER_LEASE
from tests.test_cycle import SCHEMAS, SETTINGS, World
from tests.test_trust_passes import (
    AWAY,
    DAY_MS,
    ENVIRONMENT,
    POLICY,
    Signed,
    artifact,
    codes,
    edited,
    kept,
    policy,
    recheck,
    registry,
    sign,
    state_of,
    told,
    trusted,
    trusting,
)


@pytest.fixture
def world() -> World:
    return trusting(Signed())


def test_what_is_in_use_is_looked_at_again_when_it_is_old(world: World) -> None:
    sign(world)
    world.converge()
    before = kept(world)
    world.clock.advance(DAY_MS // 2)
    assert not recheck(world)
    assert kept(world) == before
    world.clock.advance(DAY_MS // 2)
    assert not recheck(world)
    assert kept(world).checked_at_ms == world.clock.now_ms()
    assert [proof.first_seen_ms for proof in kept(world).proofs] == [
        proof.first_seen_ms for proof in before.proofs
    ]


def test_a_signature_that_is_gone_is_noticed_and_told(world: World) -> None:
    sign(world)
    world.converge()
    registry(world).attachments.clear()
    world.clock.advance(DAY_MS)
    assert recheck(world)
    assert told(world)[-1] == (str(artifact(world)), "no signature of a known key")
    done = world.run_pass()
    assert done.plan.empty
    assert trusted(world) == ("False", "Unsigned")


@pytest.mark.parametrize("gone", [False, True])
def test_a_registry_that_is_away_or_has_lost_it_changes_nothing(world: World, gone: bool) -> None:
    sign(world)
    world.converge()
    before = kept(world)
    world.clock.advance(DAY_MS)
    if gone:
        world.registry.delete(artifact(world))
    else:
        world.registry.failure = AWAY
    assert not recheck(world)
    assert kept(world) == before
    world.run_pass()
    assert trusted(world) == ("True", "Verified")


def test_one_that_is_refused_is_left_alone_for_a_while(world: World) -> None:
    sign(world)
    world.converge()
    world.clock.advance(DAY_MS)
    checking = Recheck(world.ports, SETTINGS)
    world.registry.failure = Refused("digest_mismatch", "other bytes")
    recheck(world, checking)
    world.registry.failure = None
    world.registry.looked_up.clear()
    recheck(world, checking)
    assert world.registry.looked_up == []
    world.clock.advance(11 * 60_000)
    recheck(world, checking)
    assert kept(world).checked_at_ms == world.clock.now_ms()


def test_what_ran_before_anything_was_asked_is_looked_at(world: World) -> None:
    found = yaml.safe_load(world.files[ENVIRONMENT])
    trust = found["spec"].pop("trust")
    world.commit(**{ENVIRONMENT: yaml.safe_dump(found).encode()})
    assert "trust_not_asked" in codes(world.converge())
    edited(world, ENVIRONMENT, trust=trust)
    world.run_pass()
    assert trusted(world) == ("", "")
    assert recheck(world)
    world.run_pass()
    assert trusted(world) == ("False", "Unsigned")
    assert world.record.state is State.RUNNING


def test_other_keys_have_everything_looked_at_again(world: World) -> None:
    sign(world)
    world.converge()
    other = ec.generate_private_key(ec.SECP256R1())
    sign(world, key=other)
    world.commit(**{POLICY: policy(more=other)})
    world.clock.advance(1)
    assert recheck(world)
    assert sorted(proof.key_id for proof in kept(world).proofs) == ["ci", "more"]


def many_of(world: World, *keys: ArtifactKey) -> AcceptedState:
    """As if there were an instance of each."""
    state = state_of(world)
    (one,) = state.instances.values()
    many = {}
    for number, key in enumerate(keys):
        world.registry.say(key)
        name = InstanceKey(f"acme/research/i{number}")
        many[name] = replace(one, key=name, artifact=key)
    world.registry.looked_up.clear()
    return replace(state, instances=many)


def test_only_a_few_have_their_turn_at_once(world: World) -> None:
    sign(world)
    world.converge()
    numbers = range(3 * AT_ONCE_MIN)
    at = artifact(world)
    many = many_of(world, *(replace(at, digest=Digest.of(b"%d" % n)) for n in numbers))
    Recheck(world.ports, SETTINGS).round(many, world.clock.now_ms())
    assert len(world.registry.looked_up) == AT_ONCE_MIN


def away() -> Exception:
    return Transient("registry_timeout", "no answer in 10 s")


class Failing(Signed):
    """Fails for some repositories, with one error."""

    def __init__(self, error: Callable[[], Exception], *repositories: str) -> None:
        super().__init__()
        self.error, self.repositories = error, repositories

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        found = super().look_up(endpoint, key)
        if key.repository in self.repositories:
            raise self.error()
        return found


OTHERS = [ArtifactKey(f"good/{number}", Digest.of(b"good")) for number in range(5)]


@pytest.mark.parametrize("error", [away, lambda: Refused("other_bytes", "no"), ValueError])
def test_one_that_never_answers_keeps_no_other_waiting(error: Callable[[], Exception]) -> None:
    world = trusting(Failing(error, "bad"))
    bad = [ArtifactKey("bad", Digest.of(b"%d" % number)) for number in range(2 * AT_ONCE_MIN)]
    state, checking = many_of(world, *bad, *OTHERS), Recheck(world.ports, SETTINGS)
    with capture_logs():
        for _ in range(4):
            checking.round(state, world.clock.now_ms())
            world.clock.advance(1)
    assert world.store.evidence([*bad, *OTHERS]).keys() == set(OTHERS)
    world.registry.looked_up.clear()
    world.clock.advance(600_000)
    with capture_logs():
        checking.round(state, world.clock.now_ms())
    assert world.registry.looked_up == sorted(bad)[:AT_ONCE_MIN]


def test_what_failed_comes_after_what_was_not_tried_yet() -> None:
    world = trusting(Failing(lambda: Refused("other_bytes", "no"), "bad"))
    bad = [ArtifactKey("bad", Digest.of(b"%d" % number)) for number in range(AT_ONCE_MIN)]
    checking = Recheck(world.ports, SETTINGS)
    checking.round(many_of(world, *bad), world.clock.now_ms())
    world.clock.advance(600_000)
    checking.round(many_of(world, *bad, *OTHERS), world.clock.now_ms())
    assert world.registry.looked_up[: len(OTHERS)] == OTHERS


def test_a_registry_that_is_away_is_not_asked_for_each_of_them() -> None:
    world = trusting(Failing(away, *(one.repository for one in OTHERS)))
    state = many_of(world, *OTHERS)
    Recheck(world.ports, SETTINGS).round(state, world.clock.now_ms())
    assert world.registry.looked_up == OTHERS[:3]


def test_what_was_looked_at_by_a_clock_that_was_ahead_is_looked_at_again(world: World) -> None:
    sign(world)
    world.converge()
    ahead_ms = world.clock.now_ms() + 10 * AHEAD_MS
    world.store.save_evidence([replace(kept(world), checked_at_ms=ahead_ms)])
    recheck(world)
    assert kept(world).checked_at_ms == world.clock.now_ms()


# --- in the loop ---------------------------------------------------------------------------------


def test_what_a_look_finds_changed_has_its_pass_at_once(world: World) -> None:
    sign(world)
    loop = Loop(world.ports, SETTINGS, SCHEMAS, "me", later=lambda *_: lambda: None)
    loop.check_evidence()
    for _ in range(3):
        loop.step(frozenset({"poll"}))
        world.agent.work(world.clock.now_ms())
    loop.wakeups.take(0)
    world.clock.advance(DAY_MS)
    world.registry.failure = AWAY
    loop.check_evidence()
    assert loop.wakeups.take(0) == frozenset()
    world.registry.failure = None
    registry(world).attachments.clear()
    loop.check_evidence()
    assert loop.wakeups.take(0) == frozenset()
    world.clock.advance(60_000)
    loop.check_evidence()
    assert loop.wakeups.take(0) == {"evidence"}
    world.clock.advance(DAY_MS)
    world.store.failure = Transient("store_busy", "locked")
    loop.check_evidence()
    assert loop.wakeups.take(0) == frozenset()


def test_who_stands_by_looks_at_nothing(world: World) -> None:
    sign(world)
    loop = Loop(world.ports, SETTINGS, SCHEMAS, "me", later=lambda *_: lambda: None)
    loop.step(frozenset({"poll"}))
    world.clock.advance(DAY_MS)
    world.store.lease(RECONCILER_LEASE, "other", world.clock.now_ms(), DAY_MS)
    loop.step(frozenset({"poll"}))
    registry(world).asked.clear()
    loop.check_evidence()
    assert registry(world).asked == []
