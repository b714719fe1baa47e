"""A real S3 service on loopback: versitygw over a folder, with one bucket."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from reconciler.adapters.s3_client import Bucket, S3Key, S3Place
from reconciler.ports import Secret
from tests.services.go_tools import program

BUCKET = "gpuaas-blobs"
REGION = "us-east-1"
START_S = 30.0


@dataclass
class S3Server:
    """`folder` holds a subfolder a bucket, with its objects as files."""

    place: S3Place
    key: S3Key
    folder: Path

    def bucket(self) -> Bucket:
        return Bucket(self.place, self.key)

    def write_key(self, place: Path) -> Path:
        place.write_text(f"{self.key.key_id}\n{self.key.secret.reveal()}\n")
        place.chmod(0o600)
        return place


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """`folder` is on a file system with extended attributes."""
    key = S3Key("gpuaas-test", Secret(secrets.token_hex(16)))
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(program("versitygw")), "--quiet", "--port", address, "--region", REGION]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    given = {"ROOT_ACCESS_KEY_ID": key.key_id, "ROOT_SECRET_ACCESS_KEY": key.secret.reveal()}
    with (
        log,
        subprocess.Popen(
            [*command, "--keep-alive", "posix", str(folder)],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], **given},
        ) as process,
    ):
        try:
            _await(process, address, Path(log.name))
            yield S3Server(S3Place(f"http://{address}", BUCKET, REGION), key, folder)
        finally:
            process.terminate()


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            httpx.get(f"http://{address}/", timeout=1.0)
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
