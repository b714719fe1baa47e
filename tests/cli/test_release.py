"""`gpuaas release` against a control plane, and on its host: what is shown, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from reconciler.adapters import blob_http
from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.cli.common import EXIT_CHANGES, EXIT_OK
from reconciler.cli.release import release
from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.cli.state_repo import Done, run
from tests.fakes.blobs import PIECE_BYTES, MemoryBlobs
from tests.server.releases_world import (
    ACCEPTED,
    BLOBS,
    CLI,
    IMAGE,
    SDK,
    digest_of,
    serving,
)

NAME = "gpuaas-0.10.0-linux-amd64.tar.gz"
GET_CLI = ("download", "0.10.0", "cli", "--platform", "linux/amd64")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPUAAS_TOKEN", raising=False)
    monkeypatch.delenv("GPUAAS_ENVIRONMENT", raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as client:
        yield str(client.base_url)


def refused(*args: str | Path) -> str:
    with pytest.raises(Refused) as error:
        run(release, *args)
    return str(error.value)


def test_the_list(server: str) -> None:
    done = run(release, "list", "--server", server)
    builds = "agent for linux/amd64; cli for linux/amd64, linux/arm64; sdk for any"
    assert done.output.splitlines() == [
        f"0.11.0-rc.1  next  {builds}",
        f"0.10.0  stable, 2026-11-02T08:30:00Z  {builds}",
        f"0.9.0  stable  {builds}",
    ]
    found = run(release, "list", "--channel", "next", "--server", server, "--format", "json")
    assert [one["version"] for one in found.document["releases"]] == ["0.11.0-rc.1"]
    none = run(release, "list", "--channel", "none", "--server", server)
    assert none.output == "nothing is published in channel none\n"


def test_one_release(server: str) -> None:
    lines = run(release, "show", "0.10.0", "--server", server).output.splitlines()
    assert lines[:2] == ["0.10.0, channel stable, released 2026-11-02T08:30:00Z", "better"]
    assert f"  cli    linux/amd64       300 KiB  {digest_of(CLI)}  {NAME}" in lines
    assert lines[2].endswith(f"{IMAGE}@{digest_of(b'x')}")
    found = run(release, "show", "0.10.0", "--server", server, "--format", "json").document
    assert {one["digest"] for one in found["builds"]} >= {digest_of(CLI), digest_of(SDK)}


def test_a_download(server: str, tmp_path: Path) -> None:
    done = run(release, *GET_CLI, "--server", server, "--format", "json")
    assert (done.code, json.loads(done.output)) == (
        EXIT_OK,
        {
            "version": "0.10.0",
            "component": "cli",
            "platform": "linux/amd64",
            "digest": digest_of(CLI),
            "size_bytes": len(CLI),
            "file": NAME,
        },
    )
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(NAME, CLI)]
    told = run(release, *GET_CLI, "--server", server).output
    assert told == f"wrote {NAME}: 300 KiB, {digest_of(CLI)}\n"


def test_what_runs_everywhere_into_a_folder(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "builds"
    folder.mkdir()
    run(release, "download", "0.10.0", "sdk", "--server", server, "--out", folder)
    assert [(one.name, one.read_bytes()) for one in folder.iterdir()] == [
        ("gpuaas-sdk-0.10.0-any", SDK)
    ]


def test_what_was_left_of_an_earlier_try_is_gone_on_with(server: str, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.{Digest.of(CLI).short}.part"
    part.write_bytes(CLI[:1000])
    run(release, *GET_CLI, "--server", server)
    assert (tmp_path / NAME).read_bytes() == CLI
    assert not part.exists()


@dataclass
class CutOff(MemoryBlobs):
    """Ends the first answer after some bytes; `for_good`: from then on it is away."""

    starts: list[int] = field(default_factory=list)
    for_good: bool = False

    def read(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self.starts.append(start)
        pieces = super().read(digest, start, end)
        return self._cut(pieces) if len(self.starts) == 1 else pieces

    def _cut(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield next(pieces)
        self.away = self.for_good
        raise Transient("blob_store_unreachable", "it went away")


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_http, "time", SimpleNamespace(sleep=lambda _s: None))


@pytest.mark.usefixtures("_no_pauses")
def test_cut_off_it_goes_on_by_itself(tmp_path: Path) -> None:
    blobs = CutOff(dict(BLOBS.blobs), claims=BLOBS.claims)
    with serving(blobs) as client:
        assert run(release, *GET_CLI, "--server", str(client.base_url)).code == EXIT_OK
    assert (tmp_path / NAME).read_bytes() == CLI
    assert blobs.starts == [0, PIECE_BYTES]


@pytest.mark.usefixtures("_no_pauses")
def test_cut_off_for_good_it_says_so_and_goes_on_later(tmp_path: Path) -> None:
    blobs = CutOff(dict(BLOBS.blobs), claims=BLOBS.claims, for_good=True)
    with serving(blobs) as client:
        done = run(release, *GET_CLI, "--server", str(client.base_url))
        assert done.code == EXIT_CHANGES
        assert "blob_store_unreachable: the artifact store does not answer" in done.output
        (left,) = tmp_path.iterdir()
        assert (left.suffix, left.stat().st_size) == (".part", PIECE_BYTES)
        blobs.away = False
        assert run(release, *GET_CLI, "--server", str(client.base_url)).code == EXIT_OK
    assert (tmp_path / NAME).read_bytes() == CLI
    assert blobs.starts == [0, PIECE_BYTES]


def test_other_bytes_never_get_the_name(tmp_path: Path) -> None:
    blobs = MemoryBlobs({Digest.of(CLI): CLI[:-1] + b"!"}, claims=BLOBS.claims)
    with serving(blobs) as client:
        message = refused(*GET_CLI, "--server", str(client.base_url))
    assert "blob_damaged: what came does not hash to the digest" in message
    assert [*tmp_path.iterdir()] == []


REFUSALS = {
    "no release": (("show", "0.10.1"), "no_such_release: there is no release '0.10.1' (did you"),
    "withdrawn": (("download", "0.8.0", "cli"), "release_withdrawn: release 0.8.0 was withdrawn: "
                  "it leaks"),
    "no build": (
        ("download", "0.10.0", "cli", "--platform", "windows/amd64"),
        "no_such_build: release 0.10.0 has no cli for windows/amd64 (there are: linux/amd64, ",
    ),
    "an image": (
        ("download", "0.10.0", "agent", "--platform", "linux/amd64"),
        f"release_in_registry: {IMAGE}@{digest_of(b'x')} is an image: it comes from the registry "
        f"(gpuaas intent pull {IMAGE}@",
    ),
    "bytes nobody uploaded": (
        ("download", "0.10.0", "cli", "--platform", "linux/arm64"), "no_such_blob",
    ),
    "another digest than is known": (
        (*GET_CLI, "--digest", digest_of(b"other")),
        f"digest_mismatch: release 0.10.0 has {digest_of(CLI)}, not the digest you gave",
    ),
    "a place that is not there": ((*GET_CLI, "--out", "none/x"), "not_written: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(server: str, tmp_path: Path, case: str) -> None:
    args, words = REFUSALS[case]
    message = refused(*args, "--server", server)
    assert words in message
    assert [one for one in tmp_path.iterdir() if one.suffix != ".part"] == []


def test_a_token_is_asked_for_and_not_sent_in_the_clear(tmp_path: Path) -> None:
    with serving(require_tokens=True) as client:
        assert "token_required" in refused("list", "--server", str(client.base_url))
        (tmp_path / "token").write_text("not-good\n")
        given = ("--token-file", tmp_path / "token")
        assert "token_invalid" in refused("list", "--server", str(client.base_url), *given)
    message = refused("list", "--server", "http://gpuaas.example", *given)
    assert "credential_in_the_clear" in message
    with pytest.raises(click.UsageError, match="--token-file is for --server"):
        run(release, "list", *given)


def test_nobody_answers() -> None:
    with pytest.raises(Transient, match="no_answer"):
        run(release, "list", "--server", "http://127.0.0.1:1")


# --- on the host itself --------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    with open_ports(Settings(state_dir=folder)) as ports:
        ports.store.save_accepted(ACCEPTED)
    blobs = FolderBlobs(folder / "blobs")
    blobs.append("up", 0, [CLI])
    blobs.finish("up", Digest.of(CLI))
    (source,) = [name for name, digest in BLOBS.claims if digest == Digest.of(CLI)]
    blobs.claim(source, Digest.of(CLI))
    return folder


def local(state: Path, *args: str | Path) -> Done:
    return run(release, *args, "--state-dir", state)


def test_on_its_host_it_needs_no_server(state: Path, tmp_path: Path) -> None:
    listed = local(state, "list", "--format", "json").document["releases"]
    assert [one["version"] for one in listed] == ["0.11.0-rc.1", "0.10.0", "0.9.0"]
    assert local(state, *GET_CLI).code == EXIT_OK
    assert (tmp_path / NAME).read_bytes() == CLI
    with pytest.raises(Refused, match="no_such_blob"):
        local(state, "download", "0.10.0", "sdk")
    with pytest.raises(Refused, match="release_withdrawn"):
        local(state, "show", "0.8.0")
