"""What can be wrong between trust, identities, roles, releases and the fleet: one row a finding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.core.accept import AcceptedState, accept, parse_accepted
from reconciler.core.names import InstanceKey
from reconciler.core.problems import Problem
from reconciler.core.resolve import Resolution, resolve
from tests.core import builders as b
from tests.core.resolve_cases import Bend, both, spec, without

ONE = InstanceKey("acme/research/one")
ADA_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAII0iPhLFSX+ln0EdzFWrQsq38CsPDLV44qA+D/Bl5N9c"
GRACE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEzvKXwNIHbsuxOgUD7UQq6qpT8k2e8hpcOxuSLVCIde"
HEX = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
OTHER_HEX = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
BUILDER = "https://ci.example/builders/apps@v1"
TRUST, FLEET = "platform/trust/release.yaml", "platform/fleet/main.yaml"
RELEASE, ACCOUNT = "platform/releases/1.4.0.yaml", f"{b.PROJECT}/service-accounts/deploy.yaml"
ADA, GRACE, ROBOT = (f"platform/iam/{name}.yaml" for name in ("ada", "grace", "robot"))
BINDING = "platform/iam/admins.yaml"
TENANT = "tenants/acme/tenant.yaml"


def user(key: str, **more: Any) -> dict[str, Any]:
    name = more.pop("name")
    keys = [{"id": f"{name}-2026", "type": "ssh", "public_key": key}]
    said = {"emails": [f"{name}@acme.example"], "keys": keys, **more}
    return {"type": "user", "display_name": name, **said}


def bind(documents: b.Documents, subject: dict[str, str], role: str, **scope: Any) -> None:
    add_kind(documents, BINDING, "RoleBinding", "admins", role_of(subject, role, scope))


def role_of(subject: dict[str, str], role: str, scope: dict[str, Any]) -> dict[str, Any]:
    return {"subjects": [subject], "role": role, "scope": scope}


def add_kind(
    documents: b.Documents, path: str, kind: str, name: str, value: dict[str, Any]
) -> None:
    b.add(documents, path, value, name)
    documents[path]["kind"] = kind


def platform() -> b.Documents:
    """The small world with one of each of the platform's documents."""
    documents = b.world()
    key = {"id": "release-2026", "scheme": "ed25519", "public_key": HEX}
    channel = {"signature_scheme": "ed25519", "signing_key": "release-2026"}
    trust = {
        "signing_keys": [key],
        "builders": [{"id": BUILDER}],
        "channels": {"stable": {**channel, "builders": [BUILDER]}},
    }
    b.add(documents, TRUST, trust)
    add_kind(documents, ADA, "Identity", "ada", user(ADA_KEY, name="ada"))
    add_kind(documents, GRACE, "Identity", "grace", user(GRACE_KEY, name="grace"))
    robot = {
        "type": "service_account",
        "display_name": "ci",
        "service_account": "acme/research/deploy",
    }
    add_kind(documents, ROBOT, "Identity", "robot", robot)
    bind(documents, {"identity": "ada"}, "platform-admin", platform=True)
    build = {"kind": "oci", "repository": "gpuaas/platform/agent", "size_bytes": 1}
    builds = {"linux/amd64": {**build, "digest": "sha256:" + "1" * 64}}
    b.add(documents, RELEASE, {"channel": "stable", "state": "published"})
    documents[RELEASE]["spec"]["components"] = {"agent": builds}
    waves = [{"name": "first", "percent": 10}, {"name": "rest"}]
    fleet = {"agent": {"version": "1.4.0"}, "rollout": {"waves": waves}}
    b.add(documents, FLEET, {"selector": {"pools": ["main"]}, **fleet})
    account_key = {"id": "ci", "scheme": "ed25519", "public_key": OTHER_HEX}
    b.add(documents, ACCOUNT, {"roles": ["app-operator"], "public_keys": [account_key]})
    return documents


def change(path: str, edit: Callable[[dict[str, Any]], object]) -> Bend:
    return lambda documents: edit(documents[path]["spec"])


def bound(role: str, subject: dict[str, str] | None = None, **scope: Any) -> Bend:
    return lambda documents: bind(documents, subject or {"identity": "ada"}, role, **scope)


def copied(path: str, to: str, **changes: Any) -> Bend:
    def bend(documents: b.Documents) -> None:
        documents[to] = copy.deepcopy(documents[path])
        documents[to]["metadata"]["name"] = to.rpartition("/")[2].removesuffix(".yaml")
        documents[to]["spec"].update(changes)

    return bend


