"""What each class may and may not do, tried against a real Vault, path by path."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from node_agent.membership import NODE_DOMAIN, SERVER_NAME
from reconciler.adapters.vault_http import Answer
from reconciler.core.custody.desired import SIGNING_KEYS
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import create_steps
from reconciler.errors import Refused
from reconciler.use_cases.vault import differences
from tests.contract.vault_prefixes import CERTIFICATE_TTL_S, Vault, VaultPrefix, vault_prefix

SECRETS = {
    "runtime/projects/acme/lab/token": "runtime",
    "runtime/tenants/acme/licence": "runtime",
    "runtime/instances/acme/lab/web/key": "runtime",
    "runtime/webhook/git": "runtime",
    "bootstrap/joins/gpu-1/1": "bootstrap",
    "bootstrap/ssh/acme/lab/v1": "bootstrap",
    "operator/operator/notes": "operator",
    "ci/ci/registry": "ci",
}
CLASSES: tuple[SecretClass, ...] = ("runtime", "operator", "ci", "bootstrap")


@pytest.fixture(scope="module")
def prefix(vault: Vault) -> Iterator[VaultPrefix]:
    with vault_prefix(vault) as found:
        for path in SECRETS:
            body = {"data": {"value": f"of {path}"}}
            found.as_root("POST", f"{found.layout.kv_mount}/data/{path}", dict(body))
        yield found


@pytest.fixture(scope="module")
def other(vault: Vault) -> Iterator[VaultPrefix]:
    """Another control plane in the same Vault."""
    with vault_prefix(vault) as found:
        yield found


def csr(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


VALUE = {"data": {"value": "x"}}
INPUT = {"input": b64encode(b"x").decode()}
ARTIFACT = {**INPUT, "hash_algorithm": "sha2-256", "marshaling_algorithm": "asn1"}
PEM = {"ttl": "3600s", "format": "pem"}
AGENT = {"csr": csr("gpu-1"), "common_name": f"gpu-1.{NODE_DOMAIN}", **PEM}
SERVER = {"csr": csr("x"), "common_name": SERVER_NAME, **PEM}
KEY_CONFIG = {"deletion_allowed": "false", "auto_rotate_period": "0s"}
MERGE = {"Content-Type": "application/merge-patch+json"}


@dataclass(frozen=True)
class Try:
    """A request; P stands for the prefix."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {sorted(self.body) if self.body else ''}".strip()


def T(method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> Try:
    return Try(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})


