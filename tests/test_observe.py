"""What counts as seen, and what stays unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.wire import ConfigSeen, Phase, Report
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import ArtifactSeen, Known, NodeUnknown, Unknown
from reconciler.core.records import EnrolledNode
from reconciler.errors import Refused
from reconciler.observe import node_seen, observe
from reconciler.ports import Ports, RegistryEndpoint
from reconciler.settings import Settings
from tests.core.fleet import NOW_MS, desired, report, target
from tests.fakes.agent import INVENTORY
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

OFFLINE_AFTER_MS = 45_000
HELLO = target()


def enrolled(**changed: object) -> EnrolledNode:
    word = Report(
        node="node-a",
        agent_version="0.1.0",
        sent_at_ms=NOW_MS,
        report_seq=1,
        last_seq=0,
        connected_at_ms=NOW_MS,
        complete=True,
        inventory=INVENTORY,
        workloads=(report(HELLO),),
    ).model_copy(update=changed)
    text = word.canonical().decode()
    return EnrolledNode("node-a", "a" * 64, NOW_MS, text, NOW_MS, 1)


def test_a_fresh_report_is_known() -> None:
    seen = node_seen(enrolled(), NOW_MS + 1_000, OFFLINE_AFTER_MS)
    assert isinstance(seen, Known)
    assert seen.value.age_ms == 1_000
    assert seen.value.workloads[HELLO.instance.key].phase is Phase.READY


SILENT = enrolled(
    complete=False,
    inventory=INVENTORY.model_copy(update={"engine_errors": {"docker": "no answer"}}),
)
CASES = [
    (EnrolledNode("node-a", "a" * 64, 1), NOW_MS, "node_never_reported",
     "node node-a joined but has not reported yet"),
    (enrolled(), NOW_MS + 46_000, "node_offline", "node node-a last reported 46 s ago"),
    (replace(enrolled(), report_json='{"old": 1}'), NOW_MS, "report_unreadable",
     "node node-a runs an agent we cannot read"),
    (SILENT, NOW_MS, "engine_unavailable", "node node-a: docker: no answer"),
    (replace(enrolled(), revoked_at_ms=1, revoked_reason="stolen"), NOW_MS, "node_revoked",
     "node node-a was revoked: stolen"),
    (replace(enrolled(), revoked_at_ms=1), NOW_MS, "node_revoked", "node node-a was revoked"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "now_ms", "code", "reason"), CASES, ids=lambda c: str(c)[:20])
def test_anything_else_is_unknown(node: EnrolledNode, now_ms: int, code: str, reason: str) -> None:
    seen = node_seen(node, now_ms, OFFLINE_AFTER_MS)
    assert isinstance(seen, Unknown)
    assert (seen.code, seen.reason) == (code, reason)


SAID = ConfigSeen(digest="d", newest_version=2)
LAST_WORDS = [
    (EnrolledNode("node-a", "a" * 64, NOW_MS), NOW_MS + 2_000, 2_000, None),
    (enrolled(config=SAID), NOW_MS + 46_000, 46_000, SAID),
    (replace(enrolled(), report_json="{}"), NOW_MS + 46_000, 46_000, None),
    (replace(enrolled(), report_json="{}"), NOW_MS + 3_000, 3_000, None),
    (replace(SILENT, report_json=enrolled(complete=False, config=SAID).report_json),
     NOW_MS + 3_000, 3_000, SAID),
]  # fmt: skip


@pytest.mark.parametrize(("node", "now_ms", "silent_ms", "config"), LAST_WORDS)
def test_of_who_is_not_known_the_last_word_is(
    node: EnrolledNode, now_ms: int, silent_ms: int, config: ConfigSeen | None
) -> None:
    seen = node_seen(node, now_ms, OFFLINE_AFTER_MS)
    assert isinstance(seen, NodeUnknown)
    assert (seen.silent_ms, seen.config) == (silent_ms, config)


def test_for_how_long_it_was_heard_of() -> None:
    for since_ms, heard_for_ms in ((NOW_MS - 700_000, 700_000), (None, 0)):
        node = replace(enrolled(), heard_since_ms=since_ms)
        seen = node_seen(node, NOW_MS + 5_000, OFFLINE_AFTER_MS)
        assert isinstance(seen, Known)
        assert seen.value.heard_for_ms == heard_for_ms


class Recorder(FakeRegistry):
    """A registry that says where it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[RegistryEndpoint] = []

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        self.asked.append(endpoint)
        raise Refused("digest_mismatch", f"{key} is not what was asked for")


def ports(registry: Recorder, *nodes: EnrolledNode) -> Ports:
    store = MemoryStore()
    for node in nodes:
        store.add_join_token(node.name, node.name, NOW_MS + 1)
        store.redeem_join_token(node.name, node.name, node.public_key, NOW_MS)
        assert node.report_json is not None
        store.save_report(node.name, node.report_json, 1, 0, NOW_MS)
    clock = FakeClock(NOW_MS)
    source = FakeStateSource(FakeRemote())
    return Ports(source, registry, FakeSecrets(), FakeCa(), store, clock)


def test_the_registry_is_asked_only_about_what_may_be_launched() -> None:
    registry = Recorder()
    seen = observe(ports(registry, enrolled()), Settings(), desired(HELLO), NOW_MS)
    assert seen.artifacts == {}
    assert registry.asked == []


def test_a_refusal_of_the_registry_is_unknown_with_its_code() -> None:
    registry = Recorder()
    new = target(version="1.1.0")
    seen = observe(ports(registry, enrolled()), Settings(), desired(new), NOW_MS)
    found = seen.artifact(new.instance.artifact)
    assert isinstance(found, Unknown)
    assert found.code == "digest_mismatch"
    assert registry.asked == [RegistryEndpoint("127.0.0.1:5000", plain_http=True)]


def test_a_layout_folder_is_asked_by_its_path() -> None:
    registry = Recorder()
    new = target(version="1.1.0")
    instance = replace(new.instance, registry_endpoint="layout:/images")
    want = desired(replace(new, instance=instance))
    observe(ports(registry, enrolled()), Settings(), want, NOW_MS)
    assert registry.asked == [RegistryEndpoint("layout:/images", layout_path="/images")]
