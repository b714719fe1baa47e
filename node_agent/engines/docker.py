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
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from node_agent.blob_files import blob_paths
from node_agent.engines.base import (
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    PullCredential,
    Residue,
    no_credential,
    ownership_labels,
    unit_name,
)
from node_agent.engines.docker_drift import record
from node_agent.engines.docker_spec import (
    LABEL_ASKED,
    VOLUMES_MAX,
    ImageConfig,
    create_request,
    failure_of,
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
    ExecProbe,
    FailureReason,
    Image,
    Probe,
    Workload,
)

REQUEST_TIMEOUT_S = 60
RECONNECT_S = 1.0
EXEC_POLL_S = 0.02
_CHUNKS_MAX = 16
"""Of 2 MiB each: more than any shell has."""
_DENIED = ("denied", "unauthorized", "authentication required")
_EVENTS = ["die", "destroy", "oom", "pause", "start", "unpause", "update"]


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
        self._host = host
        self._paths = paths
        self._secrets = secrets or SecretFiles.for_node(node)
        self._blobs = blobs
        self._connected: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._network_lock = threading.Lock()
        self._closed = threading.Event()
        self._events: Any = None
        self._running_execs: dict[str, str] = {}

    @property
    def name(self) -> Literal["docker"]:
        return "docker"

    @property
    def network(self) -> str:
        return f"gpuaas-{self._node}"

    def facts(self) -> EngineFacts:
        with self._api("ask") as api:
            return facts_of(api.info())

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        with self._api("list") as api:
            listing = api.containers(all=True, filters={"label": self._ours(instance)})
            found = [self._unit(api, item) for item in listing]
        return tuple(unit for unit in found if unit is not None)

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential, /) -> None:
        with self._api("pull") as api:
            if not _present(api, image):
                _pull_with(api, image, cancelled, ask())
            described = api.inspect_image(image.reference)
        if image.reference not in (described.get("RepoDigests") or []):
            message = f"the pulled image does not carry {image.digest}"
            raise EngineFailure(FailureReason.DIGEST_MISMATCH, message)

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
            if unit.status == "paused":
                api.unpause(unit.unit_id)
            else:
                api.start(unit.unit_id)

    def stop(self, unit: Unit, grace_ms: int) -> None:
        with self._api("stop") as api, contextlib.suppress(NotFound):
            if unit.status == "paused":
                api.unpause(unit.unit_id)
            api.stop(unit.unit_id, timeout=-(-grace_ms // 1_000))

    def remove(self, unit: Unit) -> None:
        with self._api("remove") as api:
            with contextlib.suppress(NotFound):
                api.remove_container(unit.unit_id, v=True, force=True)
            self._running_execs.pop(unit.unit_id, None)
            self._drop_unused_network(api)

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        if isinstance(probe, ExecProbe):
            with self._api("probe") as api:
                return self._probe_exec(api, unit, probe, timeout_ms)
        return probe_network(unit, probe, timeout_ms)

    def sweep(self, instance: str) -> None:
        with self._api("sweep") as api:
            for volume in self._volumes(api, instance):
                with contextlib.suppress(NotFound):
                    api.remove_volume(volume["Name"])
            for network in api.networks(filters={"label": self._ours(instance)}):
                with contextlib.suppress(NotFound):
                    api.remove_network(network["Id"])
            self._drop_unused_network(api)

    def residue(self, instance: str) -> Residue:
        ours = {"label": self._ours(instance)}
        with self._api("look") as api, self._network_lock:
            networks = len(api.networks(filters=ours))
            if not api.containers(all=True, filters={"label": self._ours(None)}):
                networks += len(self._shared_networks(api))
            return Residue(
                containers=len(api.containers(all=True, filters=ours)),
                networks=networks,
                volumes=len(self._volumes(api, instance)),
                paths=0,
            )

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        while not (stop.is_set() or self._closed.is_set()):
            with contextlib.suppress(EngineFailure, OSError, ValueError, AttributeError):
                self._follow(changed)
            changed(None)
            stop.wait(RECONNECT_S)

    def close(self) -> None:
        self._closed.set()
        with self._connecting:
            if self._events is not None:
                with contextlib.suppress(OSError, DockerException, AttributeError):
                    self._events.close()
            if self._connected is not None:
                self._connected.close()

    # --- connection ---

    @contextlib.contextmanager
    def _api(self, doing: str) -> Iterator[Any]:
        try:
            yield self._client()
        except APIError as error:
            raise _failure(error, doing) from None
        except (DockerException, requests.RequestException, OSError) as error:
            message = f"Docker does not answer ({type(error).__name__})"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True) from None

    def _client(self) -> docker.APIClient:
        with self._connecting:
            if self._connected is None:
                self._connected = docker.APIClient(
                    base_url=self._host, version="auto", timeout=REQUEST_TIMEOUT_S
                )
            return self._connected

    def _follow(self, changed: Callable[[str | None], None]) -> None:
        filters = {"type": "container", "event": _EVENTS, "label": self._ours(None)}
        with self._api("watch") as api:
            events = api.events(filters=filters, decode=True)
            with self._connecting:
                self._events = events
            changed(None)
            for event in events:
                labels = (event.get("Actor") or {}).get("Attributes") or {}
                changed(labels.get(LABEL_INSTANCE))

    # --- what is ours ---

    def _ours(self, instance: str | None) -> list[str]:
        labels = [f"{LABEL_MANAGED}=true", f"{LABEL_NODE}={self._node}"]
        return labels if instance is None else [*labels, f"{LABEL_INSTANCE}={instance}"]

    def _unit(self, api: Any, item: Mapping[str, Any]) -> Unit | None:
        if LABEL_INSTANCE not in (item.get("Labels") or {}):
            return None
        # The listing may still say "running" when the event of its end has been sent long since.
        try:
            return unit_from_listing(item, api.inspect_container(item["Id"]), self.network)
        except NotFound:
            return None

    def _volumes(self, api: Any, instance: str) -> list[dict[str, Any]]:
        found = api.volumes(filters={"label": self._ours(instance)})
        return list(found.get("Volumes") or [])

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
            if api.containers(all=True, filters={"label": self._ours(None)}):
                return
            for network in self._shared_networks(api):
                with contextlib.suppress(NotFound):
                    api.remove_network(network["Id"])

    def _ensure_volume(self, api: Any, instance: str, path: str) -> str:
        name = volume_name(self._node, instance, path)
        ours = ownership_labels(self._node, instance)
        labels = api.create_volume(name, labels=ours).get("Labels") or {}
        if any(labels.get(label) != value for label, value in ours.items()):
            message = f"a volume {name} exists and is not ours"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message)
        return name

    def _gpus(self, workload: Workload) -> GpuGrant:
        vendor = workload.limits.gpu_vendor
        if vendor is None or not workload.limits.gpu_uuids:
            return NO_GPUS
        return grant(workload.limits, gpu_host(vendor, self.facts(), self._paths))

    # --- exec probes ---

    def _probe_exec(self, api: Any, unit: Unit, probe: ExecProbe, timeout_ms: int) -> Probed:
        """Docker can't end a command it started, so a hanging one is waited for, never doubled."""
        earlier = self._running_execs.pop(unit.unit_id, None)
        if earlier is not None and api.exec_inspect(earlier)["Running"]:
            self._running_execs[unit.unit_id] = earlier
            return Probed(False, "the command of an earlier probe has not ended")
        execution = api.exec_create(unit.unit_id, list(probe.command))["Id"]
        try:
            api.exec_start(execution, detach=True)
        except APIError as error:
            # The workload is there, and its image is wrong: that is an answer, not a failure.
            failure = failure_of(error.status_code or 500, error.explanation or "", "start")
            if failure.reason is not FailureReason.COMMAND_NOT_FOUND:
                raise
            return Probed(False, f"the command can't be run: {failure.message}")
        deadline_s = time.monotonic() + timeout_ms / 1_000
        while time.monotonic() < deadline_s:
            seen = api.exec_inspect(execution)
            if not seen["Running"]:
                code = seen["ExitCode"]
                return Probed(code == 0, f"the command exited with {code}")
            time.sleep(EXEC_POLL_S)
        self._running_execs[unit.unit_id] = execution
        return Probed(False, f"the command did not end within {timeout_ms} ms")