ALLOWED: dict[SecretClass, tuple[Try, ...]] = {
    "runtime": (
        T("GET", "P-kv/data/runtime/projects/acme/lab/token"),
        T("GET", "P-kv/data/bootstrap/joins/gpu-1/1"),
        T("GET", "P-kv/data/bootstrap/joins/gpu-1/1", X_Vault_Wrap_TTL="60s"),
        T("POST", "P-kv/data/runtime/instances/a/b/c/d", {**VALUE, "options": {"cas": 0}}),
        T("POST", "P-kv/data/runtime/instances/a/b/c/d", VALUE),
        T("POST", "P-kv/data/bootstrap/joins/gpu-2/1", VALUE),
        T("GET", "P-kv/metadata/runtime/instances/a/b/c/d"),
        T("GET", "P-kv/metadata/runtime/projects/?list=true"),
        T("GET", "P-kv/metadata/bootstrap/joins/?list=true"),
        T("DELETE", "P-kv/metadata/runtime/instances/a/b/c/d"),
        *(T("GET", f"P-transit/keys/{name}") for name in SIGNING_KEYS),
        *(T("POST", f"P-transit/sign/{name}", INPUT) for name in SIGNING_KEYS if name[:2] != "ar"),
        T("POST", "P-transit/keys/tasks/rotate", {}),
        T("POST", "P-transit/keys/artifacts/rotate", {}),
        T(
            "POST",
            "P-transit/keys/tasks/config",
            {"min_decryption_version": 2, "min_encryption_version": 2},
        ),
        T("POST", "P-transit/keys/tasks/trim", {"min_available_version": 2}),
        T("POST", "P-pki/sign/agent", AGENT),
        T("POST", "P-pki/sign/server", SERVER),
        T("GET", "P-pki/cert/ca"),
        T("GET", "auth/token/lookup-self"),
        T("POST", "auth/token/renew-self", {}),
        T("GET", "sys/policies/acl/P-runtime"),
        T("GET", "auth/P-approle/role/P-bootstrap"),
        T("GET", "sys/mounts/P-kv"),
        T("GET", "sys/mounts/auth/P-approle/tune"),
    ),
    "operator": (
        T("POST", "P-kv/data/runtime/projects/acme/lab/new", VALUE),
        T("POST", "P-kv/data/runtime/projects/acme/lab/new", VALUE),
        T("POST", "P-kv/data/runtime/tenants/acme/new", VALUE),
        Try("PATCH", "P-kv/data/runtime/projects/acme/lab/new", VALUE, MERGE),
        T("GET", "P-kv/metadata/runtime/projects/acme/lab/new"),
        T("GET", "P-kv/metadata/runtime/projects/acme/?list=true"),
        T("DELETE", "P-kv/metadata/runtime/projects/acme/lab/new"),
        T("POST", "P-kv/data/ci/ci/registry", VALUE),
        T("POST", "P-kv/data/operator/operator/mine", VALUE),
        T("GET", "P-kv/data/operator/operator/mine"),
        T("GET", "P-kv/metadata/operator/operator/?list=true"),
        T("GET", "auth/token/lookup-self"),
    ),
    "ci": (
        T("GET", "P-kv/data/ci/ci/registry"),
        T("GET", "P-kv/metadata/ci/ci/?list=true"),
        T("POST", "P-transit/sign/artifacts", ARTIFACT),
        T("GET", "P-transit/keys/artifacts"),
        T("GET", "auth/token/lookup-self"),
    ),
    "bootstrap": (
        T("GET", "sys/policies/acl/P-bootstrap"),
        T("GET", "auth/P-approle/role/P-runtime/role-id"),
        T("POST", "auth/P-approle/role/P-runtime/secret-id", {}, X_Vault_Wrap_TTL="60s"),
        T("POST", "auth/P-approle/role/P-ci/secret-id", {}, X_Vault_Wrap_TTL="60s"),
        T("POST", "P-transit/keys/tasks/config", KEY_CONFIG),
    ),
}

