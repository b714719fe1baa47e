"""CommitLog.signatures: what is made of them, beside what `git verify-commit` says of the same.

Every case is a commit of one repository. Git is asked with a file of allowed signers and a keyring
that hold all keys there are, so that it says yes to whatever is well signed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from reconciler.adapters import git_signatures
from reconciler.core.authority.facts import Signature
from reconciler.core.names import Revision
from reconciler.devkit.signing import git_config
from reconciler.errors import Refused, Transient
from tests.services.git_repo import GitRepo
from tests.services.signed_repo import PAST, SSH_KINDS, Keys, SignedRepo, programs, signing_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    with signing_keys(tmp_path_factory.mktemp("keys")) as made:
        yield made


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> SignedRepo:
    return SignedRepo(GitRepo(tmp_path / "state"), keys)


@pytest.mark.parametrize("name", [*SSH_KINDS, "openpgp", "subkey"])
def test_well_signed(signed: SignedRepo, name: str) -> None:
    revision = signed.commit(name)
    assert signed.signature(revision) == Signature("good", signed.keys[name].fingerprint)
    assert signed.git_agrees(revision)


def _unsigned(signed: SignedRepo) -> Revision:
    return signed.first


def _stripped(signed: SignedRepo) -> Revision:
    raw = signed.raw(signed.commit("ed25519"))
    head, _, rest = raw.partition(b"\ngpgsig ")
    return signed.write(head + rest.partition(b"-----END SSH SIGNATURE-----")[2])


def _another_tree(signed: SignedRepo) -> Revision:
    tree = signed.repo.git("rev-parse", f"{signed.first}^{{tree}}").strip().encode()
    empty = signed.repo.git("hash-object", "-t", "tree", "-w", "--stdin").strip().encode()
    return signed.altered("ed25519", tree, empty)


def _two_signatures(signed: SignedRepo) -> Revision:
    payload = signed.payload()
    once = signed.raw(signed.with_signature(payload, signed.keys.sign_ssh(payload)))
    return signed.with_signature(once, signed.keys.sign_ssh(payload, "rsa"))


def _for_both_formats(signed: SignedRepo) -> Revision:
    payload = signed.payload()
    signature = signed.keys.sign_ssh(payload)
    once = signed.raw(signed.with_signature(payload, signature))
    return signed.with_signature(once, signature, b"gpgsig-sha256")


def _ssh_armor() -> bytes:
    return b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----"


def _armored(begin: str, end: str = "", body: str = "AAAA") -> Callable[[SignedRepo], Revision]:
    text = f"-----BEGIN {begin}-----\n{body}\n-----END {end or begin}-----".encode()
    return lambda signed: signed.with_signature(signed.payload(), text)


def _parent_after_signature(signed: SignedRepo) -> Revision:
    """Git sees a first commit here, although its parent is what was signed."""
    payload = signed.payload()
    tree, _, rest = payload.partition(b"\n")
    signature = signed.keys.sign_ssh(payload).rstrip(b"\n").replace(b"\n", b"\n ")
    return signed.write(tree + b"\ngpgsig " + signature + b"\n" + rest)


def _two_openpgp(signed: SignedRepo) -> Revision:
    payload = signed.payload()
    both = signed.keys.sign_openpgp(payload) + signed.keys.sign_openpgp(payload, "subkey")
    return signed.with_signature(payload, both)


def _merged_tag(*options: str) -> Callable[[SignedRepo], Revision]:
    def make(signed: SignedRepo) -> Revision:
        repo, key = signed.repo, git_config(signed.keys["ed25519"])
        repo.git("checkout", "--quiet", "-b", "side")
        signed.commit("ed25519")
        repo.git(*key, "tag", "--sign", "--message", "a tag", "v1")
        repo.git("checkout", "--quiet", "main")
        repo.git(*key, "merge", "--quiet", "--no-ff", "--no-edit", *options, "v1")
        assert b"\nmergetag " in signed.raw(repo.head())
        return repo.head()

    return make


def _signed_bytes(message: bytes, header: bytes = b"") -> Callable[[SignedRepo], Revision]:
    def make(signed: SignedRepo) -> Revision:
        payload = signed.payload(message, header)
        return signed.with_signature(payload, signed.keys.sign_ssh(payload))

    return make


def _long_ago(signed: SignedRepo) -> Revision:
    payload = signed.payload()
    return signed.with_signature(payload, signed.keys.sign_openpgp(payload, "expired", *PAST))


def _with_revoked(signed: SignedRepo) -> Revision:
    payload = signed.payload()
    return signed.with_signature(payload, signed.keys.sign_openpgp(payload, "revoked"))


CASES: Mapping[str, tuple[Callable[[SignedRepo], Revision], str, str]] = {
    "unsigned": (_unsigned, "none", ""),
    "signature taken off": (_stripped, "none", ""),
    "another message, ssh": (lambda s: s.altered("rsa", b"as it", b"was as"), "bad", "not fit"),
    "another message, openpgp": (
        lambda s: s.altered("openpgp", b"as it", b"was as"), "bad", "not fit",
    ),
    "another tree": (_another_tree, "bad", "not fit"),
    "another author": (lambda s: s.altered("subkey", b"author Ada", b"author Eve"), "bad", ""),
    "of another commit": (SignedRepo.of_another, "bad", "not fit"),
    "for files, not Git": (
        lambda s: s.with_signature(
            s.payload(), s.keys.sign_ssh(s.payload(), namespace="file")
        ), "bad", "not fit",
    ),
    "two in one, openpgp": (_two_openpgp, "unsupported", "neither"),
    "X.509": (_armored("SIGNED MESSAGE"), "unsupported", "X.509"),
    "OpenPGP, not detached": (_armored("PGP MESSAGE"), "unsupported", "neither"),
    "armor that ends as another": (
        _armored("SSH SIGNATURE", "PGP SIGNATURE"), "unsupported", "neither",
    ),
    "garbage": (lambda s: s.with_signature(s.payload(), b"hello"), "unsupported", "neither"),
    "garbage in SSH armor": (_armored("SSH SIGNATURE"), "bad", ""),
    "garbage in SSH armor of a long commit": (
        lambda s: s.with_signature(s.payload(b"x" * 500_000), _ssh_armor()), "bad", "can't read",
    ),
    "nothing in SSH armor": (_armored("SSH SIGNATURE", body=""), "bad", "not fit"),
    "garbage in OpenPGP armor": (_armored("PGP SIGNATURE"), "unsupported", "gpg can't"),
    "empty": (lambda s: s.with_signature(s.payload(), b""), "unsupported", "neither"),
    "only a tag in it is signed": (_merged_tag("--no-gpg-sign"), "none", ""),
    "expired key": (_long_ago, "bad", "key has expired"),
    "revoked key": (_with_revoked, "bad", "key is revoked"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_neither_counts_nor_does_git_take_it(signed: SignedRepo, case: str) -> None:
    make, state, detail = CASES[case]
    revision = make(signed)
    said = signed.signature(revision)
    assert (said.state, said.key) == (state, "")
    assert detail in said.detail
    assert not signed.git_agrees(revision)


ODD: Mapping[str, Callable[[SignedRepo], Revision]] = {
    "NUL in the message": _signed_bytes(b"one\0two\n"),
    "not UTF-8": _signed_bytes(b"\xff\xfe\n"),
    "no message": _signed_bytes(b""),
    "an encoding": _signed_bytes(b"\xe9t\xe9\n", b"encoding ISO-8859-1\n"),
    "a header of another program": _signed_bytes(b"x\n", b"HG:extra some\n thing\n"),
    "a signed tag merged in": _merged_tag(),
    "blank lines after it": lambda s: s.with_signature(
        s.payload(), s.keys.sign_openpgp(s.payload()) + b"\n "
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_but_well_signed(signed: SignedRepo, case: str) -> None:
    revision = ODD[case](signed)
    assert signed.signature(revision).state == "good"
    assert signed.git_agrees(revision)


@pytest.mark.parametrize(
    ("make", "detail"),
    [
        (_two_signatures, "several signatures"),
        (_for_both_formats, "several signatures"),
        (_signed_bytes(b"x\n", b"odd \0header\n"), "header is malformed"),
        (_parent_after_signature, "header is malformed"),
    ],
)
def test_stricter_than_git(
    signed: SignedRepo, make: Callable[[SignedRepo], Revision], detail: str
) -> None:
    """Git takes these, although what was signed is not just what is read of the commit."""
    revision = make(signed)
    said = signed.signature(revision)
    assert (said.state, detail in said.detail) == ("unsupported", True)
    assert signed.git_agrees(revision)


def test_a_signature_for_the_other_format_alone(signed: SignedRepo) -> None:
    """Git sees none where commits are named by SHA-1: nothing to wait for, and nothing to retry."""
    payload = signed.payload()
    revision = signed.with_signature(payload, signed.keys.sign_ssh(payload), b"gpgsig-sha256")
    said = signed.signature(revision)
    assert (said.state, said.detail) == ("unsupported", "it is for commits named by SHA-256")


def test_a_commit_that_is_too_large_is_not_looked_at(
    signed: SignedRepo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    revision = _signed_bytes(b"x" * 10_000_000)(signed)
    assert signed.git_agrees(revision)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = signed.log().signatures([revision], [])[revision]
    assert said.state == "too_large"
    assert "bytes" in said.detail


def test_a_key_that_was_not_given(
    signed: SignedRepo, monkeypatch: pytest.MonkeyPatch, keys: Keys
) -> None:
    """Not even when it is in the keyring of whoever runs this; and it may be given later."""
    monkeypatch.setenv("GNUPGHOME", str(keys["openpgp"].private))
    revision = signed.commit("openpgp")
    log = signed.log()
    said = log.signatures([revision], [keys["subkey"].public_line])[revision]
    assert said == Signature("no_key", keys["openpgp"].fingerprint[-16:])
    assert log.signatures([revision], keys.openpgp)[revision].state == "good"


def test_a_key_that_cannot_be_read_is_no_hindrance(signed: SignedRepo, keys: Keys) -> None:
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
    junk = [f"{begin}\n\nAAAA\n{end}\n", "junk", keys["openpgp"].public_line[:200]]
    revision = signed.commit("subkey")
    said = signed.log().signatures([revision], [*junk, *keys.openpgp, *junk])
    assert said[revision].state == "good"


def test_many_keys_that_cannot_be_read_take_one_run(
    signed: SignedRepo, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
    junk = [f"{begin}\n\n{'A' * 4 * number}\n{end}\n" for number in range(1, 300)]
    unclosed = [f"{key}{begin}\nComment: x" for key in keys.openpgp]
    revision = signed.commit("subkey")
    monkeypatch.setattr(git_signatures, "_IMPORTS_MAX", 1)
    said = signed.log().signatures([revision], [*junk, *unclosed, *keys.openpgp, "x", begin])
    assert said[revision].state == "good"


_FALLS = """
case "$*" in *--import*) for name; do case $name in tmp/*)
  read -r line < "$name"; [ "$line" != stop ] || exit 2;; esac; done;; esac
exec {gpg} "$@"
"""


def test_keys_that_gpg_falls_over(
    signed: SignedRepo, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = signed.commit("openpgp")
    falls = _FALLS.format(gpg=shutil.which("gpg"))
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", "git", "sh", gpg=falls))
    given = ["stop\n1", *keys.openpgp, "stop\n2"]
    assert signed.log().signatures([revision], given)[revision].state == "good"
    monkeypatch.setattr(git_signatures, "_IMPORTS_MAX", 3)
    with pytest.raises(Refused, match=r"gpg fails at too many.*signed with SSH") as refused:
        signed.log().signatures([signed.commit("subkey")], given)
    assert refused.value.code == "too_many_openpgp_keys"


@pytest.mark.parametrize("name", ["_KEYS_MAX", "_KEYS_BYTES_MAX"])
def test_too_many_keys(
    signed: SignedRepo, keys: Keys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    revision = signed.commit("openpgp")
    monkeypatch.setattr(git_signatures, name, 2)
    with pytest.raises(Refused, match="to be read") as refused:
        signed.log().signatures([revision], [*keys.openpgp, "another", "a third"])
    assert refused.value.code == "too_many_openpgp_keys"
    ssh = signed.commit("ed25519")
    assert signed.log().signatures([ssh], ["a", "b", "c"])[ssh].state == "good"


def test_neither_replacements_nor_the_repository_have_a_say(
    signed: SignedRepo, tmp_path: Path
) -> None:
    good = signed.commit("ed25519")
    signed.repo.git("replace", signed.first, good)
    marker = tmp_path / "marker"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\necho 'Good \"git\" signature with key x'\n")
    program.chmod(0o755)
    for name in ("gpg.program", "gpg.ssh.program", "gpg.openpgp.program", "gpg.x509.program"):
        signed.repo.git("config", name, str(program))
    wrong = signed.with_signature(signed.payload(b"a\n"), signed.keys.sign_ssh(b"b"))
    said = signed.log().signatures([signed.first, wrong, good], [])
    assert [said[one].state for one in (signed.first, wrong, good)] == ["none", "bad", "good"]
    assert not marker.exists()


def test_nothing_is_left_behind(
    signed: SignedRepo, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    revision = signed.commit("openpgp")
    assert signed.log().signatures([revision], keys.openpgp)[revision].state == "good"
    assert list(scratch.iterdir()) == []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(scratch).encode() not in process.read_bytes()
        except OSError:
            continue


def test_a_commit_that_is_not_here(signed: SignedRepo) -> None:
    with pytest.raises(Refused) as refused:
        signed.log().signatures([Revision("9" * 40)], [])
    assert refused.value.code == "unknown_revision"


@pytest.mark.parametrize(
    ("name", "there", "code", "words"),
    [
        ("ed25519", ["git", "gpg"], "signature_program_missing", "apt install openssh-client"),
        ("openpgp", ["git", "ssh-keygen"], "signature_program_missing", "apt install gpg"),
        ("ed25519", ["ssh-keygen"], "git_missing", "install git"),
    ],
)
def test_a_program_that_is_missing(
    signed: SignedRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    there: list[str],
    code: str,
    words: str,
) -> None:
    revision = signed.commit(name)
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", *there))
    with pytest.raises(Refused) as refused:
        signed.log().signatures([revision], [])
    assert refused.value.code == code
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        ({"git": "echo fatal: bad object >&2; exit 128"}, "fatal: bad object"),
        ({"git": "exit 0"}, "no output"),
        ({"git": "exec /bin/sleep 60"}, "no end after"),
        ({"ssh_keygen": "exec /bin/cat > /dev/null"}, "ssh-keygen said nothing"),
    ],
)
def test_what_could_not_be_checked_is_not_bad(
    signed: SignedRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: dict[str, str],
    words: str,
) -> None:
    revision = signed.commit("ed25519")
    there = {"git", "ssh-keygen", "sh"} - {name.replace("_", "-") for name in scripts}
    with monkeypatch.context() as patch:
        patch.setenv("PATH", programs(tmp_path / "bin", *there, **scripts))
        patch.setattr(git_signatures, "_RUN_TIMEOUT_S", 2.0)
        with pytest.raises(Transient, match=words) as failed:
            signed.log().signatures([revision], [])
    assert failed.value.code == "git_verify_failed"
    assert signed.log().signatures([revision], [])[revision].state == "good"
