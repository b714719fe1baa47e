"""Secrets that instances refer to: put where they are kept, looked through, taken away.

Rules:
- A value comes in, and goes to the secret store. Nothing here gives one back.
- What is written or deleted is told in the audit trail, by whom and of which secret, and wakes the
  control plane: launches may wait for it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reconciler.core.custody.paths import (
    REFERRED,
    Owner,
    asked_for,
    project_secret,
    referred_path,
    tenant_secret,
)
from reconciler.core.custody.referred import name_of, owner_of
from reconciler.core.lifecycle import LIVE
from reconciler.core.names import NAME, InstanceKey, ObjectRef, instance_key, instance_of, nearest
from reconciler.core.records import Accepted, AuditEntry, InstanceRecord, State
from reconciler.errors import Refused
from reconciler.ports import Ports, Secret, SecretSeen

WRITTEN = "secrets.value.written"
DELETED = "secrets.value.deleted"
_NAME = re.compile(NAME)
_NAMED_MAX = 5
_HOW = "TENANT/PROJECT/NAME of a project's secret, TENANT/NAME of a tenant's; a-z, 0-9 and -"

Users = Mapping[str, tuple[InstanceKey, ...]]
"""By path, the instances that refer to it, sorted."""


@dataclass(frozen=True)
class SecretRef:
    """A secret of a project, or of a tenant where `project` is empty."""

    tenant: str
    project: str
    name: str

    @property
    def path(self) -> str:
        if self.project:
            return project_secret(self.tenant, self.project, self.name)
        return tenant_secret(self.tenant, self.name)

    @property
    def reference(self) -> str:
        """What manifests call it, those that may."""
        return f"secret://{'project' if self.project else 'tenant'}/{self.name}"

    def __str__(self) -> str:
        return name_of(self.path)


@dataclass(frozen=True)
class Listed:
    """`seen` None: it is referred to, and not there."""

    ref: SecretRef
    seen: SecretSeen | None
    used_by: tuple[InstanceKey, ...]


@dataclass(frozen=True)
class Written:
    """As it was just before: `readers` ran, and read the new value at their next start; `waiting`
    refer to it and did not run. `unknown` says that nothing accepted is called so, as it may be
    too early.
    """

    ref: SecretRef
    version: int
    readers: tuple[InstanceRecord, ...]
    waiting: tuple[InstanceKey, ...]
    unknown: str = ""


def parse_secret(text: str) -> SecretRef:
    """Refused("bad_secret_name") for what names none."""
    words = text.split("/")
    if len(words) not in (2, 3) or not all(_NAME.fullmatch(word) for word in words):
        raise Refused("bad_secret_name", f"{text[:120]!r} names no secret", hint=_HOW)
    return SecretRef(words[0], "/".join(words[1:-1]), words[-1])


def value_from(raw: bytes, *, keep_newline: bool = False) -> Secret:
    """The value in a file or from standard input, less one newline at its end.

    Refused: secret_not_text, secret_empty.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        hint = "encode it, with base64 for one, and have the app decode it"
        raise Refused("secret_not_text", "the value is not text in UTF-8", hint=hint)
    if not keep_newline:
        text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        hint = "pass it on standard input, or with --file"
        raise Refused("secret_empty", "the value is empty", hint=hint)
    return Secret(text)


def set_secret(ports: Ports, ref: SecretRef, value: Secret, actor: str) -> Written:
    """Puts a value where the secret is kept, in place of the one before."""
    # Once it is written, a pass may launch what waits for it before this has looked.
    accepted, records = ports.store.accepted(), ports.store.records()
    ports.secrets.write(ref.path, value)
    seen = ports.secrets.seen(ref.path)
    _tell(ports, WRITTEN, ref, actor)
    readers = tuple(r for r in _referring(records.values(), ref.path) if r.state in LIVE)
    running = {instance_of(record.key) for record in readers}
    waiting = (key for key in users(accepted, records).get(ref.path, ()) if key not in running)
    return Written(
        ref, seen.version if seen else 0, readers, tuple(waiting), _unknown(accepted, ref)
    )


def list_secrets(ports: Ports, scope: str = "") -> tuple[Listed, ...]:
    """Of a project `tenant/project`, of a tenant and all its projects, or all.

    Also those that are referred to and are not there.
    """
    places = [place for word in REFERRED for place in _places(word, scope)]
    there = {path for place in places for path in ports.secrets.paths(place)}
    accepted = ports.store.accepted()
    used = users(accepted, ports.store.records())
    wanted = {
        path
        for path in users(accepted, {})
        if any(path.startswith(f"{place}/") for place in places)
    }
    return tuple(
        Listed(parse_secret(name_of(path)), ports.secrets.seen(path), used.get(path, ()))
        for path in sorted(there | wanted, key=name_of)
    )


