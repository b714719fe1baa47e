"""What is there of a topology, from Docker's answers. Pure.

Rules:
- A container is one of a service when its label says so and it is of the service's form in force.
  Of several, one that is alive comes before the others, then the one that was made first. Its name
  says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from node_agent.engines import docker_drift
from node_agent.engines.base import unit_name
from node_agent.engines.compose_file import (
    LABEL_SERVICE_HASH,
    needs_of,
    service_hashes,
    volume_names,
)
from node_agent.engines.compose_forms import Form, Forms
from node_agent.engines.docker_spec import (
    LABEL_ASKED,
    LABEL_DIGEST,
    STATUS,
    USUAL,
    endpoints_in,
    gpus_of,
)
from node_agent.units import ServiceSeen, Unit
from node_agent.wire import LABEL_SERVICE

Document = Mapping[str, Any]
Listed = Mapping[str, Any]
"""An entry of `GET /containers/json`."""


def labels_of(item: Listed) -> Mapping[str, str]:
    return item.get("Labels") or {}


def is_alive(item: Listed) -> bool:
    return item.get("State") in {"running", "paused", "restarting"}


def chosen(form: Form, listing: Sequence[Listed]) -> dict[str, Listed]:
    """The container of each service that has one, by its name."""
    found: dict[str, Listed] = {}
    for name, service_hash in service_hashes(form.document).items():
        mine = [
            item
            for item in listing
            if labels_of(item).get(LABEL_SERVICE) == name
            and labels_of(item).get(LABEL_SERVICE_HASH) == service_hash
        ]
        if mine:
            found[name] = min(mine, key=_seniority)
    return found


def to_make(form: Form, listing: Sequence[Listed], made: Collection[str]) -> list[str]:
    """The services that Compose is to make a container of: those that have none of their hash, and
    those that have one which could not be started, since its network or volume is not in `made`.
    """
    there = chosen(form, listing)
    return sorted(
        name
        for name in service_hashes(form.document)
        if name not in there or not needs_of(form.document, name) <= {*made}
    )


def _seniority(item: Listed) -> tuple[bool, int, str]:
    return not is_alive(item), int(item.get("Created", 0)), str(item["Id"])


def service_seen(name: str, item: Listed, inspected: Document, network: str) -> ServiceSeen:
    """`inspected`: the answer for its container. The listing may be behind what events said."""
    labels = labels_of(item)
    state = inspected.get("State") or {}
    status = str(state.get("Status", ""))
    return ServiceSeen(
        name=name,
        unit_id=str(item["Id"]),
        status=STATUS.get(status, "exited"),  # type: ignore[arg-type]
        exit_code=state.get("ExitCode") if status not in STATUS else None,
        out_of_memory=bool(state.get("OOMKilled")),
        altered=docker_drift.differences(
            labels.get(LABEL_ASKED), inspected, {**USUAL, "NetworkMode": network}
        ),
        address=address_of(inspected, network),
        image_digest=labels.get(LABEL_DIGEST),
        form=labels[LABEL_SERVICE_HASH],
    )


def address_of(inspected: Document, network: str) -> str:
    """Where a container is on the topology's network; nothing while it does not run."""
    networks = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
    return str((networks.get(network) or {}).get("IPAddress") or "")


def topology_units(
    node: str,
    instance: str,
    project: str,
    forms: Forms,
    services: Sequence[ServiceSeen],
    listing: Sequence[Listed],
    volumes: Sequence[Document] | None = None,
) -> tuple[Unit, ...]:
    """One for each form. `services` are of the form in force. `listing`: all its containers;
    without a form in force, these are a unit of their own, or what a start that was cut off left
    to the next one. `volumes`: of the instance, as of `GET /volumes`; None: nobody looked.
    """
    in_force = forms.form_in_force
    units = [
        Unit(
            unit_id=f"{project}/{form.spec_hash.removeprefix('sha256:')[:16]}",
            name=unit_name(instance, form.spec_hash),
            engine="compose",
            instance=instance,
            node=node,
            spec_hash=form.spec_hash,
            status=_status(forms, services) if form == in_force else "created",
            created_at_ms=form.created_at_ms,
            image_digest=form.image_digest,
            endpoints=tuple(
                sorted(
                    (one for labels in _labels(form) for one in endpoints_in(labels)),
                    key=lambda endpoint: endpoint.name,
                )
            ),
            **_gpus(form),
            services=tuple(services) if form == in_force else (),
            volumes=_made(form, volumes) if form == in_force and volumes is not None else None,
        )
        for form in forms.forms
    ]
    if in_force is None and listing and (any(map(is_alive, listing)) or not units):
        units.append(_left_over(node, instance, project, listing))
    return tuple(units)


def _made(form: Form, volumes: Sequence[Document]) -> tuple[tuple[str, str], ...]:
    made = {str(one["Name"]): str(one.get("CreatedAt") or "") for one in volumes}
    return tuple((name, made.get(name, "")) for name in volume_names(form.document))


def stopping_waves(document: Document, names: Iterable[str]) -> list[list[str]]:
    """The services in the order to stop them, together those of one wave: dependents first."""
    left = {*names}
    needs = {
        name: set(service.get("depends_on") or {}) & left
        for name, service in (document.get("services") or {}).items()
        if name in left
    }
    waves = []
    while left:
        needed = {one for name in left for one in needs.get(name, ())}
        wave = sorted(left - needed) or sorted(left)
        waves.append(wave)
        left -= {*wave}
    return waves


def _status(forms: Forms, services: Sequence[ServiceSeen]) -> Any:
    wanted = forms.in_force is not None and forms.in_force.run
    return "running" if wanted or any(one.alive for one in services) else "exited"


def _labels(form: Form) -> list[Mapping[str, str]]:
    services = form.document.get("services") or {}
    return [service.get("labels") or {} for _, service in sorted(services.items())]


def _gpus(form: Form) -> dict[str, Any]:
    """Those of all its services, which share some or none; of one vendor."""
    found = [gpus for labels in _labels(form) if (gpus := gpus_of(labels))]
    if not found:
        return {}
    uuids = dict.fromkeys(uuid for gpus in found for uuid in gpus["gpu_uuids"])
    return {"gpu_vendor": found[0]["gpu_vendor"], "gpu_uuids": tuple(uuids)}


def _left_over(node: str, instance: str, project: str, listing: Sequence[Listed]) -> Unit:
    """Containers whose form was lost with the node's state; where they are reached is on them."""
    ordered = sorted(listing, key=lambda item: (is_alive(item), str(item["Id"])))
    found = (one for item in ordered for one in endpoints_in(labels_of(item)))
    endpoints = {one.name: one for one in found}.values()
    return Unit(
        unit_id=f"{project}/",
        name=project,
        engine="compose",
        instance=instance,
        node=node,
        spec_hash="",
        status="running" if any(map(is_alive, listing)) else "exited",
        created_at_ms=0,
        endpoints=tuple(sorted(endpoints, key=lambda endpoint: endpoint.name)),
    )
