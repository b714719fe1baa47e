"""The key pair that every instance proves itself with, for as long as it lives.

Rules:
- It is one of the instance's secrets: made when its node first asks, brought to it sealed, deleted
  with the others once its teardown is proved. A later instance of that name has another.
- Only an instance that is meant to be there has one. Its own name is what its node calls it: that
  is the same all its life, also when it is renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from node_agent.wire import MACHINE_IDENTITY, key_id
from reconciler.core.authority.accounts import TOKEN_PATH, Account, AccountKey, Subject
from reconciler.core.lifecycle import LIVE
from reconciler.core.names import InstanceKey, secret_path
from reconciler.core.records import InstanceRecord, node_name
from reconciler.ports import Secret, SecretStore

_ID_LENGTH = 32
_NOBODY = secret_path("none", InstanceKey("none"), MACHINE_IDENTITY)


def make_identity(record: InstanceRecord, audience: str) -> Secret:
    """A new one, as the text of its file."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    document = {
        "account": str(Subject("instance", node_name(record))),
        "audience": audience,
        "key_id": _key_id(key, record.epoch),
        "private_key": pem.decode(),
        "token_path": TOKEN_PATH,
    }
    return Secret(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _key_id(key: Ed25519PrivateKey, epoch: int) -> str:
    """The epoch in which it was made tells people of which life it is."""
    return f"{key_id(key.public_key().public_bytes_raw().hex())[:_ID_LENGTH]}-{epoch}"


def may_have_one(record: InstanceRecord) -> bool:
    return record.state in LIVE and MACHINE_IDENTITY in record.secrets


def identity_key(secrets: SecretStore, record: InstanceRecord | None) -> AccountKey | None:
    """The public half of what the instance has. One secret is looked up in any case."""
    allowed = record is not None and may_have_one(record)
    path = (
        secret_path(record.node, node_name(record), MACHINE_IDENTITY)
        if record is not None and allowed
        else _NOBODY
    )
    found = secrets.read(path)
    return _public_half(found) if found is not None and allowed else None


def _public_half(secret: Secret) -> AccountKey | None:
    """None for what is no identity of ours, as a secret of that name from before there were any."""
    try:
        document = json.loads(secret.reveal())
        key = load_pem_private_key(document["private_key"].encode(), None)
        id_ = document["key_id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(key, Ed25519PrivateKey) or not isinstance(id_, str):
        return None
    return AccountKey(id_, "EdDSA", key.public_key().public_bytes_raw().hex())


def called(name: str, records: Mapping[InstanceKey, InstanceRecord]) -> list[InstanceRecord]:
    """The instances that their node calls so: at most a few, one a node."""
    own = records.get(InstanceKey(name))
    renamed = [record for record in records.values() if record.runtime_name == name]
    return [own, *renamed] if own is not None and not own.runtime_name else renamed


def instance_account(record: InstanceRecord, key: AccountKey) -> Account:
    """By the name that the instance has now."""
    return Account(Subject("instance", record.key), {key.id: key})
