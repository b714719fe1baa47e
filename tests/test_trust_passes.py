"""Passes while artifacts are signed, keys revoked and registries away: what waits, what runs on."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from reconciler.artifact_ports import Attached, Document, RegistryEndpoint
from reconciler.artifacts.looking import look_anew
from reconciler.artifacts.recheck import Recheck
from reconciler.core.accept import AcceptedState
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.core.records import State
from reconciler.core.trust.evidence import Evidence
from reconciler.core.trust.judge import LOOK_AGAIN_MS
from reconciler.cycle import Pass, load
from reconciler.errors import Refused, Transient
from reconciler.use_cases import snapshot
from reconciler.use_cases.planning import look_now, plan_revision
from reconciler.use_cases.snapshot_form import document, parsed
from tests.fakes.registry import FakeRegistry
from tests.test_cycle import SCHEMAS, SETTINGS, World, make_world
from tests.test_secret_supplies import offline

ENVIRONMENT = "environments/dev.yaml"
POLICY = "platform/trust/artifacts.yaml"
ARTIFACT = "tenants/platform/projects/catalog/artifacts/hello/{version}/image.yaml"
PROMOTION = "catalog/hello/promotions/1.0.0.yaml"
REGISTRY = RegistryEndpoint("127.0.0.1:5000", plain_http=True)
AWAY = Transient("registry_timeout", "no answer in 10 s")
DAY_MS = 24 * 3600 * 1000
KEY = ec.generate_private_key(ec.SECP256R1())


class Signed(FakeRegistry):
    """Keeps what is attached, and says whose attachments it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.attachments: dict[ArtifactKey, list[Document]] = {}
        self.asked: list[ArtifactKey] = []

    def attach(self, endpoint: RegistryEndpoint, key: ArtifactKey, document: Document) -> str:
        self.attachments.setdefault(key, []).append(document)
        return str(Digest.of(document.content))

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        self.asked.append(key)
        if self.failure is not None:
            raise self.failure
        return Attached(tuple(self.attachments.get(key, ())))


def registry(world: World) -> Signed:
    assert isinstance(world.registry, Signed)
    return world.registry


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def policy(revoked: str = "", more: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    ci: dict[str, object] = {"id": "ci", "scheme": "ecdsa-p256", "public_key": pem(KEY)}
    if revoked:
        ci["revoked"] = {"at": "2026-01-02T03:04:05Z", "reason": revoked}
    keys = [ci]
    if more is not None:
        keys.append({"id": "more", "scheme": "ecdsa-p256", "public_key": pem(more)})
    rule = {"signature_required": True, "provenance_required": False}
    spec = {"signing_keys": keys, "channels": {"stable": rule, "beta": dict(rule)}}
    found = {"apiVersion": "gpuaas.dev/v1", "kind": "TrustPolicy",
             "metadata": {"name": "artifacts"}, "spec": spec}  # fmt: skip
    return yaml.safe_dump(found, sort_keys=False).encode()


def edited(world: World, path: str, **fields: object) -> None:
    found = yaml.safe_load(world.files[path])
    found["spec"].update(fields)
    world.commit(**{path: yaml.safe_dump(found, sort_keys=False).encode()})


@pytest.fixture
def world() -> World:
    return trusting(Signed())


def trusting(registry: Signed) -> World:
    """Everything has to be signed for the channel `stable`; nothing is."""
    made = make_world(registry)
    made.files[POLICY] = policy()
    edited(made, ENVIRONMENT, trust={"channel": "stable", "canary_channel": "beta"})
    return made


def artifact(world: World, version: str = "1.0.0") -> ArtifactKey:
    found = yaml.safe_load(world.files[ARTIFACT.format(version=version)])["spec"]
    return ArtifactKey.parse(f"{found['repository']}@{found['digest']}")


def sign(
    world: World,
    version: str = "1.0.0",
    key: ec.EllipticCurvePrivateKey = KEY,
    of: ArtifactKey | None = None,
) -> ArtifactKey:
    """As `cosign sign` does; what is not `of` a version's own image."""
    at = of or artifact(world, version)
    payload = json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": at.repository},
                "image": {"docker-manifest-digest": str(at.digest)},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    registry(world).attach(REGISTRY, at, Document("classic_signature", payload, signature))
    return at


def held(done: Pass) -> str:
    (action,) = done.plan.actions
    return action.held.code if action.held is not None else ""


def codes(done: Pass) -> list[str]:
    return [finding.code for finding in done.plan.findings]


def kept(world: World, version: str = "1.0.0") -> Evidence:
    key = artifact(world, version)
    return world.store.evidence([key])[key]


def trusted(world: World) -> tuple[str, str]:
    found = [(c.status, c.reason) for c in world.record.conditions if c.type == "Trusted"]
    return found[0] if found else ("", "")


def told(world: World) -> list[tuple[str, str]]:
    rows = (row.entry for row in world.store.audit())
    changed = [one for one in rows if one.action == "artifacts.evidence.changed"]
    return [(one.object, one.reason) for one in changed]


def state_of(world: World) -> AcceptedState:
    head = world.ports.source.fetch()
    return load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)


