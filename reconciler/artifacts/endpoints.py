"""Which registry an artifact is in, by an Environment or by what was resolved of an instance."""

from __future__ import annotations

from node_agent.wire import LAYOUT_PREFIX
from reconciler.core.desired import Instance
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.ports import RegistryEndpoint


def endpoint_of(environment: EnvironmentSpec) -> RegistryEndpoint:
    """The registry of an Environment."""
    registry = environment.registry
    folder = registry.layout_path
    place = f"{LAYOUT_PREFIX}{folder}" if folder else registry.endpoint
    return _endpoint(place, registry.plain_http, token_auth=registry.auth == "token")


def endpoint_for(instance: Instance) -> RegistryEndpoint:
    """The registry that an instance's artifacts are in."""
    return _endpoint(
        instance.registry_endpoint,
        instance.registry_plain_http,
        token_auth=instance.registry_token_auth,
    )


def _endpoint(place: str, plain_http: bool, *, token_auth: bool) -> RegistryEndpoint:
    """`place`: host:port, or `layout:` and a folder."""
    if place.startswith(LAYOUT_PREFIX):
        return RegistryEndpoint(place, layout_path=place.removeprefix(LAYOUT_PREFIX))
    return RegistryEndpoint(place, plain_http, token_auth=token_auth)
