"""`gpuaas completion`: what a real shell offers after a TAB."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from reconciler.cli.main import COMMANDS
from tests.e2e.platform import gpuaas, program

PRESS_TAB = """
set -eu
source "$1"
shift
COMP_WORDS=(gpuaas "$@")
COMP_CWORD=$#
COMPREPLY=()
_gpuaas_completion gpuaas
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    script = folder / "completion"
    script.write_text(gpuaas("completion", "bash").stdout)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", PRESS_TAB, "bash", str(script), *words],
        env={"PATH": f"{Path(program('gpuaas')).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    # `compopt` is only known while a key is pressed.
    said = [line for line in done.stderr.splitlines() if "compopt" not in line]
    assert (done.returncode, said) == (0, [])
    return set(done.stdout.split())


def test_commands(tmp_path: Path) -> None:
    assert offered(tmp_path, "") == {*COMMANDS}
    assert offered(tmp_path, "va") == {"validate", "vault"}


def test_options_and_their_values(tmp_path: Path) -> None:
    assert {"--base", "--ref", "--format"} <= offered(tmp_path, "validate", "--")
    assert offered(tmp_path, "validate", "--format", "") == {"text", "json", "sarif", "github"}
    assert offered(tmp_path, "validate", "--format", "s") == {"sarif"}
    assert offered(tmp_path, "completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize(
    ("shell", "says"), [("bash", "complete -o"), ("zsh", "#compdef gpuaas"), ("fish", "complete ")]
)
def test_each_shell_gets_a_script_of_its_own(shell: str, says: str) -> None:
    done = gpuaas("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout


def test_a_shell_that_is_not_known() -> None:
    done = gpuaas("completion", "powershell")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'powershell' is not one of 'bash', 'zsh', 'fish'" in done.stderr
