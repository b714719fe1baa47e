"""What a Compose file of ours may say at all: an allowlist over the parsed file.

It knows nothing of what writes the file: each key at each level is named here with what its value
may be, and everything else is told. A key that Compose may learn tomorrow is refused today.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

Finder = Callable[[Any, str], Iterator[str]]

MIB = 1024 * 1024
CAPABILITIES = {
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID",
}  # fmt: skip
PLATFORM_PATHS = re.compile(r"/run/gpuaas/(secrets|blobs/[-a-z0-9]{1,63})")
NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
DOCKER_NAME = re.compile(r"gpuaas-[-_a-z0-9]{1,200}")
PROJECT = re.compile(r"gpuaas-[-a-z0-9]{1,56}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
BY_DIGEST = re.compile(r"(?s).+@sha256:[0-9a-f]{64}")
ADDRESS = re.compile(r"(?!0\.0\.0\.0$)(?:\d{1,3}\.){3}\d{1,3}")
PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[^/:]+)+")
SCRATCH = re.compile(PATH.pattern + r":rw,exec,nosuid,nodev,mode=1777,size=[1-9][0-9]*")
DEVICE = re.compile(r"(/dev/kfd|/dev/dri/renderD\d+):\1:rw")
GPU = re.compile(r"(?:(?:nvidia|amd)\.com/gpu=)?[A-Za-z0-9][-A-Za-z0-9]*")
SECONDS = re.compile(r"\d+s")


class _Strict(yaml.SafeLoader):
    """No name twice, and no merging."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if len({*names}) < len(names) or any(key.tag.endswith(":merge") for key, _ in node.value):
            raise yaml.YAMLError("a name twice, or a merge")
        return super().construct_mapping(node, deep)


def violations(text: str, roots: Sequence[str]) -> list[str]:
    """Of a file's text. `roots`: the folders of the host that something may be mounted from."""
    try:
        document = yaml.load(text, _Strict)
        same = json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        return [f"unreadable: {type(error).__name__}"]
    found = [] if same == document else ["YAML and JSON read different things"]
    found += [f"a `$` that is not doubled in {word!r}" for word in _interpolated(document)]
    return [*found, *violations_in(_as_meant(document), roots)]


def violations_in(document: Any, roots: Sequence[str]) -> list[str]:
    """Of a parsed file, each `$` of it single again."""
    return list(_File(tuple(roots)).look(document))


