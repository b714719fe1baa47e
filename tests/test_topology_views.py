"""A topology as Mermaid, rows and lines: what is drawn, and that no name breaks out of it."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Endpoint, Phase
from reconciler.core.printable import printable
from reconciler.core.topology_view import (
    EndpointView,
    MountView,
    NeedView,
    TopologyView,
    VolumeView,
)
from reconciler.views.topology import (
    endpoint_rows,
    label,
    mermaid,
    policy_line,
    remarks,
    service_rows,
    state_line,
    storage_rows,
    title,
    topology_document,
    troubles,
)
from tests.core import builders as b
from tests.core import topology_world as t
from tests.core.test_topology_view import made, phase, report

LIVE = report(
    t.world(host_port=9000),
    phase=Phase.DEGRADED,
    message="index: the probe fails",
    services=(
        phase("api", "ready"),
        phase("fill", "completed", exit_code=0),
        phase("index", "degraded", detail="the probe fails", restarts=2, exit_code=137),
    ),
    endpoints=(Endpoint(name="ui", container=8081, host_ip="127.0.0.1", host_port=32001),),
)
VIEW = replace(made(t.world(host_port=9000), seen=LIVE), state="running")
GOLDEN = """\
flowchart LR
  subgraph topology["acme/research/one: hello 1.0.0 on gpu-1"]
    s0["api<br/>main<br/>ready<br/>1 GPU, 1.4 cores, 3520 MiB"]:::ready
    s1["fill<br/>sidecar (setup)<br/>completed<br/>0.1 cores, 64 MiB"]:::ready
    s2["index<br/>sidecar (data)<br/>degraded<br/>0.5 cores, 512 MiB"]:::failed
    v0[("data<br/>volume, 1 GiB")]:::store
    e2(["index<br/>grpc, internal<br/>grpc://index:6333"]) -.-> s2
  end
  e0(["api<br/>http, private<br/>127.0.0.1:9000"]) --> s0
  e1(["ui<br/>http, embedded_ui_gateway<br/>127.0.0.1:32001"]) --> s0
  s0 -- "completed" --> s1
  s0 -- "healthy" --> s2
  s1 -. "/data" .- v0
  s2 -. "/data" .- v0
  class s0 main
