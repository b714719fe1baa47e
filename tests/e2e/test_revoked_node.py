"""A node is shut out while it works, and let in again: what runs there hears nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from reconciler.devkit import process
from tests.e2e.platform import AGENT, Platform

Make = Callable[..., Platform]


def test_a_revoked_node_is_told_nothing_until_it_joins_anew(process_platform: Make) -> None:
    platform = process_platform()
    platform.start()
    platform.wait_settled("running")
    before = platform.workload_processes()
    done = platform.gpuaas("node", "revoke", platform.node, "--reason", "disk sold")
    assert done.returncode == 0, done.stderr

    platform.wait(lambda: "node_revoked" in process.log_tail(platform.root / f"{AGENT}.log"))
    platform.wait(lambda: any(one["code"] == "node_revoked" for one in platform.findings()))
    platform.set_version("1.1.0")
    platform.commit("an upgrade that nobody there may hear of")
    platform.wait(lambda: "node_revoked" in platform.gpuaas("status").stdout)
    assert platform.page() == "1.0.0"
    assert platform.workload_processes() == before
    assert "disk sold" in platform.gpuaas("node", "list").stdout

    platform.kill(AGENT)
    token = platform.root / "token"
    token.write_text(platform.gpuaas("node", "join", platform.node).stdout)
    process.run([*platform._agent_command(), "join", "--again", "--token-file", str(token)])
    platform.start_agent()
    platform.wait_settled("running")
    assert platform.page() == "1.1.0"
    told = platform.gpuaas("audit", "list", "--format", "json").stdout
    for action in ("fleet.node.joined", "fleet.node.revoked", "fleet.certificate.issued"):
        assert action in told
