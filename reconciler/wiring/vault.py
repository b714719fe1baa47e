"""What looks at a Vault and makes it as it has to be: for a command, and beside the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.adapters.local_folder import as_refused, make_private, write_private
from reconciler.adapters.vault_admin import VaultAdmin
from reconciler.adapters.vault_client import (
    VaultClient,
    class_client,
    runtime_client,
    token_client,
)
from reconciler.core.custody.desired import desired
from reconciler.core.custody.grants import WRAPPING_TTL_MAX_S
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import Thing
from reconciler.custody.watch import CustodyWatch, Mended
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases import vault as use_case


def layout_of(settings: Settings) -> VaultLayout:
    return VaultLayout(settings.vault_prefix)


def wanted(settings: Settings) -> tuple[Thing, ...]:
    return desired(layout_of(settings), settings.certificate_ttl_s)


@contextmanager
def vault_admin(settings: Settings, token: Secret | None, *, looks: bool) -> Iterator[VaultAdmin]:
    """With this token; without one by the login of the bootstrap class, and who only `looks` by
    that of the control plane.
    """
    if not settings.vault_address:
        raise Refused(
            "vault_not_configured",
            "which Vault?",
            hint="set GPUAAS_VAULT_ADDRESS, or vault_address in gpuaas.toml",
        )
    admin = VaultAdmin(_client(settings, token, looks=looks), layout_of(settings))
    try:
        yield admin
    finally:
        admin.close()


def hand_out(
    admin: VaultAdmin, secret_class: SecretClass, folder: Path, ttl_s: float
) -> list[Path]:
    """A login of the class in two files, for their owner alone; the secret id is wrapped."""
    ttl_s = min(ttl_s, WRAPPING_TTL_MAX_S)
    role_id = admin.role_id(secret_class)
    places = [folder / f"{secret_class}-role-id", folder / f"{secret_class}-secret-id"]
    with as_refused(folder):
        make_private(folder)
        write_private(places[0], role_id.encode() + b"\n")
        token = admin.wrapped_secret_id(secret_class, ttl_s)
        write_private(places[1], token.reveal().encode() + b"\n")
    return places


def custody_watch(settings: Settings) -> CustodyWatch:
    """Looks by the login of the control plane, and mends by that of the bootstrap class if any."""
    things, layout = wanted(settings), layout_of(settings)
    looker = VaultAdmin(runtime_client(settings), layout)
    mend: Callable[[], Mended] | None = None
    if _may_mend(settings):
        mender = VaultAdmin(_bootstrap_client(settings), layout)

        def mend() -> Mended:
            made = use_case.mend(mender, layout, things)
            return Mended(made.done, made.left)

    return CustodyWatch(lambda: use_case.differences(looker, things), mend)


def _client(settings: Settings, token: Secret | None, *, looks: bool) -> VaultClient:
    if token is not None:
        return token_client(settings, token)
    if _may_mend(settings):
        return _bootstrap_client(settings)
    if looks and settings.vault_role_id_file and settings.vault_secret_id_file:
        return runtime_client(settings)
    raise Refused(
        "no_vault_token",
        "who are you to Vault?",
        hint="set VAULT_TOKEN or pass --token-file; a token is never an argument",
    )


def _bootstrap_client(settings: Settings) -> VaultClient:
    files = settings.vault_bootstrap_role_id_file, settings.vault_bootstrap_secret_id_file
    return class_client(settings, "bootstrap", *files)


def _may_mend(settings: Settings) -> bool:
    files = (settings.vault_bootstrap_role_id_file, settings.vault_bootstrap_secret_id_file)
    return all(file is not None for file in files)
