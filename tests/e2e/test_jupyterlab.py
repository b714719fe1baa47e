"""The real JupyterLab, by the example's own manifests: from its launch to its removal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from node_agent.secret_files import SecretFiles
from reconciler.core.names import Digest
from reconciler.devkit import images, jupyter_image
from reconciler.devkit.state_repo import Published
from tests.e2e import jupyter
from tests.e2e.platform import Platform
from tests.services.package_index import PackageIndex, serving
from tests.services.sshd import Sshd, sshd

OLD, NEW = "1.0.0", "1.1.0"
GIB = 1024**3
START_LIMIT_S = 120.0
READ_FILES = (
    "import pathlib\n"
    "for name in ('/srv/jupyter/notebooks/kept', '/srv/jupyter/lost', '/tmp/lost'):\n"
    "    print(name, pathlib.Path(name).exists())"
)
WRITE_FILES = READ_FILES.replace("print(name, pathlib.Path(name).exists())",
                                 "pathlib.Path(name).write_text('here')")  # fmt: skip


@pytest.fixture(scope="module")
def digests(registry_endpoint: str) -> dict[str, str]:
    """Two images that differ in a label alone, by version, in the registry."""
    layout = jupyter_image.ensure_image()
    first = images.push_layout(
        layout, jupyter_image.REF, registry_endpoint, jupyter.REPOSITORY, OLD
    )
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / first.value.removeprefix("sha256:")).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    config["config"]["Labels"] = {"version": NEW}
    labelled = images.canonical(config)
    manifest["config"] |= {"digest": str(Digest.of(labelled)), "size": len(labelled)}
    top = images.canonical(manifest)
    newer = images.OciImage({Digest.of(one): one for one in (labelled, top)}, Digest.of(top))
    second = images.push(newer, registry_endpoint, jupyter.REPOSITORY, NEW)
    return {OLD: str(first), NEW: str(second)}


@pytest.fixture
def index(docker_host: str) -> Iterator[PackageIndex]:
    """Where containers reach this host."""
    client = docker.APIClient(base_url=docker_host)
    gateway = client.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    client.close()
    with serving(gateway) as found:
        yield found


@pytest.fixture
def platform(
    tmp_path: Path,
    docker_host: str,
    published: Published,
    digests: dict[str, str],
    index: PackageIndex,
) -> Iterator[Platform]:
    """Started with JupyterLab in its catalog, and nothing else to run."""
    made = Platform(
        tmp_path, published, docker_host, instance=jupyter.NAME, wait_limit_s=START_LIMIT_S
    )
    made.remove_instance()
    for version, digest in digests.items():
        jupyter.publish(made.repo, version, digest)
    jupyter.name_index(made.repo, index.url)
    made.repo.commit("JupyterLab in the catalog")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_jupyterlab_from_launch_to_removal(
    platform: Platform, index: PackageIndex, tmp_path: Path
) -> None:
    digest = index.add("greeting", "1.0", "WORD = 'good morning'")
    jupyter.write_instance(platform.repo, OLD, [f"greeting==1.0 --hash={digest}"])
    platform.commit("A notebook")
    platform.wait_settled("running")
    token = token_of(platform)
    with client(platform, token) as lab:
        answers_with_the_token_alone(lab)
        assert lab.run("import greeting; print(greeting.WORD)") == "good morning"
        lab.run(WRITE_FILES)
        assert lab.run(READ_FILES).split()[1::2] == ["True", "True", "True"]
    is_limited(platform)
    in_no_record(platform, token)

    with sshd(tmp_path, tunnels=True) as server:
        pasted_instructions_lead_to_it(platform, server, tmp_path, token)

    jupyter.write_instance(platform.repo, NEW)
    platform.commit("The newer one, without the package")
    platform.wait_settled("running")
    assert token_of(platform) == token
    with client(platform, token) as lab:
        assert lab.run(READ_FILES).split()[1::2] == ["True", "False", "False"]
        assert lab.run("import greeting").startswith("ModuleNotFoundError")

    (platform.repo.folder / jupyter.MANIFEST).unlink()
    platform.commit("No notebook any more")
    platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)
    assert not SecretFiles.for_node(platform.node).folder(jupyter.NAME).exists()
    assert [name for name in platform.event_names() if name != "moved"] == [
        "requested", "deploying", "running", "upgrade_requested", "upgraded",
        "decommission_requested", "decommissioned",
    ]  # fmt: skip


def test_a_package_that_the_index_does_not_have(platform: Platform) -> None:
    jupyter.write_instance(platform.repo, OLD, ["no-such-package==9.9"])
    platform.commit("A notebook")
    platform.wait_settled("failed", result="waiting")
    found = platform.instance()
    assert found["reason"] == "packages_failed"
    assert "no-such-package" not in json.dumps(platform.events())
    jupyter.write_instance(platform.repo, OLD)
    platform.commit("Without it")
    platform.wait_settled("running")


def token_of(platform: Platform) -> str:
    """As its owner gets it."""
    (secret,) = access(platform, "--show-secrets")["secrets"]
    return str(secret["value"])


def client(platform: Platform, token: str) -> jupyter.Client:
    """On the node's own port."""
    return jupyter.Client(platform.url().rstrip("/"), token)


def access(platform: Platform, *more: str) -> dict[str, Any]:
    said = platform.gpuaas("access", jupyter.NAME, "--format", "json", *more)
    assert said.returncode == 0, said.stderr
    document: dict[str, Any] = json.loads(said.stdout)
    return document


def answers_with_the_token_alone(lab: jupyter.Client) -> None:
    assert lab.version()
    assert lab.status_without_token() == 403
    assert lab.run("print(6 * 7)") == "42"


def is_limited(platform: Platform) -> None:
    (container,) = platform.docker.running()
    host = container["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (10**9, GIB, GIB)
    assert container["Config"]["User"] == "1000:1000"


def in_no_record(platform: Platform, token: str) -> None:
    assert token not in json.dumps([platform.docker.containers(), platform.events()])
    assert token not in json.dumps(access(platform))
    for log in platform.root.glob("*.log"):
        assert token not in log.read_text()


def pasted_instructions_lead_to_it(
    platform: Platform, server: Sshd, folder: Path, token: str
) -> None:
    """The printed lines as they are; only what `ssh` reads for its settings is this test's."""
    instructions = str(access(platform, "--show-secrets")["instructions"])
    assert instructions.splitlines()[0].startswith("ssh ")
    (url,) = [word for word in instructions.split() if word.startswith("http")]
    config = folder / "ssh_config"
    config.write_text(
        f"Host {platform.node}\n  HostName {server.server.host}\n  Port {server.server.port}\n"
        f'  User {server.server.user}\n  IdentityFile "{server.client_key}"\n'
        f'  UserKnownHostsFile "{server.known_hosts}"\n  BatchMode yes\n'
    )
    with pasted(f'ssh() {{ exec ssh -F "{config}" "$@"; }}\n{instructions}'):
        platform.wait(lambda: status_of(url) == 200)
        assert status_of(url.replace(token, "wrong")) != 200


@contextmanager
def pasted(lines: str) -> Iterator[None]:
    """Runs them in a shell until the block ends."""
    shell = subprocess.Popen(["bash", "-c", lines])
    try:
        yield
    finally:
        # It has become `ssh`, on which SIGTERM may be lost for minutes.
        shell.kill()
        shell.wait()


def status_of(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


