"""What was found of signatures is kept beside the mirror, and believed with care."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.core.authority.facts import Signature
from reconciler.core.names import Revision
from reconciler.devkit.signing import SigningKey
from reconciler.settings import Settings
from tests.services.git_repo import GitRepo
from tests.services.signed_repo import Keys, SignedRepo

MEMORY = "signatures.v1.txt"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("keys")
    subkey = SigningKey.openpgp(folder, "subkey", "ben@acme.example", subkey="ed25519")
    yield Keys({"ed25519": SigningKey.ssh(folder, "ada"), "subkey": subkey}, folder)
    subkey.close()


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> SignedRepo:
    return SignedRepo(GitRepo(tmp_path / "state"), keys)


class Remembering:
    """The repository as if it were the mirror in a state folder."""

    def __init__(self, signed: SignedRepo) -> None:
        self.folder = signed.repo.folder
        self.file = self.folder / MEMORY
        self.good = signed.commit("ed25519")
        self.pgp = signed.commit("subkey")
        self.bad = signed.of_another()
        self.revisions = [self.good, self.pgp, self.bad]
        self.keys = signed.keys.openpgp

    def ask(self) -> dict[Revision, Signature]:
        log = GitCommitLog(self.folder / ".git", Settings(state_dir=self.folder))
        return dict(log.signatures(self.revisions, self.keys))


@pytest.fixture
def remembering(signed: SignedRepo) -> Remembering:
    return Remembering(signed)


def test_what_was_found_outlives_the_process(
    remembering: Remembering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = remembering.ask()
    assert [first[one].state for one in remembering.revisions] == ["good", "good", "bad"]
    assert stat.S_IMODE(remembering.file.stat().st_mode) == 0o600
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert remembering.ask() == first


def test_beside_the_mirror_only(signed: SignedRepo) -> None:
    signed.log().signatures([signed.commit("ed25519")], [])
    assert not (signed.repo.folder / MEMORY).exists()


def test_a_line_that_is_damaged_or_not_ours_is_passed_over(remembering: Remembering) -> None:
    first = remembering.ask()
    lines = remembering.file.read_text().split()
    one = f"{remembering.good} good"
    for text in (
        f"{one} SHA256:short\n", f"{one} {'A' * 41}\n", f"x{one} {'A' * 40}\n", "\0\xff\n", one,
        f"{remembering.good} none\n", f"{remembering.good} good",
    ):  # fmt: skip
        remembering.file.write_text(text)
        assert remembering.ask() == first
        assert remembering.ask() == first
    assert set(lines) <= set(remembering.file.read_text().split())


@pytest.mark.parametrize("how", ["readable by others", "a link"])
def test_a_file_that_others_may_have_written_is_not_believed(
    remembering: Remembering, tmp_path: Path, how: str
) -> None:
    first = remembering.ask()
    forged = f"{remembering.bad} good SHA256:{'A' * 43}\n"
    other = tmp_path / "other.txt"
    other.touch(mode=0o600)
    if how == "a link":
        remembering.file.unlink()
        remembering.file.symlink_to(other)
        other.write_text(forged)
    else:
        remembering.file.write_text(forged)
        remembering.file.chmod(0o660)
    assert remembering.ask() == first
    assert remembering.file.is_file()
    assert not remembering.file.is_symlink()
    assert stat.S_IMODE(remembering.file.stat().st_mode) == 0o600
    assert forged not in remembering.file.read_text()


def test_where_nothing_can_be_written_the_process_remembers(
    remembering: Remembering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remembering.file.mkdir()
    log = GitCommitLog(remembering.folder / ".git", Settings(state_dir=remembering.folder))
    first = log.signatures(remembering.revisions, remembering.keys)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert log.signatures(remembering.revisions, remembering.keys) == first
