"""Who may do what in a Vault: a table class → path → capabilities, and the HCL made of it.

Rules:
- A class may what its row says and nothing else; there is no default policy beside it. No row has
  sudo, a path outside the prefix that is not a token's own, or `*` in front of a name.
- Who writes what says who may do what (`bootstrap`) may write exactly what is declared, value by
  value and whole: with its credentials what was edited can be put back, and nothing can be widened,
  not even by leaving out what Vault then takes for its own default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.core.custody.layout import AGENT_ROLE, CLASSES, SERVER_ROLE, VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import (
    NEVER_IN_PART,
    Thing,
    create_steps,
    list_paths,
    made_alone,
    read_path,
)

SIGNED_IN_CI = "artifacts"
WRAPPING_TTL_MAX_S = 24 * 3600
ISSUED_BY_BOOTSTRAP: tuple[SecretClass, ...] = ("runtime", "operator", "ci")
"""Not its own: who got hold of its credentials once shall not have them for ever."""

ANY: tuple[str, ...] = ()
ASKED_OF_THE_CA: Mapping[str, tuple[str, ...]] = {
    "csr": ANY,
    "common_name": ANY,
    "ttl": ANY,
    "format": ("pem",),
}
"""And nothing else: Vault lets a request's `not_after` pass the longest life that its role has."""


@dataclass(frozen=True)
class Rule:
    """`allowed`: parameters and the values each may have (none: any); no other may be sent then.

    `whole`: all of those have to be sent, also by who reads there (`things.read_parameters`).
    `wrapped`: the answer is only given wrapped. `bare`: no parameter may be sent.
    """

    path: str
    capabilities: tuple[str, ...]
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wrapped: bool = False
    bare: bool = False
    whole: bool = False


def rules(
    layout: VaultLayout, secret_class: SecretClass, things: Sequence[Thing]
) -> tuple[Rule, ...]:
    """The row of a class, sorted by path. `things` is all that the Vault has to hold; for
    `bootstrap` with the policies of the other classes.
    """
    keys = tuple(thing.name for thing in things if thing.kind == "key")
    found = {
        "runtime": lambda: (*_runtime(layout, keys), *_look(layout, things)),
        "operator": lambda: tuple(_operator(layout)),
        "ci": lambda: tuple(_ci(layout)),
        "bootstrap": lambda: (*_bootstrap(layout, things), *_look(layout, things)),
    }[secret_class]()
    return tuple(_merged((*found, *_OWN_TOKEN)))


_OWN_TOKEN = (
    Rule("auth/token/lookup-self", ("read",)),
    Rule("auth/token/renew-self", ("update",)),
    Rule("auth/token/revoke-self", ("update",)),
)


def _runtime(layout: VaultLayout, keys: Iterable[str]) -> Iterator[Rule]:
    """What a control plane does all day. It neither makes keys nor lets anybody take one out."""
    kv, pki = layout.kv_mount, layout.pki_mount
    for word in ("runtime", "bootstrap"):
        yield Rule(f"{kv}/data/{word}/*", ("create", "read", "update"))
        yield Rule(f"{kv}/metadata/{word}/*", ("read", "list", "delete"))
    for name in keys:
        key = layout.key_path(name)
        versions = {"min_decryption_version": ANY, "min_encryption_version": ANY}
        yield Rule(f"{key}/config", ("update",), versions)
        yield Rule(f"{key}/rotate", ("update",))
        yield Rule(f"{key}/trim", ("update",), {"min_available_version": ANY})
        if name != SIGNED_IN_CI:
            yield Rule(layout.sign_path(name), ("update",))
    for role in (AGENT_ROLE, SERVER_ROLE):
        yield Rule(layout.pki_sign_path(role), ("update",), ASKED_OF_THE_CA)
    yield Rule(f"{pki}/revoke", ("update",))
    yield Rule("sys/wrapping/lookup", ("update",))
    yield Rule("sys/wrapping/unwrap", ("update",))


