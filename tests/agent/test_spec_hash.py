"""The identity of what runs: what is hashed never changes by how it is worked out."""

from __future__ import annotations

import copy
import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import (
    BlobFile,
    ExecProbe,
    HttpProbe,
    Image,
    Limits,
    Packages,
    Port,
    Readiness,
    SecretFile,
    TcpProbe,
    Workload,
)

TEXT = st.text(max_size=8)
PORT_NUMBERS = st.integers(1, 65535)
PROBES = st.one_of(
    st.none(),
    st.builds(HttpProbe, port=PORT_NUMBERS, path=TEXT),
    st.builds(TcpProbe, port=PORT_NUMBERS),
    st.builds(ExecProbe, command=st.tuples(TEXT, TEXT)),
)
WORKLOADS = st.builds(
    Workload,
    instance=TEXT,
    engine=st.sampled_from(["docker", "process"]),
    image=st.builds(
        Image,
        registry=TEXT,
        plain_http=st.booleans(),
        repository=TEXT,
        digest=st.just("sha256:" + "0" * 64),
    ),
    command=st.lists(TEXT, max_size=2).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=2),
    ports=st.lists(
        st.builds(
            Port,
            name=TEXT,
            container=PORT_NUMBERS,
            host=st.none() | PORT_NUMBERS,
            address=st.none() | TEXT,
        ),
        max_size=2,
    ).map(tuple),
    limits=st.builds(
        Limits,
        cpu_millis=st.none() | st.integers(10, 1000),
        gpu_vendor=st.sampled_from([None, "nvidia", "amd"]),
        gpu_uuids=st.lists(TEXT, max_size=2).map(tuple),
    ),
    readiness=st.builds(Readiness, probe=PROBES),
    labels=st.dictionaries(TEXT, TEXT, max_size=2),
    packages=st.none() | st.builds(Packages, index_url=TEXT, requirements=st.just(("a==1",))),
    secrets=st.lists(
        st.builds(SecretFile, name=st.just("token"), source=TEXT, env=TEXT), max_size=2
    ).map(tuple),
    blobs=st.lists(
        st.builds(
            BlobFile, name=st.just("weights"), source=TEXT, digest=st.just("sha256:" + "0" * 64)
        ),
        max_size=2,
    ).map(tuple),
)


def by_model_dump(workload: Workload) -> str:
    """How it was worked out when the first fleets were launched."""
    document = workload.model_dump(mode="json")
    for port in document["ports"]:
        if port["address"] is None:
            del port["address"]
    for secret in document.get("secrets", ()):
        for field in ("source", "env"):
            if not secret[field]:
                del secret[field]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@given(WORKLOADS)
def test_it_is_the_hash_of_what_is_dumped(workload: Workload) -> None:
    assert workload.spec_hash == by_model_dump(workload)
    assert workload.spec_hash == by_model_dump(workload)
    assert copy.copy(workload).spec_hash == workload.spec_hash
    read = Workload.model_validate_json(workload.model_dump_json())
    assert read.spec_hash == workload.spec_hash


@given(WORKLOADS)
def test_an_agent_of_before_reads_all_but_what_it_lacks(workload: Workload) -> None:
    said = json.loads(workload.canonical())
    used = {
        name
        for name in ("packages", "secrets", "blobs", "topology")
        if getattr(workload, name) not in (None, ())
    }
    assert {*said} & {"packages", "secrets", "blobs", "topology"} == used
    assert Workload.model_validate_json(workload.canonical()) == workload
