"""What is a well-formed wish to publish or to pull, and what is said of one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.transfers import PublishWish, PullWish

WISH = PublishWish("acme/lab", "notebook", "1.0.0+cu12", "image")
HEX = "a" * 64
RESERVED = "signatures are kept at tags like this one: name another"
MALFORMED = "not well-formed, see the API's description"


@pytest.mark.parametrize(
    "tag",
    [
        *(f"sha256-{HEX}{end}" for end in ("", ".sig", ".att", ".sbom", ".", ".sig.sig")),
        f"sha512-{HEX}{HEX[:50]}",
        f"sha1-{HEX[:32]}",
    ],
)
def test_no_tag_for_signatures(tag: str) -> None:
    """Attempted: to take another artifact's signatures away."""
    assert replace(WISH, tag=tag).problem() == f"tag: {RESERVED}"


@pytest.mark.parametrize("version", [f"sha256-{HEX[:50]}", f"sha256-{HEX[:40]}.sig"])
def test_no_version_that_would_be_one(version: str) -> None:
    assert replace(WISH, version=version).problem() == f"version: {RESERVED}"


@pytest.mark.parametrize("tag", ["", "1.0.0", "sha256-abc", f"x-sha256-{HEX}", f"sha256-{HEX}-x"])
def test_other_tags_are_for_whoever_wants_them(tag: str) -> None:
    assert replace(WISH, tag=tag).problem() == ""


def test_what_is_not_well_formed_is_named() -> None:
    assert replace(WISH, tag="-x").problem() == f"tag: {MALFORMED}"
    assert replace(WISH, project="acme").problem() == f"project: {MALFORMED}"
    assert PullWish("acme", "x").problem() == f"project: {MALFORMED}"
    assert PullWish("acme/lab", "").problem() == f"artifact: {MALFORMED}"
    assert PullWish("acme/lab", "x").problem() == ""
