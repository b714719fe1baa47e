"""Makes workloads, tasks and signed envelopes for the agent's tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from node_agent.link import AgentKey
from node_agent.wire import (
    TASK_TYPE,
    ControlTask,
    HttpProbe,
    Image,
    LaunchTask,
    Port,
    PullBlobTask,
    Readiness,
    RemoveTask,
    VerifierKey,
    Workload,
    key_id,
)
from reconciler.devkit import images

NODE = "n1"
INSTANCE = "acme/research/web"
NOW_MS = 1_800_000_000_000
DIGEST = "sha256:" + "a" * 64
AnyTask = LaunchTask | ControlTask | RemoveTask | PullBlobTask
ARTIFACT = "Artifact/acme/research/web/1.0.0/weights"
SOURCE = "artifact_store://projects/acme/research/artifacts/web/1.0.0/weights"


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "instance": INSTANCE,
        "engine": "process",
        "image": Image(registry="fake", repository="demo", digest=DIGEST),
        "command": ("serve",),
        "ports": (Port(name="http", container=8080),),
        "readiness": Readiness(
            probe=HttpProbe(port=8080), interval_ms=200, start_budget_ms=2_000, failures_max=3
        ),
        "stop_grace_ms": 1_000,
    }
    return Workload(**{**fields, **changes})


def process_image(folder: Path, version: str = "1.0.0") -> Image:
    """A web site for the process engine, answering `version` on `/`, in the layout in `folder`."""
    built = images.build_process_site(version)
    images.write_layout(built, folder, version)
    digest = str(built.manifest_digest)
    return Image(registry=f"layout:{folder}", repository="demo", digest=digest)


def verifier(key: AgentKey, version: int = 1) -> VerifierKey:
    return VerifierKey(key_id=key_id(key.public_key), version=version, public_key=key.public_key)


def binding(seq: int, now_ms: int, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "task_id": f"task-{seq}",
        "node": NODE,
        "seq": seq,
        "issued_at_ms": now_ms,
        "expires_at_ms": now_ms + 60_000,
        "instance": INSTANCE,
        "correlation_id": f"correlation-{seq}",
    }
    return {**fields, **changes}


def launch(seq: int = 1, what: Workload | None = None, now_ms: int = NOW_MS, **changes: Any) -> Any:
    wanted = what or workload()
    changes.setdefault("instance", wanted.instance)
    return LaunchTask(workload=wanted, **binding(seq, now_ms, **changes))


def control(seq: int, run: bool, now_ms: int = NOW_MS, **changes: Any) -> ControlTask:
    return ControlTask(run=run, **binding(seq, now_ms, **changes))


def remove(seq: int, now_ms: int = NOW_MS, **changes: Any) -> RemoveTask:
    return RemoveTask(**binding(seq, now_ms, **changes))


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def pull_blob(
    seq: int, content: bytes = b"weights", now_ms: int = NOW_MS, **changes: Any
) -> PullBlobTask:
    """For the blob that `content` is."""
    changes.setdefault("instance", ARTIFACT)
    changes.setdefault("digest", digest_of(content))
    return PullBlobTask(source=SOURCE, **binding(seq, now_ms, **changes))


def sealed(task: AnyTask, key: AgentKey, payload_type: str = TASK_TYPE) -> bytes:
    return key.seal(task.canonical(), payload_type)


def envelope(task: AnyTask, key: AgentKey) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sealed(task, key))
    return document
