"""Keys and secrets in Vault or OpenBao, by API paths that both have: KV version 2 and transit.

Rules:
- A secret lies at `<class>/<path>` of the KV mount, so that a policy for a class is one line.
- Every write says which version it replaces: of two at once one loses, and looks again.
- A secret is deleted with all its versions.
- What is unwrapped was made by reading that very secret, or it is left as it is.
- Nothing is kept here but public keys: values are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from node_agent.wire import VerifierKey
from reconciler.adapters.secret_paths import check_path, check_token, check_value, no_secret
from reconciler.adapters.vault_client import VaultClient
from reconciler.adapters.vault_login import unwrap
from reconciler.adapters.vault_transit import TransitKeys
from reconciler.core.custody.layout import VaultLayout
from reconciler.errors import Refused, Transient
from reconciler.ports import KeyKind, PublicKey, Secret, SecretSeen, Signed, Wrapped

WRITES_MAX = 8
PATHS_MAX = 100_000


class VaultSecrets:
    """A SecretStore over `client`, under the mounts that `layout` names.

    Raises what VaultClient does, and what `ports.SecretStore` says.
    """

    def __init__(self, client: VaultClient, layout: VaultLayout) -> None:
        self._client = client
        self._layout = layout
        self._keys = TransitKeys(client, layout)

    def close(self) -> None:
        self._client.close()

    def ensure_signing_key(self, name: str, kind: KeyKind = "ed25519") -> PublicKey:
        return self._keys.ensure(name, kind)

    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        """From memory where they were asked for a moment ago, or Vault is away."""
        return self._keys.public_keys(name)

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        return self._keys.verifier_keys(name)

    def rotate(self, name: str) -> PublicKey:
        return self._keys.rotate(name)

    def retire(self, name: str, min_version: int) -> None:
        self._keys.retire(name, min_version)

    def sign(self, name: str, message: bytes, version: int | None = None) -> Signed:
        return self._keys.sign(name, message, version)

    def read(self, path: str) -> Secret | None:
        place = self._data(path)
        answer = self._client.get(place)
        return None if answer is None else self._value(place, answer.data)

    def seen(self, path: str) -> SecretSeen | None:
        found = self._metadata(path)
        if found is None:
            return None
        version, newest = found
        if newest.get("destroyed") or newest.get("deletion_time"):
            return None
        return SecretSeen(version, self._ms(path, newest.get("created_time")))

    def paths(self, prefix: str) -> tuple[str, ...]:
        check_path(prefix)
        found: list[str] = []
        folders = [f"{prefix}/"]
        while folders:
            folder = folders.pop()
            for name in self._client.list(f"{self._layout.kv_metadata_path(folder)}") or ():
                (folders if name.endswith("/") else found).append(folder + name)
            if len(found) > PATHS_MAX:
                raise Refused("too_many_secrets", f"more than {PATHS_MAX}", where=prefix)
        return tuple(sorted(found))

    def write(self, path: str, value: Secret) -> None:
        self._data(path)
        check_value(path, value)
        for _ in range(WRITES_MAX):
            found = self._metadata(path)
            if self._put(path, value, found[0] if found else 0):
                return
        raise _contended(path)

    def ensure(self, path: str, value: Secret) -> Secret:
        check_value(path, value)
        replaces = 0
        for _ in range(WRITES_MAX):
            there = self.read(path)
            if there is not None:
                return there
            if self._put(path, value, replaces):
                return value
            # Somebody was first, or deleted one by hand, which still counts its versions. Asked
            # before the next read: what is written after that is seen there, or refuses ours.
            found = self._metadata(path)
            replaces = found[0] if found else 0
        raise _contended(path)

    def delete(self, path: str) -> None:
        check_path(path)
        self._client.delete(f"{self._layout.kv_metadata_path(path)}")

    def wrap(self, path: str, ttl_s: float) -> Wrapped:
        place = self._data(path)
        # Vault wraps the news that there is none as well.
        if self.seen(path) is None:
            raise no_secret(path)
        answer = self._client.get(place, wrap_ttl_s=ttl_s)
        if answer is None:
            raise no_secret(path)
        token, ttl = answer.wrap_info.get("token"), answer.wrap_info.get("ttl")
        made_ms = self._ms(path, answer.wrap_info.get("creation_time"))
        if not isinstance(token, str) or not isinstance(ttl, int):
            raise self._client.malformed(place)
        return Wrapped(Secret(token), made_ms + ttl * 1000)

    def unwrap(self, token: Secret, path: str) -> Secret:
        place = self._data(path)
        answer = unwrap(self._client.http, check_token(token, path), place, path)
        return self._value(place, answer.data)

    def _data(self, path: str) -> str:
        check_path(path)
        return f"{self._layout.kv_data_path(path)}"

    def _value(self, place: str, data: Mapping[str, Any]) -> Secret:
        fields = data.get("data")
        value = fields.get("value") if isinstance(fields, dict) else None
        if not isinstance(value, str):
            raise Refused(
                "custody_malformed",
                "there is something, and it has no text in its field `value`",
                where=place,
                hint="write it anew, as `value=…`",
            )
        return Secret(value)

    def _metadata(self, path: str) -> tuple[int, Mapping[str, Any]] | None:
        """The newest version and what is known of it; None when there never was one."""
        check_path(path)
        place = f"{self._layout.kv_metadata_path(path)}"
        answer = self._client.get(place)
        if answer is None:
            return None
        version, versions = answer.data.get("current_version"), answer.data.get("versions")
        if not isinstance(version, int) or not isinstance(versions, dict):
            raise self._client.malformed(place)
        newest = versions.get(str(version))
        if version == 0 or newest is None:
            # Somebody gave it metadata of its own, and no value yet.
            return version, {"destroyed": True}
        if not isinstance(newest, dict):
            raise self._client.malformed(place)
        return version, newest

    def _put(self, path: str, value: Secret, replaces: int) -> bool:
        """False when another version is there than the one it replaces."""
        body = {"data": {"value": value.reveal()}, "options": {"cas": replaces}}
        answer = self._client.post(self._data(path), body)
        if not answer.ok and not answer.says("check-and-set"):
            raise self._client.malformed(self._data(path))
        return answer.ok

    def _ms(self, path: str, text: object) -> int:
        try:
            return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise self._client.malformed(path) from None


def _contended(path: str) -> Transient:
    return Transient("custody_unavailable", "others write it at the same time", where=path)
