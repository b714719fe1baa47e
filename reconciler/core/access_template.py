"""The words of a version's author on how it is reached, with host ports filled in. Pure.

`{host_port:NAME}` is the host port of the endpoint called so; `{host_port}` that of the entrance,
the first of the main service that is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.topology import COMPOSE, main_service, topology_endpoints

HOST_PORT = "{host_port}"
_NAMED = re.compile(r"\{host_port:([^{}]*)\}")


def access_template(spec: AppVersionSpec) -> str:
    """A version's instructions; the entrance named where only its topology says which that is."""
    text = spec.access.instructions if spec.access is not None else ""
    profile = spec.runtime_profile
    if profile.kind != COMPOSE:
        return text
    main = main_service(profile)
    shown = [one for one in topology_endpoints(profile) if one.expose != "internal"]
    first = next((one.name for one in shown if one.service == main), None)
    return text.replace(HOST_PORT, f"{{host_port:{first}}}") if first is not None else text


def with_host_ports(text: str, entrance: int, ports: Mapping[str, int]) -> str:
    """Filled in; what names no endpoint stays as it is written."""
    text = _NAMED.sub(lambda found: str(ports.get(found[1], found[0])), text)
    return text.replace(HOST_PORT, str(entrance))
