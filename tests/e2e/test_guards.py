"""What holds changes back, and what a rename does, on a real node with a real Docker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.times import time_text
from reconciler.devkit import state_repo
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import INSTANCE, Platform, gpuaas

RENAMED = "acme/research/hi"
ENVIRONMENT = "environments/dev.yaml"
GUARDS = "    removals_max: 5\n    removals_max_percent: 30\n"


def instances(platform: Platform) -> Mapping[str, Mapping[str, Any]]:
    return {one["instance"]: one for one in platform.status()["instances"]}


def converged(platform: Platform, name: str = INSTANCE) -> Mapping[str, Any]:
    """Its condition Converged, as the status page shows it."""
    conditions = instances(platform).get(name, {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Converged"), {})


def test_a_rename_keeps_the_container(platform: Platform) -> None:
    platform.wait_settled("running")
    before, url = platform.docker.only(), platform.url()
    old = platform.repo.folder / state_repo.INSTANCE
    new = old.with_name("hi.yaml")
    text = old.read_text().replace("name: hello", "name: hi").rstrip()
    new.write_text(f"{text}\n  moved_from: hello\n")
    old.unlink()
    platform.commit("hello is called hi now")
    platform.wait(lambda: converged(platform, RENAMED).get("status") == "True")

    after = platform.docker.only()
    assert (after["Id"], after["State"]) == (before["Id"], before["State"])
    assert platform.page_at(url) == "1.0.0"
    assert list(instances(platform)) == [RENAMED]
    assert platform.event_names()[-1] == "moved"
    assert platform.gpuaas("plan").returncode == 0

    new.write_text(new.read_text().replace("1.0.0", "1.1.0"))
    platform.commit("and gets a new version")
    platform.wait(lambda: platform.page_at(url) == "1.1.0")
    platform.wait(lambda: converged(platform, RENAMED).get("status") == "True")
    new.unlink()
    platform.commit("and goes")
    platform.wait(lambda: instances(platform)[RENAMED]["state"] == "decommissioned")
    assert platform.docker.left() == (0, 0, 0)


def test_removals_over_budget_wait_for_the_commit_that_names_them(platform: Platform) -> None:
    platform.wait_settled("running")
    platform.repo.edit(ENVIRONMENT, lambda text: text.replace("max: 5", "max: 0"))
    platform.remove_instance()
    platform.commit("remove it, where nothing may be removed")
    platform.wait_settled("running", result="stalled")
    assert converged(platform)["reason"] == "RemovalBudget"
    (finding,) = platform.findings()
    plan = platform.gpuaas("plan", "--format", "json")
    assert plan.returncode == 2
    wanted = finding["hint"].partition('removals: "')[2][:16]
    assert wanted in plan.stdout
    assert platform.page() == "1.0.0"

    until = time_text(int((time.time() + 3600) * 1000))
    approval = (
        f'    approvals:\n      - removals: "{wanted}"\n        reason: the project ended\n'
        f"        until: {until}\n"
    )
    guards = GUARDS.replace("max: 5", "max: 0")
    platform.repo.edit(ENVIRONMENT, lambda text: text.replace(guards, guards + approval))
    platform.commit("agree to exactly that")
    platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)


@pytest.fixture
def slow_platform(tmp_path: Path, docker_host: str, published: Published) -> Iterator[Platform]:
    """One that looks at nothing by itself for ten minutes: only what is due or told wakes it."""
    pace = {"GPUAAS_RESYNC_INTERVAL_S": "600", "GPUAAS_LEASE_TTL_S": "60"}
    made = Platform(tmp_path, published, docker_host, pace)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_a_suspension_shows_a_change_holds_it_and_ends_by_itself(slow_platform: Platform) -> None:
    platform = slow_platform
    platform.wait_settled("running")
    until_s = time.time() + 3600
    until = time_text(int(until_s * 1000))
    term = f"  suspend:\n    by: ada\n    reason: the demo\n    until: {until}"
    path = platform.repo.folder / state_repo.INSTANCE
    path.write_text(f"{path.read_text().rstrip()}\n{term}\n".replace("1.0.0", "1.1.0"))
    platform.commit("a new version, but not during the demo")
    platform.wait(lambda: converged(platform).get("reason") == "Suspended")
    said = gpuaas("status", environment=platform.environment).stdout
    assert "suspended by ada until" in " ".join(said.split())
    assert platform.page() == "1.0.0"
    until_s = time.time() + 4
    path.write_text(path.read_text().replace(until, time_text(int(until_s * 1000))))
    platform.commit("it takes but a moment")
    platform.wait_settled("running")
    assert platform.page() == "1.1.0"
    assert time.time() >= until_s - 1
