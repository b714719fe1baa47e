"""Which sources are within a prefix, and the many ways to look as if one were."""

from __future__ import annotations

import pytest

from reconciler.core.trust.sources import within

PREFIX = "https://git.acme.example/apps/"

WITHIN = [
    "https://git.acme.example/apps/site",
    "https://git.acme.example/apps/site/",
    "git+https://git.acme.example/apps/site@refs/heads/main",
    "git+https://git.acme.example/apps/site.git@9f86d081884c",
    "https://git.acme.example/apps/deep/er/site",
]
OUTSIDE = [
    "",
    "https://git.acme.example/apps",
    "https://git.acme.example/apps/",
    "https://git.acme.example/apps-evil/site",
    "https://git.acme.example/evil/site",
    "https://git.acme.example.evil.example/apps/site",
    "https://git.acme.example@evil.example/apps/site",
    "https://evil.example/https://git.acme.example/apps/site",
    "https://git.acme.example/apps/../evil/site",
    "https://git.acme.example/apps/./../evil",
    "https://git.acme.example/apps/%2e%2e/evil/site",
    "https://git.acme.example/apps/..%2fevil",
    "https://git.acme.example/apps/\\..\\evil",
    "https://git.acme.example/apps//site",
    "https://git.acme.example:8443/apps/site",
    "https://GIT.acme.example/apps/site",
    "http://git.acme.example/apps/site",
    "git+ssh://git@git.acme.example/apps/site",
    "https://git.acme.example/apps/site?ref=../../evil",
    "https://git.acme.example/apps/site#evil",
    "https://git.acme.example/apps/site@../../evil",
    "https://git.acme.example/apps/site@a@b",
    " https://git.acme.example/apps/site",
    "https://git.acme.example/apps/site\n",
    "https://git.acme.example/apps/s\u0456te",
    "https://git.acme.example/apps/" + "a" * 3000,
]


@pytest.mark.parametrize("source", WITHIN)
def test_within(source: str) -> None:
    assert within([source], [PREFIX])


@pytest.mark.parametrize("source", OUTSIDE)
def test_outside(source: str) -> None:
    assert not within([source], [PREFIX])
    assert not within([WITHIN[0], source], [PREFIX])


def test_no_prefix_is_any_source_and_no_source_is_within_none() -> None:
    assert within(["anything"], [])
    assert within([], [])
    assert not within([], [PREFIX])
