"""SecretStore: one suite for the fake and the local store, then what only files can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node_agent.envelope import seal, unseal
from node_agent.wire import key_id
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.core.names import InstanceKey, secret_path
from reconciler.errors import Refused
from reconciler.ports import Secret
from tests.fakes.secrets import FakeSecrets


@pytest.fixture(params=["fake", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return FakeSecrets() if request.param == "fake" else LocalSecrets(tmp_path / "secrets")


def test_a_key_is_made_once(store: Any) -> None:
    first = store.ensure_signing_key("tasks")
    assert store.ensure_signing_key("tasks") == first
    assert store.verifier_keys("tasks") == (first,)
    assert first.version == 1
    assert first.key_id == key_id(first.public_key)
    assert store.ensure_signing_key("tokens").key_id != first.key_id


def test_what_it_signs_verifies(store: Any) -> None:
    key = store.ensure_signing_key("tasks")
    envelope = seal(b"{}", "text/x", key.key_id, lambda pae: store.sign("tasks", pae).signature)
    raw = json.dumps(envelope).encode()
    assert unseal(raw, "text/x", store.verifier_keys("tasks")) == (b"{}", key)


def test_rotation_adds_a_version_that_signs(store: Any) -> None:
    first = store.ensure_signing_key("tasks")
    second = store.rotate("tasks")
    assert (first.version, second.version) == (1, 2)
    assert store.verifier_keys("tasks") == (first, second)
    assert store.ensure_signing_key("tasks") == second
    signed = store.sign("tasks", b"message")
    assert (signed.key, len(signed.signature)) == (second, 64)


def test_signing_without_a_key_is_refused(store: Any) -> None:
    assert store.verifier_keys("none") == ()
    with pytest.raises(Refused, match="no_signing_key: there is no signing key 'none'"):
        store.sign("none", b"")


def test_secrets_are_kept_by_path(store: Any) -> None:
    assert store.read("apps/acme") is None
    store.write("apps/acme", Secret("one"))
    store.write("apps/acme/token", Secret("zwei ä"))
    store.write("apps/acme", Secret("three"))
    assert store.read("apps/acme") == Secret("three")
    assert store.read("apps/acme/token") == Secret("zwei ä")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "a b", "-a", "ä", "x" * 401],
)
def test_a_path_that_is_none_is_refused(store: Any, path: str) -> None:
    with pytest.raises(Refused, match="secret_path_refused"):
        store.read(path)
    with pytest.raises(Refused, match="secret_path_refused"):
        store.write(path, Secret("x"))
    with pytest.raises(Refused, match="secret_path_refused"):
        store.ensure(path, Secret("x"))
    with pytest.raises(Refused, match="secret_path_refused"):
        store.delete(path)


def test_a_secret_is_made_once(store: Any) -> None:
    assert store.ensure("instances/n1/a/b/c/token", Secret("first")) == Secret("first")
    assert store.ensure("instances/n1/a/b/c/token", Secret("second")) == Secret("first")
    assert store.read("instances/n1/a/b/c/token") == Secret("first")


def test_of_several_who_make_one_at_once_all_get_the_same(store: Any) -> None:
    def ensure(number: int) -> str:
        return str(store.ensure("a/token", Secret(f"value {number}")).reveal())

    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(ensure, range(16)))
    assert len(values) == 1
    assert values == {store.read("a/token").reveal()}


def test_a_deleted_secret_is_gone_and_no_other(store: Any) -> None:
    for path in ("a", "a/b", "a/bc"):
        store.write(path, Secret(path))
    store.delete("a")
    store.delete("a")
    store.delete("never/was")
    assert store.read("a") is None
    assert (store.read("a/b"), store.read("a/bc")) == (Secret("a/b"), Secret("a/bc"))
    store.delete("a/b")
    assert store.ensure("a/b", Secret("anew")) == Secret("anew")


def test_the_longest_names_there_are_make_a_path(store: Any) -> None:
    path = secret_path("n" * 63, InstanceKey("/".join(["t" * 63] * 3)), "s" * 63)
    store.write(path, Secret("long"))
    store.write(path[:-1], Secret("shorter"))
    assert store.ensure(path, Secret("other")) == Secret("long")
    store.delete(path)
    assert (store.read(path), store.read(path[:-1])) == (None, Secret("shorter"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 64, "a\n"])
def test_a_key_name_that_is_none_is_refused(store: Any, name: str) -> None:
    for act in (store.ensure_signing_key, store.rotate, store.verifier_keys):
        with pytest.raises(Refused, match="key_name_refused"):
            act(name)


def test_all_is_there_after_a_restart_and_only_for_us(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    store = LocalSecrets(folder)
    key = store.ensure_signing_key("tasks")
    store.write("a/b", Secret("hunter2-and-more"))
    again = LocalSecrets(folder)
    assert again.verifier_keys("tasks") == (key,)
    assert again.read("a/b") == Secret("hunter2-and-more")
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
    other.write("x", Secret("y"))
    os.replace(folder.parent / "other" / "key", folder / "key")


def _broken_key(folder: Path) -> None:
    (folder / "key").write_bytes(b"not a key")


def _swapped(folder: Path) -> None:
    LocalSecrets(folder).write("b", Secret("other"))
    os.replace(folder / "secrets" / "b", folder / "secrets" / "a")


def _linked(folder: Path) -> None:
    os.replace(folder / "secrets" / "a", folder.parent / "elsewhere")
    (folder / "secrets" / "a").symlink_to(folder.parent / "elsewhere")


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
    LocalSecrets(folder).write("a", Secret("hunter2"))
    change(folder)
    with pytest.raises(Refused, match=said) as caught:
        LocalSecrets(folder).read("a")
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
    store.write("a", Secret("b"))
    assert not (tmp_path / "secrets" / "key").exists()
    assert LocalSecrets(tmp_path / "secrets", tmp_path / "apart").read("a") == Secret("b")


def test_a_secret_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="secret_too_large: more than 65536 bytes"):
        LocalSecrets(tmp_path / "s").write("a", Secret("x" * 70_000))


def test_a_deleted_secret_leaves_no_file(tmp_path: Path) -> None:
    store = LocalSecrets(tmp_path / "s")
    store.ensure("instances/n1/a/b/c/token", Secret("hunter2"))
    store.delete("instances/n1/a/b/c/token")
    assert list((tmp_path / "s" / "secrets").iterdir()) == []


ENSURE = """
import sys
from pathlib import Path
from reconciler.adapters.secrets_local import LocalSecrets
sys.stdin.read()
print(LocalSecrets(Path(sys.argv[1])).ensure_signing_key("tasks").key_id)
"""


def test_processes_that_ask_at_once_get_one_key(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENSURE, str(tmp_path / "secrets")],
            cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    outputs = set()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    for process in processes:
        outputs.add(process.communicate(timeout=60)[0])
        assert process.returncode == 0
    assert len(outputs) == 1
    assert len(LocalSecrets(tmp_path / "secrets").verifier_keys("tasks")) == 1
