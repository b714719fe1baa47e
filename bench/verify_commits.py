"""A history of signed commits: how long until it is known who signed each of them.

Rules:
- The line of commits is read with what each of them touched. The first time, a control plane has
  Git verify every signature; another process on the same state folder finds what it said.
- The yardsticks are Git itself on the same commits: `git verify-commit`, a process a commit, as a
  hook or a CI job does it, and one `git log` that shows all signatures.
- Before anything is measured, both must call every commit good, and a commit that was tampered with
  bad: who verifies nothing is fast.
- Sides take turns, and seconds are medians of wall time.

Run: `python -m bench.verify_commits [--commits 1000] [--rounds 3] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.core.authority.facts import Signature
from reconciler.core.names import Revision
from reconciler.devkit.signing import SigningKey, git_config
from reconciler.devkit.state_repo import StateRepo
from reconciler.settings import Settings

FILES = 50
MIRROR = "mirror.git"


@dataclass(frozen=True)
class Result:
    """Seconds for all commits."""

    key: str
    commits: int
    chain_s: float
    cold_s: float
    again_s: float
    verify_commit_s: float
    git_log_s: float


class History:
    """A bare repository in a state folder, as the mirror is, and all that is known of its keys."""

    def __init__(self, folder: Path, key: SigningKey, commits: int) -> None:
        self.folder = folder
        self.key = key
        folder.mkdir()
        repo = StateRepo(folder / "repo")
        repo.folder.mkdir()
        repo.git("init", "--quiet", "--initial-branch", "main")
        for number in range(commits):
            file = repo.folder / f"tenants/t{number % FILES}/file.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"number: {number}\n")
            repo.git("add", "--all")
            repo.git(*git_config(key), "commit", "--quiet", "--message", f"Change {number}")
        self.head = Revision(repo.head())
        self.state = folder / "state"
        self.state.mkdir()
        repo.git("clone", "--quiet", "--bare", str(repo.folder), str(self.state / MIRROR))
        self.revisions = [Revision(one) for one in repo.git("rev-list", "HEAD").split()]
        self._environment = self._trusting_environment()

    def _trusting_environment(self) -> dict[str, str]:
        allowed = self.folder / "allowed"
        allowed.write_text(f"* {self.key.public_line}\n" if self.key.type == "ssh" else "")
        home = self.folder / "gnupg"
        home.mkdir(mode=0o700)
        if self.key.type == "openpgp":
            self._run(["gpg", "--homedir", str(home), "--import"], self.key.public_line.encode())
        config = self.folder / "config"
        config.write_text(f'[gpg "ssh"]\n\tallowedSignersFile = {allowed}\n')
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "GNUPGHOME": str(home),
            "GIT_CONFIG_GLOBAL": str(config), "GIT_DIR": str(self.state / MIRROR),
        }  # fmt: skip

    def verify_commit(self, revision: Revision) -> bool:
        command = ["git", "verify-commit", revision]
        done = subprocess.run(
            command, env=self._environment, stderr=subprocess.DEVNULL, check=False
        )
        return done.returncode == 0

    def verify_each(self) -> None:
        assert all(self.verify_commit(revision) for revision in self.revisions)

    def git_log(self) -> None:
        said = self._run(["git", "log", "--format=%G?", self.head], b"", self._environment)
        assert set(said.split()) <= {b"G", b"U"}

    def signatures(self) -> Mapping[Revision, Signature]:
        log = GitCommitLog(self.state / MIRROR, Settings(state_dir=self.state))
        keys = [self.key.public_line] if self.key.type == "openpgp" else []
        return log.signatures(self.revisions, keys)

    def check_again(self) -> None:
        assert {said.state for said in self.signatures().values()} == {"good"}

    def check_cold(self) -> None:
        for file in self.state.glob("signatures*"):
            file.unlink()
        self.check_again()

    def read_chain(self) -> None:
        log = GitCommitLog(self.state / MIRROR, Settings(state_dir=self.state))
        assert all(step.touched for step in log.chain(None, self.head))

    def check_that_it_is_checked(self) -> None:
        """A commit with another subject than what was signed is nobody's."""
        git = ["git", f"--git-dir={self.state / MIRROR}"]
        raw = self._run([*git, "cat-file", "commit", self.head])
        forged = raw.replace(b"\nChange ", b"\nForged ")
        written = self._run([*git, "hash-object", "-t", "commit", "-w", "--stdin"], forged)
        revision = Revision(written.decode().strip())
        assert not self.verify_commit(revision)
        log = GitCommitLog(self.state / MIRROR, Settings(state_dir=self.state))
        assert log.signatures([revision], [self.key.public_line])[revision].state == "bad"

    @staticmethod
    def _run(
        command: list[str], given: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> bytes:
        done = subprocess.run(
            command, input=given, env=environment, capture_output=True, check=True
        )
        return done.stdout


def measure(folder: Path, key: SigningKey, commits: int, rounds: int) -> Result:
    history = History(folder, key, commits)
    history.check_that_it_is_checked()
    sides: dict[str, Callable[[], None]] = {
        "chain_s": history.read_chain,
        "cold_s": history.check_cold,
        "again_s": history.check_again,
        "verify_commit_s": history.verify_each,
        "git_log_s": history.git_log,
    }
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            took[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    return Result(key=key.type, commits=commits, **medians)


def lines(found: Result) -> Iterator[str]:
    yield f"{found.commits} commits signed with {found.key}, on {os.cpu_count()} processors"
    rows = {
        "gpuaas: read the line of commits": found.chain_s,
        "gpuaas: verify, the first time": found.cold_s,
        "gpuaas: verify, another process": found.again_s,
        "git verify-commit, one by one": found.verify_commit_s,
        "git log with all signatures": found.git_log_s,
    }
    for name, seconds in rows.items():
        each_ms = seconds / found.commits * 1000
        ratio = seconds / found.cold_s
        yield f"  {name:34}{seconds:8.3f} s {each_ms:7.2f} ms each   ratio {ratio:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--commits", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in (
            SigningKey.ssh(folder / "keys", "ssh"),
            SigningKey.openpgp(folder / "keys", "openpgp", "ada@acme.example"),
        ):
            try:
                results.append(measure(folder / key.type, key, given.commits, given.rounds))
            finally:
                key.close()
            print("\n".join(lines(results[-1])), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
