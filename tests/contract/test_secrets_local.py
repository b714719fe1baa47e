"""The local SecretStore: what only files and processes can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.custody.signing import newest_verifier
from reconciler.errors import Refused
from reconciler.ports import Secret, SecretSeen
from tests.fakes.clock import FakeClock


def test_all_is_there_after_a_restart_and_only_for_us(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    store = LocalSecrets(folder)
    key = newest_verifier(store, "tasks")
    store.write("ci/a", Secret("hunter2-and-more"))
    store.wrap("ci/a", 60)
    again = LocalSecrets(folder)
    assert again.verifier_keys("tasks") == (key,)
    assert again.read("ci/a") == Secret("hunter2-and-more")
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
        assert path.is_dir() or b"hunter2" not in path.read_bytes()
    assert b"ENCRYPTED PRIVATE KEY" in (folder / "keys" / "tasks" / "1.pem").read_bytes()


def _expose_folder(folder: Path) -> None:
    folder.chmod(0o750)


def _expose_key(folder: Path) -> None:
    (folder / "key").chmod(0o644)


def _lose_key(folder: Path) -> None:
    (folder / "key").unlink()


def _other_key(folder: Path) -> None:
    other = LocalSecrets(folder.parent / "other")
    other.write("ci/x", Secret("y"))
    os.replace(folder.parent / "other" / "key", folder / "key")


def _broken_key(folder: Path) -> None:
    (folder / "key").write_bytes(b"not a key")


def _swapped(folder: Path) -> None:
    LocalSecrets(folder).write("ci/b", Secret("other"))
    os.replace(folder / "secrets" / "ci%2Fb", folder / "secrets" / "ci%2Fa")


def _linked(folder: Path) -> None:
    os.replace(folder / "secrets" / "ci%2Fa", folder.parent / "elsewhere")
    (folder / "secrets" / "ci%2Fa").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_expose_folder, "secrets_exposed: others may reach it .mode 750.* .chmod 700"),
        (_expose_key, "secrets_exposed: others may reach it .mode 644.* .chmod 600"),
        (_lose_key, "secrets_key_lost: the key file is gone.*put the key file back"),
        (_other_key, "secrets_key_wrong: it does not open with this key file"),
        (_broken_key, "secrets_key_wrong: it does not open with this key file"),
        (_swapped, "secret_moved: the file holds the secret of another path"),
        (_linked, "secrets_io: Too many levels of symbolic links"),
    ],
)
def test_a_folder_that_is_not_in_order_is_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    LocalSecrets(folder).write("ci/a", Secret("hunter2"))
    change(folder)
    with pytest.raises(Refused, match=said) as caught:
        LocalSecrets(folder).read("ci/a")
    assert "hunter2" not in str(caught.value)


def test_a_signing_key_under_another_key_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    LocalSecrets(folder).ensure_signing_key("tasks")
    _other_key(folder)
    with pytest.raises(Refused, match=r"secrets_key_wrong.*same backup"):
        LocalSecrets(folder).sign("tasks", b"x")


def test_a_folder_lost_under_a_running_process_is_not_filled_anew(tmp_path: Path) -> None:
    """A new key sealed with the old key file beside a new one would be of no use to anybody."""
    folder = tmp_path / "secrets"
    store = LocalSecrets(folder)
    key = store.ensure_signing_key("tasks")
    folder.rename(tmp_path / "away")
    LocalSecrets(folder)
    with pytest.raises(Refused, match=r"signing_key_lost.*put the folder back"):
        store.ensure_signing_key("tasks")
    assert not (folder / "keys").exists()
    assert LocalSecrets(folder).ensure_signing_key("tasks") != key


def test_the_key_file_may_be_kept_elsewhere(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "secrets", tmp_path / "apart")
    store.write("ci/a", Secret("b"))
    assert not (tmp_path / "secrets" / "key").exists()
    assert LocalSecrets(tmp_path / "secrets", tmp_path / "apart").read("ci/a") == Secret("b")


def test_a_deleted_secret_leaves_no_file(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    store.ensure("instances/n1/a/b/c/token", Secret("hunter2"))
    store.delete("instances/n1/a/b/c/token")
    assert list((tmp_path / "s" / "secrets").iterdir()) == []


def as_before_versions(folder: Path) -> Ed25519PrivateKey:
    """A folder as it was written before versions, kinds and wrapping; gives the key of tasks."""
    for part in (folder, folder / "secrets", folder / "keys", folder / "keys" / "tasks"):
        part.mkdir(mode=0o700)
    seal_with, signing = Fernet.generate_key(), Ed25519PrivateKey.generate()
    document = json.dumps({"path": "webhook/git", "value": "hunter2"}).encode()
    pem = signing.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(seal_with)
    )
    for place, content in (
        (folder / "key", seal_with),
        (folder / "secrets" / "webhook%2Fgit", Fernet(seal_with).encrypt(document)),
        (folder / "keys" / "tasks" / "1.pem", pem),
    ):
        place.touch(mode=0o600)
        place.write_bytes(content)
    os.utime(folder / "secrets" / "webhook%2Fgit", (1_600_000_000, 1_600_000_000))
    return signing


def test_a_folder_of_an_earlier_version_opens(tmp_path: Path) -> None:
    signing = as_before_versions(tmp_path / "old")
    store = LocalSecrets(tmp_path / "old", clock=FakeClock())
    assert store.read("webhook/git") == Secret("hunter2")
    assert store.seen("webhook/git") == SecretSeen(1, 1_600_000_000_000)
    assert store.paths("webhook") == ("webhook/git",)
    assert store.ensure_signing_key("tasks").version == 1
    assert store.sign("tasks", b"m").signature == signing.sign(b"m")
    store.write("webhook/git", Secret("new"))
    assert store.seen("webhook/git") == SecretSeen(2, FakeClock().time_ms)
    assert store.rotate("tasks").version == 2


def test_a_clock_that_was_set_back_makes_nothing_look_older(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LocalSecrets(tmp_path / "s", clock=clock)
    store.write("ci/a", Secret("one"))
    clock.advance(-60_000)
    store.write("ci/a", Secret("two"))
    assert store.seen("ci/a") == SecretSeen(2, FakeClock().time_ms)


def private_keys(folder: Path) -> list[str]:
    return sorted(place.name for place in (folder / "keys" / "tasks").glob("*.pem"))


def test_of_a_retired_key_nothing_is_left(tmp_path: Path) -> None:
    store, other = LocalSecrets(tmp_path / "s"), LocalSecrets(tmp_path / "s")
    store.ensure_signing_key("tasks")
    other.rotate("tasks")
    assert store.sign("tasks", b"m", 1).version == 1
    other.retire("tasks", 2)
    assert private_keys(tmp_path / "s") == ["2.pem"]
    for one in (store, other, LocalSecrets(tmp_path / "s")):
        with pytest.raises(Refused, match="key_version_unknown"):
            one.sign("tasks", b"m", 1)


def test_a_crash_while_retiring_brings_none_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is retired from the moment that is written down, also while its file is still there."""
    store = LocalSecrets(tmp_path / "s")
    store.ensure_signing_key("tasks")
    store.rotate("tasks")

    class Crash(BaseException):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", crash)
        with pytest.raises(Crash):
            store.retire("tasks", 2)
    assert private_keys(tmp_path / "s") == ["1.pem", "2.pem"]
    again = LocalSecrets(tmp_path / "s")
    assert [key.version for key in again.public_keys("tasks")] == [2]
    again.retire("tasks", 1)
    assert private_keys(tmp_path / "s") == ["2.pem"]


