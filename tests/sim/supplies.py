"""What a launch takes beside images: a secret of the project and a blob, on their way to a node.

Rules:
- Keeper, cache and their files are the real ones, in a folder of the run's own: secrets are in
  memory and go with the power, blobs are in the agent's state folder. What is simulated is the way
  there, and what is at its other end.
- Nothing starts without what it reads: its secret with a value that it had, its blob with the bytes
  that its digest says. Once nothing changes any more, the value is the last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_agent.artifact_wire import BLOB_REQUEST_TYPE
from node_agent.blob_files import BLOBS_FOLDER, blob_paths
from node_agent.blob_pulls import needs_of
from node_agent.blobs import BlobAnswer, BlobCache
from node_agent.link import AgentKey, Away
from node_agent.secret_files import SecretFiles
from node_agent.state import StateStore
from node_agent.wire import (
    MACHINE_IDENTITY,
    SECRETS_REQUEST_TYPE,
    BlobRequest,
    BlobSeen,
    SecretsRequest,
    Workload,
)
from reconciler.errors import Transient
from reconciler.ports import Secret
from tests.fakes.secrets import FakeSecrets
from tests.sim.catalog import BLOB, BLOB_BYTES, SECRET, blob_digest
from tests.sim.world import DEPTH_MAX, Crash, Incarnation, World

PATH = f"projects/acme/lab/{SECRET}"
STALE_MS = 60_000
"""How long after it was set anew another value may still be on its way."""
_ROOM = (1_000_000_000, 0, 1_000_000_000)

Ask = Callable[[str, bytes], Any]
"""What a control plane answers to a message of a node, at once; raises Away."""


@dataclass
class Supplies:
    """The secret and the blob, and what is wrong with them. `wrong`: others bytes are served."""

    world: World
    secrets: FakeSecrets
    blobs_away_until: int = 0
    wrong: bool = False
    cut_short: bool = False
    values: list[str] = field(default_factory=list)
    set_at: int = 0

    def set_secret(self) -> None:
        """For the first time, or another value."""
        if self.secrets.failure is not None:
            return
        self.values.append(f"value {len(self.values) + 1}")
        self.set_at = self.world.now
        self.secrets.write(PATH, Secret(self.values[-1]))

    def take_secret(self) -> None:
        if self.secrets.failure is None:
            self.secrets.delete(PATH)

    def unseal(self) -> None:
        self.secrets.failure = None

    def seal(self) -> None:
        """Custody answers nothing: no secret, and no signature either."""
        self.secrets.failure = Transient("vault_sealed", "Vault is sealed")

    def mend(self) -> None:
        self.secrets.failure = None
        self.blobs_away_until, self.wrong, self.cut_short = 0, False, False
        if self.secrets.seen(PATH) is None:
            self.set_secret()

    def blob(self, wanted: BlobRequest) -> BlobAnswer:
        """Raises Away."""
        if self.world.now < self.blobs_away_until:
            raise Away("blob_store_unreachable", "the artifact store does not answer")
        assert wanted.digest == blob_digest()
        content = BLOB_BYTES[wanted.offset :]
        if self.wrong:
            content = bytes(reversed(content))
        pieces = (content[:5],) if self.cut_short else (content[:5], content[5:])
        return BlobAnswer(len(BLOB_BYTES), pieces)

    def lacking(self, kept: Kept, workload: Workload, service: str) -> str:
        """What lacks for a container to start; nothing is fine. `service`: of a topology."""
        files = kept.files
        of = workload.topology.service(service) if workload.topology is not None else None
        names = {one.name for one in workload.secrets} if of is None else {*of.secrets}
        for name in sorted(names - {MACHINE_IDENTITY}):
            folder = files.folder_of(workload)
            if of is not None:
                folder = files.folder_of_service(workload, service)
            found = self._value(folder / name)
            if found not in self.values:
                return f"its secret {name} is {found!r}"
            calm = self.world.now - self.set_at > STALE_MS
            if calm and found != self.values[-1] and PATH in self.secrets.secrets:
                return f"its secret {name} is old: {found!r}"
        wanted = {one.name for one in workload.blobs} if of is None else {*of.blobs}
        for name, path in sorted(blob_paths(kept.blobs, workload).items()):
            content = path.read_bytes() if path.is_file() else b""
            if name in wanted and hashlib.sha256(content).hexdigest() != blob_digest()[7:]:
                return f"its blob {name} is {content[:20]!r}"
        return ""

    def _value(self, path: Path) -> str | None:
        return path.read_text() if path.is_file() else None


@dataclass
class Kept:
    """Where a node keeps both. `folder` is the node's own."""

    folder: Path

    def __post_init__(self) -> None:
        self.files = SecretFiles([self.folder / "run"])

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def blobs(self) -> Path:
        return self.state / BLOBS_FOLDER

    def power_cut(self) -> None:
        """What is in memory is gone."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)

    def lose_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    def spoil(self, *, remove: bool) -> bool:
        """Somebody makes room, or writes into the cached blob. False where there is none."""
        path = self.blobs / "sha256" / blob_digest()[7:]
        if not path.is_file():
            return False
        if remove:
            path.unlink()
        else:
            path.chmod(0o600)
            path.write_bytes(b"something else")
        return True


class Way:
    """In place of `link.Link` and `blob_link.BlobLink`, for one agent process."""

    def __init__(
        self, world: World, inc: Incarnation, key: AgentKey, ask: Ask, clock: Any
    ) -> None:
        self._world, self._inc, self._key, self._ask = world, inc, key, ask
        self._clock = clock

    def secrets(self, request: SecretsRequest) -> Any:
        self._world.point(self._inc, "before secrets are asked for")
        self._world.sleep(self._inc, self._world.rng.choice((1, 20, 200)))
        answer = self._sent("secrets", self._key.seal(request.canonical(), SECRETS_REQUEST_TYPE))
        self._world.point(self._inc, "after secrets were asked for")
        return answer

    @contextlib.contextmanager
    def open(self, source: str, digest: str, offset: int) -> Iterator[BlobAnswer]:
        """Takes no time: others of the same agent would wait for it, without threads for ever."""
        self._world.point(self._inc, "before a blob is asked for")
        request = BlobRequest(
            node=self._inc.name, sent_at_ms=self._clock.now_ms(), source=source, digest=digest,
            offset=offset,
        )  # fmt: skip
        body = self._key.seal(request.canonical(), BLOB_REQUEST_TYPE)
        depth, self._world.depth = self._world.depth, DEPTH_MAX
        try:
            answer = self._sent("blob", body)
        finally:
            self._world.depth = depth
        yield answer
        self._world.point(self._inc, "after a blob came")

    def _sent(self, what: str, body: bytes) -> Any:
        try:
            return self._ask(what, body)
        except Away as away:
            self._world.say(self._inc, f"is given no {what}: {away}")
            raise
        except Crash:
            # Of who was asked; ours goes on, unless it is its own.
            self._world.check_alive(self._inc)
            raise Away("unreachable", "no answer") from None


class SimBlobs:
    """In place of `blob_keeper.BlobKeeper`: the same cache, and nothing is pulled ahead."""

    def __init__(
        self, folder: Path, way: Way, store: StateStore, clock: Any, changed: Callable[[], None]
    ) -> None:
        self.cache = BlobCache(
            folder, way, lambda: needs_of(store, clock.now_ms()), changed, disk=lambda _: _ROOM
        )

    def seen(self) -> tuple[BlobSeen, ...]:
        return self.cache.seen()


def made(folder: Path) -> None:
    """In place of what makes it in memory, which not every host has."""
    folder.mkdir(parents=True, exist_ok=True)


def refusal(folder: Path) -> str | None:
    """In place of the look whether it is in memory."""
    return None if folder.is_dir() else f"{folder} is not there"


__all__ = ["BLOB", "Kept", "SimBlobs", "Supplies", "Way", "made", "refusal"]
