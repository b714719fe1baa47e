"""GET /v1/instances/…/topology: what it answers, to whom, and what it says where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from node_agent.wire import Phase, ServicePhase, Workload, WorkloadReport
from reconciler.core.names import InstanceKey
from reconciler.errors import Refused
from reconciler.ports import Ports, Store
from reconciler.server.openapi import openapi_document
from reconciler.settings import Settings
from reconciler.use_cases.topology import Topologies
from renderers import render
from tests.core import builders as b
from tests.core import topology_world as t
from tests.fakes.ca import FakeCa
from tests.fakes.registry import FakeRegistry
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Agent, Keys, StillClock, refusal, running
from tests.server.readers import ADA, FOREIGN_KEY, NILS, OWN, populate, token_of

PATH = f"/v1/instances/{t.ONE}/topology"
COMPONENTS = openapi_document()["components"]["schemas"]


@contextmanager
def app_of(store: Store, topology: Any, **fields: Any) -> Iterator[httpx.Client]:
    with running(store, topology=topology, **fields) as plane:
        yield plane.client


def topologies(store: MemoryStore) -> Topologies:
    clock = StillClock()
    ports = Ports(
        source=FakeStateSource(FakeRemote()),
        registry=FakeRegistry(),
        secrets=Keys(),
        ca=FakeCa(clock),
        store=store,
        clock=clock,
    )
    return Topologies(ports, Settings(environment=b.ENVIRONMENT))


def accepted(documents: b.Documents | None = None) -> MemoryStore:
    store = MemoryStore()
    store.save_accepted(b.accepted(documents or t.world(host_port=9000)))
    return store


def report(store: MemoryStore) -> None:
    agent = Agent("gpu-1")
    store.add_join_token("hash", "gpu-1", NOW_MS + 1)
    assert store.redeem_join_token("hash", "gpu-1", agent.public_key, NOW_MS) is not None
    workload = render(t.run(t.world(host_port=9000)).instances[t.ONE])
    assert isinstance(workload, Workload), workload
    found = WorkloadReport(
        instance=t.ONE,
        target_hash=workload.spec_hash,
        running_hash=workload.spec_hash,
        phase=Phase.READY,
        services=tuple(
            ServicePhase(name=name, phase="ready", image_digest="sha256:" + "a" * 64)
            for name in ("api", "fill", "index")
        ),
    )
    text = agent.make_report(workloads=(found,)).model_dump_json()
    assert store.save_report("gpu-1", text, 1, 0, NOW_MS)


def conforms(document: dict[str, Any]) -> None:
    """It is what the API's own document says, to the last field."""
    schema = {"$ref": "#/components/schemas/Topology", "components": {"schemas": COMPONENTS}}
    Draft202012Validator(schema).validate(document)


def test_a_topology_with_the_word_of_its_node() -> None:
    store = accepted()
    with app_of(store, topologies(store).document) as client:
        before = client.get(PATH).json()
        report(store)
        after = client.get(PATH).json()
    conforms(before)
    conforms(after)
    assert (before["runs"], after["runs"]) == ("unknown", "this")
    assert {one["health"] for one in before["services"]} == {"unknown"}
    assert {one["name"]: one["health"] for one in after["services"]} == {
        "api": "ready", "fill": "ready", "index": "ready",
    }  # fmt: skip


@pytest.mark.parametrize(
    "documents", [b.world(), t.world(t.VLLM), t.world(t.JUPYTER)], ids=["one", "vllm", "jupyter"]
)
def test_every_kind_is_as_the_document_says(documents: b.Documents) -> None:
    store = accepted(documents)
    with app_of(store, topologies(store).document) as client:
        conforms(client.get(PATH).json())


def test_what_is_accepted_anew_is_shown() -> None:
    store = accepted()
    found = topologies(store)
    assert len(found.document(t.ONE)["services"]) == 3
    store.save_accepted(b.accepted(b.world()))
    assert len(found.document(t.ONE)["services"]) == 1


def refused(client: httpx.Client, path: str = PATH, **headers: str) -> tuple[int, str]:
    return refusal(client.get(path, headers=headers))[:2]


def test_what_is_not_there() -> None:
    store = accepted()
    with app_of(store, topologies(store).document) as client:
        missing = PATH.replace("one", "two")
        assert refused(client, missing) == (404, "no_such_instance")
        assert refused(client, PATH.replace("acme", "a..b")) == (404, "no_such_instance")
    with app_of(store, None) as client:
        assert refused(client) == (404, "no_topology")


def test_what_comes_to_nothing_says_no_more_than_that() -> None:
    """Why so may name what is another project's."""
    documents = t.world()
    documents[b.ALLOCATION_FILE]["spec"]["node"] = "gpu-9"
    store = accepted(documents)
    found = topologies(store)
    with pytest.raises(Refused, match="gpu-9"):
        found.document(t.ONE)
    with app_of(store, found.document) as client:
        answer = client.get(PATH)
    assert refusal(answer)[:2] == (409, "instance_unresolved")
    assert "gpu-9" not in answer.text


def test_who_may_not_read_the_instance_learns_nothing() -> None:
    store = MemoryStore()
    populate(store)

    def document(key: InstanceKey) -> dict[str, Any]:
        return {"instance": key, "message": f"waits for {FOREIGN_KEY}"}

    own, foreign = (f"/v1/instances/{key}/topology" for key in (OWN, FOREIGN_KEY))
    with app_of(store, document, require_tokens=True) as client:
        assert refused(client, own) == (401, "token_required")
        nils, ada = token_of(store, NILS), token_of(store, ADA)
        assert refused(client, foreign, **nils) == (404, "no_such_instance")
        shown = client.get(own, headers=nils).json()
        assert shown == {"instance": OWN, "message": "waits for (another project's)"}
        assert str(FOREIGN_KEY) in client.get(own, headers=ada).json()["message"]
