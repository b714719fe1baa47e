"""Join tokens are not handed out for a server they would travel to in the clear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.node import node
from reconciler.errors import Refused


def join(folder: Path, *arguments: str) -> dict[str, str]:
    command = ["join", "node-a", "--state-dir", str(folder), "--format", "json", *arguments]
    done = CliRunner().invoke(node, command, standalone_mode=False, catch_exceptions=False)
    document: dict[str, str] = json.loads(done.output)
    return document


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8470", "http://plane.example", "http://127.0.0.1.example", "ftp://x"]
)
def test_plain_http_beyond_this_host_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(Refused) as refused:
        join(tmp_path, "--server", url)
    assert refused.value.code == "insecure_server"
    assert refused.value.message == f"the join token would travel unencrypted to {url}"
    assert "--allow-plain-http" in refused.value.hint


@pytest.mark.parametrize(
    "arguments",
    [
        ("--server", "https://plane.example"),
        ("--server", "http://127.0.0.1:1"),
        ("--server", "http://[::1]:1"),
        ("--server", "http://plane.example", "--allow-plain-http"),
        (),
    ],
)
def test_anything_else_gets_a_token(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    document = join(tmp_path, *arguments)
    assert document["node"] == "node-a"
    assert len(document["token"]) > 100
