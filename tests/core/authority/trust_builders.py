"""Identities, bindings and service accounts in a line each."""

from __future__ import annotations

import hashlib
from typing import Any

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import Trust
from reconciler.core.desired import StateObject
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef
from reconciler.core.times import parse_time_ms

Document = dict[str, Any]
Written = tuple[ObjectRef, Document]

AT = "2026-06-01T00:00:00Z"
AT_MS = parse_time_ms(AT)
PAST, SOON, LATER = "2026-05-01T00:00:00Z", "2026-07-01T00:00:00Z", "2026-09-01T00:00:00Z"
DEPLOYER = "acme/lab/deployer"
ADA, GRACE, NILS = (Actor("user", name) for name in ("ada", "grace", "nils"))
MACHINE = Actor("service_account", DEPLOYER)


def manifest(kind: str, name: str, spec: Document) -> Document:
    return {
        "apiVersion": "gpuaas.dev/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def ssh(name: str, **more: Any) -> Document:
    material = hashlib.sha256(name.encode()).hexdigest()
    return {"id": name, "type": "ssh", "public_key": f"ssh-ed25519 AAAA{material} {name}", **more}


def ed25519(name: str, **more: Any) -> Document:
    material = hashlib.sha256(name.encode()).hexdigest()
    return {"id": name, "scheme": "ed25519", "public_key": material, **more}


def identity(name: str, type_: str = "user", **spec: Any) -> Written:
    """With one key of the same name unless told otherwise."""
    known = {"type": type_, "display_name": name, "keys": [ssh(name)], **spec}
    return ObjectRef("Identity", (name,)), manifest("Identity", name, known)


def stand_in(name: str, account: str, **spec: Any) -> Written:
    return identity(name, "service_account", service_account=account, **spec)


def scope_of(where: str) -> Document:
    """ "" for the platform, `acme`, or `acme/lab`."""
    if not where:
        return {"platform": True}
    return {"project" if "/" in where else "tenant": where}


def binding(name: str, role: str, where: str, *subjects: str, **spec: Any) -> Written:
    """A subject is an identity, or a service account where it has slashes."""
    named = [{"service_account" if "/" in one else "identity": one} for one in subjects]
    known = {"subjects": named, "role": role, "scope": scope_of(where), **spec}
    return ObjectRef("RoleBinding", (name,)), manifest("RoleBinding", name, known)


def custom(name: str, where: str, permissions: list[str], *subjects: str, **spec: Any) -> Written:
    return binding(name, "custom", where, *subjects, permissions=permissions, **spec)


def account(path: str = DEPLOYER, *roles: str, **spec: Any) -> Written:
    ref = ObjectRef("ServiceAccount", tuple(path.split("/")))
    known = {"roles": list(roles or ("app-operator",)), **spec}
    return ref, manifest("ServiceAccount", ref.name, known)


def trust(*written: Written) -> Trust:
    found = {}
    for ref, document in written:
        model = KINDS[ref.kind].model.model_validate(document)
        found[ref] = StateObject(ref, "platform/iam/all.yaml", 1, model, document)
    return found


def written(objects: Trust, ref: ObjectRef) -> Document | None:
    """What stands there now."""
    found = objects.get(ref)
    return dict(found.document) if found is not None else None


def people(*more: Written) -> Trust:
    """ada may do everything, grace runs acme, nils runs acme/lab, deployer is its machine."""
    return trust(
        identity("ada"),
        identity("grace"),
        identity("nils"),
        binding("admins", "platform-admin", "", "ada"),
        binding("acme", "tenant-admin", "acme", "grace"),
        binding("lab", "project-admin", "acme/lab", "nils"),
        account(),
        *more,
    )
