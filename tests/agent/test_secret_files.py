"""Secrets as files: in memory, for their workload alone, whole, and gone when they should be."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent import secret_files
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.link import AgentKey, Credentials, Link
from node_agent.sealing import OneTimeKey
from node_agent.secret_files import SecretFiles
from node_agent.secret_keeper import SecretKeeper
from node_agent.state import Identity, StateStore
from node_agent.wire import (
    MACHINE_IDENTITY,
    FailureReason,
    SecretFile,
    Secrets,
    Workload,
)
from tests.agent.cases import INSTANCE, NODE, NOW_MS, workload
from tests.agent.control_plane import ControlPlane
from tests.topologies import service, workload_of

OTHER = "acme/research/other"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder of ours in memory."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def files(memory: Path) -> SecretFiles:
    return SecretFiles.for_node(NODE, memory / "secrets")


def refused(act: Callable[[], object]) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        act()
    assert caught.value.reason is FailureReason.SECRET_UNAVAILABLE
    return caught.value


def needing(*secrets: str | SecretFile, instance: str = INSTANCE) -> Workload:
    """Names are of the instance's own."""
    files = [SecretFile(name=one) if isinstance(one, str) else one for one in secrets]
    return workload(secrets=tuple(files), instance=instance)


def referring(source: str, name: str = "token", **more: str) -> SecretFile:
    return SecretFile(name=name, source=source, **more)


HERE, THERE = "secret://project/hf", "secret://tenant/hf"
OWN = needing("token", "admin")


class TestFiles:
    def test_what_is_put_can_be_read_by_its_workload_alone(
        self, files: SecretFiles, memory: Path
    ) -> None:
        files.put(OWN, {"token": "hunter2", "admin": "ä"})
        folder = files.folder_of(OWN)
        assert (folder / "token").read_bytes() == b"hunter2"
        assert (folder / "admin").read_bytes() == "ä".encode()
        modes = [path.stat().st_mode & 0o777 for path in (memory / "secrets", folder)]
        assert modes == [0o700, 0o755]
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
        assert sorted(path.name for path in folder.iterdir()) == ["admin", "token"]

    def test_what_is_missing_is_told_by_name(self, files: SecretFiles) -> None:
        assert files.missing(OWN) == ("admin", "token")
        files.put(OWN, {"token": "x"})
        assert files.missing(OWN) == ("admin",)
        assert files.missing(needing("token", instance=OTHER)) == ("token",)

    def test_others_stay_when_one_is_put(self, files: SecretFiles) -> None:
        """A replaced workload may have to run again."""
        files.put(needing("token"), {"token": "x"})
        files.put(OWN, {"token": "z", "admin": "y"})
        assert files.missing(OWN) == ()
        assert (files.folder(INSTANCE) / "token").read_text() == "z"

    def test_a_crash_in_the_middle_leaves_nothing_in_the_way(self, files: SecretFiles) -> None:
        files.put(OWN, {"admin": "x"})
        (files.folder(INSTANCE) / ".token.part").write_text("half")
        assert files.missing(OWN) == ("token",)
        files.put(OWN, {"token": "whole"})
        assert (files.folder(INSTANCE) / "token").read_text() == "whole"

    def test_removed_it_is_gone_and_nothing_else(self, files: SecretFiles) -> None:
        files.put(OWN, {"token": "x"})
        files.put(needing(referring(HERE)), {"token": "x"})
        files.put(needing("token", instance=OTHER), {"token": "y"})
        assert (files.residue(INSTANCE), files.residue(OTHER)) == (2, 1)
        for _ in range(2):
            files.remove(INSTANCE)
        assert (files.residue(INSTANCE), files.residue(OTHER)) == (0, 1)

    def test_another_source_of_the_same_name_is_another_file(self, files: SecretFiles) -> None:
        """Both are there: the node may go back to the workload before."""
        before, after = needing(referring(HERE)), needing(referring(THERE))
        files.put(before, {"token": "project's"})
        assert files.missing(after) == ("token",)
        files.put(after, {"token": "tenant's"})
        read = [(files.folder_of(one) / "token").read_text() for one in (before, after)]
        assert read == ["project's", "tenant's"]
        assert files.missing(needing("token")) == ("token",)

    def test_what_no_workload_needs_again_goes(self, files: SecretFiles) -> None:
        own, before, after = needing("token"), needing(referring(HERE)), needing(referring(THERE))
        other = needing(referring(HERE), instance=OTHER)
        for one in (own, before, after, other):
            files.put(one, {"token": "x"})
        files.keep_only(INSTANCE, {after.spec_hash})
        there = [files.missing(one) == () for one in (own, before, after, other)]
        assert there == [True, False, True, True]

    def test_what_an_agent_with_other_settings_left_is_found(self, memory: Path) -> None:
        (memory / "first").touch()
        before = SecretFiles((memory / "first", memory / "second"))
        before.put(OWN, {"token": "x"})
        (memory / "first").unlink()
        after = SecretFiles((memory / "first", memory / "second"))
        after.put(needing("token", instance=OTHER), {"token": "y"})
        assert after.folder(OTHER).parent == memory / "first"
        assert after.residue(INSTANCE) == 1
        after.remove(INSTANCE)
        assert after.residue(INSTANCE) == 0


