"""What the topology tests need: the example's apps in a state repo, and what runs of one instance.

Rules: the manifests are the example's own; what is changed is what this host has not (GPUs, room),
digests, and what a test says that it changes.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml

from deploy.images import build
from node_agent.wire import LABEL_INSTANCE, LABEL_SERVICE
from reconciler.devkit import debian
from reconciler.devkit.state_repo import PLACEHOLDER, Published, example_root
from tests.e2e.platform import DockerNode, Document, Platform
from tests.services import go_tools

PROJECT = "acme/research"
FOLDER = f"tenants/{PROJECT.replace('/', '/projects/')}"
ARTIFACTS = "tenants/platform/projects/catalog/artifacts"
RETRIEVAL, VLLM = "retrieval", "vllm"
SHIPPED = {RETRIEVAL: "2.0.0", VLLM: "0.12.0"}
SERVICES = ("api", "metrics", "setup", "vectors", "worker")
START_LIMIT_S = 90.0
Change = Callable[[dict[str, Any]], None]


def push_images(endpoint: str) -> dict[str, str]:
    """Every image's digest by its name, and a second `retrieval-worker` as `retrieval-worker+`."""
    base = debian.ensure_base()
    pushed = {name: build.push(name, base, endpoint) for name in build.IMAGES}
    pushed["retrieval-worker+"] = build.push("retrieval-worker", base, endpoint, "2.1.0")
    return pushed


@dataclass(frozen=True)
class Calls:
    """A Compose that is the real one and writes down each call of it."""

    program: Path
    log: Path

    @classmethod
    def at(cls, folder: Path) -> Calls:
        made = cls(folder / "docker-compose", folder / "compose-calls")
        real, log = go_tools.program("docker-compose"), shlex.quote(str(made.log))
        made.log.touch()
        made.program.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {real} "$@"\n')
        made.program.chmod(0o755)
        return made

    def lines(self) -> list[str]:
        """What it was asked to do, without questions for its version."""
        return [line for line in self.log.read_text().splitlines() if " -f " in line]


@dataclass(frozen=True)
class Running:
    """What Docker says of one instance's containers, by service."""

    node: DockerNode
    instance: str

    def services(self) -> dict[str, Document]:
        """Each with its one container, the ended ones too."""
        found = [one for one in self.node.containers() if self._ours(one)]
        named = {one["Config"]["Labels"][LABEL_SERVICE]: one for one in found}
        assert len(named) == len(found), "no service has two containers"
        return named

    def ids(self) -> dict[str, str]:
        return {name: one["Id"] for name, one in self.services().items()}

    def starts(self) -> dict[str, tuple[str, str]]:
        """Container and when it was started."""
        return {n: (one["Id"], one["State"]["StartedAt"]) for n, one in self.services().items()}

    def id(self, service: str) -> str:
        return self.ids().get(service, "")

    def doubled(self, api: docker.APIClient) -> list[str]:
        """Services that run twice, at this moment."""
        filters = {**self.node.filters, "status": "running"}
        labels = [one["Labels"] for one in api.containers(filters=filters)]
        ours = [one for one in labels if one.get(LABEL_INSTANCE) == self.instance]
        count = Counter(one[LABEL_SERVICE] for one in ours)
        return [name for name, times in count.items() if times > 1]

    def _ours(self, container: Document) -> bool:
        return bool(container["Config"]["Labels"].get(LABEL_INSTANCE) == self.instance)


