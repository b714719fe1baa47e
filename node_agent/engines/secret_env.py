"""How a workload starts that finds secrets in its environment. Pure.

Rules:
- The engine starts `/bin/sh` with a fixed script, which reads the values from the files in memory
  and then becomes the workload's own command. So no value is in what an engine is asked for, writes
  down or shows: there are names only. No text of a manifest is part of the script.
- Only the workload's own process has them: not what puts its packages in before, and not what is
  run beside it, such as a command that probes it. Those can read the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from node_agent.engines.base import SECRETS_VARIABLE, EngineFailure
from node_agent.wire import FailureReason, Workload

SHELL = "/bin/sh"
NO_SECRET = 94
"""The exit code when a file is not there: somebody started it by hand."""
VALUE_BYTES_MAX = 120_000
"""Of one variable, its name included, the kernel takes 128 KiB."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
# By the shell's own means, since an image may have no other program. Nothing is lost at the end of
# a value, as it would be in "$(…)".
_SCRIPT = f"""\
while [ "$1" != -- ]; do
  gpuaas_file=${SECRETS_VARIABLE}/${{1#*=}}
  [ -r "$gpuaas_file" ] || {{
    echo "gpuaas: the secret ${{1#*=}} is not there" >&2
    exit {NO_SECRET}
  }}
  gpuaas_value=
  while IFS= read -r gpuaas_line; do gpuaas_value=$gpuaas_value$gpuaas_line'
'; done <"$gpuaas_file"
  export "${{1%%=*}}=$gpuaas_value$gpuaas_line"
  shift
done
shift
unset gpuaas_file gpuaas_value gpuaas_line
exec "$@"
"""


def wanted(workload: Workload) -> bool:
    return any(secret.env for secret in workload.secrets)


def wrapped(workload: Workload, command: Iterable[str]) -> list[str]:
    """The command that puts secrets into the environment and then becomes `command`."""
    pairs = [f"{secret.env}={secret.name}" for secret in workload.secrets if secret.env]
    refused = [secret.env for secret in workload.secrets if secret.env and not _fits(secret.env)]
    if refused:
        message = f"{refused[0][:80]!r} is no name for a variable that holds a secret"
        raise EngineFailure(FailureReason.CREATE_REFUSED, message)
    return [SHELL, "-c", _SCRIPT, "gpuaas-secrets", *pairs, "--", *command]


def no_shell(workload: Workload) -> str:
    """What to say of an image that can't be started so."""
    named = [f"{secret.env} ({secret.name})" for secret in workload.secrets if secret.env]
    return (
        f"secrets in variables need {SHELL} in the image, and there is none: leave out env of "
        f"{', '.join(named)} and read the files in the folder that {SECRETS_VARIABLE} names"
    )


def _fits(name: str) -> bool:
    return _VARIABLE.fullmatch(name) is not None and name != SECRETS_VARIABLE
