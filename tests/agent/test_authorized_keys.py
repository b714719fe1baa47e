"""Keys for tunnels in files of users: one block of lines, and not a byte of anything else."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from node_agent.authorized_keys import BEGIN, END, find_user, rewritten
from node_agent.membership import SshKey
from tests.agent.homes import NOT_ROOT, Homes, a_key, public_key

THEIRS = b'# mine\r\nssh-rsa AAAAB3 ada@laptop\n\n  from="10.0.0.0/8" ssh-ed25519 AAAAC3 ops'


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    return Homes(tmp_path)


def test_a_key_opens_tunnels_and_nothing_else(homes: Homes) -> None:
    found = homes.converge(a_key("acme/lab", 2, "[::1]:9000", "127.0.0.1:8080"))
    assert (found.ids, found.error) == (("acme/lab/2",), "")
    begin, line, end = homes.file.read_bytes().decode().splitlines()
    assert begin == BEGIN.decode() + " (so is the file)"
    assert line == (
        'restrict,command="echo gpuaas: this key opens tunnels and nothing else, use ssh -N >&2; '
        'exit 1",port-forwarding,permitlisten="127.0.0.1:1",permitopen="127.0.0.1:8080",'
        f'permitopen="[::1]:9000" {public_key(2)} gpuaas:acme/lab/2'
    )
    assert end == END.decode()
    assert stat.S_IMODE(homes.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(homes.file.parent.stat().st_mode) == 0o700
    assert homes.file.stat().st_uid == homes.file.parent.stat().st_uid == NOT_ROOT


def test_a_key_that_opens_nothing_may_nothing(homes: Homes) -> None:
    homes.converge(replace_opens(a_key(), ()))
    line = homes.file.read_text().splitlines()[1]
    assert line.startswith('restrict,command="')
    assert "port-forwarding" not in line


def replace_opens(key: SshKey, opens: tuple[str, ...]) -> SshKey:
    return key.model_copy(update={"permit_open": opens})


def test_keys_of_others_stay_and_the_file_goes_back_to_what_it_was(homes: Homes) -> None:
    homes.holds(THEIRS, 0o640)
    homes.converge(a_key(), a_key("acme/web"))
    assert homes.file.read_bytes().startswith(THEIRS + b"\n" + BEGIN)
    assert stat.S_IMODE(homes.file.stat().st_mode) == 0o640
    inode = homes.file.stat().st_ino
    homes.converge(a_key(), a_key("acme/web"))
    assert homes.file.stat().st_ino == inode, "what is right is not written again"
    homes.converge()
    assert homes.file.read_bytes() == THEIRS
    assert homes.memory.read_text() == "[]"


def test_a_file_that_we_made_goes_with_the_last_key(homes: Homes) -> None:
    homes.converge(a_key())
    assert homes.converge() == homes.converge()
    assert [*homes.file.parent.iterdir()] == []


def test_a_file_that_others_wrote_to_since_stays(homes: Homes) -> None:
    homes.converge(a_key())
    homes.file.write_bytes(homes.file.read_bytes() + b"ssh-rsa AAAAB3 later\n")
    homes.converge()
    assert homes.file.read_bytes() == b"ssh-rsa AAAAB3 later\n"


def test_a_user_that_no_key_names_any_more_is_let_go(homes: Homes) -> None:
    other = homes.add("other")
    homes.converge(a_key(), a_key("acme/web", user="other"))
    assert (other / ".ssh" / "authorized_keys").exists()
    homes.converge(a_key())
    assert not (other / ".ssh" / "authorized_keys").exists()
    assert homes.memory.read_text() == '["tunnel"]'


def test_a_user_that_is_gone_is_forgotten(homes: Homes) -> None:
    homes.converge(a_key())
    del homes.users["tunnel"]
    assert homes.converge(a_key()).error == "user tunnel: there is no such user on this host"
    assert homes.converge().error == ""
    assert homes.memory.read_text() == "[]"


def test_without_any_key_nothing_is_touched(homes: Homes) -> None:
    homes.holds(THEIRS)
    assert homes.converge().error == ""
    assert homes.file.read_bytes() == THEIRS
    assert not homes.memory.exists()


def test_nobody_is_let_in_who_could_not_be_let_go(homes: Homes) -> None:
    homes.memory.mkdir()
    found = homes.converge(a_key())
    assert found.ids == ()
    assert "the note of whose files have keys of ours can't be read" in found.error
    assert "whose files have keys of ours can't be noted: Is a directory" in found.error
    assert not homes.file.exists()


# --- what is refused -----------------------------------------------------------------------------

BROKEN = [
    (BEGIN + b"\n", "1 marker lines of ours, and there should be two"),
    (BEGIN + b"\n" + END + b"\n" + END + b"\n", "3 marker lines of ours, and there should be two"),
    (END + b"\n" + BEGIN + b"\n", "a marker line of ours was changed"),
    (BEGIN + b"\r\nx\r\n" + END + b"\r\n", "a marker line of ours was changed"),
    (b" " + BEGIN + b"\n" + END + b"\n", "a marker line of ours was changed"),
    (BEGIN + b" (mine)\n" + END + b"\n", "a marker line of ours was changed"),
]


@pytest.mark.parametrize(("content", "why"), BROKEN)
@pytest.mark.parametrize("wanted", [True, False])
def test_markers_that_are_not_as_we_wrote_them(
    homes: Homes, content: bytes, why: str, wanted: bool
) -> None:
    homes.converge(a_key())
    homes.holds(THEIRS + b"\n" + content)
    found = homes.converge(*([a_key()] if wanted else []))
    assert found.ids == ()
    assert found.error == (
        f"user tunnel: its authorized_keys is left as it is: {why}; mend or remove them"
    )
    assert homes.file.read_bytes() == THEIRS + b"\n" + content
    homes.holds(THEIRS)
    assert homes.converge(a_key()).error == "", "and it goes on once that is mended"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"user": "-oProxyCommand=x"}, "its user is no name of a user"),
        ({"id": 'acme/lab/1" ssh-rsa'}, "its id is none"),
        ({"public_key": public_key(1) + "\nssh-rsa AAAA"}, "its public key is no ed25519 key"),
        ({"public_key": "ssh-rsa AAAAB3"}, "its public key is no ed25519 key"),
        ({"permit_open": ("*:*",)}, "what it opens is no address and port"),
        ({"permit_open": ('127.0.0.1:1",command="x',)}, "what it opens is no address and port"),
        ({"permit_open": ("10.0.0.1:22\n",)}, "what it opens is no address and port"),
    ],
)
def test_a_key_that_is_not_what_it_should_be(
    homes: Homes, changes: dict[str, object], why: str
) -> None:
    odd = a_key().model_copy(update=changes)
    found = homes.converge(odd, a_key("acme/web"))
    assert found.ids == ("acme/web/1",)
    assert found.error == f"key {odd.id!r}: {why}"
    assert homes.file.read_text().count("\n") == 3


def test_root_is_never_let_in(homes: Homes) -> None:
    homes.users["tunnel"] = replace(homes.users["tunnel"], uid=0)
    assert homes.converge(a_key()).error == (
        "user tunnel: a tunnel never ends at root: name another user in ssh_user"
    )
    assert not homes.file.exists()


def test_who_may_use_docker_is_root_and_loses_what_he_had(homes: Homes, tmp_path: Path) -> None:
    assert homes.converge(a_key()).error == ""
    socket = tmp_path / "docker.sock"
    socket.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(socket, 0, 4711)
    socket.chmod(0o660)
    homes.sockets = (tmp_path / "none.sock", socket)
    found = homes.converge(a_key())
    assert f"user tunnel: it may use {socket} (group " in found.error
    assert "and a tunnel there is root: name a user in ssh_user that is in no such" in found.error
    assert not homes.file.exists()


def test_another_user_of_an_agent_that_is_not_root(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert homes.converge(a_key()).error == (
        "user tunnel: an agent that is not root writes for its own user alone"
    )


def test_what_belongs_to_others_is_left_alone(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To root as well, for a home: users of the system have folders like /usr/sbin."""
    homes.holds(THEIRS)
    user = homes.users["tunnel"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 0)
        homes.users["tunnel"] = replace(user, uid=12345)
        assert homes.converge(a_key()).error == "user tunnel: its home belongs to somebody else"
    homes.users["tunnel"] = user
    # Only root can give a file away, and has to be kept from following whom it gave one to.
    others = (homes.file.parent, homes.file) if os.geteuid() == 0 else ()
    for place in others:
        homes.give(place, 12345)
        said = f"user tunnel: its {place.name} belongs to somebody else"
        assert homes.converge(a_key()).error == said
        homes.give(place)
    assert homes.file.read_bytes() == THEIRS