EVERYBODY_FORBIDDEN: tuple[Try, ...] = (
    T("POST", "auth/token/create", {"policies": ["P-runtime"]}),
    T("POST", "auth/token/create-orphan", {}),
    T("POST", "sys/policies/acl/P-runtime", {"policy": 'path "*" {capabilities=["sudo"]}'}),
    T("POST", "sys/policies/acl/mine", {"policy": 'path "*" {capabilities=["read"]}'}),
    T("DELETE", "sys/policies/acl/P-ci"),
    T("POST", "auth/P-approle/role/P-ci", {"token_policies": "P-bootstrap"}),
    T("POST", "auth/P-approle/role/P-ci", {"token_policies": ["P-ci", "root"]}),
    T("POST", "auth/P-approle/role/P-ci/policies", {"policies": "root"}),
    T("POST", "auth/P-approle/role/mine", {"token_policies": "P-ci"}),
    T("POST", "auth/P-approle/role/P-runtime/secret-id", {}),
    T("POST", "auth/P-approle/role/P-runtime/custom-secret-id", {"secret_id": "x"}),
    T("POST", "auth/P-approle/role/P-bootstrap/secret-id", {}, X_Vault_Wrap_TTL="60s"),
    T("DELETE", "auth/P-approle/role/P-ci"),
    T("POST", "sys/auth/mine", {"type": "approle"}),
    T("DELETE", "sys/auth/P-approle"),
    T("GET", "sys/auth"),
    T("GET", "sys/mounts"),
    T("DELETE", "sys/mounts/P-kv"),
    T("POST", "sys/remount", {"from": "P-kv", "to": "x"}),
    T("POST", "sys/mounts/P-kv/tune", {"audit_non_hmac_request_keys": "value"}),
    T("POST", "sys/seal", {}),
    T("POST", "sys/rotate", {}),
    T("GET", "sys/raw/core/mounts"),
    T("POST", "sys/audit/x", {"type": "file", "options": {"file_path": "stdout"}}),
    T("GET", "sys/policies/acl?list=true"),
    T("POST", "sys/leases/revoke-prefix/auth", {}),
    T("GET", "cubbyhole/x"),
    T("POST", "identity/entity", {"name": "x"}),
    T("GET", "P-transit/export/signing-key/tasks"),
    T("GET", "P-transit/backup/tasks"),
    T("DELETE", "P-transit/keys/tasks"),
    T("POST", "P-transit/keys/tasks/config", {"deletion_allowed": True}),
    T("POST", "P-transit/keys/tasks/config", {"exportable": True, "min_decryption_version": 1}),
    T("POST", "P-transit/keys/tasks/config", {"allow_plaintext_backup": True}),
    T("POST", "P-transit/keys/mine", {"type": "ed25519"}),
    T("POST", "P-transit/keys/mine", {"type": "ed25519", "exportable": True}),
    T("POST", "P-transit/restore/tasks", {"backup": "x"}),
    T("POST", "P-pki/issue/agent", {"common_name": f"gpu-1.{NODE_DOMAIN}"}),
    T("POST", "P-pki/sign-verbatim", {"csr": AGENT["csr"]}),
    T("POST", "P-pki/sign-verbatim/agent", {"csr": AGENT["csr"]}),
    T("POST", "P-pki/root/sign-intermediate", {"csr": AGENT["csr"], "common_name": "x"}),
    T("POST", "P-pki/root/generate/exported", {"common_name": "x"}),
    T("DELETE", "P-pki/root"),
    T("POST", "P-pki/config/ca", {"pem_bundle": "x"}),
    T("POST", "P-pki/roles/agent", {"allow_any_name": True}),
    T("POST", "P-pki/roles/mine", {"allow_any_name": True}),
    T("POST", "P-kv/destroy/runtime/webhook/git", {"versions": [1]}),
    T("DELETE", "P-kv/data/runtime/webhook/git"),
    T("GET", "P-kv/metadata/?list=true"),
    # Of another control plane in the same Vault.
    T("GET", "Q-kv/data/runtime/webhook/git"),
    T("POST", "Q-transit/sign/tasks", INPUT),
    T("POST", "Q-pki/sign/agent", AGENT),
    T("GET", "sys/policies/acl/Q-runtime"),
    T("POST", "auth/Q-approle/role/Q-runtime/secret-id", {}, X_Vault_Wrap_TTL="60s"),
)

