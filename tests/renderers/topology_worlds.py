"""Every sort of version with several services, as the manifests that say it; all of them valid.

A strategy draws a whole state repo with one instance, so that what is rendered went the way that
every manifest goes: schema, checks, resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.core import builders as b

Document = dict[str, Any]
GPUS_MAX = 6
NAMES = ("a", "b2", "cache-1", "d", "ee")
CAN = {
    "cache": {"endpoints", "volumes", "scratch"},
    "data": {"endpoints", "volumes", "scratch", "secrets"},
    "logs": {"read", "secrets"},
    "metrics": {"endpoints", "read"},
    "proxy": {"endpoints", "secrets"},
    "setup": {"volumes", "scratch", "secrets"},
    "worker": {"volumes", "scratch", "secrets", "gpus"},
}
VOLUMES = ("index", "models", "work-2")
SECRETS = ("key", "password", "token")
RENDERERS = ("generic_services", "jupyter_with_sidecar", "vllm_openai")
MAINS = {"jupyter_with_sidecar": "notebook", "vllm_openai": "vllm"}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
TRICKY = st.sampled_from(
    ("${HOME}", "$$", "a: b", "- x", "!!python", "&a *a", "<<", "\n", "'\"", "")
)
WORDS = st.lists(TEXT | TRICKY, max_size=3)
ENV = st.dictionaries(
    st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}_", fullmatch=True), TEXT | TRICKY, max_size=3
)


@dataclass
class Drawn:
    """What of a version is drawn so far; `ports` are those taken, as (service, port)."""

    renderer: str
    gpus: int
    main: str
    mounted: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    endpoints: list[Document] = field(default_factory=list)


@st.composite
def worlds(draw: st.DrawFn) -> b.Documents:
    """A state repo whose instance `one` runs a version of several services."""
    renderer = draw(st.sampled_from(RENDERERS))
    drawn = Drawn(renderer, draw(st.integers(0, GPUS_MAX)), MAINS.get(renderer, "main"))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    before = [draw(_sidecar(drawn, name)) for name in names[: len(names) // 2]]
    after = [draw(_sidecar(drawn, name)) for name in names[len(names) // 2 :]]
    for index, one in enumerate(before):
        one["depends_on"] = draw(_waits_for(before[:index]))
    profile: Document = {"kind": "docker_compose", "renderer": renderer}
    main = draw(_main(drawn, profile, before))
    for index, one in enumerate(after):
        one["depends_on"] = draw(_waits_for([*before, main, *after[:index]]))
    services = [*before, *after, *([main] if renderer == "generic_services" else [])]
    draw(_gpus(drawn, profile, main, [*before, *after]))
    profile["topology"] = _topology(drawn, draw(st.permutations(services)))
    profile["topology"]["failure"] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "vital": st.sampled_from(("restart_service", "restart_all")),
                "other": st.sampled_from(("degrade", "roll_back")),
            },
        )
    )
    profile["secrets"] = [draw(_secret(name)) for name in sorted(drawn.read)]
    return _repo(drawn, profile, draw(_size([*before, *after], main)))


# --- services ------------------------------------------------------------------------------------


@st.composite
def _sidecar(draw: st.DrawFn, drawn: Drawn, name: str) -> Document:
    sort = draw(st.sampled_from(sorted(CAN)))
    can = CAN[sort]
    limits = {"memory_mib": draw(st.integers(64, 2048)), "vcpu": draw(st.floats(0.01, 3))}
    service: Document = {"name": name, "sidecar_class": sort, "limits": limits, "env": draw(ENV)}
    service["command"] = draw(WORDS)
    service["restart"] = draw(
        st.sampled_from(("on_failure", "never") + (() if sort == "setup" else ("always",)))
    )
    image = draw(st.sampled_from((None, "b", "c")))
    if image is not None:
        service["image_ref"] = image_ref(image)
    if can & {"volumes", "read"}:
        service["mounts"] = draw(_mounts(drawn, read_only="read" in can))
    if "scratch" in can and draw(st.booleans()):
        service["scratch"] = [{"path": "/scratch", "size_mib": draw(st.integers(1, 32))}]
    if "secrets" in can:
        service["secrets"] = draw(_secrets(drawn))
    if "endpoints" in can and draw(st.booleans()):
        drawn.endpoints.append(draw(_endpoint(name)))
    draw(_health(service))
    return service


@st.composite
def _main(draw: st.DrawFn, drawn: Drawn, profile: Document, before: Sequence[Document]) -> Document:
    """Of the main service as others see it; a made one goes into the profile."""
    if drawn.renderer == "generic_services":
        main: Document = {"name": "main", "role": "main", "command": draw(WORDS), "env": draw(ENV)}
        main["depends_on"] = draw(_waits_for(before))
        main["mounts"] = draw(_mounts(drawn, read_only=False))
        main["secrets"] = draw(_secrets(drawn))
        drawn.endpoints.append(draw(_endpoint("main")))
        draw(_health(main))
        return main
    profile["env"] = draw(ENV)
    part, made = draw(_vllm(drawn) if drawn.renderer == "vllm_openai" else _jupyter(drawn))
    profile[part] = made
    return {"name": drawn.main, "health": {"readiness": {}}, "restart": "always"}


@st.composite
def _vllm(draw: st.DrawFn, drawn: Drawn) -> tuple[str, Document]:
    made: Document = {"model": draw(st.sampled_from(("org/model", "/models/one")))}
    if draw(st.booleans()):
        made["api_key_secret"] = draw(st.sampled_from(SECRETS))
        drawn.read.add(made["api_key_secret"])
    if draw(st.booleans()):
        made["cache_volume"] = draw(st.sampled_from(VOLUMES))
        drawn.mounted.add(made["cache_volume"])
    if draw(st.booleans()):
        made["max_model_len"] = draw(st.integers(1, 100_000))
    made["gpu_memory_utilization"] = draw(st.floats(0.05, 1))
    return "vllm", made


@st.composite
def _jupyter(draw: st.DrawFn, drawn: Drawn) -> tuple[str, Document]:
    made: Document = {"token_secret": draw(st.sampled_from(SECRETS))}
    drawn.read.add(made["token_secret"])
    made["base_path"] = draw(st.sampled_from(("/", "/lab", "/lab/ada/")))
    if draw(st.booleans()):
        made["work_volume"] = draw(st.sampled_from(VOLUMES))
        drawn.mounted.add(made["work_volume"])
    return "jupyter", made


@st.composite
def _waits_for(draw: st.DrawFn, others: Sequence[Document]) -> list[Document]:
    chosen = draw(st.lists(st.sampled_from(others), max_size=3, unique_by=_name)) if others else []
    return [
        {
            "service": one["name"],
            "condition": draw(
                st.sampled_from(
                    ["started"]
                    + (["healthy"] if "readiness" in one["health"] else [])
                    + (["completed"] if one.get("restart", "always") != "always" else [])
                )
            ),
        }
        for one in chosen
    ]


def _name(service: Document) -> str:
    return str(service["name"])


@st.composite
def _health(draw: st.DrawFn, service: Document) -> None:
    probes: list[Document] = [
        {"http": {"port": draw(st.integers(1, 65_535)), "path": "/health"}},
        {"tcp": {"port": draw(st.integers(1, 65_535))}},
        {"exec": {"command": ["check", draw(TEXT)]}},
    ]
    health: Document = {"start_budget_s": draw(st.floats(0.1, 86_400))}
    if (probe := draw(st.sampled_from([None, *probes]))) is not None:
        health["readiness"] = probe
    service["health"] = health


@st.composite
def _mounts(draw: st.DrawFn, drawn: Drawn, read_only: bool) -> list[Document]:
    volumes = draw(st.lists(st.sampled_from(VOLUMES), unique=True, max_size=2))
    drawn.mounted.update(volumes)
    return [
        {"volume": one, "path": f"/srv/{one}/data.d", "read_only": read_only or draw(st.booleans())}
        for one in volumes
    ]


@st.composite
def _secrets(draw: st.DrawFn, drawn: Drawn) -> list[str]:
    names = draw(st.lists(st.sampled_from(SECRETS), unique=True, max_size=2))
    drawn.read.update(names)
    return names


@st.composite
def _secret(draw: st.DrawFn, name: str) -> Document:
    return {"name": name, "source": draw(st.sampled_from(("generated", "reference")))}


@st.composite
def _endpoint(draw: st.DrawFn, service: str) -> Document:
    return {
        "name": f"{service}-out",
        "service": service,
        "port": draw(st.integers(1, 65_535)),
        "expose": draw(st.sampled_from(("internal", "private", "embedded_ui_gateway"))),
    }


# --- shares --------------------------------------------------------------------------------------


@st.composite
def _gpus(
    draw: st.DrawFn, drawn: Drawn, profile: Document, main: Document, others: Sequence[Document]
) -> None:
    """Shared by all who ask, or counted by some; a made main service takes what is left."""
    workers = [one for one in others if one["sidecar_class"] == "worker"]
    generic, vllm = drawn.renderer == "generic_services", profile.get("vllm")
    if draw(st.booleans()):
        for one in workers:
            one["gpus"] = draw(st.sampled_from((0, "all")))
        if generic and draw(st.booleans()):
            main["gpus"] = "all"
        return
    left = drawn.gpus
    if generic or (vllm is not None and left and draw(st.booleans())):
        counted = draw(st.integers(0 if generic else 1, left))
        left -= counted
        if vllm is not None:
            vllm["tensor_parallel"] = counted
        else:
            main["gpus"] = counted
    keep = 1 if not generic and vllm is not None and "tensor_parallel" not in vllm else 0
    for one in workers:
        one["gpus"] = draw(st.integers(0, max(left - keep, 0)))
        left -= one["gpus"]
    settled = generic or (vllm is not None and "tensor_parallel" in vllm)
    if workers and settled and draw(st.booleans()):
        left += workers[0]["gpus"]
        workers[0]["gpus"] = "rest" if left else 0


@st.composite
def _size(draw: st.DrawFn, others: Sequence[Document], main: Document) -> Document:
    """Of the instance: what the sidecars take, and something for the main service."""
    if main.get("role") and draw(st.booleans()):
        main["limits"] = {
            "memory_mib": draw(st.integers(64, 512)),
            "vcpu": draw(st.floats(0.05, 2)),
        }
    limits = [one["limits"] for one in (*others, main) if "limits" in one]
    memory = sum(one["memory_mib"] for one in limits) + draw(st.integers(64, 4096))
    cores = math.ceil(sum(one["vcpu"] for one in limits)) + draw(st.integers(1, 4))
    return {"memory_gib": memory / 1024, "cpu_cores": cores}


# --- the repo around it --------------------------------------------------------------------------


def _topology(drawn: Drawn, services: Sequence[Document]) -> Document:
    volumes = [{"name": name, "size_mib": 1024} for name in sorted(drawn.mounted)]
    return {"services": list(services), "volumes": volumes, "endpoints": drawn.endpoints}


def image_ref(letter: str) -> str:
    return f"gpuaas/apps/research/hello@sha256:{letter * 64}"


def _repo(drawn: Drawn, profile: Document, size: Document) -> b.Documents:
    documents = b.world()
    spec = documents[b.VERSION_FILE]["spec"]
    spec["runtime_profile"] = profile
    del spec["launch_parameters"]["properties"]["pip_packages"], spec["access"]
    return placed(documents, drawn.gpus, size)


def placed(documents: b.Documents, gpus: int, size: Document) -> b.Documents:
    """With a node that has room, images that are there, and every reference bound."""
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    node, lease = documents[b.NODE_FILE]["spec"], documents[b.ALLOCATION_FILE]["spec"]
    node.update(engines=["compose"], cpu_cores=256, memory_mib=2_097_152)
    node["accelerators"] = [b.gpu(number) for number in range(GPUS_MAX)]
    lease.update(cpu_cores=256, memory_mib=2_097_152)
    lease["gpus"] = [one["uuid"] for one in node["accelerators"]]
    instance = documents[b.INSTANCE_FILE]["spec"]
    instance["parameters"] = {"gpu_count": gpus, **size}
    instance["secrets"] = {
        one["name"]: f"secret://project/{one['name']}"
        for one in profile.get("secrets", ())
        if one.get("source") == "reference"
    }
    own = documents[b.ARTIFACT_FILE]["spec"]
    for letter in "bcde":
        image = {**own, "digest": f"sha256:{letter * 64}"}
        b.add(documents, b.ARTIFACT_FILE.replace("image.yaml", f"{letter}.yaml"), image)
    return documents