def recheck(world: World, one: Recheck | None = None) -> bool:
    checking = one or Recheck(world.ports, SETTINGS)
    return checking.round(state_of(world), world.clock.now_ms())


# --- launches ------------------------------------------------------------------------------------


def test_an_unsigned_image_is_held_and_launches_once_signed_without_a_commit(world: World) -> None:
    done = world.converge()
    assert done.summary.result == "stalled"
    assert held(done) == "unsigned"
    assert codes(done) == ["unsigned"]
    assert world.agent.launches == []
    sign(world)
    world.clock.advance(LOOK_AGAIN_MS)
    assert world.converge().summary.result == "done"
    assert world.record.state is State.RUNNING
    assert trusted(world) == ("True", "Verified")
    assert [proof.key_id for proof in kept(world).proofs] == ["ci"]
    at = str(artifact(world))
    assert told(world) == [(at, "no signature of a known key"), (at, "signature by ci")]


def test_somebody_elses_signature_lets_nothing_in(world: World) -> None:
    sign(world, key=ec.generate_private_key(ec.SECP256R1()))
    assert held(world.converge()) == "signature_not_trusted"
    sign(world)
    world.clock.advance(LOOK_AGAIN_MS)
    assert world.converge().summary.result == "done"


def test_what_is_not_good_is_not_asked_for_in_every_pass(world: World) -> None:
    for _ in range(5):
        assert held(world.run_pass()) == "unsigned"
    assert registry(world).asked == [artifact(world)]
    world.clock.advance(LOOK_AGAIN_MS)
    world.run_pass()
    assert registry(world).asked == [artifact(world)] * 2


def test_what_gpuaas_signed_is_looked_at_at_once(world: World) -> None:
    world.converge()
    look_anew(world.store, sign(world))
    assert world.converge().summary.result == "done"
    assert trusted(world) == ("True", "Verified")