@dataclass
class App:
    """One of the example's apps in a state repo, for one instance of it.

    `digests`: of its artifacts as the example names them. `slim` is done to each of its versions.
    """

    platform: Platform
    app: str
    name: str
    digests: Mapping[str, str]
    parameters: Mapping[str, Any]
    slim: Change

    @property
    def instance(self) -> str:
        return f"{PROJECT}/{self.name}"

    @property
    def running(self) -> Running:
        return Running(self.platform.docker, self.instance)

    def publish(self) -> None:
        """The version that ships, entitlement and artifacts included; commits nothing."""
        self._write(f"catalog/{self.app}/app.yaml", _text(f"catalog/{self.app}/app.yaml"))
        entitlement = f"tenants/acme/projects/assistant/entitlements/{self.app}.yaml"
        self._write(f"{FOLDER}/entitlements/{self.app}.yaml", _text(entitlement))
        self.add(SHIPPED[self.app], no_change, self.digests)

    def add(
        self, version: str, change: Change, changed: Mapping[str, str] | None = None
    ) -> None:
        """One more version, like the one that ships but for the change and for the images of other
        digests, which are registered; commits nothing.
        """
        shipped, images = SHIPPED[self.app], changed or {}
        digests = {**self.digests, **images}
        replaced = {self._shipped_digest(name): digest for name, digest in digests.items()}
        for name in images:
            self._copy(f"{ARTIFACTS}/{self.app}/{{}}/{name}.yaml", shipped, version, replaced)
        self._copy(f"catalog/{self.app}/promotions/{{}}.yaml", shipped, version, {})

        def both(spec: dict[str, Any]) -> None:
            self.slim(spec)
            change(spec)

        self._copy(f"catalog/{self.app}/versions/{{}}.yaml", shipped, version, replaced, both)

    def _shipped_digest(self, name: str) -> str:
        text = _text(f"{ARTIFACTS}/{self.app}/{SHIPPED[self.app]}/{name}.yaml")
        (found,) = PLACEHOLDER.findall(text)
        return str(found)

    def _copy(
        self,
        pattern: str,
        shipped: str,
        version: str,
        digests: Mapping[str, str],
        change: Change | None = None,
    ) -> None:
        text = _text(pattern.format(shipped)).replace(shipped, version)
        text = text.replace("catalog/vllm@", "catalog/vllm-standin@")
        text = text.replace("catalog/vllm\n", "catalog/vllm-standin\n")
        for old, new in digests.items():
            text = text.replace(old, new)
        if change is not None:
            document = yaml.safe_load(text)
            change(document["spec"])
            text = yaml.safe_dump(document, sort_keys=False)
        self._write(pattern.format(version), text)

    def want(self, version: str, **more: Any) -> None:
        """Writes the instance's manifest; commits nothing."""
        spec = {
            "app": self.app,
            "version": version,
            "placement_intent": {"allocation": "small"},
            "parameters": dict(self.parameters),
            **more,
        }
        document = {
            "apiVersion": "gpuaas.dev/v1",
            "kind": "AppInstance",
            "metadata": {"name": self.name},
            "spec": spec,
        }
        self._write(self._manifest, yaml.safe_dump(document, sort_keys=False))

    def launch(self, version: str, **more: Any) -> None:
        self.want(version, **more)
        self.platform.commit(f"{self.name} {version}")
        self.wait_all_ready()

    def wait_all_ready(self) -> None:
        """Settled, and not only the vital ones are there."""
        self.platform.wait_settled("running")
        self.platform.wait(lambda: self.condition("ServicesReady")["status"] == "True")

    def condition(self, kind: str) -> Document:
        """Of the instance, as the control plane tells it."""
        found = [one for one in self.platform.instance()["conditions"] if one["type"] == kind]
        return found[0] if found else {"status": "Unknown", "message": "", "reason": ""}

    def forget(self) -> None:
        self._file(self._manifest).unlink()

    def url(self, endpoint: str) -> str:
        """Where it is reached on the node."""
        found = self.platform.instance()["endpoints"]
        (one,) = [one for one in found if one["name"] == endpoint]
        return f"http://{one['host_ip']}:{one['host_port']}"

    @property
    def _manifest(self) -> str:
        return f"{FOLDER}/instances/{self.name}.yaml"

    def _file(self, path: str) -> Path:
        return self.platform.repo.folder / path

    def _write(self, path: str, text: str) -> None:
        file = self._file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def service(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One service of a version's topology."""
    services = spec["runtime_profile"]["topology"]["services"]
    found: dict[str, Any] = next(one for one in services if one["name"] == name)
    return found


def no_change(_: dict[str, Any]) -> None:
    """The version as it is."""


def fast(spec: dict[str, Any]) -> None:
    """Probes that ask more often than anybody needs."""
    for one in spec["runtime_profile"]["topology"]["services"]:
        if "health" in one:
            one["health"]["interval_s"] = 0.2


def without_gpus(spec: dict[str, Any]) -> None:
    """vLLM for a host that has neither GPUs nor much room."""
    spec["compatibility"] = {"min_gpu_count": 0}
    profile = spec["runtime_profile"]
    profile["resources"] = {"min_memory_mib": 64, "min_vcpu": 0.1}
    profile["shm_mib"], profile["stop_grace_s"] = 64, 5
    profile["health"] |= {"interval_s": 0.2, "start_budget_s": 60}
    profile["topology"]["volumes"] = [{"name": "cache", "size_mib": 64}]
    parameters = spec["launch_parameters"]["properties"]
    parameters["gpu_count"] |= {"minimum": 0, "default": 0}


def platform_with_compose(
    root: Path, published: Published, docker_host: str, compose: Path, **more: Any
) -> Platform:
    """Not started, with nothing to run, on a node that runs topologies."""
    more = {"wait_limit_s": START_LIMIT_S, "compose_program": compose, **more}
    made = Platform(root, published, docker_host, **more)
    made.remove_instance()
    node = f"platform/nodes/{made.node}.yaml"
    made.repo.edit(node, lambda text: text.replace("[docker,", "[docker, compose,"))
    return made


def _text(path: str) -> str:
    return example_root().joinpath(*path.split("/")).read_text()
