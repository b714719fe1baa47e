"""A vector database over HTTP: the few of Qdrant's routes that the retrieval app uses.

`VECTORS_DATA` is the folder with its data, a volume; `VECTORS_PORT` where it listens. With
`VECTORS_API_KEY` it lets in who sends that as `api-key`; health and metrics it tells anybody.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.images.plain.exposition import Metric, render
from deploy.images.plain.http_app import METRICS_TEXT, Answer, App, Failure, Handler, Request, run
from deploy.images.retrieval.store import Collection, Store, Unfit

DATA, PORT = "/var/lib/vectors", 6333
_COLLECTION = "/collections/([^/]+)"


def app(store: Store, key: str = "") -> App:
    points = Metric("gauge", "vectors_points", "Points in a collection.")
    searches = Metric("counter", "vectors_searches_total", "Searches that were answered.")
    searches.add(0)

    def admit(request: Request) -> None:
        given = request.headers.get("api-key", "").encode()
        fits = not key or hmac.compare_digest(given, key.encode())
        if request.path.startswith("/collections") and not fits:
            raise Failure(401, "Must provide an API key")

    def found(request: Request) -> Collection:
        collection = store.find(request.groups[0])
        if collection is None:
            raise Failure(404, f"there is no collection {request.groups[0]}")
        return collection

    def create(request: Request) -> Answer:
        size = (request.json().get("vectors") or {}).get("size")
        if not isinstance(size, int):
            raise Failure(400, "vectors.size has to be a number")
        store.ensure(request.groups[0], size)
        return _ok(True)

    def describe(request: Request) -> Answer:
        collection = found(request)
        vectors = {"size": collection.size, "distance": "Cosine"}
        config = {"params": {"vectors": vectors}}
        return _ok({"status": "green", "points_count": len(collection), "config": config})

    def put(request: Request) -> Answer:
        found(request).put(_list(request, "points"))
        return _ok({"status": "completed"})

    def delete(request: Request) -> Answer:
        found(request).delete(_list(request, "points"))
        return _ok({"status": "completed"})

    def search(request: Request) -> Answer:
        limit = request.json().get("limit", 10)
        if not isinstance(limit, int) or not 1 <= limit <= 1000:
            raise Failure(400, "limit has to be a number from 1 to 1000")
        hits = found(request).search(_list(request, "vector"), limit)
        searches.add()
        return _ok([vars(hit) for hit in hits])

    def metrics(_: Request) -> Answer:
        for name in store.names():
            points.set(len(store.find(name) or ()), collection=name)
        return Answer(render([points, searches]), 200, METRICS_TEXT)

    return App(
        {
            ("GET", "/readyz"): lambda _: Answer(b"all shards are ready\n"),
            ("GET", "/metrics"): metrics,
            ("PUT", _COLLECTION): _fitting(create),
            ("GET", _COLLECTION): describe,
            ("PUT", f"{_COLLECTION}/points"): _fitting(put),
            ("POST", f"{_COLLECTION}/points/delete"): delete,
            ("POST", f"{_COLLECTION}/points/search"): _fitting(search),
        },
        admit=admit,
    )


def _fitting(handler: Handler) -> Callable[[Request], Answer]:
    def guarded(request: Request) -> Answer:
        try:
            return handler(request)
        except Unfit as error:
            raise Failure(400, str(error)) from None

    return guarded


def _list(request: Request, name: str) -> list[Any]:
    value = request.json().get(name)
    if not isinstance(value, list):
        raise Failure(400, f"{name} has to be a list")
    return value


def _ok(result: object) -> Answer:
    return Answer.json({"result": result, "status": "ok"})


def main() -> None:
    store = Store(Path(os.environ.get("VECTORS_DATA") or DATA))
    serving = app(store, os.environ.get("VECTORS_API_KEY") or "")
    run(serving, int(os.environ.get("VECTORS_PORT") or PORT))
