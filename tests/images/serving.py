"""Programs of `deploy/images` served in this process, and what they answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from deploy.images.plain.http_app import App, server


@contextmanager
def serving(app: App) -> Iterator[httpx.Client]:
    """Listens on a port of the loopback until the block ends."""
    listening = server(app, 0, "127.0.0.1")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{listening.server_address[1]}"
    try:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
            yield client
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
