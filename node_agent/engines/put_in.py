"""Puts Python packages in before a workload starts: run inside it, by its own python3, as its user.

Its text is handed to `python3 -I -c`, never imported there: standard library only, Python 3.7 on.
What to do comes as JSON in one variable, {"into", "index_url", "trusted_host", "require_hashes",
"requirements"}, and no shell reads it. pip hears of one index and of nothing else: no settings of
the image, no variables. The folder appears by one rename, complete, so that a start that was cut
short begins anew and a further start finds it there. pip's words go to the workload's log.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys

VARIABLE = "GPUAAS_PACKAGES"
NO_FOLDER, NO_PIP, PIP_FAILED = 95, 96, 97


def main() -> int:
    """The exit code: 0, or one of those above."""
    plan = json.loads(os.environ[VARIABLE])
    if os.path.isdir(plan["into"]):
        return 0
    if importlib.util.find_spec("pip") is None:
        sys.stderr.write("gpuaas: this python3 has no pip, so no packages can be put in\n")
        return NO_PIP
    try:
        return put_in(plan, plan["into"] + ".draft", plan["into"] + ".txt")
    except OSError as error:
        sys.stderr.write(f"gpuaas: {plan['into']} can't be written: {error.strerror}\n")
        return NO_FOLDER


def put_in(plan: dict[str, object], draft: str, lines: str) -> int:
    # Whom the workload runs as after its entrypoint must be able to read what is put in.
    os.umask(0o022)
    shutil.rmtree(draft, ignore_errors=True)
    os.makedirs(draft)
    with open(lines, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in plan["requirements"])  # type: ignore[attr-defined]
    ended = subprocess.call(
        command(plan, draft, lines), env=environment(), stdin=subprocess.DEVNULL
    )
    if ended:
        sys.stderr.write("gpuaas: pip could not put the packages in, for the reason above\n")
        return PIP_FAILED
    os.rename(draft, str(plan["into"]))
    return 0


def command(plan: dict[str, object], draft: str, lines: str) -> list[str]:
    words = [sys.executable, "-I", "-m", "pip", "install", "--isolated", "--no-input"]
    words += ["--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off"]
    words += ["--index-url", str(plan["index_url"])]
    if plan["trusted_host"]:
        words += ["--trusted-host", str(plan["trusted_host"])]
    if plan["require_hashes"]:
        # Building one would bring in tools that no hash covers.
        words += ["--require-hashes", "--only-binary=:all:"]
    return [*words, "--target", draft, "--requirement", lines]


def environment() -> dict[str, str]:
    """Without what would tell pip, or a pip that it starts, of another index."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("PIP_", "PYTHON", "UV_"))
    }
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


if __name__ == "__main__":
    raise SystemExit(main())
