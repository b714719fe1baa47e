"""Whether this host's sshd keeps the users of tunnels from its Unix sockets.

Rule: only warns. No option of an authorized_keys line closes what `permitopen` and `permitlisten`
leave open: a key that may forward ports may forward Unix sockets too, in both directions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable

ASK_TIMEOUT_S = 5.0
FRESH_S = 600.0
_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin"
_OFF = {"allowstreamlocalforwarding": "no", "disableforwarding": "yes"}
_SAID_LENGTH_MAX = 200
_HINT = "set AllowStreamLocalForwarding no for it in sshd_config"


class SshdCheck:
    """Asks `sshd -T`, once in a while for each user. For one thread at a time.

    `program` is sshd, or nothing where there is none or it may not be asked, which takes root.
    """

    def __init__(
        self, program: str | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._program = program if program is not None else _found()
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, str]] = {}

    def __call__(self, user: str) -> str:
        """What is to be said of a user whose name is well-formed; empty where all is well."""
        if not self._program:
            return ""
        until_s, said = self._known.get(user, (0.0, ""))
        if user not in self._known or self._monotonic() >= until_s:
            said = _warning(self._program, user)
            self._known[user] = self._monotonic() + FRESH_S, said
        return said


def _found() -> str:
    return (shutil.which("sshd", path=_PLACES) or "") if os.geteuid() == 0 else ""


def _warning(program: str, user: str) -> str:
    connection = f"user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    try:
        asked = subprocess.run(
            [program, "-T", "-C", connection],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT_S, check=False,
            env={"PATH": _PLACES},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return _unknown(type(error).__name__)
    if asked.returncode:
        return _unknown(asked.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    lines = asked.stdout.decode(errors="replace").splitlines()
    options = dict(line.lower().split(" ", 1) for line in lines if " " in line)
    if any(options.get(name) == off for name, off in _OFF.items()):
        return ""
    return f"whoever has its key may use its Unix sockets as well, and make some: {_HINT}"


def _unknown(why: str) -> str:
    return (
        "sshd does not say whether who has its key may use Unix sockets "
        f"({why[:_SAID_LENGTH_MAX]}): {_HINT}"
    )