def _operator(layout: VaultLayout) -> Iterator[Rule]:
    """Who puts secrets there for workloads and CI sees that they are there, not what they say."""
    kv = layout.kv_mount
    for word in ("runtime/projects", "runtime/tenants", "ci/ci"):
        yield Rule(f"{kv}/data/{word}/*", ("create", "update", "patch"))
        yield Rule(f"{kv}/metadata/{word}/*", ("read", "list", "delete"))
    yield Rule(f"{kv}/data/operator/*", ("create", "read", "update", "patch", "delete"))
    yield Rule(f"{kv}/metadata/operator/*", ("read", "list", "delete"))


def _ci(layout: VaultLayout) -> Iterator[Rule]:
    yield Rule(f"{layout.kv_mount}/data/ci/*", ("read",))
    yield Rule(f"{layout.kv_mount}/metadata/ci/*", ("list",))
    yield Rule(layout.key_path(SIGNED_IN_CI), ("read",))
    yield Rule(layout.sign_path(SIGNED_IN_CI), ("update",))


def _bootstrap(layout: VaultLayout, things: Iterable[Thing]) -> Iterator[Rule]:
    """Makes and mends what is declared, and nothing else that could be said of the same path."""
    for thing in things:
        if not made_alone(layout, thing):
            continue
        for step in create_steps(layout, thing):
            # Who logs in through a mount has no need to make it, and that would take sudo.
            if not step.path.startswith("sys/auth/"):
                exact = {name: (text,) for name, text in step.parameters.items()}
                whole = thing.kind not in NEVER_IN_PART
                yield Rule(step.path, ("create", "update"), exact, whole=whole)
    for secret_class in ISSUED_BY_BOOTSTRAP:
        yield Rule(f"{layout.role_path(secret_class)}/role-id", ("read",))
        yield Rule(layout.secret_id_path(secret_class), ("update",), wrapped=True, bare=True)


def _look(layout: VaultLayout, things: Iterable[Thing]) -> Iterator[Rule]:
    """To see whether all is as declared; no secret is read by that."""
    for thing in things:
        yield Rule(read_path(layout, thing), ("read",))
    for secret_class in CLASSES:
        yield Rule(f"sys/policies/acl/{layout.policy(secret_class)}", ("read",))
    for path in list_paths(layout).values():
        yield Rule(path, ("list",))
    yield Rule(f"{layout.pki_mount}/cert/ca", ("read",))


def _merged(given: Iterable[Rule]) -> Iterator[Rule]:
    """One rule a path: two stanzas of one policy for one path would not add up."""
    by_path: dict[str, list[Rule]] = {}
    for rule in given:
        by_path.setdefault(rule.path, []).append(rule)
    for path, those in sorted(by_path.items()):
        capabilities = sorted({word for rule in those for word in rule.capabilities})
        allowed: dict[str, tuple[str, ...]] = {}
        for rule in those:
            for name, values in rule.allowed.items():
                allowed[name] = tuple(dict.fromkeys((*allowed.get(name, ()), *values)))
        wrapped, bare = any(r.wrapped for r in those), any(r.bare for r in those)
        whole = any(r.whole for r in those)
        yield Rule(path, tuple(capabilities), allowed, wrapped, bare, whole)


def policy_text(given: Iterable[Rule]) -> str:
    """HCL, one stanza a rule."""
    return "\n".join("".join(f"{line}\n" for line in _stanza(rule)) for rule in given)


def _stanza(rule: Rule) -> Iterator[str]:
    yield f"path {json.dumps(rule.path)} {{"
    yield f"  capabilities = {json.dumps(list(rule.capabilities))}"
    if rule.wrapped:
        yield '  min_wrapping_ttl = "1s"'
        yield f'  max_wrapping_ttl = "{WRAPPING_TTL_MAX_S}s"'
    if rule.bare:
        yield '  denied_parameters = { "*" = [] }'
    if rule.whole:
        yield f"  required_parameters = {json.dumps(sorted(rule.allowed))}"
    if rule.allowed:
        yield "  allowed_parameters = {"
        for name, values in sorted(rule.allowed.items()):
            yield f"    {json.dumps(name)} = {json.dumps(list(values))}"
        yield "  }"
    yield "}"
