"""Secrets as files: in memory, for their workload alone, whole, and gone when they should be."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent import secret_files
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.link import AgentKey, Link
from node_agent.sealing import OneTimeKey
from node_agent.secret_files import SecretFiles
from node_agent.secret_keeper import SecretKeeper
from node_agent.state import Identity, StateStore
from node_agent.wire import (
    MACHINE_IDENTITY,
    FailureReason,
    JoinRequest,
    SecretFile,
    Secrets,
    Workload,
)
from tests.agent.cases import INSTANCE, NODE, NOW_MS, workload
from tests.agent.control_plane import SECRET, ControlPlane

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


class TestFiles:
    def test_what_is_put_can_be_read_by_its_workload_alone(
        self, files: SecretFiles, memory: Path
    ) -> None:
        files.put(INSTANCE, {"token": "hunter2", "admin": "ä"})
        folder = files.folder(INSTANCE)
        assert (folder / "token").read_bytes() == b"hunter2"
        assert (folder / "admin").read_text() == "ä"
        modes = [path.stat().st_mode & 0o777 for path in (memory / "secrets", folder)]
        assert modes == [0o700, 0o755]
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
        assert sorted(path.name for path in folder.iterdir()) == ["admin", "token"]

    def test_what_is_missing_is_told_by_name(self, files: SecretFiles) -> None:
        assert files.missing(INSTANCE, ["token", "admin"]) == ("admin", "token")
        files.put(INSTANCE, {"token": "x"})
        assert files.missing(INSTANCE, ["token", "admin"]) == ("admin",)
        assert files.missing(OTHER, ["token"]) == ("token",)

    def test_others_stay_when_one_is_put(self, files: SecretFiles) -> None:
        """A replaced workload may have to run again."""
        files.put(INSTANCE, {"token": "x"})
        files.put(INSTANCE, {"token": "z", "admin": "y"})
        assert files.missing(INSTANCE, ["token", "admin"]) == ()
        assert (files.folder(INSTANCE) / "token").read_text() == "z"

    def test_a_crash_in_the_middle_leaves_nothing_in_the_way(self, files: SecretFiles) -> None:
        files.put(INSTANCE, {"admin": "x"})
        (files.folder(INSTANCE) / ".token.part").write_text("half")
        assert files.missing(INSTANCE, ["token"]) == ("token",)
        files.put(INSTANCE, {"token": "whole"})
        assert (files.folder(INSTANCE) / "token").read_text() == "whole"

    def test_removed_it_is_gone_and_nothing_else(self, files: SecretFiles) -> None:
        files.put(INSTANCE, {"token": "x"})
        files.put(OTHER, {"token": "y"})
        assert (files.residue(INSTANCE), files.residue(OTHER)) == (1, 1)
        for _ in range(2):
            files.remove(INSTANCE)
        assert (files.residue(INSTANCE), files.residue(OTHER)) == (0, 1)

    def test_what_an_agent_with_other_settings_left_is_found(self, memory: Path) -> None:
        (memory / "first").touch()
        before = SecretFiles((memory / "first", memory / "second"))
        before.put(INSTANCE, {"token": "x"})
        (memory / "first").unlink()
        after = SecretFiles((memory / "first", memory / "second"))
        after.put(OTHER, {"token": "y"})
        assert after.folder(OTHER).parent == memory / "first"
        assert after.residue(INSTANCE) == 1
        after.remove(INSTANCE)
        assert after.residue(INSTANCE) == 0


class TestRefused:
    def test_a_disk(
        self, files: SecretFiles, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(secret_files, "MEMORY_FILE_SYSTEMS", frozenset({"another"}))
        failure = refused(lambda: files.put(INSTANCE, {"token": "hunter2"}))
        assert failure.message == (
            "no folder in memory to keep secrets in: "
            f"{memory}/secrets would not be in memory (tmpfs)"
        )
        assert not failure.transient
        assert list(memory.iterdir()) == []
        (memory / "secrets").mkdir(mode=0o700)
        failure = refused(lambda: files.put(INSTANCE, {"token": "hunter2"}))
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
        files.put(INSTANCE, {"admin": "x"})
        (memory / "outside").write_text("untouched")
        for name in ("token", ".token.part"):
            (files.folder(INSTANCE) / name).symlink_to(memory / "outside")
        files.put(INSTANCE, {"token": "x"})
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
    request = JoinRequest(token=SECRET, node=NODE, public_key=key.public_key)
    status, _ = plane.answer("/v1/agent/join", request.canonical())
    assert status == 200
    store = StateStore(tmp_path, NOW_MS)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=plane.reply.verifiers, min_version=1, joined_at_ms=0,
        )
    )  # fmt: skip
    link = Link(plane.url, key)
    yield SecretKeeper(files, link, store, Clock())
    link.close()
    store.close()


def needing(*names: str) -> Workload:
    return workload(secrets=tuple(SecretFile(name=name) for name in names))


def provide(keeper: SecretKeeper, *names: str) -> None:
    keeper.provide(needing(*names), threading.Event())


class TestKeeper:
    def test_what_is_missing_is_asked_for_and_nothing_else(
        self, keeper: SecretKeeper, plane: ControlPlane, files: SecretFiles
    ) -> None:
        provide(keeper, "token")
        provide(keeper, "token")
        provide(keeper, "token", "admin")
        assert plane.secrets_asked == [("token",), ("admin",)]
        assert (files.folder(INSTANCE) / "admin").read_text() == "sesame"

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
        assert files.missing(INSTANCE, ["token"]) == ()

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
