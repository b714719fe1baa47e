"""Packages put in before a workload starts: the very script, run by a shell of this host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from node_agent import converge
from node_agent.engines import put_in
from node_agent.engines.base import EngineFailure
from node_agent.engines.docker_api import has_file
from node_agent.engines.packages import THERE, folder_outside, variables, wrapped
from node_agent.wire import FailureReason, Packages
from tests.services.package_index import PackageIndex, serving

SAY = "import greeting; print(greeting.WORD)"


@pytest.fixture(scope="module")
def index() -> Iterator[PackageIndex]:
    with serving("127.0.0.1") as found:
        found.add("greeting", "1.0", "WORD = 'hello'")
        found.add("greeting", "2.0", "WORD = 'good day'")
        found.add("polite", "1.0", "from greeting import WORD", requires="greeting<2")
        yield found


@dataclass
class Host:
    """A folder that stands for a container, and how to run something in it."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def into(self) -> Path:
        return self.folder / "packages"

    def environment(self, packages: Packages) -> dict[str, str]:
        programs = os.path.dirname(sys.executable)
        base = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(self.folder), **self.extra}
        return {**base, **variables(packages, str(self.into), base)}

    def run(self, packages: Packages, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            wrapped(command or ("python3", "-c", SAY)), env=self.environment(packages),
            capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip

    def there(self, packages: Packages) -> bool:
        ended = subprocess.run(THERE.command, env=self.environment(packages), check=False)
        return ended.returncode == 0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def wanted(index: PackageIndex, *lines: str, hashes: bool = False) -> Packages:
    return Packages(index_url=index.url, requirements=lines, require_hashes=hashes)


def test_what_is_put_in_is_there_for_the_command(host: Host, index: PackageIndex) -> None:
    packages = wanted(index, "greeting==1.0")
    assert not host.there(packages)
    ended = host.run(packages)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "hello"), ended.stderr
    assert host.there(packages)
    assert host.run(packages, "greeting-says").stdout == "1.0\n"


def test_what_a_package_needs_comes_from_the_same_index(host: Host, index: PackageIndex) -> None:
    ended = host.run(wanted(index, "polite"), "python3", "-c", "import polite; print(polite.WORD)")
    assert ended.stdout.splitlines()[-1] == "hello"


def test_a_further_start_asks_for_nothing(host: Host, index: PackageIndex) -> None:
    packages = wanted(index, "greeting==2.0")
    host.run(packages)
    before = len(index.asked)
    ended = host.run(packages)
    assert (ended.stdout, len(index.asked)) == ("good day\n", before)


def test_a_start_that_was_cut_short_begins_anew(host: Host, index: PackageIndex) -> None:
    half = host.into.with_name("packages.draft")
    half.mkdir()
    (half / "greeting.py").write_text("WORD = 'half'")
    ended = host.run(wanted(index, "greeting==1.0"))
    assert ended.stdout.splitlines()[-1] == "hello"


def test_the_command_gets_its_words_as_they_are(host: Host, index: PackageIndex) -> None:
    words = ("a b", "$HOME", "`id`", "", "*", "--index-url", "'")
    show = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], 'GPUAAS_PACKAGES' in os.environ]))"
    )
    ended = host.run(wanted(index, "greeting"), "python3", "-c", show, *words)
    assert json.loads(ended.stdout.splitlines()[-1]) == [[*words], False]


def test_hashes_are_insisted_on(host: Host, index: PackageIndex) -> None:
    good = index.add("greeting", "1.0", "WORD = 'hello'")
    line = f"greeting==1.0 --hash={good}"
    assert host.run(wanted(index, line, hashes=True)).returncode == 0
    wrong = Host(host.folder / "wrong")
    wrong.folder.mkdir()
    ended = wrong.run(wanted(index, f"greeting==1.0 --hash=sha256:{'0' * 64}", hashes=True))
    assert ended.returncode == put_in.PIP_FAILED
    assert not wrong.into.exists()
    # What a hashed package needs must have a hash too.
    polite = index.add("polite", "1.0", "from greeting import WORD", requires="greeting<2")
    ended = wrong.run(wanted(index, f"polite==1.0 --hash={polite}", hashes=True))
    assert ended.returncode == put_in.PIP_FAILED


HOSTILE = {
    "PIP_INDEX_URL": "http://127.0.0.1:1/simple/",
    "PIP_EXTRA_INDEX_URL": "http://127.0.0.1:1/simple/",
    "PIP_FIND_LINKS": "/tmp",
    "PIP_NO_INDEX": "1",
    "PIP_REQUIRE_VIRTUALENV": "1",
}


def test_no_variable_and_no_file_names_another_index(host: Host, index: PackageIndex) -> None:
    """Attempted: an image whose settings send pip elsewhere."""
    settings = "".join(
        f"{name[4:].lower().replace('_', '-')} = {HOSTILE[name]}\n" for name in HOSTILE
    )
    (host.folder / "pip.conf").write_text(f"[global]\n{settings}")
    (host.folder / ".pip").mkdir()
    (host.folder / ".pip" / "pip.conf").write_text(f"[global]\n{settings}")
    (host.folder / "pip.py").write_text("raise SystemExit('not the pip you think')")
    host.extra = {**HOSTILE, "PIP_CONFIG_FILE": str(host.folder / "pip.conf")}
    ended = host.run(wanted(index, "greeting==1.0"))
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "hello"), ended.stderr


