"""The main job on real services: launch, upgrade, roll back, stop, remove, and what can fail."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter

import pytest
from docker.errors import ImageNotFound

from node_agent.wire import LABEL_MANAGED, LABEL_NODE
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import INSTANCE, REPOSITORY, VERSIONS, Platform, push
from tests.e2e.watching import sampling

OLD, NEW = VERSIONS


def test_one_instance_from_launch_to_decommission(platform: Platform) -> None:
    platform.wait_settled("running")
    runs_as_described(platform)
    first = platform.page()

    upgrades_without_two_at_once(platform)
    assert (first, platform.page()) == (OLD, NEW)

    platform.revert()
    platform.wait_settled("running")
    serves(platform, OLD)

    stops_and_starts(platform)
    goes_without_a_trace(platform)
    assert platform.event_names() == [
        "requested", "deploying", "running",
        "upgrade_requested", "upgraded",
        "rollback_requested", "rolled_back",
        "decommission_requested", "decommissioned",
    ]  # fmt: skip
    each_event_once(platform)


def runs_as_described(platform: Platform) -> None:
    serves(platform, OLD)
    container = platform.docker.only()
    host, labels = container["HostConfig"], container["Config"]["Labels"]
    assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 256 * 1024 * 1024)
    assert host["MemorySwap"] == host["Memory"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["Privileged"]
    assert (labels[LABEL_MANAGED], labels[LABEL_NODE]) == ("true", platform.node)
    bindings = container["NetworkSettings"]["Ports"]["8080/tcp"]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
    assert bindings[0]["HostPort"] == str(platform.instance()["endpoints"][0]["host_port"])


def upgrades_without_two_at_once(platform: Platform) -> None:
    old, node = platform.docker.only()["Name"].lstrip("/"), platform.docker
    reference = reference_of(platform, NEW)
    with contextlib.suppress(ImageNotFound):
        node.api.remove_image(reference, force=True)
    since_s = time.time()
    with sampling(node) as sampled:
        platform.set_version(NEW)
        platform.commit("hello is newer")
        platform.wait_settled("running")
    serves(platform, NEW)
    assert max(sampled.counts) == 1, Counter(sampled.counts)
    history = [(action, name) for _, action, name in node.history(since_s)]
    new = node.only()["Name"].lstrip("/")
    moments = [("pull", reference), ("create", new), ("die", old), ("start", new), ("destroy", old)]
    assert [entry for entry in history if entry in moments] == moments


def stops_and_starts(platform: Platform) -> None:
    (before,) = (one["Id"] for one in platform.docker.running())
    platform.edit_instance("desired: running", "desired: stopped")
    platform.commit("a pause")
    stopped = platform.wait_settled("running")
    assert platform.docker.running() == []
    assert condition(stopped, "Ready") == ("False", "Stopped")
    platform.edit_instance("desired: stopped", "desired: running")
    platform.commit("the pause is over")
    platform.wait_settled("running")
    assert platform.docker.only()["Id"] == before
    serves(platform, OLD)


def goes_without_a_trace(platform: Platform) -> None:
    assert platform.docker.left() == (1, 1, 0)
    platform.remove_instance()
    platform.commit("hello is done")
    gone = platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)
    assert gone["message"] == "teardown proved"


def test_plan_status_and_events_say_what_happens(platform: Platform) -> None:
    platform.wait_settled("running")
    assert platform.gpuaas("plan").returncode == 0
    platform.set_version(NEW)
    revision = platform.repo.commit("not pushed to anybody yet")

    text = platform.gpuaas("plan")
    assert text.returncode == 2, text.stderr
    assert f"~ upgrade   {INSTANCE} on {platform.node}: version {OLD} → {NEW}" in text.stdout
    markdown = platform.gpuaas("plan", "--format", "markdown")
    assert markdown.returncode == 2
    assert f"| `~` upgrade | `{INSTANCE}` | `{platform.node}` |" in markdown.stdout
    planned = platform.gpuaas("plan", "--format", "json")
    assert planned.returncode == 2
    document = json.loads(planned.stdout)
    assert (document["revision"], document["empty"]) == (revision, False)
    (action,) = document["actions"]
    assert (action["action"], action["version_from"], action["version"]) == ("upgrade", OLD, NEW)
    assert action["digest"] == platform.published.digests[NEW]
    serves(platform, OLD)

    waited = platform.gpuaas("status", "--wait", "--timeout-s", "100")
    assert waited.returncode == 0, waited.stdout
    assert NEW in waited.stdout
    serves(platform, NEW)
    settled = platform.gpuaas("plan", "--format", "json")
    assert settled.returncode == 0
    assert json.loads(settled.stdout)["empty"]

    told = platform.gpuaas("events", "--format", "json", "--instance", INSTANCE)
    assert [json.loads(line) for line in told.stdout.splitlines()] == platform.events()
    each_event_once(platform)


@pytest.mark.parametrize(
    ("command", "start_budget_s", "reason", "says"),
    [
        (["/bin/busybox", "false"], 60, "exited", "exited 3 times before it was ready"),
        (["/bin/busybox", "sleep", "600"], 1, "not_ready_in_time", "not ready within 1000 ms"),
    ],
    ids=["exits", "never answers"],
)
def test_an_upgrade_that_fails_goes_back_by_itself(
    platform: Platform,
    published: Published,
    command: list[str],
    start_budget_s: int,
    reason: str,
    says: str,
) -> None:
    bad = "1.2.0"
    digest = push(published.endpoint, bad)
    platform.wait_settled("running")
    platform.add_version(bad, digest, command, start_budget_s)
    platform.set_version(bad)
    with sampling(platform.docker) as sampled:
        platform.commit("an upgrade that does not work")
        platform.wait_settled("running", "stalled")
    assert max(sampled.counts) == 1
    serves(platform, OLD)
    assert platform.event_names()[3:] == [
        "upgrade_requested", "failed", "rollback_requested", "rolled_back",
    ]  # fmt: skip
    failed = platform.events()[4]["data"]
    assert (failed["reason"], failed["version"], failed["digest"]) == (reason, bad, digest)

    status = platform.gpuaas("status", "--wait", "--timeout-s", "100")
    assert status.returncode == 1, "a person must act: there is nothing to wait for"
    assert f"version {bad} was given up: {says}" in status.stdout
    assert platform.gpuaas("plan").returncode == 2

    platform.revert()
    platform.wait_settled("running")
    assert platform.gpuaas("status", "--wait", "--timeout-s", "100").returncode == 0
    assert platform.docker.only()["Config"]["Image"] == reference_of(platform, OLD)
    serves(platform, OLD)
    each_event_once(platform)


def serves(platform: Platform, version: str) -> None:
    """One container, of this version's digest, which answers; and the status says the same."""
    assert platform.docker.only()["Config"]["Image"] == reference_of(platform, version)
    assert platform.page() == version
    found = platform.instance()
    assert (found["applied_version"], found["applied_digest"]) == (
        version,
        platform.published.digests[version],
    )
    assert condition(found, "Ready") == ("True", "Ready")


def reference_of(platform: Platform, version: str) -> str:
    published = platform.published
    return f"{published.endpoint}/{REPOSITORY}@{published.digests[version]}"


def condition(instance: dict[str, object], kind: str) -> tuple[str, str]:
    conditions = instance["conditions"]
    assert isinstance(conditions, list)
    (found,) = (one for one in conditions if one["type"] == kind)
    return found["status"], found["reason"]


def each_event_once(platform: Platform) -> None:
    events = platform.events()
    assert len({event["event_id"] for event in events}) == len(events)
    cursors = [event["cursor"] for event in events]
    assert cursors == sorted(set(cursors))
