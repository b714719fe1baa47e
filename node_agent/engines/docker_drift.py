"""What of a container is not as it was asked for: changed in place, or made again by hand. Pure.

Rules:
- What was asked for is kept as facts in a label of the container, so that a newer agent, which may
  ask in another way, finds nothing changed in what an older one made.
- What nobody asked for counts too where it would lift a limit, open a way in or out, or run
  another program. What Docker fills in by itself, or says in several ways, does not.
- Names, sizes and figures are told. Values of variables and arguments are in no fact, only digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

NAMED_MAX = 3
LINE_LENGTH_MAX = 200
_ID = re.compile(r"[0-9a-f]{64}")
_UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))

Document = Mapping[str, Any]
Names = dict[str, Any]


def record(request: Document, image: Document) -> str:
    """The label's text for what is asked for.

    `request`: the body of `POST /containers/create`. `image`: the `Config` of its image.
    """
    asked = request.get("HostConfig") or {}
    own = bool(request.get("Entrypoint"))
    env = {**_pairs(image.get("Env")), **_pairs(request.get("Env"))}
    facts: Names = {
        "Image": request["Image"],
        "Entrypoint": _digest((request if own else image).get("Entrypoint")),
        "Cmd": _digest((request if own or request.get("Cmd") else image).get("Cmd")),
        "User": request.get("User") or image.get("User") or "",
        "WorkingDir": _folder(request.get("WorkingDir") or image.get("WorkingDir") or ""),
        "Env": {name: _digest(value) for name, value in env.items()},
        "Networks": {str(asked.get("NetworkMode")): True},
        "Mounts": _mounts_asked(asked),
        **_host_facts(asked),
    }
    return json.dumps(_facts(facts), sort_keys=True, separators=(",", ":"))


def differences(recorded: str | None, inspected: Document, usual: Document) -> tuple[str, ...]:
    """One line each, in a fixed order; empty when the container is as asked for.

    `recorded`: the label's text. `inspected`: of `GET /containers/…/json`. A container without the
    label is by an agent that kept none, or by hand: it is compared with `usual`, the part of
    HostConfig that every container of ours has, and not in what hangs on its workload.
    """
    seen = _seen_facts(inspected)
    if recorded is None:
        asked = _facts({**_host_facts(usual), "Networks": {str(usual.get("NetworkMode")): True}})
        keys = [key for key in _WORDS if key not in _OF_WORKLOAD]
    else:
        asked, keys = _read(recorded), list(_WORDS)
    lines = (_difference(key, asked.get(key), seen.get(key)) for key in keys)
    return tuple(_printable(line) for line in lines if line)


def _read(recorded: str) -> Names:
    try:
        facts = json.loads(recorded)
    except (ValueError, RecursionError):
        # An older agent set no label, and an image may have brought one.
        return {}
    return facts if isinstance(facts, dict) else {}


def _seen_facts(inspected: Document) -> Names:
    config, seen = inspected.get("Config") or {}, inspected.get("HostConfig") or {}
    facts = {
        "Image": config.get("Image"),
        "Entrypoint": _digest(config.get("Entrypoint")),
        "Cmd": _digest(config.get("Cmd")),
        "User": config.get("User"),
        "WorkingDir": _folder(config.get("WorkingDir") or ""),
        "Env": {name: _digest(value) for name, value in _pairs(config.get("Env")).items()},
        "Networks": _networks(inspected, seen),
        "Mounts": _mounts(inspected, seen),
        **_host_facts(seen),
    }
    return _facts(facts)


def _pairs(entries: Iterable[str] | None) -> dict[str, str]:
    split = (entry.partition("=") for entry in entries or ())
    return {name: value for name, _, value in split}


def _digest(value: Any) -> str:
    if not value:
        return ""
    text = json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder(path: str) -> str:
    return "" if path == "/" else path


def _facts(facts: Names) -> Names:
    """As they are once read from JSON, without those that say nothing."""
    kept = {key: value for key, value in facts.items() if value not in (*_NOTHING, {}, [])}
    read: Names = json.loads(json.dumps(kept))
    return read


# --- limits, rights and other settings of the container ------------------------------------------


def _host_facts(host: Document) -> Names:
    figures = {key: host.get(key) for key in _FIGURES}
    return {
        **figures,
        "MemorySwap": host.get("MemorySwap") if host.get("Memory") else None,
        "RestartPolicy": (host.get("RestartPolicy") or {}).get("Name") or "no",
        **{key: by_name(host.get(key)) for key, by_name in _SETS.items()},
        **{key: _shared(host.get(key)) for key in _NAMESPACES},
    }


def _shared(mode: Any) -> str:
    """Docker has defaults of its own here; what matters is a share in the host's or another's."""
    return str(mode) if mode == "host" or str(mode).startswith("container:") else ""


def _flat(value: Any) -> Any:
    """As JSON, sorted, without what is nothing: null, zero, an empty list."""
    if isinstance(value, Mapping):
        kept = {str(name): _flat(inner) for name, inner in sorted(value.items())}
        return {name: inner for name, inner in kept.items() if inner not in (*_NOTHING, {}, [])}
    if isinstance(value, list | tuple):
        return sorted((_flat(inner) for inner in value), key=str)
    return value


def _words(value: Any) -> Names:
    return {str(word): True for word in value or ()}


def _capabilities(value: Any) -> Names:
    return {str(word).upper().removeprefix("CAP_"): True for word in value or ()}


def _options(value: Any) -> Names:
    return {str(word).replace("=", ":").removesuffix(":true"): True for word in value or ()}


def _entries(value: Any) -> Names:
    return {str(name): _flat(inner) for name, inner in (value or {}).items()}


def _ulimits(value: Any) -> Names:
    return {str(one.get("Name")): _flat(one) for one in value or ()}


def _devices(value: Any) -> Names:
    return {str(one.get("PathInContainer")): _flat(one) for one in value or ()}


def _device_requests(value: Any) -> Names:
    return {_device_request(one): _flat(one) for one in value or ()}


def _device_request(one: Document) -> str:
    return ", ".join(sorted(one.get("DeviceIDs") or [])) or str(one.get("Driver") or "all")


def _log(value: Any) -> Names:
    return {str((value or {}).get("Type") or ""): _flat((value or {}).get("Config") or {})}


# --- networks and mounts -------------------------------------------------------------------------


def _networks(inspected: Document, seen: Document) -> Names:
    """Where it is, and where it was to begin."""
    networks = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
    begun = str(seen.get("NetworkMode") or "default")
    if _ID.fullmatch(begun):
        # Early releases of Compose 2 ask so for a network that is there. None is told before a
        # container was started for the first time.
        same = (name for name, one in networks.items() if one.get("NetworkID") in {"", begun})
        begun = next(same, begun)
    names = [*networks, *([begun] if networks and begun != "default" else [])]
    return {str(name): True for name in names}


def _mounts_asked(asked: Document) -> Names:
    mounts: Names = {
        one["Target"]: [one["Type"], one.get("Source") or "", not one.get("ReadOnly")]
        for one in asked.get("Mounts") or ()
    }
    for bind in asked.get("Binds") or ():
        source, _, rest = bind.partition(":")
        target, _, options = rest.partition(":")
        kind = "bind" if source.startswith("/") else "volume"
        mounts[target] = [kind, source, "ro" not in options.split(",")]
    return {**mounts, **dict.fromkeys(asked.get("Tmpfs") or {}, "tmpfs")}


def _mounts(inspected: Document, seen: Document) -> Names:
    mounts: Names = {
        one["Destination"]: [one["Type"], _source(one), bool(one.get("RW"))]
        for one in inspected.get("Mounts") or ()
    }
    return {**mounts, **dict.fromkeys(seen.get("Tmpfs") or {}, "tmpfs")}


def _source(mount: Document) -> str:
    return str(mount.get("Name" if mount["Type"] == "volume" else "Source") or "")


# --- telling -------------------------------------------------------------------------------------


def _difference(key: str, asked: Any, seen: Any) -> str:
    """Empty when there is none."""
    words = _WORDS[key]
    if asked == seen:
        return ""
    if key in _FIGURES or key == "RestartPolicy":
        shown = _FIGURES.get(key, str)
        return f"{words} changed from {_told(asked, shown)} to {_told(seen, shown)}"
    if isinstance(asked or {}, dict) and isinstance(seen or {}, dict):
        return f"{words} changed: {_names(asked or {}, seen or {})}"
    return f"{words} changed"


def _told(value: Any, shown: Callable[[Any], str]) -> str:
    if value is not None:
        return shown(value)
    return "off" if shown is _switch else "none"


def _names(asked: Names, seen: Names) -> str:
    told = [f"{name} added" for name in sorted(seen.keys() - asked.keys())]
    told += [f"{name} removed" for name in sorted(asked.keys() - seen.keys())]
    told += [name for name in sorted(asked.keys() & seen.keys()) if asked[name] != seen[name]]
    more = f" and {len(told) - NAMED_MAX} more" if len(told) > NAMED_MAX else ""
    return ", ".join(told[:NAMED_MAX]) + more


def _printable(line: str) -> str:
    """What somebody named a thing does nothing to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in line)[:LINE_LENGTH_MAX]


