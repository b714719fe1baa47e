"""A control plane's server on loopback, with a clock that stands still and agents that sign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent import envelope, wire
from node_agent.wire import (
    POLL_TYPE,
    REPORT_TYPE,
    Inventory,
    Poll,
    Report,
    TaskAck,
    VerifierKey,
)
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.names import ActionId, InstanceKey
from reconciler.core.records import Intent
from reconciler.errors import GpuaasError
from reconciler.loop import Beat
from reconciler.ports import Secret, Signed, Store
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.settings import Settings
from tests.fakes.store import MemoryStore

NOW_MS = 1_700_000_000_000
WEBHOOK_SECRET = "correct horse battery staple"
INVENTORY = Inventory(
    engines=("docker",),
    cpu_count=8,
    memory_mib=65_536,
    disk_free_mib=1_000,
    architecture="x86_64",
    operating_system="linux",
)


@dataclass
class StillClock:
    ms: int = NOW_MS

    def now_ms(self) -> int:
        return self.ms


class Keys:
    """A secret store with one task key. Set `failure` to make it raise."""

    def __init__(self) -> None:
        self.failure: GpuaasError | None = None
        self.secrets: dict[str, Secret] = {"webhook/git": Secret(WEBHOOK_SECRET)}
        self._key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        public = self._key.public_key().public_bytes_raw().hex()
        self._verifier = VerifierKey(key_id=wire.key_id(public), version=1, public_key=public)

    def ensure_signing_key(self, name: str) -> VerifierKey:
        return self._verifier

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        if self.failure is not None:
            raise self.failure
        return (self._verifier,)

    def sign(self, name: str, message: bytes) -> Signed:
        return Signed(self._key.sign(message), self._verifier)

    def read(self, path: str) -> Secret | None:
        if self.failure is not None:
            raise self.failure
        return self.secrets.get(path)

    def write(self, path: str, value: Secret) -> None:
        self.secrets[path] = value

    def ensure(self, path: str, value: Secret) -> Secret:
        if self.failure is not None:
            raise self.failure
        return self.secrets.setdefault(path, value)

    def delete(self, path: str) -> None:
        self.secrets.pop(path, None)


@dataclass
class Agent:
    """A node agent's own key, and the envelopes it signs with it."""

    node: str = "node-1"
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public_key(self) -> str:
        return self.key.public_key().public_bytes_raw().hex()

    def seal(self, payload: bytes, payload_type: str) -> dict[str, Any]:
        return envelope.seal(payload, payload_type, wire.key_id(self.public_key), self.key.sign)

    def report(self, report_seq: int = 1, **fields: Any) -> dict[str, Any]:
        return self.seal(self.make_report(report_seq, **fields).canonical(), REPORT_TYPE)

    def make_report(self, report_seq: int = 1, **fields: Any) -> Report:
        given = {
            "node": self.node,
            "agent_version": "0.1.0",
            "sent_at_ms": NOW_MS,
            "report_seq": report_seq,
            "last_seq": 0,
            "connected_at_ms": NOW_MS,
            "complete": True,
            "inventory": INVENTORY,
            **fields,
        }
        return Report(**given)

    def poll(self, wait_ms: int = 0, **fields: Any) -> dict[str, Any]:
        given = {
            "node": self.node,
            "sent_at_ms": NOW_MS,
            "report_seq": 1,
            "wait_ms": wait_ms,
            **fields,
        }
        return self.seal(Poll(**given).canonical(), POLL_TYPE)


@dataclass
class Plane:
    """A running server. `woken` collects the reasons it gave for a pass."""

    store: Store
    keys: Keys
    clock: StillClock
    signal: Signal
    metrics: Metrics
    woken: SimpleQueue[str]
    client: httpx.Client

    def enrol(self, node: str = "node-1") -> Agent:
        agent = Agent(node)
        token = self.token(f"secret of {node} {agent.public_key}", node)
        answer = self.join(token, agent)
        assert answer.status_code == 200, answer.text
        assert self.woken.get(timeout=10) == "join"
        return agent

    def token(self, secret: str = "secret", node: str = "node-1", ttl_ms: int = 60_000) -> str:
        secret_hash = hashlib.sha256(secret.encode()).hexdigest()
        self.store.add_join_token(secret_hash, node, self.clock.ms + ttl_ms)
        return secret

    def join(self, token: str, agent: Agent) -> httpx.Response:
        wanted = {"token": token, "node": agent.node, "public_key": agent.public_key}
        return self.client.post("/v1/agent/join", json=wanted)

    def post(self, path: str, document: Mapping[str, Any]) -> httpx.Response:
        return self.client.post(path, content=json.dumps(document))


def settings_of(**fields: Any) -> Settings:
    return Settings(**{"listen": "127.0.0.1:0", **fields})


@contextmanager
def running(
    store: Store, heartbeat: Callable[[], Beat] | None = None, **fields: Any
) -> Iterator[Plane]:
    """A server over `store`; `fields` are settings."""
    settings = settings_of(**fields)
    keys, clock, signal, metrics = Keys(), StillClock(), Signal(), Metrics()
    woken: SimpleQueue[str] = SimpleQueue()
    deps = ServerDeps(store, keys, clock, settings, woken.put, signal, metrics)
    app = build_app(replace(deps, heartbeat=heartbeat))
    with serve(app, settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Plane(store, keys, clock, signal, metrics, woken, client)


@contextmanager
def a_store(kind: str, folder: Path) -> Iterator[Store]:
    if kind == "memory":
        yield MemoryStore()
        return
    store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
    try:
        yield store
    finally:
        store.close()


def an_intent(number: int, node: str = "node-1", envelope_text: str | None = None) -> Intent:
    return Intent(
        action_id=ActionId(f"a-{number}"),
        kind="launch",
        instance=InstanceKey(f"acme/research/app-{number}"),
        node=node,
        task_id=f"t-{number}",
        seq=number,
        correlation_id="c-1",
        target_hash="h",
        envelope=envelope_text or json.dumps({"payload": f"task {number}"}),
        created_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
    )


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of a failure, which must be the one envelope and nothing else."""
    document = answer.json()
    assert list(document) == ["error"]
    assert sorted(document["error"]) == ["code", "correlation_id", "message"]
    assert document["error"]["correlation_id"] == answer.headers["X-Correlation-Id"]
    assert "Traceback" not in answer.text
    return answer.status_code, document["error"]["code"], document["error"]["message"]


def acks(*accepted: str) -> Sequence[TaskAck]:
    return tuple(TaskAck(task_id=task_id, accepted=True) for task_id in accepted)
