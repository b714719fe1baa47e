"""A control plane's server on loopback, with a clock that stands still and agents that sign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from node_agent import envelope, wire
from node_agent.membership import CERTIFICATE_REQUEST_TYPE, CertificateRequest
from node_agent.wire import POLL_TYPE, REPORT_TYPE, Inventory, Poll, Report, TaskAck
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.names import ActionId, InstanceKey
from reconciler.core.records import Intent
from reconciler.custody.wrap_mac import WrapMac, join_text
from reconciler.loop import Beat
from reconciler.ports import BlobStore, Registry, Secret, Store
from reconciler.server.app import ServerDeps, Signal, build_agents_app, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.peer import Peer, with_peer
from reconciler.server.serve import serve
from reconciler.settings import Settings
from tests.fakes.ca import FakeCa
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore

NOW_MS = 1_700_000_000_000
WEBHOOK_SECRET = "correct horse battery staple"
_SHOWN = "X-Shown-Certificate"
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


class Keys(FakeSecrets):
    """A secret store with the same keys in every test, and the secret of the webhook."""

    def __init__(self) -> None:
        super().__init__(seed="harness")
        self.secrets = {"webhook/git": Secret(WEBHOOK_SECRET)}
        for name in ("tasks", "tokens"):
            self.ensure_signing_key(name)


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

    def csr(self) -> str:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.key, None).public_bytes(Encoding.PEM).decode()

    def certificate_request(self, **fields: Any) -> dict[str, Any]:
        given = {"node": self.node, "sent_at_ms": NOW_MS, "csr": self.csr(), **fields}
        payload = CertificateRequest(**given).canonical()
        return self.seal(payload, CERTIFICATE_REQUEST_TYPE)

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
    """Running servers. `woken` collects the reasons they gave for a pass."""

    store: Store
    keys: Keys
    clock: StillClock
    signal: Signal
    metrics: Metrics
    woken: SimpleQueue[str]
    client: httpx.Client
    ca: FakeCa
    start_agents: Callable[[], httpx.Client]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @cached_property
    def agents(self) -> httpx.Client:
        """What agents call, which is started when it is first asked for."""
        return self.start_agents()

    def enrol(self, node: str = "node-1") -> Agent:
        agent = Agent(node)
        token = self.token(f"secret of {node} {agent.public_key}", node)
        answer = self.join(token, agent)
        assert answer.status_code == 200, answer.text
        assert self.woken.get(timeout=60) == "join"
        return agent

    def token(self, secret: str = "secret", node: str = "node-1", ttl_ms: int = 60_000) -> str:
        """Wrapped and with its MAC, as it is handed over."""
        secret_hash = hashlib.sha256(secret.encode()).hexdigest()
        self.store.add_join_token(secret_hash, node, self.clock.ms + ttl_ms)
        number = str(next(self.numbers))
        path = f"joins/{node}/{number}"
        self.keys.write(path, Secret(secret))
        return join_text(WrapMac(self.keys, self.clock).given(path, self.keys.wrap(path, 3600)))

    def join(self, token: str, agent: Agent, **fields: Any) -> httpx.Response:
        wanted = {
            "token": token,
            "node": agent.node,
            "public_key": agent.public_key,
            "csr": agent.csr(),
            **fields,
        }
        return self.agents.post("/v1/agent/join", json=wanted)

    def post(
        self, path: str, document: Mapping[str, Any], shown: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """By who shows the certificate of the key that signed it, unless said otherwise."""
        if shown is None:
            signer = self.store.node_by_key(document.get("signatures", [{}])[0].get("keyid", ""))
            shown = shows(signer.public_key if signer is not None else "0" * 64)
        return self.agents.post(path, content=json.dumps(document), headers=shown)


def shows(public_key: str, ends_at_ms: int = NOW_MS + 3_600_000) -> dict[str, str]:
    """What stands for a certificate of this key, where there is no TLS."""
    return {_SHOWN: f"{public_key} {ends_at_ms}"}


class ShownByHeader:
    """Puts into a request's scope what TLS would find out of the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get(_SHOWN, "").split() if scope["type"] == "http" else []
        app = with_peer(self._app, Peer(said[0], int(said[1]))) if said else self._app
        await app(scope, receive, send)


def settings_of(**fields: Any) -> Settings:
    return Settings(**{"listen": "127.0.0.1:0", **fields})


@contextmanager
def running(
    store: Store,
    heartbeat: Callable[[], Beat] | None = None,
    node_config: Callable[[str, str], Mapping[str, Any] | None] | None = None,
    registry: Registry | None = None,
    blobs: BlobStore | None = None,
    topology: Callable[[InstanceKey], dict[str, Any]] | None = None,
    **fields: Any,
) -> Iterator[Plane]:
    """The servers over `store`; `fields` are settings."""
    settings = settings_of(**fields)
    keys, clock, signal, metrics = Keys(), StillClock(), Signal(), Metrics()
    woken: SimpleQueue[str] = SimpleQueue()
    deps = ServerDeps(store, keys, clock, settings, woken.put, signal, metrics)
    deps = replace(deps, heartbeat=heartbeat, node_config=node_config, registry=registry)
    deps = replace(deps, blobs=blobs, topology=topology)
    ca = FakeCa(clock)
    with ExitStack() as stack:

        def start(app: Starlette) -> httpx.Client:
            url = stack.enter_context(serve(app, settings))
            return stack.enter_context(httpx.Client(base_url=url, timeout=60))

        def start_agents() -> httpx.Client:
            app = build_agents_app(deps, ca)
            app.add_middleware(ShownByHeader)
            return start(app)

        client = start(build_app(deps))
        yield Plane(store, keys, clock, signal, metrics, woken, client, ca, start_agents)


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