def test_nothing_in_a_line_is_run(host: Host, index: PackageIndex) -> None:
    """Attempted: shell in a requirement. Validation refuses it; nothing here would run it."""
    ended = host.run(wanted(index, "$(touch owned)", "greeting; `touch owned`", "a' 'b"))
    assert ended.returncode == put_in.PIP_FAILED
    assert not (host.folder / "owned").exists()


def test_a_package_that_the_index_does_not_have(host: Host, index: PackageIndex) -> None:
    ended = host.run(wanted(index, "greeting==9.9"))
    assert ended.returncode == put_in.PIP_FAILED
    assert "greeting==9.9" in ended.stderr
    assert "gpuaas: pip could not put the packages in" in ended.stderr


def test_no_python3(host: Host, index: PackageIndex) -> None:
    host.extra = {"PATH": "/nowhere"}
    ended = host.run(wanted(index, "greeting"), "/bin/true")
    assert ended.returncode == put_in.NO_PIP
    assert ended.stderr == "gpuaas: no python3 here, so no packages can be put in\n"


def test_a_python3_without_pip_or_that_can_not_run(host: Host, index: PackageIndex) -> None:
    programs = host.folder / "bin"
    programs.mkdir()
    fake = programs / "python3"
    # -S: without site-packages there is no pip.
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    fake.chmod(0o755)
    host.extra = {"PATH": f"{programs}:/usr/bin:/bin"}
    ended = host.run(wanted(index, "greeting"), "/bin/true")
    assert (ended.returncode, "has no pip" in ended.stderr) == (put_in.NO_PIP, True)
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert host.run(wanted(index, "greeting"), "/bin/true").returncode == put_in.NO_PIP


def test_nowhere_to_write(host: Host, index: PackageIndex) -> None:
    (host.folder / "packages.draft").write_text("a file in the way")
    ended = host.run(wanted(index, "greeting"), "/bin/true")
    assert ended.returncode == put_in.NO_FOLDER
    assert f"gpuaas: {host.into} can't be written: " in ended.stderr


def test_the_command_keeps_its_own_exit_codes(host: Host, index: PackageIndex) -> None:
    packages = wanted(index, "greeting")
    assert host.run(packages, "/bin/sh", "-c", "exit 3").returncode == 3
    assert host.run(packages, "/no/such/program").returncode == 127


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://wheels.example/simple/", ""),
        ("http://wheels.example/simple/", "wheels.example"),
        ("http://10.0.0.1:8080/simple/", "10.0.0.1:8080"),
        ("http://[fd00::1]:8080/simple/", "[fd00::1]:8080"),
    ],
)
def test_only_an_index_without_tls_is_trusted_by_name(url: str, host: str) -> None:
    found = variables(Packages(index_url=url, requirements=("x",)), "/t", {"PATH": "/bin"})
    plan = json.loads(found[put_in.VARIABLE])
    assert plan["trusted_host"] == host
    words = put_in.command(plan, "/t.draft", "/t.txt")
    assert words[words.index("--index-url") + 1] == url
    assert ("--trusted-host" in words) is bool(host)
    assert not {"--extra-index-url", "--find-links"} & set(words)


def test_packages_come_first_and_what_was_there_stays() -> None:
    packages = Packages(index_url="https://wheels.example/simple/", requirements=("x",))
    found = variables(packages, "/t", {"PATH": "/opt/bin:/bin", "PYTHONPATH": "/app"})
    assert (found["PATH"], found["PYTHONPATH"]) == ("/t/bin:/opt/bin:/bin", "/t:/app")


def test_packages_are_in_no_volume_which_would_outlive_the_container() -> None:
    assert folder_outside(()) == "/tmp/gpuaas-packages"
    assert folder_outside(("/data", "/tmp2", "/tmp/cache")) == "/tmp/gpuaas-packages"
    assert folder_outside(("/tmp/",)) == "/var/tmp/gpuaas-packages"
    for its_own in ("/tmp/gpuaas-packages", "/tmp/gpuaas-packages/bin", "//opt/../tmp/"):
        assert folder_outside((its_own,)) == "/var/tmp/gpuaas-packages"
    for volumes in (("/",), ("/tmp", "/var")):
        with pytest.raises(EngineFailure) as refused:
            folder_outside(volumes)
        assert refused.value.reason is FailureReason.PACKAGES_FAILED
        assert "as volumes: no place for pip_packages" in refused.value.message


class EndlessImage:
    """Docker, asked for a shell that is a folder with a whole disk in it."""

    def get_archive(self, _container: str, _path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        return self._chunks(), {"name": "sh"}

    def _chunks(self) -> Iterator[bytes]:
        yield from repeat(b"", 1_000)
        raise AssertionError("read on and on")


def test_a_shell_of_any_size_is_looked_for_in_a_moment() -> None:
    """Attempted: an image that keeps an agent reading while the other instances wait."""
    assert has_file(EndlessImage(), "c1", "/bin/sh")


def test_the_agent_knows_how_the_script_ends() -> None:
    codes = {put_in.NO_FOLDER, put_in.NO_PIP, put_in.PIP_FAILED}
    assert {*converge.PACKAGES_WORDS} == codes
    assert converge.PIP_FAILED_CODE == put_in.PIP_FAILED
