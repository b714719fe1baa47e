"""A blob up and down by `gpuaas blob`, beside `curl` and `sha256sum` with a plain file server.

Rules:
- Both sides move the same file over loopback, to and from the same disk, turn about in one run, so
  that whatever slows this machine down slows both.
- Down: `curl` from `busybox httpd`, then `sha256sum`. Up: `curl -T` to a loop of recv and write,
  `sync` of what that wrote, then `sha256sum` of it. Ours hashes at both ends, and has an upload on
  the disk when it says so; a download neither of the two flushes.
- Each is timed from the start of its program to its end; ours is Python's start and all. Before
  each, what earlier ones wrote is flushed.
- Memory is the most that each of our two processes ever held (VmHWM).

Run: `python -m bench.blob_transfer [--mib 2048] [--rounds 3] [--dir DIR]`.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reconciler.core.names import Digest
from reconciler.devkit.services import free_port
from tests.services.blob_plane import BlobPlane, blob_plane

MIB = 1024 * 1024
HALF = 0.5
LIMIT_S = 900.0
LOOK_S = 0.02


@dataclass(frozen=True)
class Timed:
    seconds: float
    memory_mib: float = 0.0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="gpuaas-blob-") as name:
        return _bench(Path(name), given.mib, given.rounds)


def _bench(folder: Path, mib: int, rounds: int) -> int:
    source = folder / "source"
    digest = _make(source, mib)
    found: dict[str, list[Timed]] = {}
    peaks: list[float] = []
    with _plain_get(folder) as get, _plain_put(folder / "received") as put:
        for number in range(rounds):
            with blob_plane(folder / f"plane-{number}") as plane:
                sides: dict[str, Callable[[], Timed]] = {
                    "up, curl + sync + sha256sum": partial(_curl_up, source, put, folder),
                    "up, gpuaas blob upload": partial(_ours_up, plane, source),
                    "down, curl + sha256sum": partial(_curl_down, get, folder),
                    "down, gpuaas blob download": partial(_ours_down, plane, digest, folder),
                }
                for what, run in sides.items():
                    os.sync()
                    found.setdefault(what, []).append(run())
                assert plane.process is not None
                peaks.append(_peak_mib(plane.process.pid))
            subprocess.run(["rm", "-rf", str(folder / f"plane-{number}")], check=True)
    return _tell(found, max(peaks), mib)


def _make(place: Path, mib: int) -> Digest:
    """Bytes that nothing on the way can make smaller."""
    block = os.urandom(8 * MIB)
    with place.open("wb") as file:
        for number in range(mib // 8):
            file.write(block[number:] + block[:number])
    told = subprocess.run(["sha256sum", str(place)], capture_output=True, text=True, check=True)
    return Digest.parse(f"sha256:{told.stdout.split()[0]}")


# --- ours ----------------------------------------------------------------------------------------


def _ours_up(plane: BlobPlane, source: Path) -> Timed:
    return _timed([plane.command("upload", str(source))])


def _ours_down(plane: BlobPlane, digest: Digest, folder: Path) -> Timed:
    plane.open("pull", digest)
    place = folder / "downloaded"
    timed = _timed([[*plane.command("download", str(digest)), "--out", str(place)]])
    place.unlink()
    return timed


def _peak_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


# --- curl and a plain file server ----------------------------------------------------------------


def _curl_up(source: Path, address: str, folder: Path) -> Timed:
    received = folder / "received"
    upload = ["curl", "--silent", "--show-error", "--fail", "-T", str(source), address]
    timed = _timed([upload, ["sync", str(received)], ["sha256sum", str(received)]])
    received.unlink()
    return timed


def _curl_down(address: str, folder: Path) -> Timed:
    place = folder / "curled"
    download = ["curl", "--silent", "--show-error", "--fail", "-o", str(place), address]
    timed = _timed([download, ["sha256sum", str(place)]])
    place.unlink()
    return timed


@contextmanager
def _plain_get(folder: Path) -> Iterator[str]:
    port = free_port()
    command = ["busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", str(folder)]
    with subprocess.Popen(command) as process:
        try:
            _await_port(port)
            yield f"http://127.0.0.1:{port}/source"
        finally:
            process.terminate()


@contextmanager
def _plain_put(place: Path) -> Iterator[str]:
    """A process of its own, as any server."""
    with subprocess.Popen(
        [sys.executable, "-c", _RECEIVER, str(place)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/received"
        finally:
            process.terminate()


_RECEIVER = """
import re, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = memoryview(bytearray(1024 * 1024))
while True:
    peer, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += peer.recv(65536)
    head, _, rest = head.partition(b"\\r\\n\\r\\n")
    left = int(re.search(rb"(?i)content-length: (\\d+)", head)[1]) - len(rest)
    if b"100-continue" in head.lower():
        peer.sendall(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
    with open(sys.argv[1], "wb", 0) as file:
        file.write(rest)
        while left:
            size = peer.recv_into(buffer)
            file.write(buffer[:size])
            left -= size
    peer.sendall(b"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n")
    peer.close()
"""


def _await_port(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TimeoutError("the file server does not listen")


# --- time and words ------------------------------------------------------------------------------


def _timed(commands: Sequence[Sequence[str]]) -> Timed:
    """One after the other; the memory is that of the largest of them."""
    started = time.perf_counter()
    peak_mib = 0.0
    for command in commands:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None:
                peak_mib = max(peak_mib, _peak_mib(process.pid))
                assert time.perf_counter() - started < LIMIT_S, command[0]
                time.sleep(LOOK_S)
            assert process.stderr is not None
            assert process.returncode == 0, process.stderr.read().decode()[-500:]
    return Timed(time.perf_counter() - started, peak_mib)


def _tell(found: dict[str, list[Timed]], plane_mib: float, mib: int) -> int:
    best = {what: min(one.seconds for one in them) for what, them in found.items()}
    print(f"{mib} MiB, {len(next(iter(found.values())))} rounds, best and middle")
    for what, them in found.items():
        middle = statistics.median(one.seconds for one in them)
        peak = max(one.memory_mib for one in them)
        speed = f"{best[what]:6.2f} s {middle:6.2f} s {mib / best[what]:6.0f} MiB/s"
        print(f"{what:32} {speed}  peak {peak:4.0f} MiB")
    print(f"{'the control plane':32} {'':28}  peak {plane_mib:4.0f} MiB")
    failed = 0
    for way, plain, ours in (
        ("up", "up, curl + sync + sha256sum", "up, gpuaas blob upload"),
        ("down", "down, curl + sha256sum", "down, gpuaas blob download"),
    ):
        share = best[plain] / best[ours]
        failed += share < HALF
        print(f"{way}: {share:.2f} times the speed of curl and sha256sum (at least {HALF})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
