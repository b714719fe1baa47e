"""What Git's stderr means for the caller: pass by itself, or a person must act.

Rules: text in, an error out. Git runs with LC_ALL=C, so its words are stable enough to sort by;
words nobody foresaw are Transient, because trying again decides nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reconciler.errors import GpuaasError, Refused, Transient

_TEXT_MAX = 300
_CORRUPT = re.compile(
    r"is corrupt|corrupt loose|loose object|bad object|unable to read|invalid sha1 pointer"
    r"|object file .* is empty|missing (?:blob|tree|commit)|did not send all necessary objects"
    r"|bad config|packfile .* cannot be|unable to resolve reference|broken ref"
    r"|not a git repository: |reference broken|unable to parse"
)


@dataclass(frozen=True)
class _Meaning:
    pattern: re.Pattern[str]
    code: str
    message: str
    hint: str


def _means(pattern: str, code: str, message: str, hint: str) -> _Meaning:
    return _Meaning(re.compile(pattern, re.IGNORECASE), code, message, hint)


# The first match wins: ssh's own reason comes before Git's general one.
_REFUSALS = (
    _means(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
        "git_host_key_changed",
        "the server's host key is not the one we know",
        "make sure that nobody is in between, then replace its line in the known-hosts file",
    ),
    _means(
        r"Host key verification failed|No .* host key is known",
        "git_host_key_unknown",
        "the server's host key is not known here",
        "check the key with the server's owner and add it to the known-hosts file",
    ),
    _means(
        r"Permission denied \(|Authentication failed|could not read (?:Username|Password)"
        r"|returned error: 40[13]|HTTP Basic: Access denied|Too many authentication failures",
        "git_auth_failed",
        "the server refused our credentials",
        "check the deploy key or token, and that it may read this repository",
    ),
    _means(
        r"(?:could|did)n.t find remote ref",
        "git_branch_missing",
        "the repository has no such branch",
        "push the branch, or set `branch` to one that exists",
    ),
    _means(
        r"dubious ownership",
        "git_not_owned",
        "the repository belongs to another user",
        "git config --global --add safe.directory PATH, as the user gpuaas runs as",
    ),
    _means(
        r"does not appear to be a git repository|repository .*not found|returned error: 404"
        r"|not valid: is this a git repository",
        "git_repo_missing",
        "there is no such repository, or we may not see it",
        "check `repo`",
    ),
    _means(
        r"transport '.*' not allowed",
        "git_url_refused",
        "the address uses a transport that is not allowed",
        "use a path, ssh, http or https",
    ),
    _means(
        r"certificate problem|certificate verification failed|certificate verify failed",
        "git_tls_refused",
        "the server's TLS certificate is not trusted here",
        "install its CA on this host, or set http.sslCAInfo in the Git configuration",
    ),
    _means(
        r"cannot run ssh|ssh: (?:command )?not found",
        "git_ssh_missing",
        "there is no ssh client on this host",
        "install openssh-client",
    ),
    _means(
        r"fsck error|error: object [0-9a-f]+: ",
        "git_bad_objects",
        "the repository holds malformed objects",
        "git fsck on the server shows them; rewrite the commits that hold them",
    ),
)


def failure(stderr: str, where: str) -> GpuaasError:
    """The error for a Git that failed with this (already masked) stderr."""
    said = shorten(stderr)
    for meaning in _REFUSALS:
        if meaning.pattern.search(stderr):
            return Refused(
                meaning.code, f"{meaning.message}: {said}", where=where, hint=meaning.hint
            )
    return Transient("git_fetch_failed", f"git fetch failed: {said}", where=where)


def speaks_of_corruption(stderr: str) -> bool:
    """Whether the words fit a damaged mirror. The remote may be the damaged one: look and see."""
    return bool(_CORRUPT.search(stderr))


def shorten(stderr: str) -> str:
    """The line of a long stderr that says most, printable, at most 300 characters."""
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in stderr.splitlines()]
    lines = [line.strip() for line in lines if line.strip(" @")]
    telling = [line for line in lines if re.match(r"(?:remote: )?(?:fatal|error|ssh): ", line)]
    chosen = (telling or lines[-1:] or ["no output"])[0]
    return chosen if len(chosen) <= _TEXT_MAX else chosen[: _TEXT_MAX - 1] + "…"