def selecting(pointer: str, **selector: Any) -> Bend:
    def bend(documents: b.Documents) -> None:
        found = documents[FLEET]["spec"]
        (found if pointer == "policy" else found["rollout"]["waves"][0])["selector"] = selector

    return bend


def channel(**changes: Any) -> Bend:
    return change(TRUST, lambda found: found["channels"]["stable"].update(changes))


ACCOUNT_SUBJECT = {"service_account": "acme/research/deploy"}
HERE = {"project": "acme/research"}
CUSTOM = {**role_of(ACCOUNT_SUBJECT, "custom", HERE), "permissions": ["tenants.entitlement.edit"]}
CASES: dict[str, tuple[Bend, str, str, str]] = {
    "key id of two identities": (
        change(GRACE, lambda s: s["keys"][0].update(id="ada-2026")),
        "Identity/grace",
        "key_id_shared",
        "the key id ada-2026 is also that of Identity/ada (each needs its own)",
    ),
    "one key, another comment": (
        change(GRACE, lambda s: s["keys"][0].update(public_key=f"{ADA_KEY} grace@laptop")),
        "Identity/grace",
        "key_shared",
        "the same key is also that of Identity/ada",
    ),
    "one key twice in one identity": (
        change(ADA, lambda s: s["keys"].append({**s["keys"][0], "id": "second"})),
        "Identity/ada",
        "key_shared",
        "the same key is also that of Identity/ada",
    ),
    "address of two identities": (
        spec(GRACE, emails=["Ada@acme.example"]),
        "Identity/grace",
        "email_shared",
        "the address ada@acme.example is also that of Identity/ada",
    ),
    "signer of an account that is not there": (
        spec(ROBOT, service_account="acme/research/deploi"),
        "Identity/robot",
        "unknown_reference",
        "ServiceAccount/acme/research/deploi does not exist (did you mean deploy?)",
    ),
    "one key, two accounts": (
        copied(ACCOUNT, f"{b.PROJECT}/service-accounts/nightly.yaml"),
        "ServiceAccount/acme/research/nightly",
        "key_shared",
        "the same key is also that of ServiceAccount/acme/research/deploy",
    ),
    "account without its project": (
        both(without(ACCOUNT), lambda d: b.add(d, _elsewhere("ci"), {"roles": ["viewer"]})),
        "ServiceAccount/acme/nowhere/ci",
        "unknown_reference",
        "Project/acme/nowhere does not exist",
    ),
    "key that ends before it begins": (
        change(
            TRUST,
            lambda s: s["signing_keys"][0].update(
                valid_from="2026-06-01T00:00:00Z", valid_until="2026-06-01T00:00:00+02:00"
            ),
        ),
        "TrustPolicy/release",
        "key_never_valid",
        "key release-2026 is never valid: it ends at 2026-06-01T00:00:00+02:00, before it begins",
    ),
    "binding of nobody": (
        bound("platform-admin", {"identity": "adda"}, platform=True),
        "RoleBinding/admins",
        "unknown_reference",
        "Identity/adda does not exist (did you mean ada?)",
    ),
    "binding of no account": (
        bound("viewer", {"service_account": "acme/research/deploi"}, **HERE),
        "RoleBinding/admins",
        "unknown_reference",
        "ServiceAccount/acme/research/deploi does not exist (did you mean deploy?)",
    ),
    "binding in no tenant": (
        bound("tenant-admin", tenant="acne"),
        "RoleBinding/admins",
        "unknown_reference",
        "Tenant/acne does not exist (did you mean acme?)",
    ),
    "binding in no project": (
        bound("project-admin", project="acme/reserch"),
        "RoleBinding/admins",
        "unknown_reference",
        "Project/acme/reserch does not exist (did you mean research?)",
    ),
    "platform admin of a tenant": (
        bound("platform-admin", tenant="acme"),
        "RoleBinding/admins",
        "role_beyond_scope",
        "the role platform-admin can't be held in acme alone "
        "(the scope of a platform-admin is platform: true)",
    ),
    "tenant admin of a project": (
        bound("tenant-admin", project="acme/research"),
        "RoleBinding/admins",
        "role_beyond_scope",
        "the role tenant-admin can't be held in acme/research alone",
    ),
    "machine as an admin": (
        bound("project-admin", ACCOUNT_SUBJECT, **HERE),
        "RoleBinding/admins",
        "role_needs_human",
        "ServiceAccount/acme/research/deploy is a machine, and project-admin needs a human "
        "(roles for machines: app-operator, artifact-publisher, viewer)",
    ),
    "machine signer as an admin": (
        bound("project-admin", {"identity": "robot"}, **HERE),
        "RoleBinding/admins",
        "role_needs_human",
        "Identity/robot is a machine, and project-admin needs a human",
    ),
    "machine that changes entitlements": (
        lambda d: add_kind(d, BINDING, "RoleBinding", "admins", CUSTOM),
        "RoleBinding/admins",
        "role_needs_human",
        "is a machine, and tenants.entitlement.edit needs a human",
    ),
    "machine outside its project": (
        bound("app-operator", ACCOUNT_SUBJECT, tenant="acme"),
        "RoleBinding/admins",
        "binding_outside_project",
        "acts in its own project only (write the scope as project: acme/research)",
    ),
    "key id in two policies": (
        copied(TRUST, "platform/trust/second.yaml", channels={}),
        "TrustPolicy/second",
        "key_id_shared",
        "the key id release-2026 is also one of TrustPolicy/release",
    ),
    "channel in two policies": (
        copied(TRUST, "platform/trust/second.yaml", signing_keys=[]),
        "TrustPolicy/second",
        "channel_ruled_twice",
        "the channel stable is also ruled by TrustPolicy/release",
    ),
    "channel with an unknown key": (
        channel(signing_key="release-2025"),
        "TrustPolicy/release",
        "unknown_key",
        "no TrustPolicy has a signing key release-2025 (did you mean release-2026?)",
    ),
    "channel with a key of another scheme": (
        channel(signature_scheme="ecdsa-p256", signature_required=True),
        "TrustPolicy/release",
        "key_of_another_scheme",
        "key release-2026 is ed25519, the channel takes ecdsa-p256",
    ),
    "publishers told to use a revoked key": (
        change(
            TRUST,
            lambda s: s["signing_keys"][0].update(
                revoked={"at": "2026-06-01T00:00:00Z", "reason": "leaked"}
            ),
        ),
        "TrustPolicy/release",
        "key_revoked",
        "publishers are told to sign with release-2026, which is revoked",
    ),
    "channel without a key": (
        both(spec(TRUST, signing_keys=[]), channel(signing_key="x")),
        "TrustPolicy/release",
        "channel_closed",
        "nothing can get into stable: no ed25519 key is trusted for it",
    ),
    "channel without a builder": (
        both(spec(TRUST, builders=[]), channel(builders=[])),
        "TrustPolicy/release",
        "channel_closed",
        "nothing can get into stable: no builder is accepted",
    ),
    "channel with an unknown builder": (
        channel(builders=["https://ci.example/builders/apps@v2"]),
        "TrustPolicy/release",
        "unknown_builder",
        "no TrustPolicy accepts the builder https://ci.example/builders/apps@v2",
    ),
    "release for a channel without rules": (
        spec(RELEASE, channel="stabel"),
        "PlatformRelease/1.4.0",
        "unknown_channel",
        "no TrustPolicy says what the channel stabel needs (did you mean stable?)",
    ),
    "one digest for two platforms": (
        change(
            RELEASE,
            lambda s: s["components"]["agent"].update(
                {"linux/arm64": s["components"]["agent"]["linux/amd64"]}
            ),
        ),
        "PlatformRelease/1.4.0",
        "digest_reused",
        "this digest is also agent for linux/amd64 of PlatformRelease/1.4.0",
    ),
    "agent that was never released": (
        spec(FLEET, agent={"version": "1.4.1"}),
        "FleetPolicy/main",
        "unknown_reference",
        "PlatformRelease/1.4.1 does not exist (did you mean 1.4.0?)",
    ),
    "agent of a withdrawn release": (
        spec(RELEASE, state="withdrawn", reason="leaks"),
        "FleetPolicy/main",
        "release_withdrawn",
        "PlatformRelease/1.4.0 is withdrawn: leaks",
    ),
    "release without an agent": (
        change(RELEASE, lambda s: s.update(components={"cli": s["components"]["agent"]})),
        "FleetPolicy/main",
        "release_without_agent",
        "PlatformRelease/1.4.0 has no agent",
    ),
    "node of two fleet policies": (
        copied(FLEET, "platform/fleet/second.yaml", selector={}),
        "FleetPolicy/second",
        "fleet_policies_overlap",
        "Node/gpu-1 also belongs to FleetPolicy/main",
    ),
    "unknown pool": (
        selecting("policy", pools=["mian"]),
        "FleetPolicy/main",
        "unknown_pool",
        "no node is in the pool mian (did you mean main?)",
    ),
    "unknown node in a wave": (
        selecting("wave", names=["gpu-2"]),
        "FleetPolicy/main",
        "unknown_reference",
        "Node/gpu-2 does not exist (did you mean gpu-1?)",
    ),
    "policy that fits no node": (
        selecting("policy", labels={"site": "fra1"}),
        "FleetPolicy/main",
        "selects_no_node",
        "it selects no node of the fleet",
    ),
    "wave that fits no node": (
        selecting("wave", accelerator_families=["cpu"]),
        "FleetPolicy/main",
        "selects_no_node",
        "it selects no node of the policy",
    ),
    "attached project that is not there": (
        spec(TENANT, attached_projects=["reserch"]),
        "Tenant/acme",
        "unknown_reference",
        "Project/acme/reserch does not exist (did you mean research?)",
    ),
    "canary project that is not there": (
        spec(b.PROMOTION_FILE, canary={"projects": ["acme/reserch"]}),
        "Promotion/hello/1.0.0",
        "unknown_reference",
        "Project/acme/reserch does not exist (did you mean research?)",
    ),
}


