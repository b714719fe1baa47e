"""A network bridge of our own, made and removed through the kernel, without the `ip` tool.

Rules:
- Subnets are picked away from every route the host has, so that another Docker is not disturbed.
- Only bridges whose address lies in the range we picked are ever removed.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from reconciler.devkit.process import find_program
from reconciler.errors import Refused

_ADD_BRIDGE, _DELETE_BRIDGE = 0x89A0, 0x89A1
_GET_ADDRESS, _SET_ADDRESS, _SET_NETMASK = 0x8915, 0x8916, 0x891C
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_INTERFACES = Path("/sys/class/net")
_ROUTES = Path("/proc/net/route")
_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_IPTABLES_WAIT_S = "5"
_CHOICES = tuple(ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in range(200, 250))


@dataclass(frozen=True)
class AddressRange:
    """A /16: its first /24 is the default bridge's, its upper half the pool of further networks."""

    network: ipaddress.IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    @property
    def pool(self) -> str:
        return str(list(self.network.subnets(1))[1])


def free_range(seed: int) -> AddressRange:
    """A range no route overlaps. `seed` spreads two services that start at once."""
    taken = _routed()
    start = seed % len(_CHOICES)
    for network in (*_CHOICES[start:], *_CHOICES[:start]):
        if not any(network.overlaps(other) for other in taken):
            return AddressRange(network)
    raise Refused("no_free_subnet", "every candidate from 10.200.0.0 to 10.249.255.255 is routed")


def create(name: str, addresses: AddressRange) -> None:
    """Makes the bridge and brings it up with the range's gateway as its /24 address."""
    if exists(name):
        delete(name)
    try:
        with _control() as control:
            fcntl.ioctl(control, _ADD_BRIDGE, name.encode().ljust(16, b"\0"))
            fcntl.ioctl(control, _SET_ADDRESS, _address(name, addresses.gateway))
            fcntl.ioctl(control, _SET_NETMASK, _address(name, "255.255.255.0"))
            fcntl.ioctl(control, _SET_FLAGS, _flags(name, _read_flags(control, name) | _UP))
    except OSError as error:
        raise Refused(
            "bridge_refused", f"the kernel refused a bridge: {error.strerror}", where=name
        ) from None


def delete(name: str) -> None:
    """Takes the bridge down and removes it. Harmless when it is gone."""
    if not exists(name):
        return
    with _control() as control:
        fcntl.ioctl(control, _SET_FLAGS, _flags(name, _read_flags(control, name) & ~_UP))
        fcntl.ioctl(control, _DELETE_BRIDGE, name.encode().ljust(16, b"\0"))


def exists(name: str) -> bool:
    return (_INTERFACES / name).exists()


def within(addresses: AddressRange) -> list[str]:
    """The names of bridges whose address lies in the range."""
    found = []
    for interface in sorted(_INTERFACES.iterdir()):
        if (interface / "bridge").is_dir():
            address = _address_of(interface.name)
            if address is not None and address in addresses.network:
                found.append(interface.name)
    return found


def let_through(addresses: AddressRange) -> None:
    """Where the host filters what goes over bridges, as one with another Docker does, lets the
    range's own addresses talk to each other: that Docker drops what it does not know.
    """
    if _is_filtered() and not _iptables("-C", addresses):
        _iptables("-I", addresses)


def no_longer_let_through(addresses: AddressRange) -> None:
    """Takes that back. Harmless when it was not needed."""
    while _is_filtered() and _iptables("-D", addresses):
        pass


def _is_filtered() -> bool:
    try:
        return _FILTERED.read_text().strip() == "1"
    except OSError:
        return False


def _iptables(action: str, addresses: AddressRange) -> bool:
    """Whether the one rule could be checked, inserted or deleted; a host without the program has
    no such rules.
    """
    own = str(addresses.network)
    rule = ["FORWARD", "--source", own, "--destination", own, "--jump", "ACCEPT"]
    try:
        program = find_program("iptables", "iptables")
    except Refused:
        return False
    argv = [program, "--wait", _IPTABLES_WAIT_S, action, *rule]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _routed() -> list[ipaddress.IPv4Network]:
    networks = []
    for line in _ROUTES.read_text().splitlines()[1:]:
        fields = line.split()
        # Both are little-endian hexadecimal words.
        destination, mask = (
            socket.inet_ntoa(struct.pack("<I", int(fields[column], 16))) for column in (1, 7)
        )
        if mask != "0.0.0.0":  # noqa: S104  (the mask of the default route, nothing is bound)
            networks.append(ipaddress.IPv4Network(f"{destination}/{mask}"))
    return networks


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _address(name: str, address: str) -> bytes:
    return struct.pack(
        "16sH2s4s16x", name.encode(), socket.AF_INET, b"", socket.inet_aton(address)
    )


def _flags(name: str, flags: int) -> bytes:
    return struct.pack("16sH22x", name.encode(), flags)


def _read_flags(control: socket.socket, name: str) -> int:
    answer = fcntl.ioctl(control, _GET_FLAGS, _flags(name, 0))
    flags: int = struct.unpack_from("H", answer, 16)[0]
    return flags


def _address_of(name: str) -> ipaddress.IPv4Address | None:
    with _control() as control:
        try:
            answer = fcntl.ioctl(control, _GET_ADDRESS, struct.pack("16s24x", name.encode()))
        except OSError:
            return None
    return ipaddress.IPv4Address(answer[20:24])
