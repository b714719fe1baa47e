"""The referrers API before a registry that has none, as OCI distribution 1.1 describes it.

What names a subject is written down as it passes; all else goes on as it came.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_LIST = re.compile(r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})(?:\?.*)?")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/[^/?]+")
_LEFT_OUT = {"connection", "transfer-encoding", "content-length", "date", "server"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: str, page: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.page = behind, page
        self.known: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        self.client = httpx.Client(trust_env=False, timeout=30)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        found = _LIST.fullmatch(self.path)
        if found is None:
            self._pass_on()
            return
        entries = [*self.server.known[found[1], found[2]].values()]
        begin = int((re.search(r"after=(\d+)", self.path) or ["", "0"])[1])
        some, end = entries[begin : begin + self.server.page], begin + self.server.page
        headers = {"Content-Type": OCI_INDEX}
        if end < len(entries):
            headers["Link"] = f'</v2/{found[1]}/referrers/{found[2]}?after={end}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": some}
        self._answer(200, headers, json.dumps(index).encode())

    def do_PUT(self) -> None:
        self._pass_on()

    do_HEAD = do_POST = do_PATCH = do_DELETE = do_PUT

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = {k: v for k, v in self.headers.items() if k.lower() not in _LEFT_OUT}
        url = f"http://{self.server.behind}{self.path}"
        answer = self.server.client.request(self.command, url, content=body, headers=sent)
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _LEFT_OUT}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.headers.get("Content-Length", "0")
        found = _MANIFEST.fullmatch(self.path)
        if self.command == "PUT" and found is not None and answer.status_code == 201:
            headers |= self._noted(found[1], body, answer.headers["Docker-Content-Digest"])
        self._answer(answer.status_code, headers, answer.content)

    def _noted(self, name: str, body: bytes, digest: str) -> dict[str, str]:
        document = json.loads(body)
        subject = document.get("subject", {}).get("digest")
        if subject is None:
            return {}
        self.server.known[name, subject][digest] = {
            "mediaType": document["mediaType"],
            "digest": digest,
            "size": len(body),
            "artifactType": document.get("artifactType", ""),
        }
        return {"OCI-Subject": subject}

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def with_referrers(endpoint: str, page: int = 100) -> Iterator[str]:
    """host:port of a registry like the one at `endpoint`, with the API; `page` entries a page."""
    server = _Server(endpoint, page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        server.client.close()
        thread.join()
