"""Runs topologies: Compose makes the containers of one, the agent starts them.

Rules:
- Compose is called to make what is missing or differs by our hash, and to remove; it is shown no
  more than that, never starts anything, and is not called when nothing is to be made. All else
  goes through the Engine API, by labels.
- Compose goes by the name of a project, we go by labels. Before each call all that bears the name
  has to carry our labels for this node and instance: what does not is nobody's to replace.
- One bridge network per instance, on which its services find each other by name. What is published
  is published on the host's loopback.
- Done halfway is done again: whatever ends an agent or a Compose, the next start makes the same.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
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
)
from node_agent.engines.bind_sources import check_bind_sources
from node_agent.engines.compose_checks import (
    refuse_foreign,
    refused,
    require_room,
    require_shell,
    things_of_others,
)
from node_agent.engines.compose_cli import Call, ComposeCli
from node_agent.engines.compose_file import (
    Placement,
    compose_file,
    compose_text,
    needs_shell,
    network_name,
    part_of,
    project_name,
    service_hashes,
)
from node_agent.engines.compose_forms import Form, FormFiles, Forms, InForce
from node_agent.engines.compose_seen import (
    Document,
    Listed,
    address_of,
    chosen,
    is_alive,
    labels_of,
    service_seen,
    stopping_waves,
    to_make,
    topology_units,
)
from node_agent.engines.docker_api import (
    DockerApi,
    ExecProbes,
    drop_volumes_and_networks,
    facts_of,
    ours,
    remove_container,
    start_container,
    stop_container,
    volumes_of,
)
from node_agent.engines.docker_spec import gpus_of
from node_agent.engines.gpus import NO_GPUS, GpuGrant, grant, require
from node_agent.engines.probes import probe_endpoint, probe_network
from node_agent.inventory import HostPaths, gpu_host
from node_agent.secret_files import SecretFiles
from node_agent.units import Probed, ServiceSeen, Unit
from node_agent.wire import (
    LABEL_INSTANCE,
    LABEL_SERVICE,
    Endpoint,
    ExecProbe,
    FailureReason,
    Image,
    Probe,
    Service,
    Topology,
    Workload,
)

COMPOSE_FOLDER = "compose"
"""In the agent's state folder."""
MAKE_LIMIT_S = 120.0
"""For one call of Compose, and what the containers that it replaces may take to stop on top."""
HOLD_LIMIT_S = 60.0
AT_ONCE_MAX = 8
_DOWN_GRACE_S = 1
_USUAL_GRACE_S = 10
_ITS_OWN_MS = sys.maxsize
"""For a service that is replaced: as long as it asked for itself."""
_NETWORK_GONE = ("network", "not found")