FORBIDDEN: dict[SecretClass, tuple[Try, ...]] = {
    "runtime": (
        T("GET", "P-kv/data/operator/operator/notes"),
        T("GET", "P-kv/metadata/operator/operator/notes"),
        T("GET", "P-kv/data/ci/ci/registry"),
        T("POST", "P-kv/data/operator/operator/notes", VALUE),
        T("POST", "P-kv/config", {"max_versions": 0}),
        T("POST", "P-transit/sign/artifacts", ARTIFACT),
        # Vault lets this one pass the longest life that the role has.
        T("POST", "P-pki/sign/agent", {**AGENT, "not_after": "2035-01-01T00:00:00Z"}),
        T("POST", "P-pki/sign/server", {**SERVER, "not_after": "2035-01-01T00:00:00Z"}),
        T("POST", "P-pki/sign/server", {**SERVER, "NOT_AFTER": "2035-01-01T00:00:00Z"}),
        T("POST", "P-pki/sign/agent", {**AGENT, "alt_names": f"gpu-2.{NODE_DOMAIN}"}),
        T("POST", "P-pki/sign/agent", {**AGENT, "exclude_cn_from_sans": True}),
        T("POST", "P-pki/sign/agent", {**AGENT, "serial_number": "x"}),
        T("POST", "P-pki/sign/agent", {**AGENT, "format": "pem_bundle"}),
        T("POST", "P-pki/issuer/default/sign/agent", AGENT),
        T("POST", "P-transit/keys/tasks", {"type": "ed25519"}),
        T("POST", "P-pki/root/generate/internal", {"common_name": "x"}),
        T("POST", "P-pki/config/crl", {"disable": True}),
        T("GET", "auth/P-approle/role/P-operator/role-id"),
    ),
    "operator": (
        T("GET", "P-kv/data/runtime/projects/acme/lab/token"),
        T("GET", "P-kv/data/runtime/projects/acme/lab/token?version=1"),
        T("GET", "P-kv/subkeys/runtime/projects/acme/lab/token"),
        T("GET", "P-kv/data/runtime/projects/acme/lab/token", X_Vault_Wrap_TTL="60s"),
        T("GET", "P-kv/data/runtime/instances/acme/lab/web/key"),
        T("POST", "P-kv/data/runtime/instances/acme/lab/web/key", VALUE),
        T("POST", "P-kv/data/runtime/webhook/git", VALUE),
        T("GET", "P-kv/data/bootstrap/joins/gpu-1/1"),
        T("POST", "P-kv/data/bootstrap/joins/gpu-1/1", VALUE),
        T("GET", "P-kv/data/ci/ci/registry"),
        T("POST", "P-transit/sign/tasks", INPUT),
        T("POST", "P-transit/sign/artifacts", ARTIFACT),
        T("POST", "P-transit/keys/tasks/rotate", {}),
        T("POST", "P-pki/sign/agent", AGENT),
        T("GET", "sys/policies/acl/P-operator"),
    ),
    "ci": (
        T("GET", "P-kv/data/runtime/projects/acme/lab/token"),
        T("GET", "P-kv/data/bootstrap/ssh/acme/lab/v1"),
        T("GET", "P-kv/data/operator/operator/notes"),
        T("POST", "P-kv/data/ci/ci/registry", VALUE),
        T("POST", "P-transit/sign/tasks", INPUT),
        T("POST", "P-transit/sign/plans", INPUT),
        T("POST", "P-transit/keys/artifacts/rotate", {}),
        T("POST", "P-transit/keys/artifacts/config", {"min_decryption_version": 1}),
        T("POST", "P-pki/sign/server", SERVER),
        T("GET", "sys/policies/acl/P-ci"),
    ),
    "bootstrap": (
        *(T("GET", f"P-kv/data/{path}") for path in SECRETS),
        *(T("GET", f"P-kv/metadata/{path}") for path in SECRETS),
        T("POST", "P-kv/data/runtime/webhook/git", VALUE),
        *(T("POST", f"P-transit/sign/{name}", INPUT) for name in SIGNING_KEYS),
        T("POST", "P-transit/keys/tasks/rotate", {}),
        T("POST", "P-transit/keys/tasks/config", {"min_decryption_version": 1}),
        T("POST", "P-transit/keys/tasks", {"type": "ed25519", "exportable": "true"}),
        T("POST", "P-transit/keys/tasks", {}),
        T("POST", "P-pki/roles/server", {}),
        T("POST", "P-pki/roles/server", {"allowed_domains": SERVER_NAME}),
        T("POST", "P-pki/config/crl", {"disable": "false"}),
        T("POST", "auth/P-approle/role/P-ci", {"token_policies": "P-ci"}),
        T("POST", "P-pki/sign/agent", AGENT),
        T("POST", "P-pki/sign/server", SERVER),
        T("POST", "P-pki/revoke", {"serial_number": "00:11"}),
        T("POST", "P-pki/root/generate/internal", {"common_name": "Evil CA"}),
        T("POST", "sys/policies/acl/P-bootstrap", {"policy": ""}),
        T("POST", "auth/P-approle/role/P-bootstrap", {"token_ttl": "3600s"}),
        T("POST", "auth/P-approle/role/P-ci", {"token_ttl": "86400s"}),
        T("POST", "auth/P-approle/role/P-ci", {"token_policies": "P-ci", "policies": "root"}),
        T(
            "POST",
            "auth/P-approle/role/P-ci/secret-id",
            {"metadata": '{"a":"b"}'},
            X_Vault_Wrap_TTL="60s",
        ),
        T("POST", "auth/P-approle/role/P-ci/secret-id", {}, X_Vault_Wrap_TTL="90000s"),
        T("POST", "sys/mounts/P-mine", {"type": "kv"}),
        T("POST", "sys/mounts/P-pki/tune", {"max_lease_ttl": "999999999s"}),
    ),
}


