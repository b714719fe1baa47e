"""How long it takes to verify the signatures of many artifacts, beside a loop over `cosign verify`.

    python bench/verify_artifacts.py [--artifacts 1000] [--sample 40]

Each artifact has a signature and a provenance as sigstore bundles, in a private docker-registry on
the loopback address. Ours: one process, `look_at` as a pass uses it (signatures and provenance).
cosign: one process an artifact, `cosign verify` alone, and then with `cosign verify-attestation`,
which is what ours does, both measured on `--sample` artifacts one after another, and multiplied:
what is scaled says so. CPU seconds are of this process and of the cosign processes, without the
registry's. The second look is what a pass does of an artifact that it knows; requests are counted
in the registry's access log. cosign comes from PATH, or from where the tests built it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.artifacts.looking import look_at
from reconciler.artifacts.signing import FORMS, sign_artifact
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import Known
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustedKey
from reconciler.devkit import images, process, services
from reconciler.ports import ARTIFACT_KEY, RegistryEndpoint
from reconciler.settings import Settings
from tests.services.attested import rules, slsa_v1
from tests.services.go_tools import program
from tests.services.oci import small_image

REPOSITORY = "gpuaas/apps/bench/site"
NOW_MS = 1_000
_ASKED = re.compile(r'"(GET|HEAD|PUT|POST|PATCH) /v2/')


@dataclass(frozen=True)
class Took:
    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Took:
    """CPU of this process, or of those that it waited for if it used less."""
    begun_s, own_s, others_s = time.perf_counter(), time.process_time(), children_s()
    work()
    cpu_s = max(time.process_time() - own_s, children_s() - others_s)
    return Took(time.perf_counter() - begun_s, cpu_s)


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def logging_registry(folder: Path) -> Iterator[tuple[str, Path]]:
    """host:port and access log of a docker-registry, which the devkit's keeps none of."""
    endpoint = f"127.0.0.1:{services.free_port()}"
    configuration = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": endpoint},
    }
    (folder / "registry.yaml").write_text(json.dumps(configuration))
    found = process.find_program("docker-registry", "docker-registry")
    service = process.start("registry", [found, "serve", str(folder / "registry.yaml")], folder)
    try:
        process.wait_ready(service, lambda: answers(endpoint), 20.0)
        yield endpoint, service.log
    finally:
        service.stop()


def answers(endpoint: str) -> bool:
    try:
        return httpx.get(f"http://{endpoint}/v2/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def cosign_program() -> str:
    found = shutil.which("cosign")
    if found:
        return found
    return str(program("cosign"))


def cosign_took(
    endpoint: str, keys: list[ArtifactKey], public_key: str, folder: Path, *verify: str
) -> Took:
    """What `cosign` of each takes, one after another; the first, which warms up, apart."""
    (folder / "cosign.pub").write_text(public_key)
    common = ["--key", "cosign.pub", "--insecure-ignore-tlog", "--allow-http-registry"]

    def run(key: ArtifactKey) -> None:
        subprocess.run(
            [cosign_program(), *verify, *common, f"{endpoint}/{key}"],
            cwd=folder,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
            check=True,
            capture_output=True,
            timeout=120,
        )

    def run_all() -> None:
        for key in keys:
            run(key)

    run(keys[0])
    return timed(run_all)


def asked(log: Path) -> int:
    return len(_ASKED.findall(log.read_text()))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--artifacts", type=int, default=1000)
    given.add_argument("--sample", type=int, default=40)
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as name, logging_registry(Path(name)) as (endpoint, log):
        sample = min(options.sample, options.artifacts)
        measure(endpoint, log, Path(name), options.artifacts, sample)


def measure(at: str, log: Path, folder: Path, artifacts: int, sample: int) -> None:
    endpoint = RegistryEndpoint(at, plain_http=True)
    registry, secrets = OciRegistry(Settings()), LocalSecrets(folder / "custody")
    provenance = json.dumps(slsa_v1()).encode()

    def publish(number: int) -> ArtifactKey:
        digest = images.push(small_image(f"artifact {number}"), at, REPOSITORY, f"v{number}")
        key = ArtifactKey(REPOSITORY, digest)
        sign_artifact(registry, endpoint, key, secrets, FORMS[1:], provenance)
        return key

    print(f"publishing and signing {artifacts} artifacts …", file=sys.stderr)
    secrets.ensure_signing_key(ARTIFACT_KEY, "ecdsa-p256")
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(publish, range(artifacts)))
    public_key = secrets.public_keys(ARTIFACT_KEY)[-1].pem
    wanted = rules(TrustedKey("release", "ecdsa-p256", public_key))

    fresh = OciRegistry(Settings())
    endpoints = dict.fromkeys(keys, endpoint)
    asked_for = dict.fromkeys(keys, frozenset({"stable/active"}))
    before = asked(log)
    found: dict[ArtifactKey, object] = {}
    ours = timed(lambda: found.update(look_at(fresh, endpoints, wanted, asked_for, {}, NOW_MS)))
    first = asked(log) - before
    good = sum(
        isinstance(one, Known) and judge(wanted, "stable", one.value, NOW_MS).good
        for one in found.values()
    )
    assert good == len(keys), f"only {good} of {len(keys)} are good"

    for key in keys:
        fresh.look_up(endpoint, key)  # What a pass does of each artifact anyway, once.
    before = asked(log)
    again = timed(lambda: [fresh.look_up(endpoint, key) for key in keys])
    second = asked(log) - before

    tell(f"ours, signature and provenance, {artifacts}", ours, f"{first} requests")
    tell(f"ours, second look, {artifacts}", again, f"{second} requests")
    sampled = keys[:sample], public_key, folder
    verify = cosign_took(at, *sampled, "verify")
    attested = cosign_took(at, *sampled, "verify-attestation", "--type", "slsaprovenance1")
    both = Took(verify.wall_s + attested.wall_s, verify.cpu_s + attested.cpu_s)
    for what, took in (("verify", verify), ("verify and verify-attestation", both)):
        scaled = Took(took.wall_s / sample * artifacts, took.cpu_s / sample * artifacts)
        tell(f"cosign {what}, measured on {sample}", took)
        ratio = f"{scaled.wall_s / ours.wall_s:.1f} times by the clock, "
        ratio += f"{scaled.cpu_s / ours.cpu_s:.1f} by the CPU"
        tell(f"  scaled to {artifacts}", scaled, ratio)


def tell(what: str, took: Took, more: str = "") -> None:
    print(f"{what:56}{took.wall_s:8.1f} s {took.cpu_s:8.1f} s CPU  {more}".rstrip())


if __name__ == "__main__":
    main()
