"""A token to fetch a snapshot with goes to the one address it is meant for, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.adapters.fetch_document import fetch_document
from reconciler.cli.main import gpuaas
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import Secret
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.wiring.snapshots import bearer_token, read_snapshot
from tests.fakes.store import MemoryStore
from tests.server.harness import Keys, StillClock, settings_of
from tests.server.readers import NILS, OLGA, populate, token_of

TOKEN = Secret("eyJ0b2tlbiI.of.ada-_~")
MAX = 1000


@contextmanager
def answering(status: int = 200, location: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server, and the credentials that it is shown."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/snapshot", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_it_is_shown_where_it_is_given_and_nowhere_else() -> None:
    with answering() as (url, seen):
        assert fetch_document(url, MAX, 10.0, token=TOKEN) == b"{}"
        assert fetch_document(url, MAX, 10.0) == b"{}"
    assert seen == [f"Bearer {TOKEN.reveal()}", None]


def test_it_follows_no_redirect() -> None:
    """Attempted: an answer that sends the reader, and his token, to another server."""
    with answering() as (elsewhere, seen), answering(302, elsewhere) as (url, _):
        with pytest.raises(Refused, match="fetch_refused: it answered 302"):
            fetch_document(url, MAX, 10.0, token=TOKEN)
        assert seen == []


@pytest.mark.parametrize(
    "url",
    [
        "http://control.example/v1/snapshot",
        "http://192.0.2.1:8470/v1/snapshot",
        "http://localhost.example/v1/snapshot",
        "http://127.0.0.1@control.example/v1/snapshot",
        "HTTP://control.example/v1/snapshot",
    ],
)
def test_it_is_not_sent_where_others_could_read_it(url: str) -> None:
    with pytest.raises(Refused) as refused:
        fetch_document(url, MAX, 10.0, token=TOKEN)
    assert (refused.value.code, refused.value.message, refused.value.hint) == (
        "token_in_the_clear",
        "a token is not sent over plain HTTP, where others could read it",
        "use https://",
    )


def test_it_passes_no_proxy_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempted: a proxy of the environment, which would be told the token for this host."""
    with answering() as (proxy, told), answering() as (url, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        fetch_document(url, MAX, 10.0, token=TOKEN)
    assert (told, seen) == ([], [f"Bearer {TOKEN.reveal()}"])


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_no_error_tells_it(status: int) -> None:
    with answering(status) as (url, _), pytest.raises(GpuaasError) as refused:
        fetch_document(url, MAX, 10.0, token=TOKEN)
    assert TOKEN.reveal() not in repr(vars(refused.value)) + str(refused.value)


def test_the_file_comes_before_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert bearer_token(file, {"GPUAAS_TOKEN": "from-variable"}) == Secret("from-file")
    assert bearer_token(None, {"GPUAAS_TOKEN": "from-variable"}) == Secret("from-variable")
    assert bearer_token(None, {}) is None
    assert bearer_token(None, {"GPUAAS_TOKEN": ""}) is None


@pytest.mark.parametrize("text", ["", "\n", "two words", "a\r\nX-Injected: 1", "x" * 20_000, "ü"])
def test_what_is_no_token(tmp_path: Path, text: str) -> None:
    """Attempted: a header of one's own, in the token."""
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(Refused, match="token_unreadable") as refused:
        bearer_token(file, {})
    assert refused.value.where == str(file)
    assert not text.strip() or text not in str(refused.value)
    if text:
        with pytest.raises(Refused, match="token_unreadable"):
            bearer_token(None, {"GPUAAS_TOKEN": text})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        bearer_token(tmp_path / "none", {})
    assert refused.value.message == "it cannot be read: No such file or directory"


def test_a_server_that_asks_for_one() -> None:
    store = MemoryStore()
    populate(store)
    chosen = settings_of(require_tokens=True)
    deps = ServerDeps(store, Keys(), StillClock(), chosen, lambda _: None, Signal(), Metrics())
    with serve(build_app(replace(deps, snapshot=lambda: b"{}")), chosen) as address:
        url = f"{address}/v1/snapshot"
        given = {who: token_of(store, who)["Authorization"].split()[1] for who in (OLGA, NILS)}
        assert read_snapshot(url, chosen, Secret(given[OLGA])) == b"{}"
        with pytest.raises(Refused, match="it answered 403") as refused:
            read_snapshot(url, chosen, Secret(given[NILS]))
        assert refused.value.hint == (
            "the token's owner needs platform.status.read for the platform"
        )
        with pytest.raises(Refused, match="it answered 401") as refused:
            read_snapshot(url, chosen)
        assert refused.value.hint == (
            "it takes a fresh token: in GPUAAS_TOKEN, or in the file of --token-file"
        )


@pytest.mark.parametrize("way", ["file", "variable"])
def test_the_plan_command_sends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    options = []
    if way == "file":
        (tmp_path / "token").write_text(TOKEN.reveal())
        options = ["--token-file", str(tmp_path / "token")]
    else:
        monkeypatch.setenv("GPUAAS_TOKEN", TOKEN.reveal())
    with answering() as (url, seen):
        place = ["plan", "-e", "dev", "--repo", str(tmp_path), "--snapshot", url]
        done = CliRunner().invoke(gpuaas, [*place, "--snapshot-key", "0" * 64, *options])
    assert seen == [f"Bearer {TOKEN.reveal()}"]
    # What the server answered with is no snapshot.
    assert TOKEN.reveal() not in done.output
    assert isinstance(done.exception, Refused)
    assert done.exception.code == "snapshot_unreadable"


def test_the_file_is_for_a_snapshot(tmp_path: Path) -> None:
    done = CliRunner().invoke(gpuaas, ["plan", "-e", "dev", "--token-file", str(tmp_path / "t")])
    assert "--token-file is for --snapshot" in done.output + repr(done.exception)