def ask(prefix: VaultPrefix, other: VaultPrefix, secret_class: SecretClass, it: Try) -> Answer:
    names = {"P-": f"{prefix.layout.prefix}-", "Q-": f"{other.layout.prefix}-"}
    # Names come first in a path, after a slash, or as the value of a parameter.
    path = it.path
    for mark, name in names.items():
        path = "/".join(name + w[2:] if w.startswith(mark) else w for w in path.split("/"))
    body = it.body
    if body is not None:
        body = {
            key: names["P-"] + text[2:] if isinstance(text, str) and text[:2] == "P-" else text
            for key, text in body.items()
        }
    token = prefix.login(secret_class)
    return prefix.http.ask(it.method, path, token=token, body=body, headers=it.headers)


def cases(table: dict[SecretClass, tuple[Try, ...]]) -> list[Any]:
    return [
        pytest.param(secret_class, tries, id=secret_class) for secret_class, tries in table.items()
    ]


@pytest.mark.parametrize(("secret_class", "tries"), cases(ALLOWED))
def test_a_class_may_do_its_work(
    prefix: VaultPrefix, other: VaultPrefix, secret_class: SecretClass, tries: tuple[Try, ...]
) -> None:
    refused = [
        f"{it}: {found.status} {found.errors}"
        for it in tries
        if not (found := ask(prefix, other, secret_class, it)).ok
    ]
    assert refused == []


@pytest.mark.parametrize(("secret_class", "tries"), cases(FORBIDDEN))
def test_a_class_may_do_nothing_else(
    prefix: VaultPrefix, other: VaultPrefix, secret_class: SecretClass, tries: tuple[Try, ...]
) -> None:
    passed = [
        f"{it}: {found.status}"
        for it in (*tries, *EVERYBODY_FORBIDDEN)
        if (found := ask(prefix, other, secret_class, it)).status != 403
    ]
    assert passed == []