class TestRefused:
    def test_a_disk(
        self, files: SecretFiles, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(secret_files, "MEMORY_FILE_SYSTEMS", frozenset({"another"}))
        failure = refused(lambda: files.put(OWN, {"token": "hunter2"}))
        assert failure.message == (
            "no folder in memory to keep secrets in: "
            f"{memory}/secrets would not be in memory (tmpfs)"
        )
        assert not failure.transient
        assert list(memory.iterdir()) == []
        (memory / "secrets").mkdir(mode=0o700)
        failure = refused(lambda: files.put(OWN, {"token": "hunter2"}))
        assert failure.message.endswith("/secrets is not in memory (tmpfs)")
        assert list((memory / "secrets").iterdir()) == []

    def test_a_folder_that_others_may_enter(self, files: SecretFiles, memory: Path) -> None:
        (memory / "secrets").mkdir(mode=0o755)
        failure = refused(lambda: files.folder(INSTANCE))
        assert failure.message.endswith("secrets is open to others (mode 755, wanted 700)")

    @pytest.mark.parametrize("kind", ["link", "file"])
    def test_what_is_no_folder_of_ours(self, files: SecretFiles, memory: Path, kind: str) -> None:
        if kind == "link":
            (memory / "elsewhere").mkdir(mode=0o700)
            (memory / "secrets").symlink_to(memory / "elsewhere")
        else:
            (memory / "secrets").touch()
        failure = refused(lambda: files.folder(INSTANCE))
        assert failure.message.endswith("secrets is not a folder of this agent's")

    def test_a_folder_that_can_not_be_made(self, memory: Path) -> None:
        (memory / "file").touch()
        places = (Path("/proc/none/secrets"), memory / "file" / "secrets")
        failure = refused(lambda: SecretFiles(places).folder(INSTANCE))
        assert failure.message.endswith(
            f"/proc/none/secrets would not be in memory (proc); {places[1]} can't be made "
            "(File exists)"
        )

    def test_a_link_put_in_place_of_a_secret_is_not_followed(
        self, files: SecretFiles, memory: Path
    ) -> None:
        files.put(OWN, {"admin": "x"})
        (memory / "outside").write_text("untouched")
        for name in ("token", ".token.part"):
            (files.folder(INSTANCE) / name).symlink_to(memory / "outside")
        files.put(OWN, {"token": "x"})
        assert (memory / "outside").read_text() == "untouched"
        assert not (files.folder(INSTANCE) / "token").is_symlink()


class Clock:
    def now_ms(self) -> int:
        return NOW_MS


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    plane.secrets = {"token": "hunter2", "admin": "sesame"}
    yield plane
    plane.close()


@pytest.fixture
def keeper(plane: ControlPlane, files: SecretFiles, tmp_path: Path) -> Iterator[SecretKeeper]:
    """Of an agent that joined `plane`."""
    key = AgentKey.generate()
    plane.enrol(key.public_key)
    certificate = plane.certified(key.request_certificate(NODE))
    store = StateStore(tmp_path, NOW_MS)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=plane.reply.verifiers, min_version=1, joined_at_ms=0,
        )
    )  # fmt: skip
    link = Link(plane.url, key, lambda: Credentials(plane.authority.pem, certificate))
    yield SecretKeeper(files, link, store, Clock())
    link.close()
    store.close()


