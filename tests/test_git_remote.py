"""Addresses of state repos: what Git may see, and what of it may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.git_failures import failure, shorten
from reconciler.adapters.git_remote import mask_credentials, parse_remote
from reconciler.errors import Refused, Transient


@pytest.mark.parametrize(
    ("text", "url", "transport"),
    [
        ("/srv/state.git", "/srv/state.git", "file"),
        ("./a:b", str(Path("./a:b").absolute()), "file"),
        ("file:///srv/state.git", "file:///srv/state.git", "file"),
        ("git@example.com:ops/state.git", "git@example.com:ops/state.git", "ssh"),
        ("example.com:ops/state.git", "example.com:ops/state.git", "ssh"),
        ("ssh://git@example.com:2222/ops/state", "ssh://git@example.com:2222/ops/state", "ssh"),
        ("https://example.com/ops/state.git", "https://example.com/ops/state.git", "http"),
        ("https://u:p@example.com:8443/s", "https://example.com:8443/s", "http"),
        ("http://token@[::1]:80/s", "http://[::1]:80/s", "http"),
    ],
)
def test_an_address_is_taken(text: str, url: str, transport: str) -> None:
    remote = parse_remote(text)
    assert (remote.url, remote.transport) == (url, transport)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("--upload-pack=touch /tmp/x", "begins with '-'"),
        ("ext::sh -c id", "remote helpers"),
        ("fd::17", "remote helpers"),
        ("git://example.com/s", "git:// is not one of file, http, https, ssh"),
        ("ftp://example.com/s", "ftp:// is not one of"),
        ("ssh://-oProxyCommand=id/s", "host and a path"),
        ("ssh://-l@example.com/s", "begins with '-'"),
        ("ssh://example.com/-x", "begins with '-'"),
        ("ssh://u:hunter2@example.com/s", "keys, not passwords"),
        ("-oProxyCommand=id:s", "begins with '-'"),
        ("git@-oProxyCommand=id:s", "may begin with '-'"),
        ("git@example.com:-x", "may begin with '-'"),
        ("https://example.com", "host and a path"),
        ("https://u:hunter2@example.com:99999/s", "not a URL"),
        ("https://example.com/s?token=x", "no query"),
        ("https://u:a%0ab@example.com/s", "control character"),
        ("https://example.com/\nhttps://other", "control character"),
        ("file://elsewhere/srv/s", "this host only"),
    ],
)
def test_an_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match="git_url_refused: not a repository address") as caught:
        parse_remote(text)
    assert why in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_a_credential_is_split_off_and_does_not_print() -> None:
    remote = parse_remote("https://deploy:hunt%40er2@example.com/s")
    assert remote.password is not None
    assert remote.password.reveal() == "hunt@er2"
    assert "hunt" not in repr(remote)
    assert "deploy" not in repr(remote)
    assert remote.origin == "https://example.com"


def test_masking() -> None:
    said = "fatal: unable to access 'https://u:p4ss@example.com/s': bad p4ss"
    assert mask_credentials(said, "p4ss") == (
        "fatal: unable to access 'https://***@example.com/s': bad ***"
    )


def test_stderr_is_shortened_to_what_says_most() -> None:
    said = "remote: hello\nwarning: x\nfatal: it broke\x1b[31m\nmore\n"
    assert shorten(said) == "fatal: it broke [31m"
    assert shorten("") == "no output"
    assert len(shorten("fatal: " + "y" * 5000)) == 300


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("Host key verification failed.\nfatal: Could not read", "git_host_key_unknown"),
        ("git@h: Permission denied (publickey).\nfatal: Could not read", "git_auth_failed"),
        ("fatal: could not read Username for 'https://h': terminal", "git_auth_failed"),
        ("fatal: couldn't find remote ref refs/heads/x", "git_branch_missing"),
        ("remote: Repository not found.\nfatal: repository 'h' not found", "git_repo_missing"),
        ("fatal: detected dubious ownership in repository at '/s'", "git_not_owned"),
        ("fatal: transport 'ext' not allowed", "git_url_refused"),
        ("fatal: unable to access 'h': SSL certificate problem: expired", "git_tls_refused"),
        ("error: object 12ab: badTree\nfatal: fsck error in packed object", "git_bad_objects"),
        ("error: cannot run ssh: No such file or directory", "git_ssh_missing"),
    ],
)
def test_what_a_person_must_mend_is_refused(stderr: str, code: str) -> None:
    error = failure(stderr, "here")
    assert isinstance(error, Refused)
    assert (error.code, error.where) == (code, "here")
    assert error.hint


@pytest.mark.parametrize(
    "stderr",
    [
        "fatal: unable to access 'h': Could not resolve host: h",
        "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote",
        "error: RPC failed; HTTP 503\nfatal: the remote end hung up unexpectedly",
        "words nobody foresaw",
    ],
)
def test_what_may_pass_is_transient(stderr: str) -> None:
    assert isinstance(failure(stderr, "here"), Transient)
