"""What somebody does behind our back is put right; what is somebody else's is left alone."""

from __future__ import annotations

from typing import Any

from node_agent.wire import LABEL_INSTANCE, LABEL_MANAGED, LABEL_NODE, LABEL_SPEC_HASH
from tests.e2e.platform import INSTANCE, Platform

SLEEP = ["/bin/busybox", "sleep", "600"]


def foreign(platform: Platform, name: str, labels: dict[str, str]) -> str:
    """A container that somebody started by hand from our image; returns its id."""
    api = platform.docker.api
    image = platform.docker.running()[0]["Config"]["Image"]
    made = api.create_container(image, entrypoint=SLEEP, name=name, labels=labels)["Id"]
    api.start(made)
    return str(made)


def state_of(platform: Platform, container: str) -> tuple[bool, str]:
    found: dict[str, Any] = platform.docker.api.inspect_container(container)
    return found["State"]["Running"], found["State"]["StartedAt"]


def test_killed_paused_renamed_and_removed_are_repaired(platform: Platform) -> None:
    api = platform.docker.api
    platform.wait_settled("running")
    before, told, url = platform.docker.only(), platform.events(), platform.url()
    api.kill(before["Id"])
    platform.wait(lambda: platform.instance()["restarts"] == 1)
    platform.wait(lambda: platform.page_at(url) == "1.0.0")
    assert platform.docker.only()["Id"] == before["Id"]

    api.pause(before["Id"])
    platform.wait(lambda: not platform.docker.only()["State"]["Paused"])
    platform.wait(lambda: platform.page_at(url) == "1.0.0")

    api.rename(before["Id"], f"somebody-was-here-{platform.node}")
    platform.wait_settled("running")
    assert platform.docker.only()["Id"] == before["Id"]

    api.remove_container(before["Id"], force=True)
    platform.wait(lambda: platform.page_at(url) == "1.0.0")
    after = platform.docker.only()
    assert (after["Name"], after["Config"]["Image"]) == (before["Name"], before["Config"]["Image"])
    assert after["HostConfig"]["PortBindings"] == before["HostConfig"]["PortBindings"]
    platform.wait_settled("running")
    assert platform.events() == told, "drift that the node repairs is no event of the instance"
    assert platform.gpuaas("plan").returncode == 0


def test_a_second_container_of_the_instance_goes(platform: Platform) -> None:
    platform.wait_settled("running")
    ours = platform.docker.only()["Id"]
    labels = {
        LABEL_MANAGED: "true",
        LABEL_NODE: platform.node,
        LABEL_INSTANCE: INSTANCE,
        LABEL_SPEC_HASH: "sha256:" + "0" * 64,
    }
    foreign(platform, f"second-{platform.node}", labels)
    platform.wait(lambda: [one["Id"] for one in platform.docker.containers()] == [ours])
    assert platform.page() == "1.0.0"


def test_strays_are_shown_and_what_is_not_ours_is_not_even_looked_at(platform: Platform) -> None:
    platform.wait_settled("running")
    ghost = f"ghost-{platform.node}"
    stray = foreign(
        platform, ghost,
        {LABEL_MANAGED: "true", LABEL_NODE: platform.node, LABEL_INSTANCE: "acme/research/ghost"},
    )  # fmt: skip
    look_alike = foreign(platform, f"gpuaas-acme-research-hello-{platform.node}", {})
    elsewhere = foreign(
        platform, f"elsewhere-{platform.node}",
        {LABEL_MANAGED: "true", LABEL_NODE: "node-of-somebody", LABEL_INSTANCE: INSTANCE},
    )  # fmt: skip
    others = (stray, look_alike, elsewhere)
    before = [state_of(platform, one) for one in others]
    try:
        (found,) = platform.wait(platform.findings)
        assert (found["code"], found["level"]) == ("stray", "info")
        assert f"{ghost} carries our label for acme/research/ghost" in found["message"]
        assert ghost in platform.gpuaas("status").stdout

        platform.set_version("1.1.0")
        platform.commit("an upgrade beside them")
        platform.wait_settled("running")
        platform.remove_instance()
        platform.commit("and a removal")
        platform.wait_settled("decommissioned")
        assert [state_of(platform, one) for one in others] == before
        assert [one["Id"] for one in platform.docker.containers()] == [stray]
    finally:
        for one in others:
            platform.docker.api.remove_container(one, force=True)