def _elsewhere(name: str) -> str:
    return f"tenants/acme/projects/nowhere/service-accounts/{name}.yaml"


def run(documents: b.Documents) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)


def test_the_platform_has_no_problem() -> None:
    assert run(platform()).problems == ()


def test_bindings_that_are_right() -> None:
    for bend in (
        bound("tenant-admin", platform=True),
        bound("tenant-admin", tenant="acme"),
        bound("project-admin", tenant="acme"),
        bound("app-operator", ACCOUNT_SUBJECT, **HERE),
        bound("app-operator", {"identity": "robot"}, **HERE),
    ):
        documents = platform()
        bend(documents)
        assert run(documents).problems == ()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_check_names_its_culprit_and_says_what_to_do(case: tuple[Bend, str, str, str]) -> None:
    bend, culprit, code, text = case
    documents = platform()
    bend(documents)
    found = run(documents)
    said = [p for p in found.problems if (p.code, p.object) == (code, culprit)]
    assert any(text in str(problem) for problem in said), found.problems
    assert all(points_somewhere(problem, documents) for problem in said)


@pytest.mark.parametrize("name", CASES)
def test_no_finding_of_the_platform_holds_an_instance(name: str) -> None:
    documents = platform()
    CASES[name][0](documents)
    found = run(documents)
    assert not found.blocked
    assert ONE in found.instances


