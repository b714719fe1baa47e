"""What a repository keeps by tag and by subject, read and written: the parts of attaching.

Rules:
- A tag or a list of referrers is where to look and proves nothing; what is found is hashed.
- Who answers does not choose whom we ask: a next page and an upload stay where the list was.
- A 404 is "not there" only by a registry's own word. Of the referrers API it says that there is
  none.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from reconciler.adapters.oci_documents import OCI_INDEX
from reconciler.adapters.registry_http import Remote, accept_status, address_of, shown
from reconciler.core.names import Digest
from reconciler.errors import Refused
from reconciler.ports import RegistryEndpoint

PAGES_MAX = 20
_REMEMBERED_S = 600.0
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')


@dataclass(frozen=True)
class Written:
    """A manifest that was written; `subject` is what the registry lists it as a referrer of."""

    digest: Digest
    size_bytes: int
    subject: str


class WithoutReferrers:
    """Registries that were seen to have no referrers API, and clients who keep its lists instead.

    For a while: they may get one. Both have to be seen, so that one wrong answer hides no list.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until_s: dict[RegistryEndpoint, float] = {}

    def knows(self, endpoint: RegistryEndpoint) -> bool:
        return self._monotonic() < self._until_s.get(endpoint, 0.0)

    def learn(self, endpoint: RegistryEndpoint) -> None:
        if not self.knows(endpoint):
            self._until_s[endpoint] = self._monotonic() + _REMEMBERED_S


def fallback_tag(subject: Digest) -> str:
    """Where an index of its referrers is kept by clients of a registry that keeps none."""
    return str(subject).replace(":", "-")


def tagged(remote: Remote, tag: str) -> tuple[bytes, str] | None:
    """The manifest at a tag and the media type it was served as; None when there is none."""
    where = f"{remote.where}:{tag}"
    with remote.ask("GET", remote.url(f"manifests/{tag}"), where) as answer:
        if answer.status_code == 404:
            remote.check_clearly_missing(answer, where)
            return None
        accept_status(answer, where)
        content = remote.read(answer, remote.bounds.manifest_bytes_max, where)
        return content, served_type(answer)


def referrer_indexes(
    remote: Remote, subject: Digest, without: WithoutReferrers | None = None
) -> Iterator[bytes]:
    """Indexes of what names `subject`: pages of the API, or the one at its fallback tag."""
    without = without or WithoutReferrers()
    if not without.knows(remote.endpoint):
        pages = 0
        for page in _api_pages(remote, subject):
            pages += 1
            yield page
        if pages:
            return
    kept = tagged(remote, fallback_tag(subject))
    if kept is not None:
        without.learn(remote.endpoint)
        yield kept[0]


def _api_pages(remote: Remote, subject: Digest) -> Iterator[bytes]:
    """None at all where there is no API; there, an artifact without referrers has an empty one."""
    where = f"{remote.where}@{subject}"
    url = remote.url(f"referrers/{subject}")
    for number in range(PAGES_MAX):
        with remote.ask("GET", url, where, headers={"Accept": OCI_INDEX}) as answer:
            content = remote.read(answer, remote.bounds.manifest_bytes_max, where)
            if answer.status_code == 404 and number == 0:
                return
            accept_status(answer, where)
            following = _NEXT.search(answer.headers.get("Link", ""))
        yield content
        if following is None:
            return
        url = _next_page(remote, url, following[1], subject)
    message = f"more than {PAGES_MAX} pages of referrers"
    raise Refused("registry_odd_answer", message, where=where)


def _next_page(remote: Remote, url: httpx.URL, named: str, subject: Digest) -> httpx.URL:
    following = address_of(named, url)
    if following is None or following.copy_with(query=None) != remote.url(f"referrers/{subject}"):
        where = f"{remote.where}@{subject}"
        raise Refused("registry_redirected", "its next page is elsewhere", where=where)
    return following


@dataclass(frozen=True)
class References:
    """A repository as `registry_attached` looks into it."""

    remote: Remote
    without: WithoutReferrers

    @property
    def where(self) -> str:
        return self.remote.where

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        return self.remote.manifest(digest)

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        return self.remote.blob(digest, size_bytes)

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        return tagged(self.remote, tag)

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]:
        return referrer_indexes(self.remote, subject, self.without)


def put_manifest(remote: Remote, document: dict[str, Any], reference: str = "") -> Written:
    """Writes `document`, at `reference` or at its digest; what has to be there is."""
    content = json.dumps(document, separators=(",", ":")).encode()
    return put_content(remote, content, document["mediaType"], reference)


def put_content(remote: Remote, content: bytes, media_type: str, reference: str = "") -> Written:
    """The same of a manifest as it is."""
    digest = Digest.of(content)
    reference = reference or str(digest)
    where = f"{remote.where}:{reference}"
    headers, url = {"Content-Type": media_type}, remote.url(f"manifests/{reference}")
    with remote.ask("PUT", url, where, content=content, headers=headers) as answer:
        accept(answer, where, 201)
        kept = answer.headers.get("Docker-Content-Digest", str(digest))
        if kept != str(digest):
            raise Refused("digest_mismatch", f"it keeps it as {shown(kept[:80])}", where=where)
        return Written(digest, len(content), answer.headers.get("OCI-Subject", ""))


def put_blob(remote: Remote, content: bytes) -> Digest:
    """Uploads a small blob in one piece, unless it is there."""
    digest = Digest.of(content)
    if remote.blob_size_bytes(digest) == len(content):
        return digest
    where = f"{remote.where}@{digest}"
    place = upload_place(remote, where).copy_merge_params({"digest": str(digest)})
    headers = {"Content-Type": "application/octet-stream"}
    with remote.ask("PUT", place, where, content=content, headers=headers) as answer:
        accept(answer, where, 201)
    return digest


def upload_place(remote: Remote, where: str) -> httpx.URL:
    """Where the registry takes an upload; its own origin, or it is not sent anything."""
    url = remote.url("blobs/uploads/")
    with remote.ask("POST", url, where, content=b"") as answer:
        accept(answer, where, 202)
        place = address_of(answer.headers.get("Location", ""), url) or httpx.URL()
    if (place.scheme, place.host, place.port) != (url.scheme, url.host, url.port):
        hint = "name the registry's final host in the Environment"
        raise Refused("registry_redirected", "it takes uploads elsewhere", where=where, hint=hint)
    return place


def accept(answer: httpx.Response, where: str, status: int) -> None:
    if answer.status_code != status:
        accept_status(answer, where)
        message = f"answered {answer.status_code} where {status} was due"
        raise Refused("registry_odd_answer", message, where=where)


def served_type(answer: httpx.Response) -> str:
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()
