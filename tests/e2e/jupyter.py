"""What the JupyterLab test needs: its app in a state repo, and a client's requests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from uuid import uuid4

import httpx
from websockets.sync.client import connect

from reconciler.devkit.state_repo import StateRepo, example_root
from tests.e2e.platform import ENVIRONMENT

APP, SHIPPED = "jupyterlab", "4.4.1"
NAME = "acme/research/notebook"
MANIFEST = "tenants/acme/projects/research/instances/notebook.yaml"
REPOSITORY = "gpuaas/apps/platform/catalog/jupyterlab"
REQUEST_TIMEOUT_S = 10.0
KERNEL_TIMEOUT_S = 60.0

_APP_FILES = (
    "catalog/jupyterlab/versions/{}.yaml",
    "catalog/jupyterlab/promotions/{}.yaml",
    "tenants/platform/projects/catalog/artifacts/jupyterlab/{}/image.yaml",
)
_ENTITLEMENT = "tenants/acme/projects/research/entitlements/jupyterlab.yaml"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def publish(repo: StateRepo, version: str, digest: str) -> None:
    """Writes the example's JupyterLab into the repo as this version, of this image alone."""
    _write(repo, "catalog/jupyterlab/app.yaml", _shipped("catalog/jupyterlab/app.yaml"))
    files: dict[str, str] = {}
    for pattern in _APP_FILES:
        text = _shipped(pattern.format(SHIPPED)).replace(SHIPPED, version)
        text = re.sub(r"(?m)^ +nvidia-h200: .*\n", "", _DIGEST.sub(digest, text))
        files[pattern.format(version)] = text
    repo.introduce(files)
    entitlement = _shipped("tenants/borealis/projects/vision/entitlements/jupyterlab.yaml")
    _write(repo, _ENTITLEMENT, entitlement)


def write_instance(repo: StateRepo, version: str, packages: Sequence[str] = ()) -> None:
    _write(
        repo,
        MANIFEST,
        "apiVersion: gpuaas.dev/v1\nkind: AppInstance\nmetadata:\n  name: notebook\nspec:\n"
        f'  app: jupyterlab\n  version: "{version}"\n'
        "  placement_intent:\n    allocation: small\n"
        "  parameters:\n    cpu_cores: 1\n    memory_gib: 1\n"
        f"    pip_packages: {json.dumps(list(packages))}\n",
    )


def name_index(repo: StateRepo, url: str) -> None:
    """The index that instances get their packages from."""
    repo.edit(
        f"environments/{ENVIRONMENT}.yaml",
        lambda text: text.replace("  guards:\n", f"  package_index:\n    url: {url}\n  guards:\n"),
    )


class Client:
    """A person's requests to a running JupyterLab."""

    def __init__(self, base: str, token: str) -> None:
        headers = {"Authorization": f"token {token}"}
        self._base, self._token = base, token
        self._http = httpx.Client(
            base_url=base, headers=headers, timeout=REQUEST_TIMEOUT_S, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def version(self) -> str:
        return str(self._http.get("/api").raise_for_status().json()["version"])

    def status_without_token(self) -> int:
        return httpx.get(f"{self._base}/api/kernels", trust_env=False).status_code

    def run(self, code: str) -> str:
        """What the code prints in a kernel of its own, its errors included."""
        kernel = self._http.post("/api/kernels", json={}).raise_for_status().json()["id"]
        try:
            return self._run_in(kernel, code)
        finally:
            self._http.delete(f"/api/kernels/{kernel}").raise_for_status()

    def _run_in(self, kernel: str, code: str) -> str:
        url = f"{self._base.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels"
        asked = uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "session": asked,
                  "username": "", "version": "5.3"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {},
                   "allow_stdin": False, "stop_on_error": True}  # fmt: skip
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content,
                   "channel": "shell", "buffers": []}  # fmt: skip
        headers = {"Authorization": f"token {self._token}"}
        with connect(url, additional_headers=headers, max_size=None, proxy=None) as socket:
            socket.send(json.dumps(request))
            printed: list[str] = []
            while True:
                message = json.loads(socket.recv(timeout=KERNEL_TIMEOUT_S))
                if message["parent_header"].get("msg_id") != asked:
                    continue
                kind, said = message["header"]["msg_type"], message["content"]
                if kind == "stream":
                    printed.append(said["text"])
                elif kind == "error":
                    printed.append(f"{said['ename']}: {said['evalue']}")
                elif kind == "status" and said["execution_state"] == "idle":
                    return "".join(printed).strip()


def _shipped(path: str) -> str:
    return example_root().joinpath(*path.split("/")).read_text()


def _write(repo: StateRepo, path: str, text: str) -> None:
    file = repo.folder / Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