def _places(word: str, scope: str) -> Iterator[str]:
    if not scope:
        yield word
        return
    words = scope.split("/")
    if len(words) > 2 or not all(_NAME.fullmatch(one) for one in words):
        hint = "TENANT or TENANT/PROJECT"
        raise Refused("bad_scope", f"{scope[:120]!r} names no project or tenant", hint=hint)
    if word == "projects" or len(words) == 1:
        yield f"{word}/{scope}"


def delete_secret(ports: Ports, ref: SecretRef, actor: str, *, force: bool = False) -> Users:
    """Takes it away; returns who referred to it, which `force` says is known.

    Refused: no_such_secret, secret_in_use.
    """
    used = users(ports.store.accepted(), ports.store.records()).get(ref.path, ())
    if ports.secrets.seen(ref.path) is None:
        names = [name_of(path) for word in REFERRED for path in ports.secrets.paths(word)]
        near = nearest(str(ref), names)
        hint = f"did you mean {near}?" if near else "see gpuaas secret list"
        raise Refused("no_such_secret", f"there is no secret {ref}", hint=hint)
    if used and not force:
        raise Refused(
            "secret_in_use",
            f"{ref} is referred to by {', '.join(used[:_NAMED_MAX])}"
            + (" and others" if len(used) > _NAMED_MAX else ""),
            hint="take the reference out first; with --force what runs keeps what it has read, "
            "and is not started again",
        )
    ports.secrets.delete(ref.path)
    _tell(ports, DELETED, ref, actor)
    return {ref.path: used}


def _tell(ports: Ports, action: str, ref: SecretRef, actor: str) -> None:
    """No digest of the value: of a short one that would be as good as the value."""
    now_ms = ports.clock.now_ms()
    entry = AuditEntry(now_ms, actor, actor.partition("/")[0], action, str(ref))
    ports.store.append_audit((entry,))
    ports.store.request_pass("secret", now_ms)


# --- who refers to it ----------------------------------------------------------------------------


def users(accepted: Accepted, records: Mapping[InstanceKey, InstanceRecord]) -> Users:
    """By what is accepted, and by what may still run of it."""
    found: dict[str, set[InstanceKey]] = defaultdict(set)
    for key, owner, references in _declared(accepted):
        for reference in references:
            found[referred_path(reference, owner) or ""].add(key)
    for record in records.values():
        if record.state is not State.DECOMMISSIONED:
            for path in _paths_of(record):
                found[path].add(instance_of(record.key))
    found.pop("", None)
    return {path: tuple(sorted(keys)) for path, keys in found.items()}


def _declared(accepted: Accepted) -> Iterator[tuple[InstanceKey, Owner, Iterable[str]]]:
    for stored in accepted.objects.values():
        # Most refer to none, and to read them all takes long.
        if stored.ref.startswith("AppInstance/") and "secret://" in stored.document_json:
            spec = json.loads(stored.document_json)["spec"]
            key = instance_key(ObjectRef.parse(stored.ref))
            if spec.get("desired") != "decommissioned":
                yield key, owner_of(key), spec.get("secrets", {}).values()


def _paths_of(record: InstanceRecord) -> Iterator[str]:
    for asked in record.secrets:
        reference = asked_for(asked)[1]
        path = referred_path(reference, owner_of(record.key)) if reference else None
        if path is not None:
            yield path


def _referring(records: Iterable[InstanceRecord], path: str) -> list[InstanceRecord]:
    found = [record for record in records if path in _paths_of(record)]
    return sorted(found, key=lambda record: record.key)


def _unknown(accepted: Accepted, ref: SecretRef) -> str:
    """What to say where neither project nor tenant of that name is accepted."""
    kind, owner = (
        ("Project", f"{ref.tenant}/{ref.project}") if ref.project else ("Tenant", ref.tenant)
    )
    if f"{kind}/{owner}" in accepted.objects:
        return ""
    known = (one.partition("/")[2] for one in accepted.objects if one.startswith(f"{kind}/"))
    near = nearest(owner, known)
    return f"no {kind.lower()} {owner} is accepted yet" + (
        f"; did you mean {near}?" if near else ""
    )