class ComposeEngine:
    """Docker at `host` and Compose v2 (`program`, or the one that this host has), for `node`.

    `folder`: where the forms of topologies are kept. `paths`: where this host shows its GPUs;
    `secrets`: where its workloads' secrets are; `blobs`: the cache of blobs.
    """

    def __init__(
        self,
        node: str,
        folder: Path,
        host: str | None = None,
        paths: HostPaths | None = None,
        secrets: SecretFiles | None = None,
        blobs: Path | None = None,
        program: Path | None = None,
    ) -> None:
        self._node = node
        self._files = FormFiles(folder)
        self._docker = DockerApi(host)
        self._api = self._docker.talk
        self._cli = ComposeCli(host, program)
        self._paths = paths
        self._secrets = secrets or SecretFiles.for_node(node)
        self._blobs = blobs
        self._execs = ExecProbes()
        self._closed = threading.Event()

    @property
    def name(self) -> Literal["compose"]:
        return "compose"

    def facts(self) -> EngineFacts:
        found = self._cli.find(self._files.home)
        return facts_of(self._docker.info(), compose_version=found.version)

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        with self._api("list") as api:
            there: dict[str, list[Listed]] = {}
            for item in self._containers(api, instance):
                there.setdefault(labels_of(item)[LABEL_INSTANCE], []).append(item)
            found: list[Unit] = []
            for name, forms in self._all_forms(instance, there):
                found += self._units_of(api, name, forms, there.get(name, []))
        return tuple(found)

    def pull(self, image: Image, cancelled: threading.Event, ask: Ask = no_credential, /) -> None:
        self._docker.pull(image, cancelled, ask)

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        if workload.topology is None:
            raise refused("a workload without services is not for this engine")
        project = project_name(self._node, workload.instance)
        info = self._docker.info()
        placement = self._placement(workload, workload.topology, host_ports, info)
        document = compose_file(workload, placement)
        with self._held(project), self._api("create") as api:
            refuse_foreign(api, self._node, workload.instance, document)
            require_room(api, workload.topology, document, info)
            for service in workload.topology.services:
                if needs_shell(workload, service):
                    require_shell(api, self._node, workload, service)
            form = Form(workload.instance, workload.spec_hash, workload.image.digest, document)
            self._files.write(project, form)

    def start(self, unit: Unit) -> None:
        project = project_name(self._node, unit.instance)
        with self._held(project) as lock:
            forms = self._files.read(project)
            form = forms.form(unit.spec_hash)
            if form is None:
                raise refused(f"there is no form {unit.name} on this node any more")
            self._require_gpus(form, service_hashes(form.document))
            with self._api("create") as api:
                self._make(api, project, form, lock)
            if forms.in_force != InForce(form.spec_hash, run=True):
                self._files.put_in_force(project, form.spec_hash, run=True)

    def start_services(self, unit: Unit, names: Sequence[str]) -> None:
        form = self._in_force(unit)
        if form is None:
            raise refused(f"{unit.name} is not in force", transient=True)
        check_bind_sources(form.document)
        self._require_gpus(form, names)
        with self._api("list") as api:
            there = chosen(form, self._containers(api, unit.instance))
        jobs = {name: partial(self._start_one, name, there.get(name)) for name in sorted(names)}
        _together(jobs)

    def stop(self, unit: Unit, grace_ms: int) -> None:
        project = project_name(self._node, unit.instance)
        with self._held(project):
            forms = self._files.read(project)
            if forms.in_force is not None and forms.in_force.spec_hash != unit.spec_hash:
                return
            if forms.in_force is None and unit.spec_hash:
                return
            form = forms.form_in_force
            with self._api("list") as api:
                listing = self._containers(api, unit.instance)
            self._stop_all(form, [item for item in listing if is_alive(item)], grace_ms)
            if form is not None:
                self._note_stopped(project, form)

    def remove_services(self, unit: Unit, names: Sequence[str], grace_ms: int) -> None:
        project = project_name(self._node, unit.instance)
        with self._held(project):
            with self._api("list") as api:
                listing = [
                    item
                    for item in self._containers(api, unit.instance)
                    if labels_of(item)[LABEL_SERVICE] in names
                ]
            form = self._files.read(project).form_in_force
            self._stop_all(form, [item for item in listing if is_alive(item)], grace_ms)
            with self._api("remove") as api:
                self._remove_containers(api, listing)

    def remove(self, unit: Unit) -> None:
        project = project_name(self._node, unit.instance)
        with self._held(project) as lock:
            forms = self._files.read(project)
            form = forms.form_in_force
            last = form is None and all(one.spec_hash == unit.spec_hash for one in forms.forms)
            if last or not unit.spec_hash or (form and form.spec_hash == unit.spec_hash):
                self._take_down(project, unit.instance, form, lock)
                self._files.remove_in_force(project)
            if unit.spec_hash:
                self._files.remove(project, unit.spec_hash)

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        """Of what it publishes as a whole."""
        if isinstance(probe, ExecProbe):
            return Probed(False, "a command has to be run in one of the services")
        return probe_network(unit, probe, timeout_ms)

    def probe_service(self, unit: Unit, name: str, probe: Probe, timeout_ms: int) -> Probed:
        form = self._in_force(unit)
        with self._api("probe") as api:
            listing = self._containers(api, unit.instance)
            item = chosen(form, listing).get(name) if form is not None else None
            if form is None or item is None:
                return Probed(False, "there is no container of it")
            if isinstance(probe, ExecProbe):
                if item.get("State") != "running":
                    return Probed(False, "it does not run")
                return self._execs.ask(api, item["Id"], probe, timeout_ms)
            # Asked each time: with a restart it may get another, and another service its own.
            address = address_of(api.inspect_container(item["Id"]), network_name(form.document))
        if not address:
            return Probed(False, "it does not run")
        where = Endpoint(name=name, container=probe.port, host_ip=address, host_port=probe.port)
        return probe_endpoint(where, probe, timeout_ms)

    def sweep(self, instance: str) -> None:
        project = project_name(self._node, instance)
        with self._held(project):
            with self._api("sweep") as api:
                drop_volumes_and_networks(api, self._node, instance)
            self._files.clear(project)

    def residue(self, instance: str) -> Residue:
        filters = {"label": ours(self._node, instance)}
        with self._api("look") as api:
            return Residue(
                containers=len(self._containers(api, instance)),
                networks=len(api.networks(filters=filters)),
                volumes=len(volumes_of(api, self._node, instance)),
                paths=self._files.count(project_name(self._node, instance)),
            )

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        def heard(labels: Mapping[str, str] | None) -> None:
            changed(None if labels is None else labels.get(LABEL_INSTANCE))

        self._docker.watch([*ours(self._node, None), LABEL_SERVICE], heard, stop)

    def close(self) -> None:
        self._closed.set()
        self._docker.close()

    # --- making and removing ---

    def _held(self, project: str) -> AbstractContextManager[int]:
        return self._files.hold(project, HOLD_LIMIT_S)

    def _make(self, api: Any, project: str, form: Form, lock: int) -> None:
        """What is missing or of another hash, and nothing else; and removes what is neither."""
        made = refuse_foreign(api, self._node, form.instance, form.document)
        listing = self._containers(api, form.instance)
        names = to_make(form, listing, made)
        if names:
            check_bind_sources(form.document)
            replaced = [item for item in listing if labels_of(item)[LABEL_SERVICE] in names]
            for item in replaced:
                if item.get("State") == "paused":
                    # What is paused hears nobody who asks it to stop.
                    start_container(api, item["Id"], paused=True)
            part = part_of(form.document, names, made)
            call = self._call(api, project, part, lock, replaced)
            self._cli.create(call, self._files.home, self._closed)
            if part != form.document:
                # For people, who may want to ask Compose about all of it.
                self._files.show(project, compose_text(form.document))
            listing = self._containers(api, form.instance)
        there = chosen(form, listing)
        missing = sorted(service_hashes(form.document).keys() - there.keys())
        if missing:
            raise refused(f"Compose made no container of {', '.join(missing)}", transient=True)
        wanted = {item["Id"] for item in there.values()}
        others = [item for item in listing if item["Id"] not in wanted]
        self._stop_all(form, [item for item in others if is_alive(item)], _ITS_OWN_MS)
        self._remove_containers(api, others)

    def _note_stopped(self, project: str, form: Form) -> None:
        try:
            self._files.put_in_force(project, form.spec_hash, run=False)
        except EngineFailure as failure:
            if failure.reason is not FailureReason.DISK_FULL:
                raise
            # With nothing in force nothing is to run either, and to say so takes no room: what is
            # stopped on a full disk may be the way to free some.
            self._files.remove_in_force(project)

    def _take_down(self, project: str, instance: str, form: Form | None, lock: int) -> None:
        with self._api("remove") as api:
            listing = self._containers(api, instance)
            foreign = things_of_others(api, self._node, project, instance)
            if form is not None and listing and not foreign:
                # What it leaves, for whatever reason, is taken away below, and only that counts.
                with contextlib.suppress(EngineFailure):
                    call = self._call(api, project, form.document, lock, listing)
                    self._cli.down(call, _DOWN_GRACE_S, self._files.home, self._closed)
            self._remove_containers(api, self._containers(api, instance))

    def _call(
        self, api: Any, project: str, document: Document, lock: int, listing: Sequence[Listed]
    ) -> Call:
        """`listing`: what it may have to stop."""
        stopping_s = sum(_own_grace_s(api, item) for item in listing if is_alive(item))
        return Call(
            project=project,
            folder=self._files.folder(project),
            file=self._files.show(project, compose_text(document)),
            document=document,
            lock=lock,
            limit_s=MAKE_LIMIT_S + stopping_s,
        )

    def _remove_containers(self, api: Any, listing: Sequence[Listed]) -> None:
        for item in listing:
            remove_container(api, item["Id"])
            self._execs.forget(item["Id"])

    def _start_one(self, name: str, item: Listed | None) -> None:
        if item is None:
            raise refused(f"{name}: there is no container of it", transient=True)
        try:
            with self._api("start") as api:
                start_container(api, item["Id"], paused=item.get("State") == "paused")
        except EngineFailure as failure:
            transient = failure.transient
            if all(word in failure.message.lower() for word in _NETWORK_GONE):
                # It holds on to a network that somebody removed: it can never be started again.
                with self._api("remove") as api:
                    self._remove_containers(api, [item])
                transient = True
            raise EngineFailure(
                failure.reason, f"{name}: {failure.message}", transient=transient
            ) from None

    def _stop_all(self, form: Form | None, listing: Sequence[Listed], grace_ms: int) -> None:
        """Dependents first; each has what it asked for itself, and no more than `grace_ms`."""
        by_service: dict[str, list[Listed]] = {}
        for item in listing:
            by_service.setdefault(labels_of(item)[LABEL_SERVICE], []).append(item)
        for wave in stopping_waves(form.document if form is not None else {}, by_service):
            items = {item["Id"]: item for name in wave for item in by_service[name]}
            _together({key: partial(self._stop_one, one, grace_ms) for key, one in items.items()})

    def _stop_one(self, item: Listed, grace_ms: int) -> None:
        with self._api("stop") as api, contextlib.suppress(NotFound):
            own_ms = _own_grace_s(api, item) * 1_000
            paused = item.get("State") == "paused"
            stop_container(api, item["Id"], min(own_ms, grace_ms), paused=paused)

    # --- what a form needs ---

    def _placement(
        self,
        workload: Workload,
        topology: Topology,
        host_ports: Mapping[str, int],
        info: Mapping[str, Any],
    ) -> Placement:
        with self._api("create") as api:
            images = {one.name: api.inspect_image(one.image.reference) for one in topology.services}
        blobs = {name: str(path) for name, path in blob_paths(self._blobs, workload).items()}
        return Placement(
            node=self._node,
            host_ports=host_ports,
            images=images,
            gpus={one.name: self._grant(one, info) for one in topology.services},
            secrets={
                one.name: str(self._secrets.folder_of_service(workload, one.name))
                for one in topology.services
                if one.secrets
            },
            blobs=blobs,
        )

    def _grant(self, service: Service, info: Mapping[str, Any]) -> GpuGrant:
        vendor = service.limits.gpu_vendor
        if vendor is None or not service.limits.gpu_uuids:
            return NO_GPUS
        return grant(service.limits, gpu_host(vendor, facts_of(info), self._paths))

    def _require_gpus(self, form: Form, names: Iterable[str]) -> None:
        """One that fell off its bus since then is better said here than by the workload."""
        for name in sorted(names):
            gpus = gpus_of(form.document["services"][name].get("labels") or {})
            if gpus:
                there = gpu_host(gpus["gpu_vendor"], EngineFacts(), self._paths).uuids
                require(gpus["gpu_vendor"], gpus["gpu_uuids"], there)

    # --- what is ours ---

    def _containers(self, api: Any, instance: str | None) -> list[Listed]:
        filters = {"label": [*ours(self._node, instance), LABEL_SERVICE]}
        listing = api.containers(all=True, filters=filters)
        # An image may bring the label, but no name: that one is a single container.
        return [
            item
            for item in listing
            if LABEL_INSTANCE in labels_of(item) and labels_of(item)[LABEL_SERVICE]
        ]

    def _all_forms(self, instance: str | None, named: Iterable[str]) -> Iterator[tuple[str, Forms]]:
        if instance is not None:
            yield instance, self._files.read(project_name(self._node, instance))
            return
        kept = {project: self._files.read(project) for project in self._files.projects()}
        known = {form.instance for forms in kept.values() for form in forms.forms}
        for name in sorted({*known, *named}):
            yield name, kept.get(project_name(self._node, name), Forms())

    def _units_of(
        self, api: Any, instance: str, forms: Forms, listing: Sequence[Listed]
    ) -> tuple[Unit, ...]:
        project = project_name(self._node, instance)
        form = forms.form_in_force
        services: list[ServiceSeen] = []
        if form is not None:
            there = chosen(form, listing)
            hashes = sorted(service_hashes(form.document).items())
            services = [_service(api, one, there.get(one[0]), project) for one in hashes]
        # What is all alive holds its volumes.
        idle = not all(one.alive for one in services)
        volumes = volumes_of(api, self._node, instance) if idle else None
        return topology_units(self._node, instance, project, forms, services, listing, volumes)

    def _in_force(self, unit: Unit) -> Form | None:
        """Its form, if it is the one in force."""
        form = self._files.read(project_name(self._node, unit.instance)).form_in_force
        return form if form is not None and form.spec_hash == unit.spec_hash else None


def _service(api: Any, named: tuple[str, str], item: Listed | None, net: str) -> ServiceSeen:
    name, service_hash = named
    if item is not None:
        with contextlib.suppress(NotFound):
            return service_seen(name, item, api.inspect_container(item["Id"]), net)
    return ServiceSeen(name, form=service_hash)


def _own_grace_s(api: Any, item: Listed) -> int:
    """What it was given to stop; Docker's own where that is nothing."""
    try:
        own = (api.inspect_container(item["Id"]).get("Config") or {}).get("StopTimeout")
    except NotFound:
        return 0
    return _USUAL_GRACE_S if own is None else int(own)


def _together(jobs: Mapping[str, Callable[[], None]]) -> None:
    """All of them at once; then the first failure, by name, is raised."""
    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), AT_ONCE_MAX))) as pool:
        running = [pool.submit(job) for _, job in sorted(jobs.items())]
    for one in running:
        one.result()
