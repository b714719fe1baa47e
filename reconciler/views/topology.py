"""A topology for machines, as a picture in Mermaid, and as rows and lines for people. Pure.

Rules:
- No name ends a label: what is not a plain letter, digit or one of a few marks is written as its
  number, and what is drawn is called by numbers of ours.
- Colour says nothing that the words don't.
- The same topology gives the same text, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from reconciler.core.endpoints import url
from reconciler.core.printable import printable
from reconciler.core.topology_view import (
    FORMAT,
    EndpointView,
    ServiceView,
    ShareView,
    TopologyView,
)

Document = dict[str, Any]
SERVICE_COLUMNS = (
    "SERVICE", "ROLE", "HEALTH", "NEEDS", "SHARE", "RESTART", "IMAGE",
)  # fmt: skip
ENDPOINT_COLUMNS = ("ENDPOINT", "SERVICE", "EXPOSED", "INSIDE", "ON THE NODE")
STORAGE_COLUMNS = ("STORAGE", "SERVICE", "PATH", "SIZE OR SOURCE")
_DIGEST_SHOWN = 12
_PLAIN = re.compile(r"[A-Za-z0-9 ._/:,()+-]")
_CLASSES = {
    "ready": "fill:#e6f4ea,stroke:#137333,color:#0b3d1d",
    "waiting": "fill:#fef7e0,stroke:#b06000,color:#4a2a00",
    "failed": "fill:#fce8e6,stroke:#c5221f,color:#5c0d0b",
    "quiet": "fill:#f1f3f4,stroke:#5f6368,color:#202124",
    "main": "stroke-width:3px",
    "store": "fill:#e8f0fe,stroke:#1a73e8,color:#0b2f6b",
}
_CLASS_OF = {
    "ready": "ready",
    "completed": "ready",
    "waiting": "waiting",
    "starting": "waiting",
    "degraded": "failed",
    "failed": "failed",
    "absent": "failed",
}


def topology_document(view: TopologyView) -> Document:
    """As JSON: the component `Topology` of the API's document."""
    return {"format": FORMAT, **_plain(asdict(view))}


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what is printed and what is answered are equal."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


# --- words ---------------------------------------------------------------------------------------


def title(view: TopologyView) -> str:
    """What it is, in one line."""
    app = f"{view.app} {view.version}"
    if not view.instance:
        return f"{app}  {view.renderer}"
    return f"{view.instance}  {app}  {view.renderer} on {view.node}"


def state_line(view: TopologyView) -> str:
    """How it stands; empty where nobody looked."""
    if not view.runs:
        return ""
    runs = {
        "this": "its node runs this form",
        "another": "its node still runs another form",
        "nothing": "its node runs nothing of it",
        "unknown": "nobody can look at its node now",
    }[view.runs]
    ready = sum(one.health in ("ready", "completed") for one in view.services)
    count = f"{ready} of {len(view.services)} services ready"
    message = f"; {view.message}" if view.message else ""
    return f"{view.state or 'not launched yet'}: {runs}, {count}{message}"


def policy_line(view: TopologyView) -> str:
    """What is done when a service fails; empty where there is but one."""
    if len(view.services) < 2:
        return ""
    vital = {
        "restart_service": "it alone is started again",
        "restart_all": "all are started again",
    }[view.vital_failure]
    other = {
        "degrade": "the instance stays, degraded",
        "roll_back": "the whole launch or upgrade goes back",
    }[view.other_failure]
    text = f"When a vital service ends, {vital}."
    if all(one.vital for one in view.services):
        return text
    return f"{text} When another one is not ready in its time, {other}."


def remarks(view: TopologyView) -> Iterator[str]:
    """What is done when a service fails, and where to go on."""
    policy = policy_line(view)
    if policy:
        yield policy
    published = any(one.host_port is not None for _, one in _endpoints(view))
    if view.runs in ("this", "another") and published:
        yield f"gpuaas access {view.instance} shows a tunnel for each published endpoint."


def role_text(service: ServiceView) -> str:
    kind = f"sidecar ({service.sidecar_class})" if service.sidecar_class else service.role
    return kind if service.vital else f"{kind}, not vital"


def share_text(share: ShareView) -> str:
    """CPU, memory and GPUs; `-` where nothing is said of any."""
    parts = []
    if share.gpu_uuids:
        count = len(share.gpu_uuids)
        shared = " shared" if share.gpus_shared else ""
        parts.append(f"{count} GPU{'s' if count > 1 else ''}{shared}")
    if share.cpu_millis is not None:
        parts.append(f"{share.cpu_millis / 1000:g} cores")
    if share.memory_mib is not None:
        parts.append(size_text(share.memory_mib))
    return ", ".join(parts) or "-"


