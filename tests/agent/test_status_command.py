"""What `gpuaas-agent` says on its own node, and where it takes its options from."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.last_report import keep_report
from node_agent.main import run_command as command_run
from node_agent.wire import Inventory, Phase, Report, ServicePhase, WorkloadReport
from tests.agent.commands import run_command

ENGINE_VARIABLES = ("GPUAAS_AGENT_RUN_ENGINE", "GPUAAS_AGENT_RUN_ENGINE_NAMES")
REPORT = Report(
    node="node-a",
    agent_version="1",
    sent_at_ms=1,
    report_seq=1,
    last_seq=1,
    connected_at_ms=1,
    complete=True,
    inventory=Inventory(
        engines=("compose",),
        cpu_count=1,
        memory_mib=1,
        disk_free_mib=1,
        architecture="x86_64",
        operating_system="Linux",
    ),
    workloads=(
        WorkloadReport(
            instance="acme/research/answers",
            target_hash="a",
            running_hash="a",
            phase=Phase.DEGRADED,
            services=(
                ServicePhase(name="api", phase="ready"),
                ServicePhase(name="worker", phase="failed", detail="exited with 1"),
            ),
        ),
    ),
)


def test_each_service_has_a_line(tmp_path: Path) -> None:
    keep_report(tmp_path, REPORT)
    said = [line.split() for line in run_command(tmp_path, "status").output.splitlines()[1:]]
    assert said == [
        ["acme/research/answers", "degraded"],
        ["api", "ready"],
        ["worker", "failed", "exited", "with", "1"],
    ]


@pytest.mark.parametrize("variable", ENGINE_VARIABLES)
def test_engines_by_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "docker compose")
    context = command_run.make_context("run", [], obj=Path())
    assert context.params["engine_names"] == ("docker", "compose")