def test_a_key_that_was_retired_and_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    store.ensure_signing_key("tasks")
    store.retire("tasks", 1)
    (tmp_path / "s" / "keys" / "tasks" / "1.pem").unlink()
    with pytest.raises(Refused, match=r"signing_key_lost.*put the folder back"):
        LocalSecrets(tmp_path / "s").ensure_signing_key("tasks")


def test_what_tells_of_another_key_is_not_believed(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    for name in ("tasks", "audit"):
        store.ensure_signing_key(name)
        store.rotate(name)
    store.retire("audit", 2)
    folder = tmp_path / "s" / "keys"
    os.replace(folder / "audit" / "min-version", folder / "tasks" / "min-version")
    with pytest.raises(Refused, match="secret_moved: the file tells of another key"):
        store.sign("tasks", b"m")


def wrapped_files(folder: Path) -> list[Path]:
    return sorted((folder / "wrapped").iterdir())


def test_the_token_is_nowhere_and_unwrapping_leaves_no_file(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    store.write("joins/n1/1", Secret("hunter2"))
    token = store.wrap("joins/n1/1", 60).token
    (place,) = wrapped_files(tmp_path / "s")
    for hidden in (token.reveal(), "hunter2"):
        assert hidden not in place.name
        assert hidden.encode() not in place.read_bytes()
    assert LocalSecrets(tmp_path / "s").unwrap(token, "joins/n1/1") == Secret("hunter2")
    assert wrapped_files(tmp_path / "s") == []
    with pytest.raises(Refused, match="wrap_spent"):
        store.unwrap(token, "joins/n1/1")


def test_what_nobody_unwrapped_in_time_is_forgotten(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LocalSecrets(tmp_path / "s", clock=clock)
    store.write("joins/n1/1", Secret("hunter2"))
    store.wrap("joins/n1/1", 60)
    (old,) = wrapped_files(tmp_path / "s")
    clock.advance(60_000)
    store.wrap("joins/n1/1", 60)
    assert old not in wrapped_files(tmp_path / "s")
    assert len(wrapped_files(tmp_path / "s")) == 1


def test_another_end_in_the_name_of_its_file_prolongs_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LocalSecrets(tmp_path / "s", clock=clock)
    store.write("joins/n1/1", Secret("hunter2"))
    token = store.wrap("joins/n1/1", 60).token
    (place,) = wrapped_files(tmp_path / "s")
    place.rename(place.with_name(place.name.partition("-")[0] + "-9999999999999"))
    clock.advance(60_000)
    with pytest.raises(Refused, match="wrap_spent"):
        store.unwrap(token, "joins/n1/1")


UNWRAP = """
import sys
from pathlib import Path
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.errors import Refused
from reconciler.ports import Secret
token = Secret(sys.stdin.read())
try:
    print(LocalSecrets(Path(sys.argv[1])).unwrap(token, "joins/n1/1").reveal())
except Refused as refused:
    print(refused.code)
"""


def test_of_several_processes_one_unwraps(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    store.write("joins/n1/1", Secret("once"))
    token = store.wrap("joins/n1/1", 60).token.reveal()
    assert sorted(outputs_of(UNWRAP, tmp_path / "s", token)) == ["once", *["wrap_spent"] * 3]


ENSURE = """
import sys
from pathlib import Path
from reconciler.adapters.secrets_local import LocalSecrets
sys.stdin.read()
print(LocalSecrets(Path(sys.argv[1])).ensure_signing_key("tasks").pem)
"""


def outputs_of(program: str, folder: Path, given: str = "") -> list[str]:
    """What four processes print that begin at about the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    return outputs


def test_processes_that_ask_at_once_get_one_key(tmp_path: Path) -> None:
    assert len(set(outputs_of(ENSURE, tmp_path / "secrets"))) == 1
    assert len(LocalSecrets(tmp_path / "secrets").verifier_keys("tasks")) == 1
