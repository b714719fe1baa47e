"""Asks Vault as somebody: VaultHttp with a token that is kept good.

Rules:
- A 403 is looked into before it is believed: a token that was revoked, or that is older than its
  role's rights, is replaced, and the question asked once more.
- A mount that is not there is a thing to set up, never an empty answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from reconciler.adapters.vault_http import Answer, Json, VaultHttp
from reconciler.adapters.vault_login import AppRoleLogin, Identity, StaticToken
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.settings import Settings

_CAPABILITIES = {"GET": "read", "LIST": "list", "POST": "update", "DELETE": "delete"}


class VaultClient:
    """Paths are without `/v1/`. Raises Transient (custody_sealed, custody_timeout,
    custody_unreachable, custody_unavailable) and Refused (custody_login_refused, custody_forbidden,
    custody_malformed, custody_not_set_up, secrets_exposed, vault_address_refused).

    A 400 is an Answer: what it means is for who asked to say.
    """

    def __init__(self, http: VaultHttp, identity: Identity) -> None:
        self.http = http
        self.identity = identity

    @property
    def address(self) -> str:
        return self.http.address

    def close(self) -> None:
        self.http.close()

    def get(
        self, path: str, *, parameters: Mapping[str, str] | None = None, wrap_ttl_s: float = 0.0
    ) -> Answer | None:
        """None when there is none. With `wrap_ttl_s` the answer has only `wrap_info`.

        `parameters` go into the URL: nothing secret.
        """
        headers = _wrapped_for(wrap_ttl_s)
        answer = self._ask("GET", path, parameters=parameters, headers=headers, again=True)
        return None if answer.status == 404 else answer

    def list(self, path: str) -> tuple[str, ...] | None:
        """The names right under `path`, folders with a slash at their end; None for none."""
        answer = self._ask("LIST", path, again=True)
        if answer.status == 404:
            return None
        names = answer.data.get("keys")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.malformed(path)
        return tuple(names)

    def post(
        self, path: str, body: Json, *, again: bool = False, wrap_ttl_s: float = 0.0
    ) -> Answer:
        """`again`: asking twice does no more than asking once. `wrap_ttl_s` as for `get`."""
        headers = _wrapped_for(wrap_ttl_s)
        return self._ask("POST", path, body=body, headers=headers, again=again)

    def delete(self, path: str) -> Answer:
        return self._ask("DELETE", path, again=True)

    def malformed(self, path: str) -> Refused:
        """For an answer that lacks what it must have, or a 400 nobody foresaw."""
        return Refused(
            "custody_malformed",
            f"an answer that makes no sense here: {path}",
            where=self.address,
            hint="does `gpuaas vault plan` find everything as it should be?",
        )

    def _ask(self, method: str, path: str, **more: Any) -> Answer:
        answer = self._with(self.identity.token(), method, path, **more)
        if answer.status == 404 and answer.says("no handler for route"):
            raise not_set_up(f"there is nothing at {path}", self.address)
        return answer

    def _with(self, token: str, method: str, path: str, **more: Any) -> Answer:
        answer = self._send(token, method, path, **more)
        if answer.status == 403 and self.identity.replaced(token):
            answer = self._send(self.identity.token(), method, path, **more)
        if answer.status == 403:
            raise Refused(
                "custody_forbidden",
                f"its policy does not let this login {_CAPABILITIES[method]} {path}",
                where=self.address,
                hint="`gpuaas vault plan` shows what is missing",
            )
        return answer

    def _send(
        self,
        token: str,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        if method == "LIST":
            method, parameters = "GET", {"list": "true"}
        query = f"?{urlencode(parameters)}" if parameters else ""
        return self.http.ask(method, path + query, token=token, **more)


def not_set_up(message: str, address: str) -> Refused:
    hint = "`gpuaas vault bootstrap` sets it up"
    return Refused("custody_not_set_up", message, where=address, hint=hint)


def runtime_client(settings: Settings) -> VaultClient:
    """The client of the control plane, as its settings say."""
    files = settings.vault_role_id_file, settings.vault_secret_id_file
    return class_client(settings, "runtime", *files)


def class_client(
    settings: Settings,
    secret_class: SecretClass,
    role_id_file: Path | None,
    secret_id_file: Path | None,
) -> VaultClient:
    """A client that logs in as the AppRole of a class, when it is first used."""
    layout, http = VaultLayout(settings.vault_prefix), _http(settings)
    login, secret_id = layout.login_path(), layout.secret_id_path(secret_class)
    return VaultClient(http, AppRoleLogin(http, login, secret_id, role_id_file, secret_id_file))


def token_client(settings: Settings, token: Secret) -> VaultClient:
    """The client of a person who has a token of their own."""
    return VaultClient(_http(settings), StaticToken(token))


def _wrapped_for(ttl_s: float) -> dict[str, str]:
    return {"X-Vault-Wrap-TTL": f"{ceil(ttl_s)}s"} if ttl_s > 0 else {}


def _http(settings: Settings) -> VaultHttp:
    return VaultHttp(
        settings.vault_address,
        ca_file=settings.vault_ca_file,
        timeout_s=settings.vault_timeout_s,
    )
