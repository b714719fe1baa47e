"""The task key rotated while instances are upgraded, processes killed: nothing lost, nothing twice.

On the local custody and on a real Vault, with the real programs.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from node_agent.state import Identity
from node_agent.tasks import Refusal, Trust, admit
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.records import Intent
from reconciler.ports import TASK_KEY
from reconciler.settings import Settings, settings_from
from reconciler.wiring.ports import open_ports
from tests.e2e.platform import AGENT, CONTROL_PLANE, VERSIONS, Platform
from tests.services.vault_place import VaultPlace
from tests.waiting import wait_until

ENVIRONMENT = "environments/dev.yaml"
UPGRADES_MIN = 3
"""So many at least, or there was no load to speak of."""


@dataclass
class Custody:
    """What a control plane needs to find its keys. `renew`: before each of its starts."""

    settings: dict[str, str] = field(default_factory=dict)
    renew: Callable[[], None] = lambda: None


@pytest.fixture(params=["local", "vault"])
def custody(request: pytest.FixtureRequest) -> Custody:
    if request.param == "local":
        return Custody()
    place: VaultPlace = request.getfixturevalue("own_vault")
    found = place.settings
    assert found.vault_role_id_file is not None
    assert found.vault_secret_id_file is not None
    secret_id = found.vault_secret_id_file
    given = {
        "GPUAAS_VAULT_ADDRESS": found.vault_address,
        "GPUAAS_VAULT_PREFIX": found.vault_prefix,
        "GPUAAS_VAULT_ROLE_ID_FILE": str(found.vault_role_id_file),
        "GPUAAS_VAULT_SECRET_ID_FILE": str(secret_id),
    }

    def renew() -> None:
        secret_id.write_text(place.secret_id())

    return Custody(given, renew)


@dataclass
class Rotating:
    """A platform under load. What is committed is committed by one at a time."""

    platform: Platform
    custody: Custody
    lock: threading.Lock = field(default_factory=threading.Lock)
    upgrades: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return settings_from({}, self.platform.environment, None)

    def want(self, version: int) -> None:
        wish = f"  signing_keys:\n    tasks:\n      version: {version}\n"
        with self.lock:
            self.platform.repo.edit(
                ENVIRONMENT, lambda text: text.split("  signing_keys:")[0] + wish
            )
            self.platform.repo.commit(f"Version {version} of the task key")
        self.announce()

    def announce(self) -> None:
        """As a forge does that tries until somebody listens."""

        def told() -> bool:
            with contextlib.suppress(httpx.TransportError, AssertionError):
                self.platform.webhook()
                return True
            return False

        wait_until(told)

    def versions(self) -> list[int]:
        """Asked of the custody itself, not of what somebody remembers."""
        with open_ports(self.settings, make=False) as ports:
            ports.secrets.ensure_signing_key(TASK_KEY)
            return [key.version for key in ports.secrets.verifier_keys(TASK_KEY)]

    def serves(self, version: str) -> bool:
        """Both the app and the control plane say so."""
        found = self.platform.instance()
        if (found["state"], found.get("applied_version")) != ("running", version):
            return False
        return self.platform.page() == version

    @contextmanager
    def load(self) -> Iterator[None]:
        """From one version of the app to the other and back, until the end of the block."""
        stop, failed = threading.Event(), []

        def run() -> None:
            try:
                for version in cycle(reversed(VERSIONS)):
                    if stop.is_set():
                        return
                    self._upgrade(version)
            except AssertionError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert failed == []

    def _upgrade(self, version: str) -> None:
        with self.lock:
            self.platform.set_version(version)
            self.platform.repo.commit(f"Go to {version}")
        self.announce()
        wait_until(lambda: self.serves(version))
        self.upgrades.append(version)

    def start_control_plane(self) -> None:
        self.custody.renew()
        self.platform.start_control_plane()

    def store(self) -> SqlStore:
        folder = Path(self.platform.environment["GPUAAS_STATE_DIR"])
        return SqlStore.open(f"sqlite:///{folder / 'store.db'}")

    def intents(self) -> list[Intent]:
        store = self.store()
        try:
            return list(store.intents())
        finally:
            store.close()

    def keys_in_audit(self) -> list[tuple[str, str]]:
        store = self.store()
        try:
            entries = [row.entry for row in store.audit()]
        finally:
            store.close()
        return [(e.action, e.after) for e in entries if e.action.startswith("keys.")]

    def judged_by_agent(self, task: Intent) -> str:
        """What the agent says of a task, by what it has on its disk."""
        said = (self.platform.root / AGENT / "agent.json").read_text()
        identity = Identity.model_validate_json(said)
        trust = Trust(
            node=identity.node,
            verifiers=identity.verifiers,
            min_version=identity.min_version,
            engines=frozenset({"process"}),
            last_seq=0,
            not_before_ms=0,
            was_executed=lambda _: False,
            present=lambda _: True,
        )
        verdict = admit(task.envelope.encode(), trust, int(time.time() * 1000))
        return verdict.code if isinstance(verdict, Refusal) else "believed"


@pytest.fixture
def rotating(process_platform: Callable[..., Platform], custody: Custody) -> Rotating:
    platform = process_platform(custody.settings)
    platform.start()
    platform.wait_settled("running")
    return Rotating(platform, custody)


def test_rotation_under_load_with_everybody_killed(rotating: Rotating) -> None:
    platform = rotating.platform
    first = rotating.intents()[0]
    with rotating.load():
        # The control plane dies right after it made the version.
        rotating.want(2)
        wait_until(lambda: 2 in rotating.versions())
        platform.kill(CONTROL_PLANE)
        rotating.start_control_plane()
        platform.wait(lambda: rotating.versions() == [2])

        # The agent is away while a version is made; what it knew is there until it is back.
        platform.kill(AGENT)
        rotating.want(3)
        platform.wait(lambda: rotating.versions() == [2, 3])
        platform.start_agent()
        platform.wait(lambda: rotating.versions() == [3])
        platform.wait(lambda: len(rotating.upgrades) >= UPGRADES_MIN)

    settled = platform.wait_settled("running")
    assert rotating.serves(rotating.upgrades[-1])
    assert settled["state"] == "running"
    assert_nothing_lost_or_doubled(rotating)
    assert_rotated(rotating, first)


def assert_nothing_lost_or_doubled(rotating: Rotating) -> None:
    intents = rotating.intents()
    assert [one.detail for one in intents if one.state in ("refused", "expired")] == []
    assert not [one for one in intents if one.state == "queued"]
    events = rotating.platform.event_names()
    assert events.count("deploying") == 1
    assert "failed" not in events
    changes = [one for one in events if one in ("upgraded", "rolled_back")]
    assert len(changes) == len(rotating.upgrades)
    assert "key_retired" not in json.dumps(rotating.platform.findings())


def assert_rotated(rotating: Rotating, first: Intent) -> None:
    platform = rotating.platform
    planned = platform.gpuaas("plan", "--format", "json")
    assert (planned.returncode, json.loads(planned.stdout)["empty"]) == (0, True), planned.stdout
    told = platform.gpuaas("keys", "--format", "json")
    keys: dict[str, Any] = {one["name"]: one for one in json.loads(told.stdout)["keys"]}
    assert keys["tasks"]["versions"] == [3]
    assert (keys["tasks"]["signs_with"], keys["tasks"]["unaware"]) == (3, [])
    shown = platform.gpuaas("keys", "show", "tasks")
    assert shown.stdout.startswith("-----BEGIN PUBLIC KEY-----"), shown.stderr
    refused = platform.gpuaas("keys", "show", "tasks", "--version", "1")
    assert (refused.returncode, "key_version_unknown" in refused.stderr) == (1, True)
    for action in ("keys.key.rotated", "keys.key.retired"):
        versions = {after for found, after in rotating.keys_in_audit() if found == action}
        assert versions == {"version 2", "version 3"}
    platform.wait(lambda: rotating.judged_by_agent(first) == "key_retired")
