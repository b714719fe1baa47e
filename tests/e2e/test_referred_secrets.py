"""A secret that a person sets, from the word that it is missing to a value that was rotated."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.devkit import images, state_repo
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import INSTANCE, REPOSITORY, VERSIONS, Platform, files_below, program
from tests.services import python_image

NAME = "acme/research/hf-token"
REFERENCE = "secret://project/hf-token"
PROFILE = "    secrets: [{name: hf-token, source: reference, env: HF_TOKEN}]\n"
FIRST, SECOND = "canary-of-the-first-value", "canary-of-the-second-value"
_IN_A_CONTAINER = (
    "cd /dev/shm; "
    'printf %s "$HF_TOKEN" | /bin/busybox sha256sum > index.html; '
    "/bin/busybox sha256sum < /run/gpuaas/secrets/hf-token >> index.html; "
    "exec /bin/busybox httpd -f -p 8080 -h /dev/shm"
)
_AS_A_PROCESS = """
import hashlib, http.server, os, pathlib
file = pathlib.Path(os.environ["GPUAAS_SECRETS_PATH"], "hf-token").read_bytes()
found = (os.environ["HF_TOKEN"].encode(), file)
page = "".join(f"{hashlib.sha256(one).hexdigest()}  -\\n" for one in found).encode()
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT_HTTP"])), Page).serve_forever()
"""
COMMANDS = {
    "docker": ["/bin/busybox", "sh", "-c", _IN_A_CONTAINER],
    "process": ["python3", "-c", _AS_A_PROCESS],
}


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.real)])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Platform]:
    """Started; its app shows the hash of a secret that is not there yet."""
    if request.param == "docker":
        host = request.getfixturevalue("docker_host")
        endpoint: str = request.getfixturevalue("registry_endpoint")
        made = Platform(tmp_path, with_shell(tmp_path, endpoint), host)
    else:
        make: Callable[[], Platform] = request.getfixturevalue("process_platform")
        made = make()
    for version in VERSIONS:
        path = f"catalog/hello/versions/{version}.yaml"
        made.repo.edit(path, lambda text: showing(text, COMMANDS[request.param]))
    bound = f"spec:\n  secrets: {{hf-token: {REFERENCE}}}\n"
    made.repo.edit(state_repo.INSTANCE, lambda text: text.replace("spec:\n", bound, 1))
    made.repo.begin_with()
    try:
        made.start()
        yield made
    finally:
        made.stop()


def with_shell(folder: Path, endpoint: str) -> Published:
    """Variables with secrets are set by the image's own shell."""
    digests = {}
    for version in VERSIONS:
        place = folder / f"image-{version}"
        place.mkdir()
        python_image.push(place, endpoint, "shell", python=False, Labels={"version": version})
        digest = images.push_layout(place / "layout", "shell", endpoint, REPOSITORY, "shell")
        digests[version] = str(digest)
    return Published(endpoint, None, digests)


def showing(text: str, command: list[str]) -> str:
    lines = text.splitlines(keepends=True)
    old = next(line for line in lines if line.startswith("    command: "))
    return text.replace(old, f"    command: {json.dumps(command)}\n{PROFILE}")


def put(platform: Platform, value: str) -> dict[str, Any]:
    """As a person does: on standard input."""
    done = subprocess.run(
        [program("gpuaas"), "secret", "set", NAME, "--format", "json"],
        env={**platform.environment, "PATH": "/usr/bin:/bin"},
        input=f"{value}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert value not in done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def shows(platform: Platform, value: str) -> bool:
    """In its variable and in its file."""
    digest = hashlib.sha256(value.encode()).hexdigest()
    return platform.page().split() == [digest, "-", digest, "-"]


def missing(platform: Platform) -> list[str]:
    return [f["message"] for f in platform.findings() if f["code"] == "secret_missing"]


def restart_workload(platform: Platform) -> None:
    if platform.docker_host is not None:
        platform.docker.api.kill(platform.docker.only()["Id"])
    else:
        platform.kill_workload()


def test_from_missing_to_rotated(platform: Platform) -> None:
    platform.wait(lambda: missing(platform))
    assert missing(platform) == [f"there is no {REFERENCE} yet: gpuaas secret set {NAME}"]
    assert platform.instance()["state"] == "requested"

    written = put(platform, FIRST)
    assert (written["version"], written["waited_for_by"]) == (1, [INSTANCE])
    platform.wait_settled("running")
    platform.wait(lambda: shows(platform, FIRST))

    written = put(platform, SECOND)
    assert (written["version"], written["read_at_next_start_by"]) == (2, [INSTANCE])
    assert shows(platform, FIRST)
    restart_workload(platform)
    platform.wait(lambda: shows(platform, SECOND))

    refused = platform.gpuaas("secret", "delete", NAME)
    assert (refused.returncode, "secret_in_use" in refused.stderr) == (1, True)
    assert platform.gpuaas("secret", "delete", NAME, "--force").returncode == 0
    platform.set_version("1.1.0")
    platform.commit("Upgrade")
    platform.wait(lambda: missing(platform))
    assert shows(platform, SECOND)
    put(platform, FIRST)
    platform.wait_settled("running")
    platform.wait(lambda: shows(platform, FIRST))
    assert told(platform) == []


def told(platform: Platform) -> list[str]:
    """Where a value was told that should not be, of what people and programs are shown."""
    asked = (
        ("secret", "list"), ("status", INSTANCE), ("explain", f"AppInstance/{INSTANCE}"),
        ("access", INSTANCE), ("events",), ("audit",), ("plan",), ("snapshot",),
    )  # fmt: skip
    pages = {" ".join(command): platform.gpuaas(*command) for command in asked}
    found = [
        name
        for name, page in pages.items()
        if FIRST in page.stdout + page.stderr or SECOND in page.stdout + page.stderr
    ]
    assert REFERENCE in pages[f"explain AppInstance/{INSTANCE}"].stdout
    assert REFERENCE in pages[f"access {INSTANCE}"].stdout
    if platform.docker_host is not None and FIRST in json.dumps(platform.docker.containers()):
        found.append("docker inspect")
    files = files_below(platform.root)
    return found + [str(path) for path, content in files if FIRST.encode() in content]
