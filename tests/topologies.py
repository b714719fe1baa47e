"""Workloads of several services: a few by hand, and as many as Hypothesis can think of.

What is drawn is whatever the wire's types let through, with the worst texts wherever a text may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from node_agent.compose_wire import Dependency, Mount, Scratch, Volume
from node_agent.engines.compose_file import Placement
from node_agent.engines.gpus import GpuGrant, GpuHost, grant
from node_agent.wire import (
    BlobFile,
    Image,
    Limits,
    Port,
    SecretFile,
    Service,
    Topology,
    Workload,
)

INSTANCE = "acme/research/rag"
NODE = "n1"
DIGEST = "sha256:" + "a" * 64
IMAGE = Image(registry="registry.example:5000", repository="gpuaas/apps/rag", digest=DIGEST)
GPU = "GPU-0a1b2c3d-0000-4000-8000-00000000000"

HOSTILE = (
    "${HOME}", "$HOME", "$$", "$$$", "${X:-evil}", "${X:?gone}", "$(id)", "`id`", "%{X}", "a$",
    "<<", "<<: *x", "*alias", "&anchor", "!!python/object:os.system", "!reset", "!override null",
    "on", "off", "yes", "no", "null", "~", "true", "1", "0x10", "1e3", "0o7", "12:30:45", ".inf",
    "2001-01-01", "", " ", "\n", "a\nprivileged: true", "\r\n", "\t", "# comment", "- item", "{",
    "}", "[", "]", "'", '"', "\\", "\\u0000", "---", "...", "? a", "a: b", "@", "|", ">", "%YAML",
    "\x7f", "\x85", "\u2028", "\u2029", "\ufeff", "\ufffe", "\U0001f600", "\U0010ffff", "é",
    "privileged", "/var/run/docker.sock:/var/run/docker.sock", "host", "container:other",
)  # fmt: skip
"""Texts that one reader or another of a Compose file makes something else of."""
NAMES = (
    "on",
    "no",
    "null",
    "1",
    "0",
    "1e3",
    "0x1",
    "true",
    "default",
    "x-a",
    "localhost",
    "a",
    "b",
)
"""Names of services that YAML or Compose might take for something else."""


def service(name: str = "api", **changes: Any) -> Service:
    return Service(**{"name": name, "image": IMAGE, **changes})


def workload_of(*services: Service, **changes: Any) -> Workload:
    """`volumes` are those of the topology."""
    volumes = changes.pop("volumes", ())
    topology = Topology(services=services, volumes=volumes)
    fields = {"instance": INSTANCE, "engine": "compose", "image": services[0].image}
    return Workload(**{**fields, "topology": topology, **changes})


def placement_of(
    workload: Workload,
    images: Mapping[str, Mapping[str, Any]] | None = None,
    gpus: Mapping[str, GpuGrant] | None = None,
    node: str = NODE,
) -> Placement:
    """Every port, secret and blob of it has a place."""
    services = workload.topology.services if workload.topology is not None else ()
    return Placement(
        node=node,
        host_ports={port.name: 20_000 + n for n, port in enumerate(workload.ports)},
        images=images or {},
        gpus=gpus or {},
        secrets={one.name: f"/run/gpuaas/n1/s-{one.name}" for one in services if one.secrets},
        blobs={one.name: f"/var/lib/gpuaas/blobs/sha256/{one.name}" for one in workload.blobs},
    )


# --- drawn ---------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=24),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=4).map("".join),
)
names = st.one_of(
    st.sampled_from(NAMES), st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
)
variables = st.one_of(
    st.sampled_from(["PATH", "HOME", "on", "NO", "null", "NVIDIA_VISIBLE_DEVICES", "DOCKER_HOST"]),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True),
)
uuids = st.integers(0, 9).map(lambda n: f"{GPU}{n}")


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    vendors: tuple[Literal["nvidia", "amd"] | None, ...] = (None, "nvidia", "amd")
    vendor = draw(st.sampled_from(vendors))
    return Limits(
        cpu_millis=draw(st.none() | st.integers(10, 200_000)),
        memory_mib=draw(st.none() | st.integers(6, 4_000_000)),
        pids=draw(st.integers(1, 4_194_304)),
        shm_mib=draw(st.integers(1, 1_000_000)),
        gpu_vendor=vendor,
        gpu_uuids=tuple(draw(st.lists(uuids, max_size=3, unique=True))) if vendor else (),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """What the wire takes and a node can make: each port is of one service, each path once."""
    called = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    volumes = draw(st.lists(names, max_size=2, unique=True))
    ports = draw(st.lists(names, max_size=3, unique=True))
    secrets = draw(st.lists(names, max_size=2, unique=True))
    blobs = draw(st.lists(names, max_size=2, unique=True))
    free = list(ports)
    services = []
    for number, name in enumerate(called):
        own = [free.pop() for _ in range(draw(st.integers(0, len(free))))]
        services.append(draw(_service(name, called[:number], volumes, own, secrets, blobs)))
    containers = draw(
        st.lists(st.integers(1, 65_535), min_size=len(ports), max_size=len(ports), unique=True)
    )
    return workload_of(
        *services,
        volumes=tuple(Volume(name=name, size_mib=draw(st.integers(1, 10**6))) for name in volumes),
        instance=draw(st.sampled_from([INSTANCE, "a/b/c", f"t/p/{'x' * 63}", "A_b/é/…"])),
        ports=tuple(
            Port(name=name, container=container, address=draw(st.none() | st.just("10.0.0.7")))
            for name, container in zip(ports, containers, strict=True)
        ),
        secrets=tuple(draw(_secret(name)) for name in secrets),
        blobs=tuple(_blob(name) for name in blobs),
        labels=draw(st.dictionaries(st.sampled_from(_LABELS), texts, max_size=3)),
    )


@st.composite
def placements(draw: st.DrawFn, workload: Workload) -> Placement:
    services = workload.topology.services if workload.topology is not None else ()
    return placement_of(
        workload,
        images={one.name: draw(image_answers()) for one in services},
        gpus={one.name: draw(_grants(one.limits)) for one in services},
    )


@st.composite
def image_answers(draw: st.DrawFn) -> dict[str, Any]:
    """What Docker says of an image that somebody made with care."""
    arguments = st.lists(texts, min_size=1, max_size=2)
    config: dict[str, Any] = {
        "Entrypoint": draw(st.none() | arguments),
        "Cmd": draw(arguments),
        "Env": [f"A={draw(texts)}"],
        "User": draw(st.sampled_from(["", "0", "65534:65534"])),
        "Volumes": draw(
            st.none() | st.dictionaries(st.sampled_from(["/data", "/cache/", "/d$X"]), st.just({}))
        ),
        "Labels": draw(st.none() | st.dictionaries(texts, texts, max_size=1)),
        "WorkingDir": draw(st.sampled_from(["", "/", "/srv"])),
    }
    return {"Id": DIGEST, "Config": config}


_LABELS = (
    "dev.gpuaas.app", "dev.gpuaas.version", "dev.gpuaas.org", "com.docker.compose.project",
    "x-evil", "dev.gpuaas.managed", "dev.gpuaas.instance", "<<",
)  # fmt: skip


@st.composite
def _service(
    draw: st.DrawFn,
    name: str,
    before: Sequence[str],
    volumes: Sequence[str],
    ports: Sequence[str],
    secrets: Sequence[str],
    blobs: Sequence[str],
) -> Service:
    paths = draw(st.lists(st.sampled_from(_PATHS), max_size=4, unique=True))
    mounted = [path for path in paths if len(volumes) > 0 and draw(st.booleans())]
    return Service(
        name=name,
        image=draw(st.just(IMAGE) | _image()),
        command=tuple(draw(st.lists(texts, max_size=3))),
        env=draw(st.dictionaries(variables, texts, max_size=3)),
        ports=tuple(ports),
        limits=draw(limits()),
        stop_grace_ms=draw(st.integers(0, 3_600_000)),
        depends_on=tuple(
            Dependency(
                service=other, condition=draw(st.sampled_from(["started", "healthy", "completed"]))
            )
            for other in before
            if draw(st.booleans())
        ),
        mounts=tuple(
            Mount(volume=draw(st.sampled_from(volumes)), path=path, read_only=draw(st.booleans()))
            for path in mounted
        ),
        scratch=tuple(
            Scratch(path=path, size_mib=draw(st.integers(1, 10**6)))
            for path in paths
            if path not in mounted
        ),
        secrets=tuple(one for one in secrets if draw(st.booleans())),
        blobs=tuple(one for one in blobs if draw(st.booleans())),
        restart=draw(st.sampled_from(["always", "on_failure", "never"])),
        vital=draw(st.booleans()),
        confined=draw(st.booleans()),
    )


_PATHS = ("/data", "/tmp", "/models", "/home/jovyan/work", "/a-b/c_d/e.f")


def _image() -> st.SearchStrategy[Image]:
    """A repository's name is not held to anything on the wire."""
    return texts.map(lambda text: Image(registry="r:1", repository=f"a{text}", digest=DIGEST))


@st.composite
def _secret(draw: st.DrawFn, name: str) -> SecretFile:
    return SecretFile(
        name=name,
        source=draw(st.sampled_from(["", "secret://project/hf"])),
        env=draw(st.sampled_from(["", "TOKEN", "API_KEY"])),
    )


def _blob(name: str) -> BlobFile:
    source = f"artifact_store://projects/acme/research/artifacts/rag/1/{name}"
    return BlobFile(name=name, source=source, digest=DIGEST)


@st.composite
def _grants(draw: st.DrawFn, asked: Limits) -> GpuGrant:
    """By CDI, by a request or by device files, as a host has them."""
    files = {uuid: (f"/dev/dri/renderD{n}",) for n, uuid in enumerate(asked.gpu_uuids)}
    by_cdi = {uuid: f"nvidia.com/gpu={uuid}" for uuid in asked.gpu_uuids}
    host = GpuHost(
        uuids=frozenset(asked.gpu_uuids),
        cdi=by_cdi if draw(st.booleans()) else {},
        files=files,
        groups=draw(st.sampled_from([(), (44, 109)])),
        runtime=draw(st.booleans()),
    )
    return grant(asked, host)