def _size(size_bytes: Any) -> str:
    for unit, factor in _UNITS:
        if isinstance(size_bytes, int) and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} bytes"


def _cpus(nano_cpus: Any) -> str:
    try:
        return f"{nano_cpus / 1_000_000_000:g}"
    except (TypeError, OverflowError):
        return str(nano_cpus)


def _switch(on: Any) -> str:
    return "on" if on else "off"


# --- what is compared ----------------------------------------------------------------------------

_NOTHING = (None, 0, -1, "")
"""Docker says in as many ways that there is no limit. False is 0 here."""

_FIGURES: dict[str, Callable[[Any], str]] = {
    "Memory": _size, "MemorySwap": _size, "MemoryReservation": _size, "NanoCpus": _cpus,
    "CpuQuota": str, "CpuPeriod": str, "CpuShares": str, "CpusetCpus": str, "CpusetMems": str,
    "BlkioWeight": str, "PidsLimit": str, "ShmSize": _size, "Privileged": _switch, "Init": _switch,
    "ReadonlyRootfs": _switch, "AutoRemove": _switch, "PublishAllPorts": _switch,
    "OomKillDisable": _switch,
}  # fmt: skip
_SETS: dict[str, Callable[[Any], Names]] = {
    "CapAdd": _capabilities, "CapDrop": _capabilities, "SecurityOpt": _options, "GroupAdd": _words,
    "PortBindings": _entries, "Devices": _devices, "DeviceCgroupRules": _words,
    "DeviceRequests": _device_requests, "Ulimits": _ulimits, "Sysctls": _entries,
    "ExtraHosts": _words, "Dns": _words, "Links": _words, "VolumesFrom": _words, "LogConfig": _log,
}  # fmt: skip
_NAMESPACES = ("PidMode", "IpcMode", "UTSMode", "UsernsMode")

