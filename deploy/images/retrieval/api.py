"""What people ask: finds the passages of the handbook that answer a question.

`/ready` is 200 once the vector database answers and the worker has put something there.
"""

from __future__ import annotations

import os

from deploy.images.plain.exposition import Metric, render
from deploy.images.plain.http_app import METRICS_TEXT, Answer, App, Failure, Request, run
from deploy.images.retrieval.client import Away, Vectors

PORT = 8080
LIMIT_USUAL, LIMIT_MAX = 3, 20


def app(vectors: Vectors, release: str) -> App:
    asked = Metric("counter", "retrieval_questions_total", "Questions, by how they ended.")
    for outcome in ("answered", "nothing", "failed"):
        asked.add(0, outcome=outcome)

    def ready(_: Request) -> Answer:
        try:
            count = vectors.count()
        except Away as error:
            raise Failure(503, str(error)) from None
        if not count:
            raise Failure(503, "the worker has not indexed anything yet")
        return Answer.json({"passages": count})

    def search(request: Request) -> Answer:
        text, limit = request.query.get("q", ""), request.query.get("limit", str(LIMIT_USUAL))
        if not text or not limit.isdigit() or not 1 <= int(limit) <= LIMIT_MAX:
            raise Failure(400, f"ask /search?q=…&limit=…, with a limit from 1 to {LIMIT_MAX}")
        return Answer.json({"passages": found(text, int(limit))})

    def answer(request: Request) -> Answer:
        question = request.json().get("question")
        if not isinstance(question, str) or not question:
            raise Failure(400, "question has to be a text")
        passages = found(question, LIMIT_USUAL)
        best = passages[0]["text"] if passages else "The handbook says nothing of it."
        return Answer.json({"answer": best, "passages": passages})

    def found(text: str, limit: int) -> list[dict[str, object]]:
        try:
            hits = [hit for hit in vectors.search(text, limit) if hit["score"] > 0]
        except Away as error:
            asked.add(outcome="failed")
            raise Failure(503, str(error)) from None
        asked.add(outcome="answered" if hits else "nothing")
        return hits

    return App(
        {
            ("GET", "/ready"): ready,
            ("GET", "/health"): lambda _: Answer(),
            ("GET", "/version"): lambda _: Answer.json({"version": release}),
            ("GET", "/metrics"): lambda _: Answer(render([asked]), 200, METRICS_TEXT),
            ("GET", "/search"): search,
            ("POST", "/v1/answer"): answer,
        }
    )


def main() -> None:
    release = os.environ.get("RETRIEVAL_VERSION") or "unknown"
    run(app(Vectors.from_environment(), release), int(os.environ.get("API_PORT") or PORT))