class Crashing(Signed):
    """Meets a mistake of ours at some artifacts."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.crashes: set[ArtifactKey] = set()

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        if self.where == "look_up" and key in self.crashes:
            raise ValueError("a name is given twice in one object")
        return super().look_up(endpoint, key)

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        if self.where == "attached" and key in self.crashes:
            raise ValueError("a name is given twice in one object")
        return super().attached(endpoint, key)


@pytest.mark.parametrize("where", ["look_up", "attached"])
def test_a_mistake_of_ours_at_one_artifact_ends_no_pass(where: str) -> None:
    world = trusting(Crashing(where))
    sign(world)
    world.converge()
    crashing = world.registry
    assert isinstance(crashing, Crashing)
    crashing.crashes.add(sign(world, "1.1.0"))
    world.set_version("1.1.0")
    with capture_logs() as logs:
        assert held(world.run_pass()) == "internal"
    (line,) = logs
    assert (line["event"], line["artifact"]) == (
        "artifact_look_crashed", str(artifact(world, "1.1.0"))
    )  # fmt: skip
    assert trusted(world) == ("True", "Verified")


def test_a_plan_alone_keeps_nothing(world: World) -> None:
    sign(world)
    source = world.ports.source.snapshot(world.ports.source.fetch())
    plan = plan_revision(look_now(world.ports, SETTINGS), source, SCHEMAS, SETTINGS).plan
    assert [action.held for action in plan.actions] == [None]
    assert world.store.evidence([artifact(world)]) == {}


def test_kept_and_fresh_evidence_costs_one_look_up(world: World) -> None:
    sign(world)
    world.converge()
    seen = kept(world)
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    world.registry.looked_up.clear()
    registry(world).asked.clear()
    world.converge()
    assert set(world.registry.looked_up) == {artifact(world)}
    assert registry(world).asked == []
    assert kept(world) == seen


def test_a_registry_that_is_away_holds_what_is_new_and_nothing_else(world: World) -> None:
    sign(world)
    world.converge()
    sign(world, "1.1.0")
    world.set_version("1.1.0")
    world.registry.failure = AWAY
    done = world.run_pass()
    assert held(done) == "registry_timeout"
    assert world.record.applied_version == "1.0.0"
    assert trusted(world) == ("True", "Verified")
    assert "no_longer_trusted" not in codes(done)
    world.registry.failure = None
    assert world.converge().summary.result == "done"
    assert world.record.applied_version == "1.1.0"


def test_what_the_registry_serves_for_signatures_can_be_nonsense(world: World) -> None:
    at = artifact(world)
    registry(world).attach(REGISTRY, at, Document("bundle", b"\xff{", ""))
    assert held(world.converge()) in ("unsigned", "signature_not_trusted")


def test_what_needs_no_launch_asks_the_registry_nothing(world: World) -> None:
    sign(world)
    world.converge()
    world.registry.failure = Refused("must_not", "be asked")
    done = world.run_pass()
    assert done.summary.result == "done"
    assert done.plan.empty


def test_a_version_that_moves_on_is_asked_anew(world: World) -> None:
    edited(world, PROMOTION, state="canary", canary={"projects": ["acme/research"]})
    sign(world)
    world.converge()
    assert kept(world).asked == ("beta/canary",)
    found = yaml.safe_load(world.files[PROMOTION])
    del found["spec"]["canary"]
    found["spec"]["state"] = "active"
    world.commit(**{PROMOTION: yaml.safe_dump(found).encode()})
    recheck(world)
    assert kept(world).asked == ("stable/active",)


# --- what runs -----------------------------------------------------------------------------------


def test_a_key_revoked_in_git_marks_what_runs_and_blocks_what_is_new(world: World) -> None:
    sign(world)
    sign(world, "1.1.0")
    world.converge()
    world.commit(**{POLICY: policy(revoked="a laptop was lost")})
    done = world.run_pass()
    assert done.plan.empty
    assert codes(done) == ["no_longer_trusted"]
    assert trusted(world) == ("False", "KeyRevoked")
    assert world.record.state is State.RUNNING
    world.set_version("1.1.0")
    assert held(world.converge()) == "key_revoked"
    assert (world.record.state, world.record.applied_version) == (State.RUNNING, "1.0.0")
    world.commit(**{POLICY: policy()})
    assert world.converge().summary.result == "done"
    assert world.record.applied_version == "1.1.0"
    assert trusted(world) == ("True", "Verified")


def test_another_key_under_the_same_id_marks_what_runs_at_once(world: World) -> None:
    sign(world)
    world.converge()
    swapped = yaml.safe_load(world.files[POLICY])
    swapped["spec"]["signing_keys"][0]["public_key"] = pem(ec.generate_private_key(ec.SECP256R1()))
    world.commit(**{POLICY: yaml.safe_dump(swapped).encode()})
    world.run_pass()
    assert trusted(world) == ("False", "SignatureNotTrusted")


def test_a_digest_revoked_in_somebody_elses_place_says_nothing_of_ours(world: World) -> None:
    sign(world)
    world.converge()
    path = "tenants/acme/projects/research/artifacts/hello/1.0.0/image.yaml"
    for state in ("published", "revoked"):
        found = yaml.safe_load(world.files[ARTIFACT.format(version="1.0.0")])
        place = "gpuaas/apps/acme/research/hello"
        found["spec"].update(repository=place, state=state, visibility="project")
        world.commit(**{path: yaml.safe_dump(found).encode()})
        world.converge()
    assert "Artifact/acme/research/hello/1.0.0/image" in world.store.accepted().objects
    assert trusted(world) == ("True", "Verified")


def test_a_revoked_artifact_marks_what_runs_and_blocks_what_is_new(world: World) -> None:
    sign(world)
    world.converge()
    edited(world, ARTIFACT.format(version="1.0.0"), state="revoked")
    done = world.converge()
    assert trusted(world) == ("False", "ArtifactRevoked")
    assert {"no_longer_trusted", "quarantined"} <= set(codes(done))
    assert world.record.state is State.RUNNING
    assert done.plan.actions == ()
    assert world.agent.launches == [str(artifact(world).digest)]


def test_what_was_lost_is_not_brought_back_once_its_key_is_revoked(world: World) -> None:
    sign(world)
    world.converge()
    world.commit(**{POLICY: policy(revoked="lost")})
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    assert held(world.converge()) == "key_revoked"


def test_a_channel_that_nobody_rules_holds_launches_and_stops_nothing(world: World) -> None:
    sign(world)
    world.converge()
    edited(world, ENVIRONMENT, trust={"channel": "stabel"})
    done = world.run_pass()
    assert done.plan.actions == ()
    assert trusted(world) == ("False", "ChannelUnknown")
    assert [p["code"] for p in done.summary.findings if p["type"] == "problem"] == [
        "channel_unknown"
    ]
    world.set_version("1.1.0")
    assert held(world.run_pass()) == "channel_unknown"


# --- without us ----------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_a_snapshot_makes_the_same_plan(world: World, signed: bool) -> None:
    world.run_pass()
    if signed:
        sign(world)
    source = world.ports.source.snapshot(world.ports.source.fetch())
    live = plan_revision(look_now(world.ports, SETTINGS), source, SCHEMAS, SETTINGS).plan
    seen = offline(world)
    assert plan_revision(seen, source, SCHEMAS, SETTINGS).plan.plan_id == live.plan_id or not signed
    if not signed:
        found = plan_revision(seen, source, SCHEMAS, SETTINGS).plan
        assert [a.held.code for a in found.actions if a.held] == ["unsigned"]
        assert found.plan_id == live.plan_id


def test_a_snapshot_says_what_held_and_nothing_that_somebody_wrote(world: World) -> None:
    sign(world)
    registry(world).attach(REGISTRY, artifact(world), Document("bundle", b"canary-4711", ""))
    world.converge()
    taken = snapshot.take(world.ports, SETTINGS)
    written = json.dumps(document(taken))
    assert "canary-4711" not in written
    again = parsed(json.loads(written))
    known = taken.trust[artifact(world)]
    assert again.trust[artifact(world)] == replace(known, rejected=())


def test_a_snapshot_cannot_tell_what_other_keys_would(world: World) -> None:
    """A pull request that adds a key: whether it has signed, only the live registry knows."""
    world.converge()
    seen = offline(world)
    other = ec.generate_private_key(ec.SECP256R1())
    world.commit(**{POLICY: policy(more=other)})
    source = world.ports.source.snapshot(world.ports.source.fetch())
    (action,) = plan_revision(seen, source, SCHEMAS, SETTINGS).plan.actions
    assert action.held is not None
    assert action.held.code == "not_in_snapshot"


def test_a_snapshot_believes_nothing_that_was_checked_with_other_keys(world: World) -> None:
    sign(world)
    world.converge()
    seen = offline(world)
    world.commit(**{POLICY: policy(more=ec.generate_private_key(ec.SECP256R1()))})
    world.set_version("1.1.0")
    sign(world, "1.1.0")
    source = world.ports.source.snapshot(world.ports.source.fetch())
    plan = plan_revision(seen, source, SCHEMAS, SETTINGS)
    assert artifact(world) not in plan.observed.trust
    assert {a.held.code for a in plan.plan.actions if a.held} == {"not_in_snapshot"}


def test_a_snapshot_shows_what_a_revocation_under_review_would_hold(world: World) -> None:
    sign(world)
    sign(world, "1.1.0")
    world.converge()
    seen = offline(world)
    world.files[POLICY] = policy(revoked="lost")
    world.set_version("1.1.0")
    source = world.ports.source.snapshot(world.ports.source.fetch())
    plan = plan_revision(seen, source, SCHEMAS, SETTINGS).plan
    assert [a.held.code for a in plan.actions if a.held] == ["key_revoked"]
    assert "no_longer_trusted" in [finding.code for finding in plan.findings]