def points_somewhere(problem: Problem, documents: b.Documents) -> bool:
    value: Any = documents[problem.path]
    for segment in problem.pointer.split("/")[1:]:
        key = segment.replace("~1", "/")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return True


def accept_after(before: b.Documents, after: b.Documents) -> AcceptedState:
    return accept(b.candidate(after), b.accepted(before), parse_accepted, b.ENVIRONMENT)


def test_a_stolen_key_is_not_accepted_and_its_owner_is_left_alone() -> None:
    before, after = platform(), platform()
    after[GRACE]["spec"]["keys"] = [{**after[ADA]["spec"]["keys"][0], "id": "mine"}]
    state = accept_after(before, after)
    stored = {ref: one.document_json for ref, one in state.accepted.objects.items()}
    assert GRACE_KEY in stored["Identity/grace"]
    assert ADA_KEY in stored["Identity/ada"]
    assert ADA_KEY not in stored["Identity/grace"]


def test_a_new_tenant_is_accepted_whatever_it_says_of_projects() -> None:
    documents = platform()
    documents[TENANT]["spec"]["attached_projects"] = ["not-yet"]
    state = accept_after({}, documents)
    assert "Tenant/acme" in state.accepted.objects
    assert ONE in state.instances
    assert [problem.code for problem in state.problems] == ["unknown_reference"]


def test_a_project_in_quarantine_does_not_take_its_tenant_along() -> None:
    documents = platform()
    b.add_project(documents, "acme", "bad")
    documents[TENANT]["spec"]["attached_projects"] = ["bad"]
    invalid = ["tenants/acme/projects/bad/project.yaml"]
    candidate = b.candidate(documents, invalid=invalid)
    state = accept(candidate, b.accepted({}), parse_accepted, b.ENVIRONMENT)
    assert "Tenant/acme" in state.accepted.objects
    assert ONE in state.instances
