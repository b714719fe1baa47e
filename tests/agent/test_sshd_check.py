"""What sshd lets the users of tunnels do beside them: asked of a real one, and of broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from node_agent.authorized_keys import AuthorizedKeys
from node_agent.sshd_check import FRESH_S, SshdCheck
from tests.agent.homes import Homes, a_key

OPEN = (
    "whoever has its key may use its Unix sockets as well, and make some: set "
    "AllowStreamLocalForwarding no for it in sshd_config"
)


def program(folder: Path, script: str) -> str:
    """Stands for sshd; notes each time that it is asked."""
    file = folder / "sshd"
    file.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{script}\n')
    file.chmod(0o700)
    return str(file)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo allowtcpforwarding local; echo allowstreamlocalforwarding no", ""),
        ("echo disableforwarding yes; echo allowstreamlocalforwarding yes", ""),
        ("echo allowstreamlocalforwarding yes", OPEN),
        ("echo allowstreamlocalforwarding local", OPEN),
        ("echo AllowStreamLocalForwarding No", ""),
        ("true", OPEN),
        (
            "echo first >&2; echo 'no hostkeys available' >&2; exit 1",
            "sshd does not say whether who has its key may use Unix sockets (no hostkeys "
            "available): set AllowStreamLocalForwarding no for it in sshd_config",
        ),
    ],
)
def test_what_it_answers(tmp_path: Path, script: str, said: str) -> None:
    assert SshdCheck(program(tmp_path, script))("tunnel") == said
    connection = "user=tunnel,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    assert asked(tmp_path) == [f"-T -C {connection}"]


def test_one_that_can_not_be_run(tmp_path: Path) -> None:
    said = SshdCheck(str(tmp_path / "none"))("tunnel")
    assert said.startswith("sshd does not say whether")
    assert "(FileNotFoundError)" in said


def test_it_is_asked_now_and_then(tmp_path: Path) -> None:
    now_s = [0.0]
    check = SshdCheck(program(tmp_path, ""), lambda: now_s[0])
    for _ in range(3):
        check("tunnel")
    assert len(asked(tmp_path)) == 1
    check("other")
    now_s[0] = FRESH_S
    check("tunnel")
    assert len(asked(tmp_path)) == 3


def test_where_there_is_none_nothing_is_said() -> None:
    assert SshdCheck("")("tunnel") == ""


def test_a_real_one_by_its_match_blocks(tmp_path: Path) -> None:
    real = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert real, "the tests need sshd, of the package openssh-server"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    key, config = tmp_path / "key", tmp_path / "sshd_config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config.write_text(f"HostKey {key}\nMatch User tunnel\n  AllowStreamLocalForwarding no\n")
    check = SshdCheck(program(tmp_path, f'exec {real} -f {config} "$@"'))
    assert (check("tunnel"), check("root")) == ("", OPEN)


def test_the_keys_are_installed_and_it_is_told(tmp_path: Path) -> None:
    homes = Homes(tmp_path)
    keys = AuthorizedKeys(homes.memory, homes.users.get, (), lambda user: f"mind {user}")
    found = keys.converge([a_key()])
    assert (found.ids, found.error) == (("acme/lab/1",), "user tunnel: mind tunnel")
    assert homes.file.exists()
    assert keys.converge([]).error == ""
