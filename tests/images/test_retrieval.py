"""The retrieval app's programs, each alone and all together over HTTP."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from deploy.images.plain.http_app import App
from deploy.images.retrieval import api, metrics, setup, vectors, worker
from deploy.images.retrieval.client import Away, Vectors
from deploy.images.retrieval.embedding import SIZE, embed
from deploy.images.retrieval.store import Collection, Store, Unfit
from reconciler.devkit.services import free_port
from tests.images.serving import serving
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
KEY = "made-up"
QUESTIONS = {
    "How long does a lease stay when nobody uses it?": "A lease that nobody used for a month",
    "Who carries the phone when on call?": "Who is on call carries the phone",
    "What if a GPU runs out of memory?": "When a GPU runs out of memory",
    "may I switch off a drained node": "A drained node shows no running instance",
}


# --- vectors ---


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 8))
def test_a_search_is_what_comparing_with_each_gives(seed: int, count: int, limit: int) -> None:
    chance = random.Random(seed)
    points = {n: [chance.uniform(-1, 1) for _ in range(4)] for n in range(count)}
    asked = [chance.uniform(-1, 1) for _ in range(4)]

    def angle(n: int) -> float:
        length = math.dist(points[n], [0] * 4) * math.dist(asked, [0] * 4)
        return sum(a * b for a, b in zip(points[n], asked, strict=True)) / length

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.create(Path(folder) / "numbers.jsonl", 4)
        collection.put([{"id": n, "vector": vector} for n, vector in points.items()])
        hits = collection.search(asked, limit)
    assert [hit.id for hit in hits] == sorted(points, key=angle, reverse=True)[:limit]
    assert [hit.score for hit in hits] == pytest.approx([angle(int(hit.id)) for hit in hits])


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    collection = Store(tmp_path).ensure("books", 2)
    second = {"id": 2, "vector": [0, 1], "payload": {"n": 1}}
    collection.put([{"id": "a", "vector": [1, 0]}, second])
    collection.put([{"id": "a", "vector": [0.5, 0.5]}, {"id": "gone", "vector": [1, 1]}])
    collection.delete(["gone", "never there"])
    again = Store(tmp_path).find("books")
    assert again is not None
    assert (len(again), again.size) == (2, 2)
    assert [hit.payload for hit in again.search([0, 1], 1)] == [{"n": 1}]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    collection = Store(tmp_path).ensure("books", 1)
    collection.put([{"id": "whole", "vector": [1]}])
    file = tmp_path / "books.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"id": "half", "vec')
    again = Store(tmp_path).find("books")
    assert again is not None
    assert file.read_bytes() == whole
    again.put([{"id": "next", "vector": [2]}])
    assert len(Store(tmp_path).find("books") or ()) == 2


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"id": 1, "vector": [1]}, "the vector of 1 has to have 2 numbers"),
        ({"id": 1, "vector": [1, math.nan]}, "something in it that is no number"),
        ({"id": 1, "vector": ["1", 2]}, "something in it that is no number"),
        ({"id": None, "vector": [1, 2]}, "a point's id is a number or a string"),
        ({"vector": [1, 2]}, "a point's id is a number or a string"),
    ],
)
def test_a_point_that_does_not_fit_leaves_nothing(
    tmp_path: Path, point: dict[str, object], expected: str
) -> None:
    collection = Store(tmp_path).ensure("books", 2)
    with pytest.raises(Unfit, match=expected):
        collection.put([{"id": "good", "vector": [1, 2]}, point])
    assert len(Store(tmp_path).find("books") or ()) == 0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(vectors.app(Store(tmp_path / "data"), KEY)) as client:
        client.headers["api-key"] = KEY
        yield client


def test_the_database_over_http(database: httpx.Client) -> None:
    at = "/collections/books"
    assert database.get(at).status_code == 404
    assert database.put(at, json={"vectors": {"size": 2, "distance": "Cosine"}}).status_code == 200
    points = [{"id": 1, "vector": [3, 4], "payload": {"text": "x"}}, {"id": 2, "vector": [4, -3]}]
    assert database.put(f"{at}/points", json={"points": points}).status_code == 200
    assert database.get(at).json()["result"]["points_count"] == 2
    found = database.post(f"{at}/points/search", json={"vector": [6, 8], "limit": 1}).json()
    assert found["result"] == [{"id": 1, "score": pytest.approx(1), "payload": {"text": "x"}}]
    assert database.post(f"{at}/points/delete", json={"points": [1]}).status_code == 200
    (family, *_) = text_string_to_metric_families(database.get("/metrics").text)
    assert [(s.labels, s.value) for s in family.samples] == [({"collection": "books"}, 1)]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("PUT", "/collections/b", {"vectors": {"size": 0}}, "a collection has a name of a-z"),
        ("PUT", "/collections/B", {"vectors": {"size": 2}}, "a collection has a name of a-z"),
        ("PUT", "/collections/b", {}, "vectors.size has to be a number"),
        ("PUT", "/collections/books", {"vectors": {"size": 3}}, "with vectors of 2 numbers"),
        ("PUT", "/collections/books/points", {"points": 1}, "points has to be a list"),
        ("POST", "/collections/books/points/search", {"vector": [1]}, "the vector has 1 numbers"),
        ("POST", "/collections/books/points/search", {"vector": [1, 2], "limit": 0}, "limit has"),
    ],
)  # fmt: skip
def test_the_database_refuses(
    database: httpx.Client, method: str, path: str, body: object, expected: str
) -> None:
    database.put("/collections/books", json={"vectors": {"size": 2}})
    answer = database.request(method, path, json=body)
    assert (answer.status_code, expected in answer.json()["error"]) == (400, True)


def test_the_database_asks_for_its_key(database: httpx.Client) -> None:
    for given_key in ("", "wrong"):
        headers = {"api-key": given_key}
        assert database.get("/collections/books", headers=headers).status_code == 401
        assert database.get("/readyz", headers=headers).status_code == 200


# --- texts ---


def test_texts_about_the_same_lie_close() -> None:
    def near(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embed(one), embed(other), strict=True))

    assert near("GPUs of a node", "a node's GPU") == pytest.approx(1, abs=0.35)
    assert near("lease of memory", "the memory lease") == pytest.approx(1)
    assert abs(near("lease of memory", "phone on Monday")) < 0.1
    assert embed("of the") == [0.0] * SIZE


def test_setup_fills_and_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("left by an earlier version")
    names = setup.fill(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "on-call.txt" in names
    assert setup.fill(tmp_path) == names


# --- together ---


@pytest.fixture
def indexed(database: httpx.Client, tmp_path: Path) -> worker.Worker:
    documents = tmp_path / "documents"
    documents.mkdir()
    setup.fill(documents)
    return worker.Worker(documents, Vectors(str(database.base_url).rstrip("/"), "handbook", KEY))


def test_questions_are_answered_from_the_handbook(indexed: worker.Worker) -> None:
    with serving(api.app(indexed.vectors, "2.0.0")) as client:
        assert client.get("/ready").status_code == 503
        assert indexed.round() == 8
        assert client.get("/ready").json() == {"passages": 8}
        for question, expected in QUESTIONS.items():
            page = client.post("/v1/answer", json={"question": question}).json()
            assert page["answer"].startswith(expected)
        found = client.get("/search", params={"q": "drained", "limit": 1}).json()["passages"]
        assert [one["document"] for one in found] == ["drain-a-node"]
        assert client.get("/search", params={"limit": 1}).status_code == 400
        assert client.get("/version").json() == {"version": "2.0.0"}


def test_the_worker_follows_its_documents_and_heals_the_database(indexed: worker.Worker) -> None:
    assert (indexed.round(), indexed.round()) == (8, 0)
    (indexed.documents / "quota.txt").unlink()
    (indexed.documents / "new.txt").write_text("Two\nlines.\n\nAnd a second paragraph.\n")
    assert indexed.round() == 2
    assert indexed.vectors.count() == 8
    indexed.vectors.delete(sorted(indexed.known)[:3])
    assert indexed.round() == 8


def test_without_its_database_the_app_says_so() -> None:
    away = Vectors(f"http://127.0.0.1:{free_port()}", "handbook")
    with serving(api.app(away, "1")) as client:
        for answer in (client.get("/ready"), client.get("/search", params={"q": "a lease"})):
            assert answer.status_code == 503
            assert answer.json()["error"].startswith("the vector database does not answer")
        assert client.get("/health").status_code == 200
    with pytest.raises(Away):
        away.count()


def test_the_database_that_lets_nobody_in(database: httpx.Client) -> None:
    with pytest.raises(Away, match="the vector database answered 401"):
        Vectors(str(database.base_url).rstrip("/"), "handbook", "wrong").count()


def test_metrics_of_all_services_on_one_page(indexed: worker.Worker) -> None:
    indexed.round()
    with serving(api.app(indexed.vectors, "1")) as client:
        client.get("/search", params={"q": "lease"})
        pages = {"api": f"{client.base_url}/metrics", "gone": f"http://127.0.0.1:{free_port()}/"}
        asked = metrics.targets(",".join(f"{name}={url}" for name, url in pages.items()))
        asked["vectors"] = f"{indexed.vectors.url}/metrics"
        with serving(metrics.app(asked)) as sidecar:
            page = sidecar.get("/metrics").text
    families = {one.name: one for one in text_string_to_metric_families(page)}
    up = {sample.labels["service"]: sample.value for sample in families["up"].samples}
    assert up == {"api": 1, "vectors": 1, "gone": 0}
    (points,) = families["vectors_points"].samples
    assert (points.labels, points.value) == ({"service": "vectors", "collection": "handbook"}, 8)
    answered = families["retrieval_questions"].samples
    assert {s.labels["outcome"]: s.value for s in answered}["answered"] == 1


def test_one_family_of_two_services_is_told_once() -> None:
    page = "# HELP n It.\n# TYPE n gauge\nn 1.0\n"
    assert metrics.merged({"b": page, "a": page}).splitlines()[4:] == [
        "# HELP n It.", "# TYPE n gauge", 'n{service="a"} 1.0', 'n{service="b"} 1.0',
    ]  # fmt: skip


@pytest.mark.parametrize(("age_s", "expected"), [(0, True), (5.5, True), (7, False)])
def test_a_worker_is_healthy_while_its_rounds_go_well(
    tmp_path: Path, age_s: float, expected: bool
) -> None:
    heartbeat = tmp_path / "indexed"
    assert not worker.fresh(heartbeat, 100.0, 1.0)
    heartbeat.write_text(str(100.0 - age_s))
    assert worker.fresh(heartbeat, 100.0, 1.0) == expected


def test_the_worker_as_a_program(database: httpx.Client, tmp_path: Path) -> None:
    documents, heartbeat = tmp_path / "documents", tmp_path / "indexed"
    documents.mkdir()
    setup.fill(documents)
    environment = {
        "PATH": os.defpath, "VECTORS_URL": str(database.base_url).rstrip("/"),
        "VECTORS_API_KEY": KEY, "DOCUMENTS": str(documents), "HEARTBEAT": str(heartbeat),
    }  # fmt: skip
    argv = [sys.executable, "-c", "from deploy.images.retrieval.worker import main; main()"]
    program = subprocess.Popen(argv, cwd=ROOT, env=environment)
    try:
        wait_until(lambda: worker.fresh(heartbeat, time.time(), 1.0))
        check = [*argv, "--check"]
        assert subprocess.run(check, cwd=ROOT, env=environment, check=False).returncode == 0
    finally:
        program.terminate()
        program.wait(timeout=20)
    heartbeat.unlink()
    assert subprocess.run(check, cwd=ROOT, env=environment, check=False).returncode == 1
    assert database.get("/collections/handbook").json()["result"]["points_count"] == 8


def test_what_goes_wrong_inside_is_answered_and_logged(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("the cause")

    with serving(App({("GET", "/"): broken})) as client:  # type: ignore[dict-item]
        answer = client.get("/")
    assert answer.status_code == 500
    assert "the cause" not in answer.text
    assert "ZeroDivisionError: the cause" in capfd.readouterr().err