def test_no_link_is_followed(homes: Homes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep\n")
    homes.holds(b"")
    homes.file.unlink()
    homes.file.symlink_to(target)
    assert homes.converge(a_key()).error == "user tunnel: its authorized_keys is a link"
    homes.file.unlink()
    homes.file.parent.rmdir()
    homes.file.parent.symlink_to(tmp_path)
    assert homes.converge(a_key()).error == "user tunnel: its .ssh is a link, or no folder"
    assert target.read_bytes() == b"keep\n"
    assert not (tmp_path / "authorized_keys").exists()


def test_neither_pipe_nor_second_name_nor_flood(homes: Homes, tmp_path: Path) -> None:
    homes.holds(THEIRS)
    os.link(homes.file, tmp_path / "second")
    odd = "user tunnel: its authorized_keys is no file, or has a second name"
    assert homes.converge(a_key()).error == odd
    homes.file.unlink()
    os.mkfifo(homes.file)
    homes.give(homes.file)
    assert homes.converge(a_key()).error == odd
    homes.file.unlink()
    homes.holds(b"#" * (1024 * 1024 + 1))
    large = "user tunnel: its authorized_keys is larger than 1048576 bytes"
    assert homes.converge(a_key()).error == large


def test_a_home_that_is_not_there(homes: Homes) -> None:
    homes.home.rmdir()
    assert homes.converge(a_key()).error == "user tunnel: No such file or directory"


def test_users_of_this_host() -> None:
    root = find_user("root")
    assert root is not None
    assert (root.uid, 0 in root.groups) == (0, True)
    assert find_user("no-such-user-here") is None


# --- any file ------------------------------------------------------------------------------------

LINES = [b"restrict ssh-ed25519 AAAA gpuaas:a/b/1", b"restrict ssh-ed25519 BBBB gpuaas:a/b/2"]
FILES = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([b"ssh-rsa A x", b"", b"# gpuaas", b"\r", b"\x00\xff", b"\xe2\x80\xa8"])
    ).flatmap(lambda rows: st.sampled_from([b"\n".join(rows), b"\r\n".join(rows) + b"\n"])),
)
BLOCKS = st.lists(st.sampled_from(LINES), min_size=1, max_size=2, unique=True)


