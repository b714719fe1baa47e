"""`gpuaas explain` of an app of several services: which image each has, whose, and how it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node_agent.wire import Phase, ServicePhase, WorkloadReport
from reconciler.core.accept import accept
from reconciler.core.desired import Target
from reconciler.core.forms import parse_accepted
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.observed import Known
from reconciler.core.records import Accepted
from reconciler.core.validate import validate
from reconciler.settings import Settings
from reconciler.use_cases.explain import explain
from reconciler.use_cases.explained_fields import Live, Row, Subject
from reconciler.wiring.files import schema_set
from reconciler.wiring.history import local_history
from renderers import render
from tests.services.git_repo import GitRepo
from tests.test_cycle import make_world
from tests.topology_world import sidecar, with_services

HELLO = ObjectRef.parse("AppInstance/acme/research/hello")
KEY = InstanceKey("acme/research/hello")
VERSION = "AppVersion/hello/1.0.0"


@pytest.fixture
def repo(tmp_path: Path) -> GitRepo:
    found = GitRepo(tmp_path / "state")
    files = with_services(make_world()).files
    found.commit({path: content.decode() for path, content in files.items()}, "The first commit")
    return found


def rows(repo: GitRepo, phases: dict[str, dict[str, Any]] | None) -> dict[str, Row]:
    """Its services as a node reports them; None: it tells of none."""
    commits = local_history(repo.folder, Settings())
    head = commits.head()
    candidate = validate(commits.snapshot(head), schema_set(), Settings().parse_limits)
    accepted = accept(candidate, Accepted(), parse_accepted, "dev")
    instance = accepted.instances[KEY]
    workload: Any = render(instance)
    services = [
        {"name": one.name, "phase": "ready", "image_digest": one.image.digest, "vital": one.vital}
        for one in workload.topology.services
    ]
    told = phases or {}
    report = WorkloadReport(
        instance=KEY, target_hash=workload.spec_hash, running_hash=workload.spec_hash,
        phase=Phase.READY,
        services=tuple(
            ServicePhase.model_validate({**one, **told.get(one["name"], {})})
            for one in services
            if phases is not None
        ),
    )  # fmt: skip
    live = Live(None, Known(report), why="degraded")
    subject = Subject(candidate.objects, accepted, Target(instance, workload), live)
    found = explain(HELLO, subject, commits, head).rows
    return {row.field: row for row in found if row.field.startswith("services.")}


def test_each_has_a_row_with_its_image_and_where_that_is_from(repo: GitRepo) -> None:
    found = rows(repo, {})
    assert list(found) == ["services.api", "services.db", "services.metrics"]
    assert not any(row.differs for row in found.values())
    db = found["services.db"]
    assert db.desired == f"{sidecar('db', '1.0.0').repository}@sha256:{_short('db')}…"
    assert db.observed == "ready"
    assert db.deciding.cause == f"{VERSION} spec.runtime_profile.topology.services.db.image_ref"
    assert db.commit is not None
    assert db.commit.subject == "The first commit"
    assert found["services.api"].deciding.cause == f"{VERSION} spec.artifact_ref"


def _short(name: str) -> str:
    return sidecar(name, "1.0.0").digest.short


def test_what_is_missing_or_another_image_stands_out(repo: GitRepo) -> None:
    found = rows(
        repo,
        {
            "db": {"image_digest": str(sidecar("db", "1.1.0").digest), "restarts": 2},
            "metrics": {"phase": "failed", "detail": "exit code 1"},
        },
    )
    differing = {row.field: row.observed for row in found.values() if row.differs}
    other = sidecar("db", "1.1.0").digest.short
    assert differing == {
        "services.db": f"image sha256:{other}…, ready, 2 restart(s)",
        "services.metrics": "failed, exit code 1",
    }
    assert found["services.metrics"].deciding.cause.endswith("; degraded")


def test_a_node_that_tells_of_none_leaves_them_unknown(repo: GitRepo) -> None:
    found = rows(repo, None)
    assert {row.observed for row in found.values()} == {"unknown: its node tells of no service"}
    assert not any(row.differs for row in found.values())