def _interpolated(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "$" in value.replace("$$", ""):
            yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from (*_interpolated(name), *_interpolated(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _interpolated(inner)


def _as_meant(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, Mapping):
        return {name: _as_meant(inner) for name, inner in value.items()}
    return [_as_meant(inner) for inner in value] if isinstance(value, list) else value


# --- kinds of values -----------------------------------------------------------------------------


def exactly(*allowed: Any) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if not any(type(value) is type(one) and value == one for one in allowed):
            yield f"{where}: {value!r}"

    return find


def like(pattern: re.Pattern[str]) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            yield f"{where}: {value!r}"

    return find


def whole(least: int) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if type(value) is not int or value < least:
            yield f"{where}: {value!r}"

    return find


def any_text(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where}: {value!r}"


def each(find_in: Finder) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: {value!r}"
            return
        for inner in value:
            yield from find_in(inner, where)

    return find


def named(name: re.Pattern[str], find_in: Finder) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{where}: {value!r}"
            return
        for key, inner in value.items():
            yield from like(name)(key, where)
            yield from find_in(inner, f"{where}.{key}")

    return find


def fields(known: Mapping[str, Finder], needed: Sequence[str] = ()) -> Finder:
    def find(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{where}: {value!r}"
            return
        yield from (f"{where}.{key}: not known" for key in value if key not in known)
        yield from (f"{where}.{key}: missing" for key in needed if key not in value)
        for key in value:
            if key in known:
                yield from known[key](value[key], f"{where}.{key}")

    return find


LABELS = named(re.compile(r"dev\.gpuaas\.[-a-z]+"), any_text)
OURS = fields(
    {
        "dev.gpuaas.managed": exactly("true"),
        "dev.gpuaas.node": any_text,
        "dev.gpuaas.instance": any_text,
    },
    ("dev.gpuaas.managed", "dev.gpuaas.node", "dev.gpuaas.instance"),
)
PORT = fields(
    {
        "target": whole(1),
        "published": like(re.compile(r"[1-9]\d{0,4}")),
        "host_ip": like(ADDRESS),
        "protocol": exactly("tcp"),
    },
    ("target", "published", "host_ip", "protocol"),
)
GPUS = fields(
    {
        "driver": exactly("nvidia", "cdi"),
        "device_ids": each(like(GPU)),
        "capabilities": exactly(["gpu"]),
    },
    ("device_ids", "capabilities"),
)
LOGGING = fields(
    {
        "driver": exactly("json-file"),
        "options": exactly({"max-size": "10m", "max-file": "3"}),
    },
    ("driver", "options"),
)
VOLUME = fields({"name": like(DOCKER_NAME), "labels": OURS}, ("name", "labels"))
NETWORK = fields(
    {"name": like(PROJECT), "driver": exactly("bridge"), "labels": OURS},
    ("name", "driver", "labels"),
)


class _File:
    """One file, whose mounts from the host are from `roots`."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._roots = roots

    def look(self, document: Any) -> Iterator[str]:
        known = {
            "name": like(PROJECT),
            "services": named(NAME, self._service),
            "networks": fields({"default": NETWORK}, ("default",)),
            "volumes": named(DOCKER_NAME, VOLUME),
        }
        yield from fields(known, tuple(known))(document, "file")
        if not isinstance(document, Mapping):
            return
        for name, one in (document.get("volumes") or {}).items():
            # Under its own name and no other: a file could speak of somebody else's data.
            yield from exactly(name)(one.get("name"), f"volumes.{name}")
            yield from exactly(True)(
                str(name).startswith(f"{document['name']}_"), f"whose volume is {name}"
            )
        yield from exactly(document.get("name"))(
            ((document.get("networks") or {}).get("default") or {}).get("name"), "network"
        )
        for name, service in (document.get("services") or {}).items():
            for mount in service.get("volumes", ()) if isinstance(service, Mapping) else ():
                source = mount.get("source") if isinstance(mount, Mapping) else None
                if "bind" not in (mount or ()) and source not in (document.get("volumes") or {}):
                    yield f"{name}: the volume {source} is not the file's"

    def _service(self, value: Any, where: str) -> Iterator[str]:
        yield from fields(self._known, _NEEDED)(value, where)
        if not isinstance(value, Mapping):
            return
        both = value.get("mem_limit"), value.get("memswap_limit")
        if both[0] != both[1]:
            yield f"{where}: swap beside its memory {both}"
        if value.get("read_only") and value.get("cap_add") != []:
            yield f"{where}: confined, with {value.get('cap_add')}"

    @property
    def _known(self) -> dict[str, Finder]:
        return {**_SERVICE, "volumes": each(self._mount)}

    def _mount(self, value: Any, where: str) -> Iterator[str]:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind == "volume":
            known = {
                "type": exactly("volume"), "source": like(DOCKER_NAME), "target": like(PATH),
                "read_only": exactly(True, False),
            }  # fmt: skip
            if value.get("read_only"):
                # Else its image would write there.
                known["volume"] = exactly({"nocopy": True})
        elif kind == "bind":
            known = {
                "type": exactly("bind"), "source": self._of_ours, "target": like(PLATFORM_PATHS),
                "read_only": exactly(True), "bind": exactly({"create_host_path": False}),
            }  # fmt: skip
        else:
            yield f"{where}: {value!r}"
            return
        yield from fields(known, tuple(known))(value, where)

    def _of_ours(self, value: Any, where: str) -> Iterator[str]:
        plain = isinstance(value, str) and PATH.fullmatch(value) is not None
        if not plain or not any(value.startswith(f"{root}/") for root in self._roots):
            yield f"{where}: {value!r} of the host"


def _capabilities(value: Any, where: str) -> Iterator[str]:
    yield from each(exactly(*sorted(CAPABILITIES)))(value, where)


def _environment(value: Any, where: str) -> Iterator[str]:
    yield from named(VARIABLE, any_text)(value, where)
    if isinstance(value, Mapping):
        for name in ("NVIDIA_VISIBLE_DEVICES", "AMD_VISIBLE_DEVICES"):
            if name not in value:
                yield f"{where}: {name} is left to the image"


_SERVICE: dict[str, Finder] = {
    "image": like(BY_DIGEST),
    "pull_policy": exactly("never"),
    "entrypoint": each(any_text),
    "environment": _environment,
    "labels": LABELS,
    "ports": each(PORT),
    "tmpfs": each(like(SCRATCH)),
    "init": exactly(True),
    "restart": exactly("no"),
    "security_opt": exactly(["no-new-privileges"]),
    "cap_drop": exactly(["ALL"]),
    "cap_add": _capabilities,
    "read_only": exactly(True),
    "logging": LOGGING,
    "pids_limit": whole(1),
    "shm_size": whole(MIB),
    "cpu_period": exactly(100_000),
    "cpu_quota": whole(1_000),
    "mem_limit": whole(6 * MIB),
    "memswap_limit": whole(6 * MIB),
    "devices": each(like(DEVICE)),
    "group_add": each(like(re.compile(r"\d+"))),
    "deploy": fields({"resources": fields({"reservations": fields({"devices": each(GPUS)})})}),
    "healthcheck": exactly({"disable": True}),
    "stop_grace_period": like(SECONDS),
    "depends_on": named(NAME, exactly({"condition": "service_started"})),
}
_NEEDED = (
    "image", "pull_policy", "environment", "labels", "init", "restart", "security_opt", "cap_drop",
    "cap_add", "logging", "pids_limit", "shm_size", "healthcheck",
)  # fmt: skip
