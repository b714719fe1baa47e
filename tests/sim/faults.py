"""What goes wrong, by kind. A seed has some of the kinds, each at a strength of its own.

With some kinds off, the others get further: a fleet in which everything fails at once does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from node_agent.units import Unit
from node_agent.wire import FailureReason, PollReply
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import ArtifactSeen
from reconciler.errors import Refused
from tests.sim.catalog import BAD, GOOD_IMAGES, IMAGES, NODES, digest_of
from tests.sim.control import ControlPlane, Services
from tests.sim.engine import NEVER, Behaviour, Docker
from tests.sim.network import Network
from tests.sim.node import Node
from tests.sim.world import Incarnation, World

KINDS = (
    "crash", "power", "network", "skew", "store", "registry", "git", "engine", "drift", "foreign",
    "disk", "commits", "second", "pause", "replay", "images", "services", "compose", "lost",
    "secrets", "blobs",
)  # fmt: skip
_BAD_BEHAVIOUR = {
    "never": Behaviour(ready_ms=NEVER),
    "exits": Behaviour(exit_ms=200, exit_code=1, ready_ms=NEVER),
    "memory": Behaviour(exit_ms=900, exit_code=137, out_of_memory=True, ready_ms=NEVER),
    "fails": Behaviour(exit_ms=200, exit_code=3, ready_ms=NEVER),
    "missing": Behaviour(refusal=FailureReason.IMAGE_NOT_FOUND),
    "forged": Behaviour(refusal=FailureReason.DIGEST_MISMATCH),
}


@dataclass
class Faults:
    """`on` False is the end of all mischief."""

    world: World
    kinds: frozenset[str]
    nodes: dict[str, Node] = field(default_factory=dict)
    planes: list[ControlPlane] = field(default_factory=list)
    services: Services | None = None
    network: Network | None = None
    on: bool = True
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    crash_rate: float = 0.0
    join: Callable[[Node], None] = lambda _: None

    def begin(self, rng: Random) -> None:
        assert self.services is not None
        assert self.network is not None
        if "crash" in self.kinds:
            self.crash_rate = rng.choice((0.0005, 0.002, 0.006))
        if "network" in self.kinds:
            self.network.lost = rng.choice((0.02, 0.1, 0.3))
            self.network.delayed = rng.choice((0.0, 0.1, 0.3))
            self.network.doubled = rng.choice((0.0, 0.1, 0.3))
        if "store" in self.kinds:
            self.services.store_fails = rng.choice((0.002, 0.01, 0.03))
        if "pause" in self.kinds:
            self.services.pause = rng.choice((0.001, 0.005))
            self.services.slow = 0.1
        for node in self.nodes.values():
            if "skew" in self.kinds:
                node.skew_ms = rng.randint(-25_000, 25_000)
            if "compose" in self.kinds and rng.random() < 0.3:
                node.topologies.fake.own_ways = ("ulimits: 1 instead of 2",)
            if "engine" in self.kinds:
                node.docker.slow = rng.choice((1, 40, 2_000))
        self.behaviours |= {digest_of(v): _BAD_BEHAVIOUR[how] for v, how in BAD.items()}
        for image in GOOD_IMAGES:
            ready_ms, pull_ms = rng.choice((50, 700, 4_000)), rng.choice((20, 400, 3_000))
            good = _good(image)
            ready_ms = max(ready_ms, good.ready_ms) if good.ready_ms == NEVER else ready_ms
            self.behaviours[digest_of(image)] = replace(good, ready_ms=ready_ms, pull_ms=pull_ms)
        self._later()

    def end(self) -> None:
        """Everything works again, and whatever died is started again."""
        assert self.services is not None
        assert self.network is not None
        self.on = False
        self.network.lost = self.network.delayed = self.network.doubled = 0.0
        self.network.cut.clear()
        services = self.services
        services.store_fails = services.pause = services.slow = 0.0
        services.git_away_until = services.registry_away_until = 0
        services.supplies.mend()
        for image in IMAGES:
            self.behaviours[digest_of(image)] = _good(image)
        for node in self.nodes.values():
            node.skew_ms = 0
            node.disk.full = False
            node.docker.away_until = node.docker.refuse_until = node.topologies.fails_until = 0
            node.topologies.fake.create_fails_after = None
            node.docker.slow = 1
            node.docker.foreign_ports.clear()
            node.docker.changed(None)
            self.join(node)
            node.boot()
        self.planes[0].boot()

    def crash_wanted(self, inc: Incarnation, where: str) -> bool:
        return self.on and self.world.chance(self.crash_rate)

    def behaviour(self, digest: str) -> Behaviour:
        return self.behaviours.get(digest, Behaviour())

    def exists(self, key: ArtifactKey) -> ArtifactSeen:
        refusal = self.behaviour(str(key.digest)).refusal
        if refusal is FailureReason.IMAGE_NOT_FOUND:
            return ArtifactSeen(exists=False)
        if refusal is FailureReason.DIGEST_MISMATCH:
            raise Refused("digest_mismatch", "its bytes hash to something else")
        return ArtifactSeen(True, "application/vnd.oci.image.manifest.v1+json", 1, ("linux/amd64",))

    # --- one at a time ---

    def _later(self) -> None:
        self.world.at(self.world.rng.randint(500, 15_000), None, "mischief", self._mischief)

    def _mischief(self) -> None:
        if not self.on:
            return
        found: dict[str, Callable[[Random], None]] = {
            "crash": self._kill, "power": self._power, "network": self._cut, "skew": self._skew,
            "registry": self._registry, "git": self._git, "engine": self._engine,
            "drift": self._drift, "foreign": self._foreign, "disk": self._disk,
            "services": self._service, "compose": self._compose,
            "secrets": self._secret, "blobs": self._blob, "lost": self._lose,
            "second": self._second, "replay": self._replay, "images": self._image,
        }  # fmt: skip
        kinds = sorted(self.kinds & found.keys())
        if kinds:
            found[self.world.rng.choice(kinds)](self.world.rng)
            self._later()

    def _node(self, rng: Random) -> Node:
        return self.nodes[rng.choice(NODES)]

    def _until(self, rng: Random) -> int:
        return self.world.now + rng.choice((500, 5_000, 40_000, 130_000))

    def _say(self, what: str) -> None:
        self.world.say("fault", what)

    def _kill(self, rng: Random) -> None:
        victims: list[Node | ControlPlane] = [*self.nodes.values(), *self.planes]
        rng.choice(victims).stop("kill -9")

    def _power(self, rng: Random) -> None:
        node = self._node(rng)
        self._say(f"power cut on {node.name}")
        node.power_cut()

    def _lose(self, rng: Random) -> None:
        node = self._node(rng)
        if not node.joined:
            return
        self._say(f"the state folder of {node.name} is lost")
        node.lose_state()
        self.world.at(rng.choice((500, 5_000, 60_000)), None, "join", lambda: self.join(node))

    def _cut(self, rng: Random) -> None:
        assert self.network is not None
        name, until = rng.choice(NODES), self._until(rng)
        self._say(f"{name} is cut off for {until - self.world.now} ms")
        self.network.cut[name] = until

    def _skew(self, rng: Random) -> None:
        node = self._node(rng)
        node.skew_ms = rng.choice((-90_000, -20_000, 0, 500, 20_000, 90_000))
        self._say(f"the clock of {node.name} is off by {node.skew_ms} ms")

    def _registry(self, rng: Random) -> None:
        assert self.services is not None
        self.services.registry_away_until = self._until(rng)
        self._say("the registry does not answer")

    def _secret(self, rng: Random) -> None:
        assert self.services is not None
        supplies = self.services.supplies
        how = rng.choice(("set anew", "taken away", "sealed", "sealed"))
        self._say(f"the secret is {how}")
        if how == "sealed":
            supplies.seal()
            self.world.at(rng.choice((500, 5_000, 60_000)), None, "unseal", supplies.unseal)
        elif how == "set anew":
            supplies.set_secret()
        else:
            supplies.take_secret()

    def _blob(self, rng: Random) -> None:
        assert self.services is not None
        supplies, node = self.services.supplies, self._node(rng)
        how = rng.choice(("away", "wrong", "cut short", "good", "altered", "removed"))
        if how in ("altered", "removed"):
            if node.kept.spoil(remove=how == "removed"):
                self._say(f"the blob on {node.name} is {how}")
            return
        supplies.blobs_away_until = self._until(rng) if how == "away" else 0
        supplies.wrong, supplies.cut_short = how == "wrong", how == "cut short"
        self._say(f"the blob is {how}")

    def _git(self, rng: Random) -> None:
        assert self.services is not None
        self.services.git_away_until = self._until(rng)
        self._say("the remote does not answer")

    def _engine(self, rng: Random) -> None:
        docker = self._node(rng).docker
        if rng.random() < 0.5:
            docker.away_until = self._until(rng)
            self._say(f"docker on {docker.node} is away")
        elif rng.random() < 0.5:
            docker.refuse_until = self._until(rng)
            self._say(f"docker on {docker.node} creates nothing")
        else:
            docker.present.clear()
            docker.foreign_ports ^= {8000 + rng.randint(0, 1), 20_000 + rng.randint(0, 9_999)}
            self._say(f"images pruned and ports taken on {docker.node}")

    def _drift(self, rng: Random) -> None:
        docker = self._node(rng).docker
        ours = [held for held in docker.held.values() if not held.foreign]
        if not ours:
            return
        held = rng.choice(ours)
        how = rng.choice(("kill", "remove", "pause", "start", "double", "double", "volume"))
        self._say(f"{how} {held.unit.name} on {docker.node} by hand")
        unit = held.unit
        if how == "kill":
            docker.end(held, 137)
        elif how == "remove":
            del docker.held[unit.unit_id]
        elif how == "pause" and unit.status == "running":
            held.unit = replace(unit, status="paused")
        elif how == "start" and not unit.alive:
            docker.make_alive(held, forced=True)
        elif how == "double":
            name = f"{unit.name}-{docker.next_id()}"
            docker.put(replace(unit, unit_id=docker.next_id(), name=name, status="running"))
        elif how == "volume":
            docker.volumes[f"{unit.name}-{docker.next_id()}"] = unit.instance
        if rng.random() < 0.8:
            docker.changed(unit.instance)

    def _service(self, rng: Random) -> None:
        """Something befalls one service of a topology, or several at once."""
        topologies = self._node(rng).topologies
        for _ in range(rng.choice((1, 1, 2))):
            there = sorted(topologies.fake.containers)
            if there:
                key = rng.choice(there)
                how = rng.choice(("kill", "kill", "memory", "remove", "alter", "pause", "start"))
                self._say(f"{how} {key[1]} of {key[0]} on {topologies.docker.node} by hand")
                topologies.befall(key, how)

    def _compose(self, rng: Random) -> None:
        topologies = self._node(rng).topologies
        if rng.random() < 0.6:
            topologies.fake.create_fails_after = rng.randint(0, 2)
            self._say(f"the next compose on {topologies.docker.node} is cut in the middle")
        else:
            topologies.fails_until = self._until(rng)
            self._say(f"compose on {topologies.docker.node} fails")

    def _foreign(self, rng: Random) -> None:
        docker = self._node(rng).docker
        stray = rng.random() < 0.5
        self._say(f"{'a stray' if stray else 'a foreign unit'} appears on {docker.node}")
        docker.put(_somebodys(docker, stray, rng), foreign=not stray)
        docker.changed(None)

    def _disk(self, rng: Random) -> None:
        disk = self._node(rng).disk
        disk.full = True
        self._say("a disk is full")

        def freed() -> None:
            disk.full = False

        self.world.at(rng.choice((500, 5_000, 40_000)), None, "disk freed", freed)

    def _second(self, rng: Random) -> None:
        if len(self.planes) > 1:
            plane = self.planes[1]
            plane.boot() if not plane.alive or rng.random() < 0.7 else plane.stop("kill -9")

    def _replay(self, rng: Random) -> None:
        """Somebody who recorded the line sends an old report again, or an old task."""
        node = self._node(rng)
        assert self.services is not None
        intents = self.services.store.intents()
        # Who lost its state knows no number of before: only TLS keeps those tasks from it.
        since = node.joined_at_ms
        old = [one for one in intents if one.node == node.name and one.created_at_ms >= since]
        if old and rng.random() < 0.6:
            self._say(f"an old task comes to {node.name} once more")
            node.hear(PollReply(tasks=(json.loads(rng.choice(old).envelope),)))
            return
        serve = node.server("report")
        if node.sent and serve is not None:
            serve(rng.choice(node.sent[-20:]), lambda *_: None)

    def _image(self, rng: Random) -> None:
        image, known = rng.choice(GOOD_IMAGES), self.behaviours
        digest = digest_of(image)
        good = known.get(digest, _good(image))
        known[digest] = rng.choice(
            (
                replace(good, ready_ms=NEVER), replace(good, exit_ms=5_000, exit_code=3),
                replace(good, pull_ms=30_000), _good(image), _good(image),
            )
        )  # fmt: skip
        self._say(f"image {digest[7:13]} behaves differently")


def _good(image: str) -> Behaviour:
    """What is to be done once ends by itself."""
    return Behaviour(exit_ms=300, ready_ms=NEVER) if image.startswith("setup") else Behaviour()


def _somebodys(docker: Docker, stray: bool, rng: Random) -> Unit:
    """A stray has our labels and nobody asked for it; a foreign one has another node's."""
    number = docker.next_id()
    return Unit(
        unit_id=f"x{number}",
        name=f"somebodys-{number}",
        engine="docker",
        instance=f"acme/lab/stray-{number}" if stray else "acme/lab/api",
        node=docker.node if stray else "elsewhere",
        spec_hash="sha256:" + "0" * 64,
        status=rng.choice(("running", "exited")),
        created_at_ms=docker.world.now,
        image_digest="sha256:" + "0" * 64,
    )
