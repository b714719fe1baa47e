"""Docker's Engine API, as far as every engine on it asks the same: one connection, in our words.

Rules:
- What Docker or the way to it says leaves as `EngineFailure`. No type of its library leaves, but
  for what `talk` hands out.
- Ownership is read from the labels on the very thing, each time, never remembered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from node_agent.engines.base import (
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    PullCredential,
    no_credential,
    ownership_labels,
)
from node_agent.engines.docker_spec import failure_of
from node_agent.units import Probed
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_MANAGED,
    LABEL_NODE,
    ExecProbe,
    FailureReason,
    Image,
)

REQUEST_TIMEOUT_S = 60
RECONNECT_S = 1.0
EXEC_POLL_S = 0.02
EVENTS = ("die", "destroy", "oom", "pause", "start", "unpause", "update")
"""Those of containers after which one may not be as it was seen last."""
_CHUNKS_MAX = 16
"""Of 2 MiB each: more than any shell has."""
_USERS_TOLD_MAX = 3
_UNDER_WAY = "already in progress"
_DENIED = ("denied", "unauthorized", "authentication required")


class DockerApi:
    """Docker at `host` (`unix://…`, or None for the usual place). Connects when first asked."""

    def __init__(self, host: str | None) -> None:
        self.host = host
        self._connected: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._closed = threading.Event()
        self._events: Any = None

    @contextlib.contextmanager
    def talk(self, doing: str) -> Iterator[Any]:
        """Raises EngineFailure for whatever Docker answers within. `doing`: see `failure_of`."""
        try:
            yield self._client()
        except APIError as error:
            raise _failure(error, doing) from None
        except (DockerException, requests.RequestException, OSError) as error:
            message = f"Docker does not answer ({type(error).__name__})"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True) from None

    def info(self) -> Mapping[str, Any]:
        with self.talk("ask") as api:
            answer: Mapping[str, Any] = api.info()
            return answer

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential) -> None:
        """As `Engine.pull`."""
        with self.talk("pull") as api:
            if not _present(api, image):
                _pull_with(api, image, cancelled, ask())
            described = api.inspect_image(image.reference)
        if image.reference not in (described.get("RepoDigests") or []):
            message = f"the pulled image does not carry {image.digest}"
            raise EngineFailure(FailureReason.DIGEST_MISMATCH, message)

    def watch(
        self,
        labels: list[str],
        heard: Callable[[Mapping[str, str] | None], None],
        stop: threading.Event,
    ) -> None:
        """Blocks until `stop` or `close`; calls `heard` with the labels of each container with
        these `labels` that may have changed, or with None when any may have.
        """
        while not (stop.is_set() or self._closed.is_set()):
            with contextlib.suppress(EngineFailure, OSError, ValueError, AttributeError):
                self._follow(labels, heard)
            heard(None)
            stop.wait(RECONNECT_S)

    def close(self) -> None:
        self._closed.set()
        with self._connecting:
            if self._events is not None:
                with contextlib.suppress(OSError, DockerException, AttributeError):
                    self._events.close()
            if self._connected is not None:
                self._connected.close()

    def _client(self) -> docker.APIClient:
        with self._connecting:
            if self._connected is None:
                self._connected = docker.APIClient(
                    base_url=self.host, version="auto", timeout=REQUEST_TIMEOUT_S
                )
            return self._connected

    def _follow(self, labels: list[str], heard: Callable[[Mapping[str, str] | None], None]) -> None:
        filters = {"type": "container", "event": list(EVENTS), "label": labels}
        with self.talk("watch") as api:
            events = api.events(filters=filters, decode=True)
            with self._connecting:
                self._events = events
            heard(None)
            for event in events:
                heard((event.get("Actor") or {}).get("Attributes") or {})


def ours(node: str, instance: str | None) -> list[str]:
    """The filter of labels for what is this node's, or of one of its instances."""
    labels = [f"{LABEL_MANAGED}=true", f"{LABEL_NODE}={node}"]
    return labels if instance is None else [*labels, f"{LABEL_INSTANCE}={instance}"]