def _no_shell(workload: Workload) -> EngineFailure:
    if workload.packages is not None:
        return EngineFailure(FailureReason.PACKAGES_FAILED, NO_SHELL)
    return EngineFailure(FailureReason.CREATE_REFUSED, no_shell(workload))


def facts_of(info: Mapping[str, Any]) -> EngineFacts:
    """From an answer to `GET /info`. An empty list of CDI folders says that CDI is off."""
    discovered = info.get("DiscoveredDevices") or ()
    return EngineFacts(
        version=info.get("ServerVersion"),
        runtimes=tuple(sorted(info.get("Runtimes") or {})),
        cdi=bool(info.get("CDISpecDirs")),
        cdi_devices=tuple(sorted(one["ID"] for one in discovered if one.get("Source") == "cdi")),
    )


def has_file(api: Any, container: str, path: str) -> bool:
    """Whether there is such a file in a container, running or not."""
    try:
        content, _ = api.get_archive(container, path)
    except NotFound:
        return False
    # Read to its end, else the connection is not given back; not of what only claims to be a file.
    for _ in islice(content, _CHUNKS_MAX):
        continue
    return True


def _present(api: Any, image: Image) -> bool:
    try:
        api.inspect_image(image.reference)
    except NotFound:
        return False
    return True


def _pull_with(api: Any, image: Image, cancelled: threading.Event, shown: PullCredential) -> None:
    """A pull that fails for want of a credential, or because a registry does not believe ours yet,
    may work a little later, whatever Docker makes of it.
    """
    try:
        _pull(api, image, cancelled, shown.token)
    except (APIError, EngineFailure) as error:
        said = error if isinstance(error, EngineFailure) else _failure(error, "pull")
        if shown.missing:
            why = f"; there was no credential for the registry: {shown.missing}"
        elif shown.token and any(word in said.message.lower() for word in _DENIED):
            why = "; it was shown a token of the control plane: gpuaas registry check"
        else:
            raise said from None
        reason = FailureReason.IMAGE_PULL_FAILED
        raise EngineFailure(reason, said.message + why, transient=True) from None


def _failure(error: APIError, doing: str) -> EngineFailure:
    return failure_of(error.status_code or 500, error.explanation or str(error), doing)


def _pull(api: Any, image: Image, cancelled: threading.Event, token: str) -> None:
    repository = f"{image.registry}/{image.repository}"
    # Docker sends it to that registry as it is, and asks nobody for another.
    auth = {"registrytoken": token} if token else None
    progress = api.pull(repository, tag=image.digest, stream=True, decode=True, auth_config=auth)
    try:
        for line in progress:
            if cancelled.is_set():
                raise Cancelled
            if "error" in line:
                raise failure_of(500, str(line["error"]), "pull")
    finally:
        progress.close()