def provide(keeper: SecretKeeper, *secrets: str | SecretFile, starts: bool = False) -> None:
    keeper.provide(needing(*secrets), threading.Event(), starts=starts)


class TestKeeper:
    def test_what_is_missing_is_asked_for_and_nothing_else(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        provide(keeper, "token")
        provide(keeper, "token")
        provide(keeper, "token", "admin")
        assert plane.secrets_asked == [("token",), ("admin",)]
        assert (files.folder(INSTANCE) / "admin").read_text() == "sesame"

    def test_of_a_topology_what_its_services_name_is_asked_for(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        secrets = tuple(SecretFile(name=name) for name in ("token", "admin"))
        first, second = (
            workload_of(
                service("api", secrets=("token",)),
                service("db", env={"VERSION": version}),
                secrets=secrets,
                instance=INSTANCE,
            )
            for version in ("1", "2")
        )
        for what in (first, second):
            keeper.provide(what, threading.Event(), starts=True)
        assert plane.secrets_asked == [("token",)]
        files.keep_only(INSTANCE, {second.spec_hash})
        assert (files.folder_of_service(second, "api") / "token").read_text() == "hunter2"

    def test_what_is_there_needs_no_control_plane(
        self, keeper: SecretKeeper, plane: ControlPlane
    ) -> None:
        provide(keeper, "token")
        plane.away = True
        provide(keeper, "token")

    def test_a_control_plane_that_is_away(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        plane.away = True
        failure = refused(lambda: provide(keeper, "token"))
        assert failure.transient
        assert failure.message == (
            "the control plane gave no secrets: away: down for maintenance (correlation id c-1)"
        )
        plane.away = False
        provide(keeper, "token")
        assert files.missing(needing("token")) == ()

    def test_nothing_waits_for_an_identity(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        plane.secrets[MACHINE_IDENTITY] = "who it is"
        plane.away = True
        provide(keeper, MACHINE_IDENTITY)
        assert files.folder(INSTANCE).is_dir()
        with pytest.raises(EngineFailure, match="down for maintenance"):
            provide(keeper, MACHINE_IDENTITY, "token")
        plane.away = False
        provide(keeper, MACHINE_IDENTITY)
        assert (files.folder(INSTANCE) / MACHINE_IDENTITY).read_text() == "who it is"

    def test_one_that_says_no(self, keeper: SecretKeeper) -> None:
        failure = refused(lambda: provide(keeper, "none"))
        assert failure.transient
        assert "not_placed: no such instance is placed on this node" in failure.message

    def test_an_answer_that_somebody_else_signed(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        plane.secrets_signer = AgentKey.generate()
        failure = refused(lambda: provide(keeper, "token"))
        assert failure.message.endswith("unknown_key: signed by no key that is trusted here")
        assert files.residue(INSTANCE) == 0

    def test_an_earlier_answer_once_more(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        earlier: list[Secrets] = []

        def twist(answer: Secrets) -> Secrets:
            earlier.append(answer)
            return earlier[0]

        plane.secrets_twist = twist
        provide(keeper, "token")
        files.remove(INSTANCE)
        failure = refused(lambda: provide(keeper, "token"))
        assert failure.message.endswith("not_for_us: the answer is one to another question")

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"node": "n2"}, "not_for_us: the answer is one to another question"),
            ({"instance": OTHER}, "not_for_us: the answer is one to another question"),
            ({"public_key": OneTimeKey().public_key}, "seal_broken: the answer was altered"),
            ({"sealed": "AAAA"}, "seal_broken: the answer was altered on its way"),
        ],
    )
    def test_an_answer_that_is_not_ours(
        self, keeper: SecretKeeper, plane: ControlPlane, changes: dict[str, str], said: str
    ) -> None:
        plane.secrets_twist = lambda answer: answer.model_copy(update=changes)
        assert said in refused(lambda: provide(keeper, "token")).message

    def test_of_an_instance_removed_meanwhile_nothing_appears(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        called_off = threading.Event()

        def remove_first(answer: Secrets) -> Secrets:
            called_off.set()
            keeper.remove(INSTANCE)
            return answer

        plane.secrets_twist = remove_first
        with pytest.raises(Cancelled):
            keeper.provide(needing("token"), called_off)
        assert keeper.residue(INSTANCE) == 0


class TestReferences:
    """What somebody put there, and may write anew."""

    TOKEN = referring(HERE)

    @pytest.fixture(autouse=True)
    def _written(self, plane: ControlPlane) -> None:
        plane.secrets[self.TOKEN.asked] = "first"

    def read(self, files: SecretFiles) -> str:
        return (files.folder_of(needing(self.TOKEN)) / "token").read_text()

    def test_it_is_asked_for_by_its_source_and_anew_before_each_start(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        provide(keeper, self.TOKEN)
        provide(keeper, self.TOKEN)
        plane.secrets[self.TOKEN.asked] = "second"
        assert self.read(files) == "first"
        provide(keeper, self.TOKEN, starts=True)
        assert self.read(files) == "second"
        assert plane.secrets_asked == [("token=secret://project/hf",)] * 2

    def test_the_instances_own_are_asked_for_once(
        self, keeper: SecretKeeper, plane: ControlPlane
    ) -> None:
        for _ in range(2):
            provide(keeper, self.TOKEN, "admin", starts=True)
        assert plane.secrets_asked == [("admin", self.TOKEN.asked), (self.TOKEN.asked,)]

    @pytest.mark.parametrize("why", ["away", "refused", "forged"])
    def test_without_a_good_answer_what_is_there_is_used(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles, why: str
    ) -> None:
        provide(keeper, self.TOKEN)
        plane.away = why == "away"
        if why == "refused":
            plane.secrets.clear()
        if why == "forged":
            plane.secrets_signer = AgentKey.generate()
        provide(keeper, self.TOKEN, starts=True)
        assert self.read(files) == "first"

    def test_one_that_is_not_there_waits_with_the_control_planes_words(
        self, keeper: SecretKeeper, plane: ControlPlane
    ) -> None:
        plane.secrets.clear()
        failure = refused(lambda: provide(keeper, self.TOKEN, starts=True))
        assert failure.transient
        assert "not_placed: no such instance is placed on this node" in failure.message

    def test_an_old_value_is_not_taken_for_that_of_another_source(
        self, keeper: SecretKeeper, plane: ControlPlane
    ) -> None:
        provide(keeper, self.TOKEN)
        plane.away = True
        refused(lambda: provide(keeper, referring(THERE)))
        refused(lambda: provide(keeper, "token"))

    @pytest.mark.parametrize("value", ["a\0b", "x" * 200_000], ids=["NUL", "too long"])
    def test_what_no_variable_holds_is_refused_without_quoting_it(
        self, keeper: SecretKeeper, plane: ControlPlane, value: str
    ) -> None:
        plane.secrets[self.TOKEN.asked] = value
        in_variable = self.TOKEN.model_copy(update={"env": "HF_TOKEN"})
        failure = refused(lambda: provide(keeper, in_variable))
        assert failure.message == (
            "the secret token does not fit into the variable HF_TOKEN: it holds a NUL or is over "
            "120000 bytes; leave env out and read its file"
        )
        provide(keeper, self.TOKEN)


def test_where_another_users_agent_was_first_there_is_one_more_place(tmp_path: Path) -> None:
    """A node of the same name, run by somebody else on this host, has left its folder."""
    usual = SecretFiles.for_node("node-a").candidates
    assert [str(path) for path in usual] == [
        "/run/gpuaas/node-a",
        "/dev/shm/gpuaas-node-a",
        f"/dev/shm/gpuaas-node-a-{os.geteuid()}",
    ]
    theirs = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        (theirs / "left").mkdir(mode=0o755)
        (theirs / "left").chmod(0o755)
        files = SecretFiles((theirs / "left", theirs / "ours"))
        files.put(OWN, {"token": "t"})
        assert files.folder_of(OWN).parent == theirs / "ours"
    finally:
        shutil.rmtree(theirs)