def is_ours(labels: Mapping[str, str] | None, node: str, instance: str) -> bool:
    """Whether a thing with these labels is this node's and that instance's."""
    wanted = ownership_labels(node, instance)
    return all((labels or {}).get(name) == value for name, value in wanted.items())


def volumes_of(api: Any, node: str, instance: str) -> list[dict[str, Any]]:
    found = api.volumes(filters={"label": ours(node, instance)})
    return list(found.get("Volumes") or [])


def drop_volumes_and_networks(api: Any, node: str, instance: str) -> None:
    """Those of an instance. Raises EngineFailure TEARDOWN_INCOMPLETE, saying who uses them still:
    what others made is for them to remove.
    """
    for volume in volumes_of(api, node, instance):
        name = volume["Name"]
        users = api.containers(all=True, filters={"volume": name})
        with _unused(f"the volume {name}", map(container_name, users), "remove"):
            api.remove_volume(name)
    for network in api.networks(filters={"label": ours(node, instance)}):
        with contextlib.suppress(NotFound):
            users = (api.inspect_network(network["Id"]).get("Containers") or {}).values()
            names = [str(one.get("Name")) for one in users]
            with _unused(f"the network {network['Name']}", names, "disconnect"):
                api.remove_network(network["Id"])


@contextlib.contextmanager
def _unused(what: str, users: Iterable[str], remedy: str) -> Iterator[None]:
    """In words that say what to do where Docker refuses for its users."""
    names = sorted(users)
    try:
        yield
    except NotFound:
        return
    except APIError:
        if not names:
            raise
        told = ", ".join(names[:_USERS_TOLD_MAX])
        message = f"{what} is still used by {told}: {remedy} that, and it goes by itself"
        raise EngineFailure(FailureReason.TEARDOWN_INCOMPLETE, message, transient=True) from None


def container_name(listed: Mapping[str, Any]) -> str:
    """Of an entry of `GET /containers/json`."""
    return str((listed.get("Names") or [listed["Id"]])[0]).lstrip("/")


def start_container(api: Any, container: str, *, paused: bool) -> None:
    if paused:
        api.unpause(container)
    else:
        api.start(container)


def stop_container(api: Any, container: str, grace_ms: int, *, paused: bool) -> None:
    """Harmless for one that is down, or gone."""
    with contextlib.suppress(NotFound):
        if paused:
            api.unpause(container)
        api.stop(container, timeout=-(-grace_ms // 1_000))


def remove_container(api: Any, container: str) -> None:
    """With its anonymous volumes. Harmless for one that is gone. One that Docker is removing, for
    somebody who asked before and may not be there any more, is waited for.
    """
    with contextlib.suppress(NotFound):
        try:
            api.remove_container(container, v=True, force=True)
        except APIError as error:
            if error.status_code != 409 or _UNDER_WAY not in str(error.explanation).lower():
                raise
            api.wait(container, timeout=REQUEST_TIMEOUT_S, condition="removed")


def facts_of(info: Mapping[str, Any], compose_version: str | None = None) -> EngineFacts:
    """From an answer to `GET /info`. An empty list of CDI folders says that CDI is off."""
    discovered = info.get("DiscoveredDevices") or ()
    return EngineFacts(
        version=info.get("ServerVersion"),
        compose_version=compose_version,
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


class ExecProbes:
    """Probes that are commands, run in containers. Docker can't end a command that it started, so
    a hanging one is waited for, never doubled.
    """

    def __init__(self) -> None:
        self._running: dict[str, str] = {}

    def forget(self, container: str) -> None:
        self._running.pop(container, None)

    def ask(self, api: Any, container: str, probe: ExecProbe, timeout_ms: int) -> Probed:
        earlier = self._running.pop(container, None)
        if earlier is not None and api.exec_inspect(earlier)["Running"]:
            self._running[container] = earlier
            return Probed(False, "the command of an earlier probe has not ended")
        execution = api.exec_create(container, list(probe.command))["Id"]
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
        self._running[container] = execution
        return Probed(False, f"the command did not end within {timeout_ms} ms")


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
