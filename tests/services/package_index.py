"""A package index as pip understands it (PEP 503), with wheels made on the spot.

It notes what it was asked for, so that a test can tell that nothing was asked for twice.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(name: str, version: str, body: str, requires: str = "") -> bytes:
    """A module `name` that holds `body`, and a program `name`-says that prints its version."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"{body}\n\ndef main():\n    print({version!r})\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-says = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return content.getvalue()


@dataclass
class PackageIndex:
    """`url` is `http://host:port/simple/`; `asked` are the paths asked for, in order."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    """While it is not set, nothing is answered."""

    def __post_init__(self) -> None:
        self.held.set()

    def add(self, name: str, version: str, body: str = "", requires: str = "") -> str:
        """Puts a wheel in; returns its hash as a requirement says it."""
        content = wheel(name, version, body, requires)
        self.files[f"{name}-{version}-py3-none-any.whl"] = content
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        self.held.wait()
        kind, _, rest = path.strip("/").partition("/")
        if kind == "files":
            return self.files.get(rest)
        own = sorted(name for name in self.files if name.startswith(f"{rest}-"))
        links = "".join(f'<a href="/files/{name}">{name}</a>\n' for name in own)
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if own else None


@contextmanager
def serving(address: str) -> Iterator[PackageIndex]:
    """An empty index at `address`, on a free port."""
    index = PackageIndex()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = index.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            # Whoever asked may be gone by now.
            with suppress(OSError):
                self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer((address, 0), Handler)
    index.url = f"http://{address}:{server.server_port}/simple/"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield index
    finally:
        index.held.set()
        server.shutdown()
        thread.join()
        server.server_close()