def size_text(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def endpoint_url(endpoint: EndpointView, address: str) -> str:
    """What is reached at `address`, host:port."""
    return url(endpoint.protocol, endpoint.path, address)


def _host(endpoint: EndpointView) -> str:
    host = f"[{endpoint.host_ip}]" if ":" in endpoint.host_ip else endpoint.host_ip
    return f"{host}:{endpoint.host_port}"


def published_at(endpoint: EndpointView) -> str:
    """Where its node publishes it, in words."""
    if endpoint.expose == "internal":
        return "not published"
    return _host(endpoint) if endpoint.host_port is not None else "a free port"


# --- rows for people -----------------------------------------------------------------------------


def service_rows(view: TopologyView) -> Iterator[tuple[str, ...]]:
    """One a service, as `SERVICE_COLUMNS`, each after those it needs."""
    for name in view.starts:
        if (one := view.service(name)) is not None:
            needs = ", ".join(f"{need.service} {need.condition}" for need in one.needs)
            # The whole of it is in the document: here it would take the room of all else.
            image = one.image.rpartition("/")[2].partition("@sha256:")
            yield (
                one.name,
                role_text(one),
                health_text(one),
                needs or "-",
                share_text(one.share),
                one.restart,
                f"{image[0]}@{image[2][:_DIGEST_SHOWN]}",
            )


def health_text(service: ServiceView) -> str:
    """Its health and what that rests on; the probe alone where nobody looked."""
    if not service.health:
        return service.probe
    probe = "" if service.probe == "runs" else f" ({service.probe})"
    return f"{service.health}{probe}{_restarts(service)}"


def _restarts(service: ServiceView) -> str:
    if not service.restarts:
        return ""
    return f", restarted {service.restarts} time{'s' if service.restarts > 1 else ''}"


def endpoint_rows(view: TopologyView) -> Iterator[tuple[str, ...]]:
    """One an endpoint, as `ENDPOINT_COLUMNS`."""
    for service, one in _endpoints(view):
        inside = endpoint_url(one, one.inside) if len(view.services) > 1 else f"port {one.port}"
        yield one.name, service.name, one.expose, inside, published_at(one)


def storage_rows(view: TopologyView) -> Iterator[tuple[str, ...]]:
    """One a mount of a volume, scratch, blob or secret, as `STORAGE_COLUMNS`."""
    sizes = {one.name: size_text(one.size_mib) for one in view.volumes}
    for service in view.services:
        for mount in service.mounts:
            read = " (read-only)" if mount.read_only else ""
            yield f"volume {mount.volume}", service.name, f"{mount.path}{read}", sizes[mount.volume]
        for room in service.scratch:
            yield "scratch in memory", service.name, room.path, size_text(room.size_mib)
        for blob in service.blobs:
            yield f"blob {blob}", service.name, f"/run/gpuaas/blobs/{blob}", "-"
        for secret in service.secrets:
            path = f"/run/gpuaas/secrets/{secret.name}"
            where = f"{path}, ${secret.env}" if secret.env else path
            yield f"secret {secret.name}", service.name, where, secret.reference or "generated"


def troubles(view: TopologyView) -> Iterator[str]:
    """A line for each service that is not as wanted, with why."""
    for service in view.services:
        if service.detail and service.health not in ("ready", "completed", "unknown", ""):
            code = f", exit code {service.exit_code}" if service.exit_code is not None else ""
            yield f"{service.name}: {service.health}: {service.detail}{code}{_restarts(service)}"


def _endpoints(view: TopologyView) -> Iterator[tuple[ServiceView, EndpointView]]:
    for service in view.services:
        for endpoint in service.endpoints:
            yield service, endpoint


# --- Mermaid -------------------------------------------------------------------------------------


def mermaid(view: TopologyView) -> str:
    """A `flowchart LR`: services with role and health, what they need, where they are reached and
    what they keep. Ends with a newline.
    """
    ids = {one.name: f"s{number}" for number, one in enumerate(view.services)}
    lines = ["flowchart LR"]
    # In one line: the room above what is in the box is not made larger for a second one.
    app = f"{view.app} {view.version}"
    about = f"{view.instance}: {app} on {view.node}" if view.instance else app
    lines.append(f'  subgraph topology["{label(about)}"]')
    for one in view.services:
        shown = _CLASS_OF.get(one.health, "quiet")
        lines.append(f'    {ids[one.name]}["{_service_label(one)}"]:::{shown}')
    volumes = {one.name: f"v{number}" for number, one in enumerate(view.volumes)}
    for volume in view.volumes:
        text = label(volume.name, f"volume, {size_text(volume.size_mib)}")
        lines.append(f'    {volumes[volume.name]}[("{text}")]:::store')
    inside = [*_endpoint_lines(view, ids, internal=True)]
    lines += (f"  {line}" for line in inside)
    lines.append("  end")
    lines += _endpoint_lines(view, ids, internal=False)
    lines += _edges(view, ids, volumes)
    lines += (f"  class {ids[one.name]} main" for one in view.services if one.role == "main")
    lines += (f"  classDef {name} {style}" for name, style in _CLASSES.items())
    return "\n".join(lines) + "\n"


def _endpoint_lines(view: TopologyView, ids: dict[str, str], *, internal: bool) -> Iterator[str]:
    """What is for services of the same instance alone stands among them."""
    for number, (service, one) in enumerate(_endpoints(view)):
        if (one.expose == "internal") == internal:
            there = endpoint_url(one, one.inside) if internal else published_at(one)
            text = label(one.name, f"{one.protocol}, {one.expose}", there)
            yield f'  e{number}(["{text}"]) {"-.->" if internal else "-->"} {ids[service.name]}'


def _edges(view: TopologyView, ids: dict[str, str], volumes: dict[str, str]) -> Iterator[str]:
    for service in view.services:
        for need in service.needs:
            yield f'  {ids[service.name]} -- "{label(need.condition)}" --> {ids[need.service]}'
        for mount in service.mounts:
            text = label(mount.path, "read-only") if mount.read_only else label(mount.path)
            yield f'  {ids[service.name]} -. "{text}" .- {volumes[mount.volume]}'


def _service_label(service: ServiceView) -> str:
    share = share_text(service.share)
    kind, _, weight = role_text(service).partition(", ")
    lines = [service.name, kind, weight, service.health, "" if share == "-" else share]
    return label(*filter(None, lines))


def label(*lines: str) -> str:
    """Text for between two quotes, a line each; nothing in it ends the quote or is a tag."""
    return "<br/>".join("".join(map(_safe, printable(line))) for line in lines)


def _safe(char: str) -> str:
    return char if _PLAIN.fullmatch(char) else f"#{ord(char)};"
