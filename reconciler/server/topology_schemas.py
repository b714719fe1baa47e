"""The shape of a topology: part of the components of the API's document."""

from __future__ import annotations

from reconciler.core import topology_view as views
from reconciler.core.records import State
from reconciler.server.api_schemas import (
    COUNT,
    FLAG,
    TEXT,
    Schema,
    listed,
    of_type,
    one_of,
    or_null,
    ref,
)

_POSITIVE: Schema = {"type": "integer", "minimum": 1}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65_535}
_DIGEST: Schema = {**TEXT, "description": "sha256:…, as its node found it; empty: not known."}


def topology_schemas() -> dict[str, Schema]:
    """Name → schema."""
    healths = {
        **one_of(*views.HEALTHS),
        "description": "As its node says; absent: it has none of it; unknown: nobody could look; "
        "empty: nobody looked.",
    }
    return {
        "Topology": of_type(
            views.TopologyView,
            "The services of an instance, by name; `starts` has them in the order in which they "
            "are started. `runs` says whether the node runs this very form.",
            ("state", "runs", "vital_failure", "other_failure", "services", "volumes"),
            format={"const": views.FORMAT},
            state=one_of(*(state.value for state in State), ""),
            runs=one_of("this", "another", "nothing", "unknown", ""),
            vital_failure=one_of("restart_service", "restart_all"),
            other_failure=one_of("degrade", "roll_back"),
            services=listed(ref("TopologyService")),
            volumes=listed(ref("TopologyVolume")),
        ),
        "TopologyService": of_type(
            views.ServiceView,
            "One container. Secrets are named, and never told.",
            ("role", "restart", "needs", "endpoints", "mounts", "scratch", "secrets", "share",
             "health", "image_runs", "start_budget_ms", "restarts"),
            role=one_of("main", "sidecar"),
            restart=one_of("always", "on_failure", "never"),
            start_budget_ms=COUNT,
            needs=listed(ref("TopologyNeed")),
            endpoints=listed(ref("TopologyEndpoint")),
            mounts=listed(ref("TopologyMount")),
            scratch=listed(ref("TopologyScratch")),
            secrets=listed(ref("TopologySecret")),
            share=ref("TopologyShare"),
            health=healths,
            image_runs=_DIGEST,
            restarts=COUNT,
        ),
        **_of_parts(),
    }  # fmt: skip


def _of_parts() -> dict[str, Schema]:
    return {
        "TopologyEndpoint": of_type(
            views.EndpointView,
            "Where a service is reached: `inside` by services of the same instance, `host_ip` and "
            "`host_port` where its node publishes it.",
            ("protocol", "expose", "port", "host_port"),
            protocol=one_of("http", "https", "grpc", "tcp"),
            expose=one_of("internal", "private", "embedded_ui_gateway", "members"),
            port=_PORT,
            host_port=or_null(_PORT),
        ),
        "TopologyMount": of_type(views.MountView, "A volume in a service."),
        "TopologyNeed": of_type(
            views.NeedView,
            "What has to be true of another service before this one is started.",
            ("condition",),
            condition=one_of("started", "healthy", "completed"),
        ),
        "TopologyScratch": of_type(
            views.ScratchView, "Room in memory, empty at each start.", ("size_mib",),
            size_mib=_POSITIVE,
        ),
        "TopologySecret": of_type(
            views.SecretView, "By name; `reference` is empty for one made for the instance."
        ),
        "TopologyShare": of_type(
            views.ShareView,
            "What a service may use at most. `gpus_shared`: others use them, too.",
            ("gpus_shared",),
            gpus_shared=FLAG,
        ),
        "TopologyVolume": of_type(
            views.VolumeView, "Room on the node's disk, until the instance is decommissioned.",
            ("size_mib",), size_mib=_POSITIVE,
        ),
    }  # fmt: skip
