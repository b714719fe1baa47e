"""How long it takes to verify the signatures of many artifacts, beside a loop over `cosign verify`.

    python bench/verify_artifacts.py [--artifacts 1000] [--sample 40] [--rounds 3]
                                     [--signer gpuaas|cosign]

Each artifact has a signature and a provenance as sigstore bundles, in a private docker-registry on
the loopback address that all sides ask. Turn about, `--rounds` times, each from a cold start:

- ours: one new process, Python's start and all, that looks at all of them as a pass does
  (`look_at`), signatures and provenance, and ends badly unless all are good;
- cosign: a new process an artifact, one after another, `cosign verify` alone; and the same with
  `cosign verify-attestation`, which is what ours does. Of `--sample` artifacts, multiplied.

Told are the middle and the ends of what the rounds took; a ratio is of one round, so that whatever
slows this machine down slows both. CPU seconds are of the verifying processes, without the
registry's. The second look is what a pass does of an artifact that it knows; requests are counted
in the registry's access log. cosign comes from PATH, or from where the tests built it.
What `gpuaas` signs has small documents in their manifests, what `cosign` signs beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from tests.services.cosign import Cosign
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


def look(folder: Path) -> None:
    """Ours: what the process that is timed does."""
    task = json.loads((folder / "artifacts.json").read_text())
    endpoint = RegistryEndpoint(task["endpoint"], plain_http=True)
    keys = [ArtifactKey.parse(one) for one in task["artifacts"]]
    wanted = rules(TrustedKey("release", "ecdsa-p256", task["public_key"]))
    asked_for = dict.fromkeys(keys, frozenset({"stable/active"}))
    registry = OciRegistry(Settings())
    found = look_at(registry, dict.fromkeys(keys, endpoint), wanted, asked_for, {}, NOW_MS)
    good = sum(
        isinstance(one, Known) and judge(wanted, "stable", one.value, NOW_MS).good
        for one in found.values()
    )
    if good != len(keys):
        sys.exit(f"only {good} of {len(keys)} are good")


def ours_took(folder: Path) -> Took:
    command = [sys.executable, __file__, "--look", str(folder)]
    return timed(lambda: subprocess.run(command, check=True))


def cosign_took(references: Sequence[str], folder: Path, *verify: str) -> Took:
    """What `cosign` of each takes, one after another."""
    program = cosign_program()
    common = ["--key", "cosign.pub", "--insecure-ignore-tlog", "--allow-http-registry"]

    def run_all() -> None:
        for reference in references:
            subprocess.run(
                [program, *verify, *common, reference],
                cwd=folder,
                env={"HOME": str(folder), "PATH": os.environ["PATH"]},
                check=True,
                capture_output=True,
                timeout=120,
            )

    return timed(run_all)


def asked(log: Path) -> int:
    return len(_ASKED.findall(log.read_text()))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--artifacts", type=int, default=1000)
    given.add_argument("--sample", type=int, default=40)
    given.add_argument("--rounds", type=int, default=3)
    given.add_argument("--signer", choices=("gpuaas", "cosign"), default="gpuaas")
    given.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    options = given.parse_args()
    if options.look is not None:
        look(options.look)
        return
    with tempfile.TemporaryDirectory() as name, logging_registry(Path(name)) as (endpoint, log):
        folder = Path(name)
        print(f"publishing and signing {options.artifacts} artifacts …", file=sys.stderr)
        publish = by_cosign if options.signer == "cosign" else by_gpuaas
        keys, public_key = publish(endpoint, folder, options.artifacts)
        (folder / "cosign.pub").write_text(public_key)
        task = {"endpoint": endpoint, "artifacts": [*map(str, keys)], "public_key": public_key}
        (folder / "artifacts.json").write_text(json.dumps(task))
        measure(endpoint, log, folder, keys, min(options.sample, len(keys)), options.rounds)


def by_gpuaas(at: str, folder: Path, count: int) -> tuple[list[ArtifactKey], str]:
    """What was published, and the key that signed it."""
    endpoint = RegistryEndpoint(at, plain_http=True)
    registry, secrets = OciRegistry(Settings()), LocalSecrets(folder / "custody")
    provenance = json.dumps(slsa_v1()).encode()

    def publish(number: int) -> ArtifactKey:
        key = pushed(at, number)
        sign_artifact(registry, endpoint, key, secrets, FORMS[1:], provenance)
        return key

    secrets.ensure_signing_key(ARTIFACT_KEY, "ecdsa-p256")
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(publish, range(count)))
    return keys, secrets.public_keys(ARTIFACT_KEY)[-1].pem


def by_cosign(at: str, folder: Path, count: int) -> tuple[list[ArtifactKey], str]:
    cosign = Cosign.set_up(folder / "cosign")
    keys = [pushed(at, number) for number in range(count)]
    for key in keys:
        cosign.sign(f"{at}/{key}", "bundle")
        cosign.attest(f"{at}/{key}", "bundle", slsa_v1(), "slsaprovenance1")
    return keys, cosign.public_key


def pushed(at: str, number: int) -> ArtifactKey:
    image = small_image(f"artifact {number}")
    return ArtifactKey(REPOSITORY, images.push(image, at, REPOSITORY, f"v{number}"))


def measure(
    at: str, log: Path, folder: Path, keys: Sequence[ArtifactKey], sample: int, rounds: int
) -> None:
    references = [f"{at}/{key}" for key in keys[:sample]]
    attestation = ("verify-attestation", "--type", "slsaprovenance1")
    cosign_took(references[:1], folder, "verify")  # From the disk once, which ours is too by now.
    ours, verify, both = [], [], []
    before = asked(log)
    for number in range(rounds):
        ours.append(ours_took(folder))
        if number == 0:
            requests = asked(log) - before
        verify.append(cosign_took(references, folder, "verify"))
        attested = cosign_took(references, folder, *attestation)
        both.append(Took(verify[-1].wall_s + attested.wall_s, verify[-1].cpu_s + attested.cpu_s))
    tell(f"ours, signature and provenance, {len(keys)}", ours, f"{requests} requests")
    for what, took in (("verify", verify), ("verify and verify-attestation", both)):
        tell(f"cosign {what}, measured on {sample}", took)
        share = len(keys) / sample
        scaled = [Took(one.wall_s * share, one.cpu_s * share) for one in took]
        walls = [one.wall_s / mine.wall_s for one, mine in zip(scaled, ours, strict=True)]
        cpus = [one.cpu_s / mine.cpu_s for one, mine in zip(scaled, ours, strict=True)]
        times = f"{spread(walls, 1)} times ours by the clock, {spread(cpus, 1)} by the CPU"
        tell(f"  scaled to {len(keys)}", scaled, times)
    second_look(at, log, keys)


def second_look(at: str, log: Path, keys: Sequence[ArtifactKey]) -> None:
    endpoint, registry = RegistryEndpoint(at, plain_http=True), OciRegistry(Settings())
    for key in keys:
        registry.look_up(endpoint, key)  # What a pass does of each artifact anyway, once.
    before = asked(log)
    again = timed(lambda: [registry.look_up(endpoint, key) for key in keys])
    tell(f"ours, second look, {len(keys)}", [again], f"{asked(log) - before} requests")


def tell(what: str, took: Sequence[Took], more: str = "") -> None:
    walls, cpus = ([getattr(one, name) for one in took] for name in ("wall_s", "cpu_s"))
    print(f"{what:56}{spread(walls, 1):>22} s {spread(cpus, 1):>22} s CPU  {more}".rstrip())


def spread(found: Sequence[float], digits: int) -> str:
    """The middle, and from where to where."""
    middle = f"{statistics.median(found):.{digits}f}"
    if len(found) == 1:
        return middle
    return f"{middle} ({min(found):.{digits}f} to {max(found):.{digits}f})"


if __name__ == "__main__":
    main()