def _writes(prefix: VaultPrefix) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the bootstrap class may write, whole; a policy is its text and nothing beside it."""
    own = ("policy", prefix.layout.policy("bootstrap")), ("role", prefix.layout.role("bootstrap"))
    for thing in prefix.wanted:
        if thing.key not in own and thing.kind != "policy":
            for step in create_steps(prefix.layout, thing):
                if not step.path.startswith("sys/auth/"):
                    yield step.path, dict(step.parameters)


def test_bootstrap_writes_a_thing_whole_or_not_at_all(prefix: VaultPrefix) -> None:
    """What is left out Vault takes for its own default: a role may then do more than before."""
    token, passed = prefix.login("bootstrap"), []
    writes = list(_writes(prefix))
    assert {path.removeprefix(f"{prefix.layout.pki_mount}/") for path, _ in writes} >= {
        "roles/agent",
        "roles/server",
        "config/crl",
        "config/auto-tidy",
        "root/generate/internal",
    }
    for path, whole in writes:
        for name in whole:
            part = {other: text for other, text in whole.items() if other != name}
            found = prefix.http.ask("POST", path, token=token, body=part)
            if found.status != 403:
                passed.append(f"{path} without {name}: {found.status}")
    assert passed == []
    for path, whole in writes:
        # There is a root already, and one that may be made is enough.
        if not path.endswith("generate/internal"):
            found = prefix.http.ask("POST", path, token=token, body=whole)
            assert found.ok or found.says("path is already in use"), f"{path}: {found.errors}"
    assert differences(prefix.admin_of("bootstrap"), prefix.wanted) == ()


def test_a_login_that_may_not_write_it_in_part_is_told_path_and_capability(
    prefix: VaultPrefix,
) -> None:
    path = prefix.layout.pki_role_path("server")
    with pytest.raises(Refused, match=rf"custody_forbidden: .* login update {path} \("):
        prefix.client(prefix.login("bootstrap")).post(path, {"allowed_domains": SERVER_NAME})
    # Who may write it sends the same along to read it, and none of that is in the message.
    with pytest.raises(Refused, match=rf"custody_forbidden: .* login read {path} \("):
        prefix.client(prefix.login("bootstrap")).get(path, parameters={"max_ttl": "0s"})


def test_what_no_class_may_do_root_may(prefix: VaultPrefix) -> None:
    """The paths exist: what was refused above was not merely misspelt."""
    name = prefix.layout
    for path in ("P-kv/data/operator/operator/notes", "P-kv/metadata/?list=true", "sys/auth"):
        prefix.as_root("GET", path.replace("P-", f"{name.prefix}-"))
    path = f"{name.transit_mount}/export/signing-key/tasks"
    found = prefix.http.ask("GET", path, token=prefix.vault.root_token)
    assert found.status == 400
    assert found.says("not exportable")


@pytest.mark.parametrize("secret_class", CLASSES)
def test_a_login_has_its_policy_and_no_other(
    prefix: VaultPrefix, secret_class: SecretClass
) -> None:
    token = prefix.login(secret_class)
    data = prefix.http.ask("GET", "auth/token/lookup-self", token=token).data
    assert data["policies"] == [prefix.layout.policy(secret_class)]
    assert data["ttl"] <= prefix.wanted_ttl_s(secret_class)


@pytest.mark.parametrize(
    ("role", "body"),
    [
        ("agent", {"common_name": SERVER_NAME}),
        ("agent", {"common_name": NODE_DOMAIN}),
        ("agent", {"common_name": f"*.{NODE_DOMAIN}"}),
        ("agent", {"common_name": "localhost"}),
        ("agent", {"common_name": f"gpu-1.{NODE_DOMAIN}", "alt_names": "evil.example"}),
        ("agent", {"common_name": f"gpu-1.{NODE_DOMAIN}", "ip_sans": "127.0.0.1"}),
        ("agent", {"common_name": f"gpu-1.{NODE_DOMAIN}", "uri_sans": "spiffe://x/y"}),
        ("agent", {"common_name": f"gpu-1.{NODE_DOMAIN}", "not_after": "2099-01-01T00:00:00Z"}),
        ("server", {"common_name": f"gpu-1.{NODE_DOMAIN}"}),
        ("server", {"common_name": f"x.{SERVER_NAME}"}),
        ("agent", {}),
    ],
)
def test_no_certificate_says_more_than_its_role(
    prefix: VaultPrefix, role: str, body: dict[str, str]
) -> None:
    """The role's own word, whoever asks and whatever their policy lets them ask for."""
    asked = {"csr": csr(SERVER_NAME), "ttl": "3600s", **body}
    token = prefix.vault.root_token
    found = prefix.http.ask("POST", prefix.layout.pki_sign_path(role), token=token, body=asked)
    assert found.status == 400, found.data


@pytest.mark.parametrize("body", [AGENT, SERVER], ids=["agent", "server"])
def test_no_certificate_outlives_its_role(prefix: VaultPrefix, body: dict[str, str]) -> None:
    path = prefix.layout.pki_sign_path("server" if body is SERVER else "agent")
    asked = {**body, "ttl": "80000h"}
    found = prefix.http.ask("POST", path, token=prefix.login("runtime"), body=asked)
    made = x509.load_pem_x509_certificate(found.data["certificate"].encode())
    longest = timedelta(seconds=CERTIFICATE_TTL_S)
    assert made.not_valid_after_utc <= datetime.now(UTC) + longest


def test_a_certificate_is_for_one_side_only(prefix: VaultPrefix) -> None:
    for role, body, usage in (("agent", AGENT, "client"), ("server", SERVER, "server")):
        path = prefix.layout.pki_sign_path(role)
        found = prefix.http.ask("POST", path, token=prefix.login("runtime"), body=body)
        made = x509.load_pem_x509_certificate(found.data["certificate"].encode())
        usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [u._name for u in usages] == [f"{usage}Auth"]
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [body["common_name"]]
