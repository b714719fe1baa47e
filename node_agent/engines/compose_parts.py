"""What Docker is asked for, in Compose's words, and how these are written to a file. Pure.

Rules:
- A service is the create request that a single container would be asked for with, said in other
  words. A part of a request that has no word here is refused, never left out.
- Nothing in a file is looked up anywhere: every `$` is doubled, every text is quoted, and of the
  characters that YAML and JSON read differently none stands there as itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from node_agent.engines.base import EngineFailure
from node_agent.wire import FailureReason

Document = Mapping[str, Any]
Words = dict[str, Any]

_WITH_CARE = re.compile(r"[^\n -~\U00010000-\U0010ffff]")
"""Line ends and marks that YAML takes out of a text, and what it does not let stand. Above that,
JSON would write two halves of a character, which YAML refuses."""


def text_of(document: Document) -> str:
    """JSON, and YAML that reads as the same; the same document gives the same text."""
    text = json.dumps(_doubled(document), sort_keys=True, indent=1, ensure_ascii=False)
    return _WITH_CARE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def digest_of(document: Document) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def service_words(request: Document) -> Words:
    """The body of `POST /containers/create` as a service. Raises EngineFailure CREATE_REFUSED."""
    own = {name: value for name, value in request.items() if name != "HostConfig"}
    said = [*_said(own, _OF_CONTAINER), *_said(request["HostConfig"], _OF_HOST)]
    document: Words = {}
    for words in said:
        # Mounts come from two places, and are one list.
        volumes = [*document.get("volumes", ()), *words.pop("volumes", ())]
        document |= words | ({"volumes": volumes} if volumes else {})
    return document


def _said(part: Document, table: Mapping[str, Callable[[Any], Words]]) -> list[Words]:
    unknown = sorted(part.keys() - table.keys())
    if unknown:
        message = f"there is no way to ask Compose for {', '.join(unknown)}"
        raise EngineFailure(FailureReason.CREATE_REFUSED, message)
    return [table[name](value) for name, value in sorted(part.items())]


def _doubled(value: Any) -> Any:
    """Names are of ours and hold none, but Compose reads them the same way."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {str(name): _doubled(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_doubled(inner) for inner in value]
    return value


# --- one part of a request each ------------------------------------------------------------------


def _as(word: str) -> Callable[[Any], Words]:
    return lambda value: {word: value}


def _in_other_words(_: Any) -> Words:
    """Said by another part, or by the file as a whole."""
    return {}


def _command(value: Any) -> Words:
    """Docker takes none from the image where there is an entrypoint."""
    return {"command": list(value)} if value else {}


def _environment(value: Any) -> Words:
    return {"environment": dict(entry.split("=", 1) for entry in value)}


def _healthcheck(value: Any) -> Words:
    return {"healthcheck": {"disable": True}} if value == {"Test": ["NONE"]} else _no_word(value)


def _grace(value: int) -> Words:
    return {"stop_grace_period": f"{value}s"}


def _ports(value: Document) -> Words:
    ports = [
        {
            "target": int(port.removesuffix("/tcp")),
            "published": binding["HostPort"],
            "host_ip": binding["HostIp"],
            "protocol": "tcp",
        }
        for port, bindings in sorted(value.items())
        for binding in bindings
    ]
    return {"ports": ports} if ports else {}


def _mounts(value: Any) -> Words:
    return {"volumes": [_mount(one) for one in value]} if value else {}


def _mount(one: Document) -> Words:
    mount = {
        "type": one["Type"],
        "source": one["Source"],
        "target": one["Target"],
        "read_only": bool(one.get("ReadOnly")),
    }
    if one["Type"] == "bind":
        # What is not there is an error, and not a folder that Docker makes.
        return mount | {"bind": {"create_host_path": False}}
    # Docker fills a new volume from the image, also for who may only read it.
    return mount | ({"volume": {"nocopy": True}} if mount["read_only"] else {})


def _tmpfs(value: Document) -> Words:
    return {"tmpfs": [f"{path}:{options}" for path, options in sorted(value.items())]}


def _log(value: Document) -> Words:
    return {"logging": {"driver": value["Type"], "options": dict(value["Config"])}}


def _restart(value: Document) -> Words:
    return {"restart": value["Name"]}


def _devices(value: Any) -> Words:
    """In one word a device, since the long form is newer than the oldest Compose that we take."""
    return {
        "devices": [
            f"{one['PathOnHost']}:{one['PathInContainer']}:{one['CgroupPermissions']}"
            for one in value
        ]
    }


def _device_requests(value: Any) -> Words:
    return {"deploy": {"resources": {"reservations": {"devices": [_gpus(one) for one in value]}}}}


def _gpus(one: Document) -> Words:
    (capabilities,) = one["Capabilities"]
    words: Words = {"device_ids": list(one["DeviceIDs"]), "capabilities": list(capabilities)}
    return words | ({"driver": one["Driver"]} if one.get("Driver") else {})


def _no_word(value: Any) -> Words:
    message = f"there is no way to ask Compose for {value!r:.80}"
    raise EngineFailure(FailureReason.CREATE_REFUSED, message)


_OF_CONTAINER: dict[str, Callable[[Any], Words]] = {
    "Image": _as("image"), "Env": _environment, "Labels": _as("labels"),
    "ExposedPorts": _in_other_words, "Entrypoint": _as("entrypoint"), "Cmd": _command,
    "Healthcheck": _healthcheck, "StopTimeout": _grace,
}  # fmt: skip
_OF_HOST: dict[str, Callable[[Any], Words]] = {
    "NetworkMode": _in_other_words, "PortBindings": _ports, "Mounts": _mounts, "Tmpfs": _tmpfs,
    "RestartPolicy": _restart, "Init": _as("init"), "SecurityOpt": _as("security_opt"),
    "CapDrop": _as("cap_drop"), "CapAdd": _as("cap_add"), "ReadonlyRootfs": _as("read_only"),
    "LogConfig": _log, "PidsLimit": _as("pids_limit"), "ShmSize": _as("shm_size"),
    "CpuPeriod": _as("cpu_period"), "CpuQuota": _as("cpu_quota"), "Memory": _as("mem_limit"),
    "MemorySwap": _as("memswap_limit"), "Devices": _devices, "GroupAdd": _as("group_add"),
    "DeviceRequests": _device_requests,
}  # fmt: skip
