"""How a workload starts that wants Python packages put in first. Pure.

Rules:
- The engine starts `/bin/sh` with a fixed script; `put_in` does the work, and then the script
  becomes the workload's own command. No text of a manifest is part of the script.
- Packages are in a folder of the unit's own, first in PYTHONPATH, its `bin` first in PATH, also
  for what is run beside the workload, such as a command that probes it. A new unit begins without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import urlsplit

from node_agent.engines import put_in
from node_agent.engines.base import EngineFailure
from node_agent.wire import ExecProbe, FailureReason, Packages

SHELL = "/bin/sh"
THERE = ExecProbe(command=(SHELL, "-c", '[ -d "${PYTHONPATH%%:*}" ]'))
"""Whether they are put in, for a workload that has no readiness of its own to ask for."""
THERE_TIMEOUT_MS = 10_000
NO_SHELL = f"pip_packages need {SHELL} in the image, and there is none"
_FOLDERS = ("/tmp", "/var/tmp")  # noqa: S108  (inside a container, where every user may write)
_PUT_IN = Path(put_in.__file__).read_text()
# Codes from 95 on are put_in's own or those of a signal; anything else is a python3 that can't run.
_SCRIPT = f"""\
command -v python3 >/dev/null 2>&1 || {{
  echo 'gpuaas: no python3 here, so no packages can be put in' >&2
  exit {put_in.NO_PIP}
}}
python3 -I -c "$1"
code=$?
[ "$code" -eq 0 ] || {{ [ "$code" -ge {put_in.NO_FOLDER} ] && exit "$code"; exit {put_in.NO_PIP}; }}
shift
unset {put_in.VARIABLE}
exec "$@"
"""


def wrapped(command: Iterable[str]) -> list[str]:
    """The command that puts packages in and then becomes `command`."""
    return [SHELL, "-c", _SCRIPT, "gpuaas-start", _PUT_IN, *command]


def variables(packages: Packages, into: str, base: Mapping[str, str]) -> dict[str, str]:
    """What the command above, and the workload, find in the environment. `base`: what they had."""
    url = urlsplit(packages.index_url)
    plan = {
        "into": into,
        "index_url": packages.index_url,
        "trusted_host": url.netloc if url.scheme == "http" else "",
        "require_hashes": packages.require_hashes,
        "requirements": packages.requirements,
    }
    before = base.get("PYTHONPATH")
    return {
        put_in.VARIABLE: json.dumps(plan),
        "PATH": f"{into}/bin:{base['PATH']}",
        "PYTHONPATH": f"{into}:{before}" if before else into,
    }


def folder_outside(volumes: Iterable[str]) -> str:
    """Where a container keeps its packages: in none of its volumes, which outlive it."""
    taken = [PurePosixPath(normpath(f"/{path.lstrip('/')}")) for path in volumes]
    for folder in _FOLDERS:
        into = PurePosixPath(folder, "gpuaas-packages")
        # A volume below it would make the folder, and it would seem to be complete.
        if not any(into.is_relative_to(path) or path.is_relative_to(into) for path in taken):
            return str(into)
    message = f"the image declares {' and '.join(_FOLDERS)} as volumes: no place for pip_packages"
    raise EngineFailure(FailureReason.PACKAGES_FAILED, message)
