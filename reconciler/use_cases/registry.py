"""What a registry has to be told to let in our tokens, and whether it does."""

from __future__ import annotations

import json
from typing import Literal

from reconciler.artifacts.registry_keys import configuration, jwks
from reconciler.artifacts.registry_tokens import bundle, signing_keys
from reconciler.core.names import ArtifactKey, Digest
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import Ports, RegistryEndpoint, SecretStore
from reconciler.settings import Settings

TrustForm = Literal["pem", "jwks", "config"]
_NOTHING = ArtifactKey("gpuaas/check", Digest.of(b"nothing that anybody pushed"))
_DENIED = "registry_denied"


def trust_of(secrets: SecretStore, settings: Settings, form: TrustForm) -> str:
    """Certificates, PEM; a JWK set; or the part of its configuration that names one of them."""
    if form == "pem":
        return bundle(secrets)
    if form == "jwks":
        return json.dumps(jwks(signing_keys(secrets)), indent=2) + "\n"
    return configuration(settings, settings.registry_token_key_id)


def check_registry(ports: Ports, settings: Settings) -> RegistryEndpoint:
    """The Environment's registry, which lets in who has a token of ours, and nobody else.

    Refused: registry_without_tokens, registry_open, registry_disbelieves; what a Registry raises.
    """
    endpoint = _endpoint(ports, settings)
    where = endpoint.endpoint
    if _lets_in(ports, endpoint, token=False):
        raise Refused(
            "registry_open",
            "it answers who has no token: anybody who reaches it may read and write",
            where=where,
            hint="put what `gpuaas registry trust --format config` prints into its configuration",
        )
    if not _lets_in(ports, endpoint, token=True):
        raise Refused(
            "registry_disbelieves",
            "it refuses a token of this control plane",
            where=where,
            hint="compare its auth.token with `gpuaas registry trust --format config` and its keys "
            "with `gpuaas registry trust`; distribution 3 wants registry_token_key_id thumbprint",
        )
    return endpoint


def _lets_in(ports: Ports, endpoint: RegistryEndpoint, *, token: bool) -> bool:
    at = RegistryEndpoint(endpoint.endpoint, endpoint.plain_http, token_auth=token)
    try:
        ports.registry.look_up(at, _NOTHING)
    except GpuaasError as error:
        if error.code != _DENIED:
            raise
        return False
    return True


def _endpoint(ports: Ports, settings: Settings) -> RegistryEndpoint:
    name = f"Environment/{settings.environment}"
    found = ports.store.accepted().objects.get(name)
    registry = json.loads(found.document_json)["spec"]["registry"] if found else {}
    if registry.get("auth") != "token" or registry.get("layout_path"):
        raise Refused(
            "registry_without_tokens",
            "by what was accepted last, its registry asks for no tokens",
            where=name,
            hint="set spec.registry.auth: token, and let the control plane make a pass",
        )
    plain = bool(registry.get("plain_http"))
    return RegistryEndpoint(str(registry["endpoint"]), plain, token_auth=True)