_WORDS = {
    "Image": "image", "Entrypoint": "entrypoint", "Cmd": "command", "User": "user",
    "WorkingDir": "working directory", "Env": "environment",
    "Memory": "memory limit", "MemorySwap": "memory and swap limit",
    "MemoryReservation": "memory reservation", "NanoCpus": "CPU limit", "CpuQuota": "CPU quota",
    "CpuPeriod": "CPU period", "CpuShares": "CPU shares", "CpusetCpus": "CPU set",
    "CpusetMems": "memory nodes", "BlkioWeight": "block I/O weight", "PidsLimit": "process limit",
    "ShmSize": "shared memory", "Privileged": "privileged mode", "Init": "init process",
    "ReadonlyRootfs": "read-only root", "AutoRemove": "removal at its end",
    "PublishAllPorts": "publishing of all ports", "OomKillDisable": "OOM killer off",
    "RestartPolicy": "restart policy", "CapAdd": "added capabilities",
    "CapDrop": "dropped capabilities", "SecurityOpt": "security options", "GroupAdd": "groups",
    "PortBindings": "published ports", "Devices": "devices", "DeviceCgroupRules": "device rules",
    "DeviceRequests": "GPUs", "Ulimits": "ulimits", "Sysctls": "kernel settings",
    "ExtraHosts": "hosts", "Dns": "name servers", "Links": "links",
    "VolumesFrom": "volumes of other containers", "LogConfig": "log settings",
    "PidMode": "process namespace", "IpcMode": "IPC namespace", "UTSMode": "host name namespace",
    "UsernsMode": "user namespace", "Networks": "networks", "Mounts": "mounts",
}  # fmt: skip
_OF_WORKLOAD = frozenset({
    "Image", "Entrypoint", "Cmd", "User", "WorkingDir", "Env", "Memory", "MemorySwap", "NanoCpus",
    "PidsLimit", "ShmSize", "PortBindings", "Devices", "DeviceRequests", "GroupAdd", "Mounts",
    "LogConfig",
})  # fmt: skip
"""Not known of a container without a record."""
