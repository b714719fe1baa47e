"""Secrets of a topology: a folder for each service, the same one as long as they are the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.secret_files import SecretFiles
from node_agent.wire import SecretFile, Workload
from tests.agent.cases import NODE
from tests.topologies import INSTANCE, service, workload_of

HF = SecretFile(name="token", source="secret://project/hf")
OTHER_HF = SecretFile(name="token", source="secret://tenant/hf")
ADMIN = SecretFile(name="admin", env="ADMIN")


@pytest.fixture
def files() -> Iterator[SecretFiles]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield SecretFiles.for_node(NODE, folder / "secrets")
    shutil.rmtree(folder, ignore_errors=True)


def topology(
    token: SecretFile = HF, version: str = "1", api: tuple[str, ...] = ("token", "admin")
) -> Workload:
    return workload_of(
        service("api", secrets=api),
        service("db", secrets=("admin",), env={"VERSION": version}),
        service("web"),
        secrets=(token, ADMIN, SecretFile(name="unread")),
    )


VALUES = {"token": "t", "admin": "a", "unread": "u"}


def names(files: SecretFiles, what: Workload, of: str) -> list[str]:
    return sorted(path.name for path in files.folder_of_service(what, of).iterdir())


def test_each_service_has_its_own_and_no_others(files: SecretFiles) -> None:
    what = topology()
    assert files.missing(what) == ("admin", "token")
    files.put(what, VALUES)
    assert files.missing(what) == ()
    assert (names(files, what, "api"), names(files, what, "db")) == (["admin", "token"], ["admin"])
    assert (files.folder_of_service(what, "db") / "admin").read_text() == "a"
    folders = {path.name for path in files.folder_of(what).parent.iterdir()}
    assert len(folders) == 3
    assert not files.folder_of_service(what, "web").exists()


def test_what_one_service_lacks_is_missing(files: SecretFiles) -> None:
    what = topology()
    files.put(what, {"token": "t"})
    assert files.missing(what) == ("admin",)
    files.put(what, VALUES)
    (files.folder_of_service(what, "db") / "admin").unlink()
    assert files.missing(what) == ("admin",)


def test_a_folder_stays_for_as_long_as_its_secrets_are_the_same(files: SecretFiles) -> None:
    before, after = topology(), topology(version="2")
    assert before.spec_hash != after.spec_hash
    for name in ("api", "db"):
        assert files.folder_of_service(before, name) == files.folder_of_service(after, name)
    another = topology(OTHER_HF)
    assert files.folder_of_service(before, "api") != files.folder_of_service(another, "api")
    assert files.folder_of_service(before, "db") == files.folder_of_service(another, "db")
    fewer = topology(api=("token",))
    assert files.folder_of_service(before, "api") != files.folder_of_service(fewer, "api")
    folders = {files.folder_of_service(before, name) for name in ("api", "db")}
    assert len(folders) == 2


def test_what_no_form_needs_goes_and_what_two_share_stays(files: SecretFiles) -> None:
    before, after = topology(), topology(OTHER_HF, version="2")
    files.put(before, VALUES)
    files.put(after, VALUES)
    assert files.residue(INSTANCE) == 5
    files.keep_only(INSTANCE, {before.spec_hash, after.spec_hash})
    assert files.residue(INSTANCE) == 5
    files.keep_only(INSTANCE, {after.spec_hash})
    assert files.missing(after) == ()
    assert not files.folder_of_service(before, "api").exists()
    assert files.residue(INSTANCE) == 3


def test_a_form_that_brings_nothing_new_is_known_all_the_same(files: SecretFiles) -> None:
    """Else what it shares with the form before would go with that one."""
    before, after = topology(), topology(version="2")
    files.put(before, VALUES)
    assert files.missing(after) == ()
    files.put(after, {})
    files.keep_only(INSTANCE, {after.spec_hash})
    assert files.missing(after) == ()


def test_all_of_it_goes_with_the_instance(files: SecretFiles) -> None:
    files.put(topology(), VALUES)
    files.put(topology(OTHER_HF), VALUES)
    for _ in range(2):
        files.remove(INSTANCE)
    assert files.residue(INSTANCE) == 0


def test_a_topology_and_a_single_container_do_not_meet(files: SecretFiles) -> None:
    """An app may become one of several services, and go back."""
    single = Workload(instance=INSTANCE, engine="docker", image=service().image, secrets=(ADMIN,))
    files.put(single, {"admin": "single"})
    files.put(topology(), VALUES)
    files.keep_only(INSTANCE, {topology().spec_hash})
    assert (files.missing(single), files.missing(topology())) == ((), ())
    assert (files.folder_of(single) / "admin").read_text() == "single"
    files.keep_only(INSTANCE, {single.spec_hash})
    assert files.residue(INSTANCE) == 1