"""


# --- Mermaid -------------------------------------------------------------------------------------


def test_the_picture() -> None:
    drawn = mermaid(VIEW)
    assert drawn.partition("  classDef")[0] == GOLDEN
    assert mermaid(VIEW) == drawn


def test_one_container_is_a_picture_too() -> None:
    assert 's0["main<br/>main<br/>1 GPU, 2 cores, 4 GiB"]:::quiet' in mermaid(made(b.world()))


def test_every_class_that_is_used_is_defined() -> None:
    drawn = mermaid(VIEW)
    used = {*re.findall(r":::(\w+)", drawn), *re.findall(r"^  class \w+ (\w+)$", drawn, re.M)}
    assert used <= {*re.findall(r"^  classDef (\w+) ", drawn, re.M)}


LABEL = r'"(?:[A-Za-z0-9 ._/:,()+-]|#[0-9]+;|<br/>)*"'
LINES = [
    r"flowchart LR",
    rf"  subgraph topology\[{LABEL}\]",
    rf"    s\d+\[{LABEL}\]:::\w+",
    rf"    v\d+\[\({LABEL}\)\]:::store",
    rf" +e\d+\(\[{LABEL}\]\) (?:-->|-\.->) s\d+",
    r"  end",
    rf"  s\d+ -- {LABEL} --> s\d+",
    rf"  s\d+ -\. {LABEL} \.- v\d+",
    r"  class s\d+ main",
    r"  classDef \w+ [-a-z0-9#:,]+",
]
HOSTILE = [
    '"]; end', 'x"]:::a\n  click s0 "javascript:alert(1)"', "<script>alert(1)</script>", "#quot;",
    "`**bold**`", "%%{init: {}}%%", "end", "a\u202eb", "{{secret}}", "$(id)", "\x1b[31m", "&lt;",
]  # fmt: skip
NAMES = st.sampled_from(HOSTILE) | st.text(max_size=40)


@st.composite
def hostile(draw: st.DrawFn) -> TopologyView:
    """The same topology with any texts in the place of its names."""
    names = draw(st.lists(NAMES, min_size=4, max_size=4, unique=True))
    renamed = dict(zip(("api", "fill", "index", "data"), names, strict=True))
    text = draw(NAMES)
    services = tuple(
        replace(
            one,
            name=renamed[one.name],
            sidecar_class=text,
            needs=tuple(NeedView(renamed[need.service], text) for need in one.needs),
            mounts=tuple(MountView(renamed["data"], text, read_only=True) for _ in one.mounts),
            endpoints=tuple(
                EndpointView(text, text, text, text, 1, text, text, 1) for _ in one.endpoints
            ),
            health=text,
            detail=text,
        )
        for one in VIEW.services
    )
    volumes = (VolumeView(renamed["data"], 1),)
    starts = tuple(renamed[name] for name in VIEW.starts)
    given_ = {"instance": text, "app": text, "version": text, "node": text, "message": text}
    return replace(VIEW, **given_, services=services, volumes=volumes, starts=starts)


@given(hostile())
def test_no_name_breaks_out_of_the_picture(view: TopologyView) -> None:
    """Every line is one of those that are drawn, with nothing in its label that means anything."""
    drawn = mermaid(view)
    assert drawn.isascii()
    for line in drawn.removesuffix("\n").split("\n"):
        assert any(re.fullmatch(one, line) for one in LINES), line
    assert drawn.count("\n") == mermaid(VIEW).count("\n")


@given(st.text(max_size=60))
def test_a_label_is_read_as_what_it_was(text: str) -> None:
    """Mermaid writes a number as HTML does, with `&#` in the place of `#`."""
    shown = re.sub(r"#([0-9]+);", lambda found: chr(int(found[1])), label(text))
    assert shown == printable(text)
    assert html.escape(label(text).replace("<br/>", "")) == label(text).replace("<br/>", "")


# --- words and rows ------------------------------------------------------------------------------


def test_what_people_read() -> None:
    assert title(VIEW) == "acme/research/one  hello 1.0.0  generic_services on gpu-1"
    assert state_line(VIEW) == (
        "running: its node runs this form, 2 of 3 services ready; index: the probe fails"
    )
    assert [*service_rows(VIEW)] == [
        ("fill", "sidecar (setup)", "completed", "-", "0.1 cores, 64 MiB", "on_failure",
         "hello@aaaaaaaaaaaa"),
        ("index", "sidecar (data)", "degraded (tcp :6333), restarted 2 times", "-",
         "0.5 cores, 512 MiB", "always", "index@bbbbbbbbbbbb"),
        ("api", "main", "ready (http :8080/)", "fill completed, index healthy",
         "1 GPU, 1.4 cores, 3520 MiB", "always", "hello@aaaaaaaaaaaa"),
    ]  # fmt: skip
    assert [*endpoint_rows(VIEW)] == [
        ("api", "api", "private", "http://api:8080/", "127.0.0.1:9000"),
        ("ui", "api", "embedded_ui_gateway", "http://api:8081/", "127.0.0.1:32001"),
        ("index", "index", "internal", "grpc://index:6333", "not published"),
    ]
    assert [*storage_rows(VIEW)] == [
        ("secret token", "api", "/run/gpuaas/secrets/token, $TOKEN", "generated"),
        ("volume data", "fill", "/data", "1 GiB"),
        ("volume data", "index", "/data", "1 GiB"),
        ("scratch in memory", "index", "/tmp", "64 MiB"),
    ]
    assert [*troubles(VIEW)] == [
        "index: degraded: the probe fails, exit code 137, restarted 2 times"
    ]
    assert [*remarks(VIEW)] == [
        "When a vital service ends, it alone is started again.",
        "gpuaas access acme/research/one shows a tunnel for each published endpoint.",
    ]


def test_what_nobody_looked_at_says_nothing_of_how_it_is() -> None:
    view = made(t.world())
    assert state_line(view) == ""
    assert [*troubles(view)] == []
    assert [row[2] for row in service_rows(view)] == ["runs", "tcp :6333", "http :8080/"]
    assert next(row[4] for row in endpoint_rows(view)) == "a free port"
    assert title(replace(view, instance="", node="")) == "hello 1.0.0  generic_services"


@pytest.mark.parametrize(
    ("vital", "other", "says"),
    [
        ("restart_service", "degrade", "it alone is started again. When another one is not ready "
         "in its time, the instance stays, degraded."),
        ("restart_all", "roll_back", "all are started again. When another one is not ready in its "
         "time, the whole launch or upgrade goes back."),
    ],
)  # fmt: skip
def test_what_is_done_when_a_service_fails(vital: str, other: str, says: str) -> None:
    first, *rest = VIEW.services
    services = (first, *(replace(one, vital=False) for one in rest))
    view = replace(VIEW, services=services, vital_failure=vital, other_failure=other)
    assert policy_line(view) == f"When a vital service ends, {says}"
    assert policy_line(replace(view, services=(first,))) == ""


@given(hostile())
def test_any_text_is_a_document(view: TopologyView) -> None:
    document = topology_document(view)
    assert document["format"] == "gpuaas.dev/topology/v1"
    assert len(document["services"]) == 3
