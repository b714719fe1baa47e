"""What `gpuaas-agent join` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.commands import run_command
from tests.agent.control_plane import SECRET, ControlPlane


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (None, 4, "token_malformed: not a join token, or not the whole of it"),
        ({"verifier_hash": "0" * 64}, 4, "the server's verifier keys are not those the token pins"),
        ({"secret": "guessed"}, 4, "token_invalid: unknown, used or expired join token"),
        ({"server": "http://127.0.0.1:1"}, 7, "unreachable: the control plane does not answer"),
    ],
)
def test_join_tells_what_is_wrong(
    plane: ControlPlane, tmp_path: Path, changes: dict[str, str] | None, code: int, words: str
) -> None:
    token = "nonsense" if changes is None else plane.token(**changes)
    result = run_command(tmp_path, "join", environment={"GPUAAS_JOIN_TOKEN": token})
    assert (result.exit_code, words in result.output) == (code, True), result.output
    assert SECRET not in result.output
    assert not (tmp_path / "agent.json").exists()


def test_a_join_token_works_once(plane: ControlPlane, joined: Path, tmp_path: Path) -> None:
    token = {"GPUAAS_JOIN_TOKEN": plane.token()}
    result = run_command(tmp_path / "second", "join", environment=token)
    assert (result.exit_code, "token_invalid" in result.output) == (4, True)
    again = run_command(joined, "join", environment=token)
    assert (again.exit_code, "already joined" in again.output) == (1, True)
