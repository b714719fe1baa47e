"""Runs workloads as Docker containers, through the Engine API.

Rules:
- Docker's own restart is off: the agent decides what runs, or two would.
- Ownership is read from the labels on the very thing, each time, never remembered.
- One bridge network per node, made with the first container and gone with the last. Containers on
  it can't talk to each other; their ports are published on the host's loopback only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from docker.errors import NotFound

from node_agent.blob_files import blob_paths
from node_agent.engines.base import (
    Ask,
    EngineFacts,
    EngineFailure,
    Residue,
    no_credential,
    ownership_labels,
    unit_name,
)
from node_agent.engines.docker_api import (
    DockerApi,
    ExecProbes,
    drop_volumes_and_networks,
    facts_of,
    has_file,
    is_ours,
    ours,
    start_container,
    stop_container,
    volumes_of,
)
from node_agent.engines.docker_drift import record
from node_agent.engines.docker_spec import (
    LABEL_ASKED,
    VOLUMES_MAX,
    ImageConfig,
    create_request,
    needs_shell,
    unit_from_listing,
    volume_name,
)
from node_agent.engines.gpus import NO_GPUS, GpuGrant, grant, require
from node_agent.engines.packages import NO_SHELL, SHELL
from node_agent.engines.probes import probe_network
from node_agent.engines.secret_env import no_shell
from node_agent.inventory import HostPaths, gpu_host
from node_agent.secret_files import SecretFiles
from node_agent.units import Probed, Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_MANAGED,
    LABEL_NODE,
    LABEL_SERVICE,
    ExecProbe,
    FailureReason,
    Image,
    Probe,
    Workload,
)


class DockerEngine:
    """Docker at `host` (`unix://…`, or None for the usual place), on behalf of `node`.

    `paths`: where this host shows its GPUs; `secrets`: where its workloads' secrets are; `blobs`:
    the cache of blobs.
    """

    def __init__(
        self,
        node: str,
        host: str | None = None,
        paths: HostPaths | None = None,
        secrets: SecretFiles | None = None,
        blobs: Path | None = None,
    ) -> None:
        self._node = node
        self._docker = DockerApi(host)
        self._api = self._docker.talk
        self._paths = paths
        self._secrets = secrets or SecretFiles.for_node(node)
        self._blobs = blobs
        self._network_lock = threading.Lock()
        self._execs = ExecProbes()

    @property
    def name(self) -> Literal["docker"]:
        return "docker"

    @property
    def network(self) -> str:
        return f"gpuaas-{self._node}"

    def facts(self) -> EngineFacts:
        return facts_of(self._docker.info())

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        with self._api("list") as api:
            found = [self._unit(api, item) for item in self._containers(api, instance)]
        return tuple(unit for unit in found if unit is not None)

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential, /) -> None:
        self._docker.pull(image, cancelled, ask)

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        instance = workload.instance
        gpus = self._gpus(workload)
        secrets = str(self._secrets.folder_of(workload)) if workload.secrets else ""
        blobs = {name: str(path) for name, path in blob_paths(self._blobs, workload).items()}
        with self._api("create") as api, self._network_lock:
            self._ensure_network(api)
            described = api.inspect_image(workload.image.reference)
            image = ImageConfig.read(described)
            if len(image.volumes) > VOLUMES_MAX:
                message = f"the image declares {len(image.volumes)} volumes, at most {VOLUMES_MAX}"
                raise EngineFailure(FailureReason.CREATE_REFUSED, message)
            volumes = {path: self._ensure_volume(api, instance, path) for path in image.volumes}
            request = create_request(
                workload, self._node, self.network, host_ports, volumes, gpus, image, secrets,
                blobs,
            )  # fmt: skip
            request["Labels"][LABEL_ASKED] = record(request, described.get("Config") or {})
            made = api.create_container_from_config(
                request, unit_name(instance, workload.spec_hash)
            )
            if needs_shell(workload) and not has_file(api, made["Id"], SHELL):
                api.remove_container(made["Id"], v=True, force=True)
                raise _no_shell(workload)

    def start(self, unit: Unit) -> None:
        if unit.gpu_vendor is not None:
            # One that fell off its bus since then is better said here than by the workload.
            there = gpu_host(unit.gpu_vendor, EngineFacts(), self._paths).uuids
            require(unit.gpu_vendor, unit.gpu_uuids, there)
        with self._api("start") as api:
            start_container(api, unit.unit_id, paused=unit.status == "paused")

    def stop(self, unit: Unit, grace_ms: int) -> None:
        with self._api("stop") as api:
            stop_container(api, unit.unit_id, grace_ms, paused=unit.status == "paused")

    def remove(self, unit: Unit) -> None:
        with self._api("remove") as api:
            with contextlib.suppress(NotFound):
                api.remove_container(unit.unit_id, v=True, force=True)
            self._execs.forget(unit.unit_id)
            self._drop_unused_network(api)

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        if isinstance(probe, ExecProbe):
            with self._api("probe") as api:
                return self._execs.ask(api, unit.unit_id, probe, timeout_ms)
        return probe_network(unit, probe, timeout_ms)

    def sweep(self, instance: str) -> None:
        with self._api("sweep") as api:
            drop_volumes_and_networks(api, self._node, instance)
            self._drop_unused_network(api)

    def residue(self, instance: str) -> Residue:
        with self._api("look") as api, self._network_lock:
            networks = len(api.networks(filters={"label": self._ours(instance)}))
            if not self._containers(api, None):
                networks += len(self._shared_networks(api))
            return Residue(
                containers=len(self._containers(api, instance)),
                networks=networks,
                volumes=len(volumes_of(api, self._node, instance)),
                paths=0,
            )

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        def heard(labels: Mapping[str, str] | None) -> None:
            if labels is None or not labels.get(LABEL_SERVICE):
                changed(None if labels is None else labels.get(LABEL_INSTANCE))

        self._docker.watch(self._ours(None), heard, stop)

    def close(self) -> None:
        self._docker.close()

    # --- what is ours ---

    def _ours(self, instance: str | None) -> list[str]:
        return ours(self._node, instance)

    def _containers(self, api: Any, instance: str | None) -> list[Mapping[str, Any]]:
        """Those of topologies are another engine's. An image may bring the label, but no name."""
        listing = api.containers(all=True, filters={"label": self._ours(instance)})
        return [one for one in listing if not (one.get("Labels") or {}).get(LABEL_SERVICE)]

    def _unit(self, api: Any, item: Mapping[str, Any]) -> Unit | None:
        if LABEL_INSTANCE not in (item.get("Labels") or {}):
            return None
        # The listing may still say "running" when the event of its end has been sent long since.
        try:
            return unit_from_listing(item, api.inspect_container(item["Id"]), self.network)
        except NotFound:
            return None

    def _shared_networks(self, api: Any) -> list[dict[str, Any]]:
        found = api.networks(names=[self.network], filters={"label": self._ours(None)})
        return [network for network in found if network["Name"] == self.network]

    def _ensure_network(self, api: Any) -> None:
        if self._shared_networks(api):
            return
        if any(n["Name"] == self.network for n in api.networks(names=[self.network])):
            message = f"a network {self.network} exists and is not ours"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message)
        api.create_network(
            self.network,
            driver="bridge",
            options={"com.docker.network.bridge.enable_icc": "false"},
            labels={LABEL_MANAGED: "true", LABEL_NODE: self._node},
            check_duplicate=True,
        )

    def _drop_unused_network(self, api: Any) -> None:
        with self._network_lock:
            if self._containers(api, None):
                return
            for network in self._shared_networks(api):
                with contextlib.suppress(NotFound):
                    api.remove_network(network["Id"])

    def _ensure_volume(self, api: Any, instance: str, path: str) -> str:
        name = volume_name(self._node, instance, path)
        made = api.create_volume(name, labels=ownership_labels(self._node, instance))
        if not is_ours(made.get("Labels"), self._node, instance):
            message = f"a volume {name} exists and is not ours"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message)
        return name

    def _gpus(self, workload: Workload) -> GpuGrant:
        vendor = workload.limits.gpu_vendor
        if vendor is None or not workload.limits.gpu_uuids:
            return NO_GPUS
        return grant(workload.limits, gpu_host(vendor, self.facts(), self._paths))


def _no_shell(workload: Workload) -> EngineFailure:
    if workload.packages is not None:
        return EngineFailure(FailureReason.PACKAGES_FAILED, NO_SHELL)
    return EngineFailure(FailureReason.CREATE_REFUSED, no_shell(workload))
