"""Where a version is reached: each endpoint with its protocol and path, by the name of its port.

Rules: pure. A node reports an endpoint by its name and numbers alone; what is behind it stands in
the version that runs, and this is the one place that reads it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from node_agent.wire import Endpoint
from reconciler.core.desired import StateObject
from reconciler.core.forms import parse_accepted
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.records import Accepted, InstanceRecord
from reconciler.core.topology import ALONE, COMPOSE, topology_endpoints

LOOPBACK = "127.0.0.1"
_IN_URLS = "/?=&%#+,:@~"

Protocol = Literal["http", "https", "grpc", "tcp"]
Expose = Literal["internal", "private", "embedded_ui_gateway", "members"]


@dataclass(frozen=True)
class EndpointForm:
    """`port` is the service's own. internal: for services of the same instance; private: on the
    node's loopback too; members: at the node's address, for further members.
    """

    name: str
    service: str
    port: int
    protocol: Protocol = "http"
    expose: Expose = "private"
    path: str = "/"


Forms = Mapping[str, EndpointForm]
"""By the name of the port."""


def endpoint_forms(spec: AppVersionSpec) -> tuple[EndpointForm, ...]:
    """All endpoints of a version, in the order they are written."""
    profile = spec.runtime_profile
    if profile.kind == COMPOSE:
        return tuple(
            EndpointForm(one.name, one.service, one.port, one.protocol, one.expose, one.path)
            for one in topology_endpoints(profile)
        )
    probe = profile.health.readiness
    tcp = probe.tcp.port if probe is not None and probe.tcp is not None else None
    ui = spec.ui.path if spec.ui is not None else "/"
    return tuple(
        EndpointForm(
            port.name,
            ALONE,
            port.container,
            "tcp" if port.container == tcp or port.expose == "members" else "http",
            port.expose,
            ui if port.expose == "embedded_ui_gateway" else "/",
        )
        for port in profile.ports
    )


def forms_of(accepted: Accepted, record: InstanceRecord) -> Forms:
    """Those of the version that an instance runs, or is to run; none where that is not accepted."""
    version = record.applied_version or record.target_version
    stored = accepted.objects.get(f"AppVersion/{record.app}/{version}")
    found = parse_accepted(stored) if stored is not None else None
    if not isinstance(found, StateObject) or not isinstance(found.manifest.spec, AppVersionSpec):
        return {}
    return {one.name: one for one in endpoint_forms(found.manifest.spec)}


def private(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Those on the node's loopback: what is published for other members is not for people."""
    return tuple(one for one in endpoints if one.host_ip == LOOPBACK)


def url(protocol: str, path: str, address: str) -> str:
    """What is at `address`, host:port; a path means nothing where HTTP is not spoken.

    What means something to a shell is written as its number, but for what URLs can't do without.
    """
    if protocol not in ("http", "https"):
        return f"{protocol}://{address}"
    return f"{protocol}://{address}{quote(path, safe=_IN_URLS)}"
