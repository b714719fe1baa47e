"""What the other programs ask the vector database."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.images.plain.http_client import Unanswered, ask
from deploy.images.retrieval.embedding import SIZE, embed

TIMEOUT_S = 3.0


class Away(Exception):
    """The database did not answer, or not as it should."""


@dataclass(frozen=True)
class Vectors:
    """One collection of the database at `url`; `key` is what it lets in."""

    url: str
    collection: str
    key: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Vectors:
        return cls(
            os.environ.get("VECTORS_URL") or "http://vectors:6333",
            os.environ.get("COLLECTION") or "handbook",
            os.environ.get("VECTORS_API_KEY") or "",
        )

    def count(self) -> int | None:
        """How many points it has; None where it is not there."""
        found = self._ask("GET", "", missing_ok=True)
        return None if found is None else int(found["points_count"])

    def create(self) -> None:
        self._ask("PUT", "", {"vectors": {"size": SIZE, "distance": "Cosine"}})

    def put(self, passages: Sequence[tuple[str, str, str]]) -> None:
        """Each with its id, the document it is of, and its text."""
        points = [
            {"id": id_, "vector": embed(text), "payload": {"document": document, "text": text}}
            for id_, document, text in passages
        ]
        self._ask("PUT", "/points", {"points": points})

    def delete(self, ids: Sequence[str]) -> None:
        self._ask("POST", "/points/delete", {"points": list(ids)})

    def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Nearest first, with score, document and text."""
        asked = {"vector": embed(text), "limit": limit}
        hits = self._ask("POST", "/points/search", asked, missing_ok=True) or []
        return [{"score": round(hit["score"], 4), **hit["payload"]} for hit in hits]

    def _ask(
        self, method: str, path: str, document: object = None, missing_ok: bool = False
    ) -> Any:
        body = None if document is None else json.dumps(document).encode()
        try:
            url = f"{self.url}/collections/{self.collection}{path}"
            status, answer = ask(url, TIMEOUT_S, method, body, {"api-key": self.key})
        except Unanswered as error:
            raise Away(f"the vector database does not answer: {error}") from None
        if status == 404 and missing_ok:
            return None
        if status != 200:
            raise Away(f"the vector database answered {status}")
        return json.loads(answer)["result"]
