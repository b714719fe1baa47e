"""What instances refer to: whose it is, what is launched with it, and what waits for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from node_agent.wire import SecretFile
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.actions import Held, Launch, Replace
from reconciler.core.custody.paths import asked_for, referred_path
from reconciler.core.custody.referred import name_of, owner_of, referred_by, secret_hold
from reconciler.core.desired import Instance, Target
from reconciler.core.lifecycle import begin
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Observed, Seen, Unknown
from reconciler.core.plan.compute import compute_plan
from reconciler.core.resolve import resolve
from reconciler.core.schema import SchemaSet
from tests.core import builders as b
from tests.core import fleet
from tests.core.spread import HEAD, profile_of, spread

OWNER = ("acme", "research")
HF = SecretFile(name="hf-token", source="secret://project/hf-token", env="HF_TOKEN")
LICENSE = SecretFile(name="license", source="secret://tenant/license")
OWN = SecretFile(name="token")
PATH = "projects/acme/research/hf-token"
OTHER = "projects/acme/research/other"


def resolved(**bound: str) -> dict[InstanceKey, Instance]:
    documents = b.world()
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    profile["secrets"] = [
        {"name": "hf-token", "source": "reference", "env": "HF_TOKEN"},
        {"name": "token"},
        {"name": "license", "source": "reference"},
    ]
    documents[b.INSTANCE_FILE]["spec"]["secrets"] = bound
    return dict(resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).instances)


def test_an_instance_has_its_references_in_place() -> None:
    bound = {"hf-token": HF.source, "license": LICENSE.source}
    (one,) = resolved(**bound).values()
    assert one.secrets == (HF, OWN, LICENSE)
    assert referred_by(one) == {PATH: HF.source, "tenants/acme/license": LICENSE.source}
    assert referred_by(replace(one, run="decommissioned")) == {}


def test_without_its_references_it_does_not_resolve() -> None:
    assert resolved(license=LICENSE.source) == {}


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("secret://project/hf-token", PATH),
        ("secret://tenant/license", "tenants/acme/license"),
        ("secret://acme/other/hf-token", None),
        ("secret://project/other/hf-token", None),
        ("secret://project/../other/hf-token", None),
        ("secret://project/..", None),
        ("secret://project/HF", None),
        ("secret://project/x\n", None),
        ("secret://platform/x", None),
        ("projects/acme/other/x", None),
        ("", None),
    ],
)
def test_a_reference_leads_into_the_own_project_and_tenant_alone(
    reference: str, path: str | None
) -> None:
    assert referred_path(reference, OWNER) == path


@pytest.mark.parametrize("secret", [HF, LICENSE, OWN])
def test_what_is_asked_for_says_both(secret: SecretFile) -> None:
    assert asked_for(secret.asked) == (secret.name, secret.source)


def test_a_member_has_the_owner_of_its_instance() -> None:
    assert owner_of(InstanceKey("acme/research/hello.worker-1")) == OWNER
    assert name_of(PATH) == "acme/research/hf-token"


@pytest.mark.parametrize(
    "value",
    [
        "secret://acme/other/hf-token", "secret://project/../x", "secret://project/-x", "hunter2",
        "vault://kv/x", "secret://project/x/y", "SECRET://project/x",
    ],
)  # fmt: skip
def test_another_grammar_is_refused_and_never_quoted(value: str) -> None:
    document = b.world()[b.INSTANCE_FILE]
    document["spec"]["secrets"] = {"hf-token": value}
    (found,) = SchemaSet.build(load_schemas()).problems("AppInstance", document)
    assert (found.code, found.pointer) == ("secret_reference_refused", "/spec/secrets/hf-token")
    assert found.message == "what stands here is no secret that this instance may refer to"
    assert found.hint == (
        "secret://project/NAME of its own project or secret://tenant/NAME of its tenant; "
        "those of others can't be named, and a value never stands here"
    )
    assert value not in json.dumps([found.message, found.hint])


# --- what waits ----------------------------------------------------------------------------------

MISSING = Held(
    "secret_missing",
    "there is no secret://project/hf-token yet: gpuaas secret set acme/research/hf-token",
)
SEALED = Held(
    "secret_unknown",
    "secret://project/hf-token (acme/research/hf-token): custody_sealed: Vault is sealed",
)
NOT_ASKED = Held(
    "secret_unknown",
    "secret://project/hf-token (acme/research/hf-token): not_observed: it was not looked for",
)
SEEN: list[tuple[dict[str, Seen[bool]], Held | None]] = [
    ({PATH: Known(True)}, None),
    ({PATH: Known(False)}, MISSING),
    ({PATH: Unknown("custody_sealed", "Vault is sealed")}, SEALED),
    ({}, NOT_ASKED),
    ({"projects/acme/other/hf-token": Known(True)}, NOT_ASKED),
]


def referring(version: str = "1.0.0") -> Target:
    target = fleet.target(version=version)
    workload = target.workload.model_copy(update={"secrets": (HF,)})
    return Target(replace(target.instance, secrets=(HF, OWN)), workload)


def planned(target: Target, observed: Observed, **secrets: Any) -> Any:
    records = secrets.pop("records", {})
    return compute_plan(fleet.desired(target), observed, records, (), fleet.NOW_MS)


@pytest.mark.parametrize(("secrets", "held"), SEEN)
def test_a_launch_waits_for_its_secrets(secrets: dict[str, Seen[bool]], held: Held | None) -> None:
    target, observed = referring(), replace(fleet.observed(), secrets=secrets)
    assert secret_hold(target.instance, observed) == held
    (action,) = planned(target, observed).actions
    assert isinstance(action, Launch)
    assert action.held == held


def test_what_runs_is_left_alone_whatever_becomes_of_its_secret() -> None:
    target = referring()
    for secrets, _ in SEEN:
        observed = replace(fleet.observed(fleet.report(target)), secrets=secrets)
        plan = planned(target, observed, records=fleet.inventory(fleet.running(target)))
        assert plan.actions == ()


def test_an_upgrade_waits_and_the_old_one_runs_on() -> None:
    old, new = fleet.target(), referring("1.1.0")
    observed = replace(fleet.observed(fleet.report(old)), secrets={PATH: Known(False)})
    plan = planned(new, observed, records=fleet.inventory(fleet.running(old)))
    (action,) = plan.actions
    assert isinstance(action, Replace)
    assert action.held == MISSING


def test_a_move_waits_before_anything_is_removed() -> None:
    here = referring()
    there = Target(replace(here.instance, node="node-b"), here.workload)
    observed = replace(
        fleet.observed(fleet.report(here)),
        nodes={"node-a": fleet.node(fleet.report(here)), "node-b": fleet.node(name="node-b")},
        secrets={PATH: Known(False)},
    )
    desired = fleet.desired(there, nodes=frozenset({"node-a", "node-b"}))
    records = fleet.inventory(fleet.running(here))
    plan = compute_plan(desired, observed, records, (), fleet.NOW_MS)
    assert [action.held for action in plan.actions] == [MISSING]


def test_a_missing_secret_needs_a_person_and_a_silent_store_does_not() -> None:
    """The first is a finding for `status --wait`; the second goes on by itself."""
    for secrets, held in SEEN:
        plan = planned(referring(), replace(fleet.observed(), secrets=secrets))
        codes = [finding.code for finding in plan.findings]
        assert codes == (["secret_missing"] if held == MISSING else [])


def test_the_fingerprint_of_what_is_seen_covers_secrets() -> None:
    prints = {replace(fleet.observed(), secrets=secrets).fingerprint for secrets, _ in SEEN}
    assert len(prints) == len(SEEN)


def test_a_record_remembers_what_its_node_may_ask_for() -> None:
    target = referring()
    action = planned(target, replace(fleet.observed(), secrets={PATH: Known(True)})).actions[0]
    record = begin(action, target, None, fleet.REVISION, fleet.NOW_MS)[0]
    assert record.secrets == ("hf-token=secret://project/hf-token",)
    other = HF.model_copy(update={"source": "secret://project/other"})
    bound = Target(
        replace(target.instance, secrets=(other,)),
        target.workload.model_copy(update={"secrets": (other,)}),
    )
    observed = replace(fleet.observed(fleet.report(target)), secrets={OTHER: Known(True)})
    (anew,) = planned(bound, observed, records=fleet.inventory(fleet.running(target))).actions
    later = begin(anew, bound, fleet.running(target), fleet.NEXT_REVISION, fleet.NOW_MS)[0]
    assert later.secrets == (*record.secrets, "hf-token=secret://project/other")


def test_members_share_those_of_their_instance() -> None:
    documents = spread()
    secrets = [{"name": "hf-token", "source": "reference", "env": "HF_TOKEN"}, {"name": "token"}]
    profile_of(documents)["secrets"] = secrets
    bare = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)
    assert [problem.code for problem in bare.problems] == ["secret_not_bound"]
    assert len(bare.blocked) == 3
    documents[b.INSTANCE_FILE]["spec"]["secrets"] = {"hf-token": HF.source}
    found = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)
    keys = [HEAD, f"{HEAD}.w1", f"{HEAD}.w2"]
    assert [*found.instances] == keys
    assert {one.secrets for one in found.instances.values()} == {(HF, OWN)}
    assert {tuple(referred_by(one)) for one in found.instances.values()} == {(PATH,)}