@given(FILES | st.none(), BLOCKS, BLOCKS)
@example(b"", LINES, LINES[:1])
@example(b"no end", LINES, LINES)
@example(b"\r", LINES, LINES)
def test_any_file_keeps_its_bytes_and_comes_back(
    content: bytes | None, first: list[bytes], second: list[bytes]
) -> None:
    assume(b"# gpuaas tunnels:" not in (content or b""))
    once = rewritten(content, first)
    assert once is not None
    assert once.startswith(content or b"")
    assert once.endswith(b"\n".join([*first, END, b""]))
    assert rewritten(once, first) == once
    twice = rewritten(once, second)
    assert twice == rewritten(content, second)
    assert rewritten(twice, []) == content
    assert rewritten(content, []) == content


@given(FILES, FILES, BLOCKS)
def test_what_is_put_behind_the_block_stays_too(
    before: bytes, after: bytes, lines: list[bytes]
) -> None:
    assume(b"# gpuaas tunnels:" not in before + after)
    once = rewritten(before, lines)
    assert once is not None
    changed = rewritten(once + after, LINES[:1])
    assert changed is not None
    assert changed.endswith(END + b"\n" + after)
    found = rewritten(changed, [])
    kept = before if before.endswith(b"\n") or not before or not after else before + b"\n"
    assert found == kept + after


@given(st.lists(st.sampled_from([BEGIN, END, b"x", b" " + BEGIN, END + b"\r"]), max_size=5))
def test_markers_are_never_guessed_about(rows: list[bytes]) -> None:
    content = b"".join(row + b"\n" for row in rows)
    ours = [row for row in rows if row != b"x"]
    if not ours or ours == [BEGIN, END]:
        assert rewritten(content, LINES) is not None
    else:
        with pytest.raises(ValueError, match="marker"):
            rewritten(content, LINES)
