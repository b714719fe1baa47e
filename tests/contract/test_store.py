"""One suite for `ports.Store`, run on the fake and on the real one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.wire import Endpoint, TaskAck, key_id
from reconciler.core.names import ActionId, InstanceKey, Revision
from reconciler.core.records import (
    Accepted,
    AcceptedObject,
    Condition,
    EnrolledNode,
    Event,
    InstanceRecord,
    Intent,
    PassSummary,
    State,
)
from reconciler.errors import Refused, Transient
from reconciler.ports import Changes, Store

HELLO = InstanceKey("acme/research/hello")
OTHER = InstanceKey("acme/research/other")
REVISION = Revision("a" * 40)


def a_record(key: InstanceKey = HELLO, **fields: object) -> InstanceRecord:
    record = InstanceRecord(
        key=key,
        app="hello",
        org_id="org-1",
        project_id="project-1",
        node="node-1",
        state=State.DEPLOYING,
        epoch=3,
        correlation_id="c-1",
        revision=REVISION,
        target_version="1.2.0",
        target_hash="sha256:" + "b" * 64,
        target_digest="sha256:" + "c" * 64,
        endpoints=(Endpoint(name="web", container=80, host_ip="127.0.0.1", host_port=8080),),
        conditions=(Condition("Ready", "Unknown", "Starting", "é\u2028\x00 ½", REVISION, 5),),
    )
    return replace(record, **fields)  # type: ignore[arg-type]


def an_event(number: int, instance: InstanceKey = HELLO) -> Event:
    data = {"number": str(number)}
    return Event(f"e-{number}", "apps.instance.running", instance, "c-1", REVISION, number, data)


def an_intent(number: int, **fields: object) -> Intent:
    intent = Intent(
        action_id=ActionId(f"a-{number}"),
        kind="launch",
        instance=HELLO,
        node="node-1",
        task_id=f"t-{number}",
        seq=number,
        correlation_id="c-1",
        target_hash="sha256:" + "b" * 64,
        envelope='{"payload": "…"}',
        created_at_ms=number,
        expires_at_ms=1_000,
    )
    return replace(intent, **fields)  # type: ignore[arg-type]


def enrol(store: Store, name: str = "node-1", key: str = "1" * 64, now_ms: int = 1) -> EnrolledNode:
    secret = f"{name}-{key}-{now_ms}"
    store.add_join_token(secret, name, 1_000_000)
    node = store.redeem_join_token(secret, name, key, now_ms)
    assert node is not None
    return node


class TestAccepted:
    def test_nothing_at_first(self, store: Store) -> None:
        assert store.accepted() == Accepted()

    def test_saving_replaces_the_whole(self, store: Store) -> None:
        one = AcceptedObject("App/hello", "catalog/hello/app.yaml", 1, '{"a":1}', REVISION)
        two = AcceptedObject("Node/n", "platform/nodes/n.yaml", 4, "{}", REVISION)
        first = Accepted(REVISION, {one.ref: one, two.ref: two})
        store.save_accepted(first)
        assert store.accepted() == first

        newer = Revision("b" * 40)
        second = Accepted(newer, {two.ref: replace(two, line=9, revision=newer)})
        store.save_accepted(second)
        assert store.accepted() == second
        store.save_accepted(Accepted())
        assert store.accepted() == Accepted()

    def test_ten_thousand_objects(self, store: Store) -> None:
        objects = {
            f"App/{n:05}": AcceptedObject(f"App/{n:05}", f"catalog/{n}.yaml", 1, "{}", REVISION)
            for n in range(10_000)
        }
        store.save_accepted(Accepted(REVISION, objects))
        assert store.accepted() == Accepted(REVISION, objects)
        store.save_accepted(Accepted(REVISION, {}))
        assert store.accepted().objects == {}


class TestCommit:
    def test_records_come_back_exactly(self, store: Store) -> None:
        record = a_record()
        store.commit(Changes(records=[a_record(OTHER), record]))
        assert store.records() == {HELLO: record, OTHER: a_record(OTHER)}
        assert list(store.records()) == [HELLO, OTHER]

    def test_the_newest_form_of_a_record_stays(self, store: Store) -> None:
        store.commit(Changes(records=[a_record(epoch=1), a_record(epoch=2)]))
        store.commit(Changes(records=[a_record(state=State.RUNNING)]))
        assert store.records()[HELLO].state is State.RUNNING

    def test_forgotten_records_are_gone(self, store: Store) -> None:
        store.commit(Changes(records=[a_record(), a_record(OTHER)]))
        store.commit(Changes(forgotten=[HELLO, InstanceKey("never/was/there")]))
        assert list(store.records()) == [OTHER]

    def test_an_event_happens_once(self, store: Store) -> None:
        store.commit(Changes(events=[an_event(1), an_event(1), an_event(2)]))
        store.commit(Changes(events=[replace(an_event(1), at_ms=99), an_event(3)]))
        assert [numbered.event for numbered in store.events()] == [
            an_event(1),
            an_event(2),
            an_event(3),
        ]

    def test_a_refused_intent_refuses_everything_with_it(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        with pytest.raises(Refused) as refused:
            store.commit(
                Changes(
                    records=[a_record()],
                    events=[an_event(1)],
                    intents=[an_intent(2), an_intent(1, task_id="t-9", seq=9)],
                )
            )
        assert refused.value.code == "intent_exists"
        assert refused.value.message == (
            "somebody else already acts on acme/research/hello (launch)"
        )
        assert store.records() == {}
        assert store.events() == []
        assert store.last_cursor() == 0
        assert store.intents() == [an_intent(1)]

    @pytest.mark.parametrize("end", ["refused", "expired", "superseded"])
    def test_a_closed_intent_gives_way_to_the_same_action(self, store: Store, end: str) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        if end == "refused":
            ack = TaskAck(task_id="t-1", accepted=False, code="expired", message="late")
            store.acknowledge("node-1", [ack])
        elif end == "expired":
            store.open_intents(now_ms=1_000)
        else:
            store.commit(Changes(closed=[HELLO]))
        again = an_intent(1, task_id="t-2", seq=2, expires_at_ms=5_000)
        store.commit(Changes(intents=[again]))
        assert store.intents() == [again]

    def test_a_task_number_is_given_once(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        with pytest.raises(Transient) as refused:
            store.commit(Changes(intents=[an_intent(2, seq=1)], records=[a_record()]))
        assert refused.value.code == "store_conflict"
        assert refused.value.message == "another process wrote the same thing first"
        assert store.records() == {}


class TestEvents:
    def test_paging_by_cursor_sees_every_event_once(self, store: Store) -> None:
        for number in range(1, 26):
            store.commit(Changes(events=[an_event(number, HELLO if number % 2 else OTHER)]))
        seen, after = [], 0
        while page := store.events(after=after, limit=7):
            assert len(page) <= 7
            seen += [numbered.event.event_id for numbered in page]
            after = page[-1].cursor
        assert seen == [f"e-{number}" for number in range(1, 26)]
        assert after == store.last_cursor()

    def test_of_one_instance(self, store: Store) -> None:
        store.commit(Changes(events=[an_event(1), an_event(2, OTHER), an_event(3)]))
        page = store.events(instance=HELLO)
        assert [numbered.event.event_id for numbered in page] == ["e-1", "e-3"]
        assert store.events(after=page[-1].cursor, instance=HELLO) == []

    def test_of_one_instance_with_its_members(self, store: Store) -> None:
        keys = [HELLO, f"{HELLO}.w1", f"{HELLO}-2", f"{HELLO}.w1-2", f"{HELLO}x.w1"]
        keys.append(HELLO.replace("hello", "h_llo") + ".w1")
        store.commit(
            Changes(events=[an_event(n, InstanceKey(key)) for n, key in enumerate(keys, 1)])
        )
        ids = {
            key: [numbered.event.event_id for numbered in store.events(instance=InstanceKey(key))]
            for key in keys[:3]
        }
        assert ids == {
            keys[0]: ["e-1", "e-2", "e-4"],
            keys[1]: ["e-2"],
            keys[2]: ["e-3"],
        }

    def test_a_limit_of_nothing(self, store: Store) -> None:
        store.commit(Changes(events=[an_event(1)]))
        assert store.events(limit=0) == []
        assert store.events(limit=-1) == []

    def test_cursors_rise_while_many_write(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.commit(Changes(events=[an_event(n)])), range(1, 41)))
        cursors = [numbered.cursor for numbered in store.events()]
        assert cursors == list(range(1, 41))

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5))
    def test_any_text_comes_back(self, store: Store, data: dict[str, str]) -> None:
        after = store.last_cursor()
        event = replace(an_event(after + 1), data=data)
        store.commit(Changes(events=[event]))
        assert store.events(after=after)[0].event == event


class TestIntents:
    def test_queued_tasks_are_handed_out_until_acknowledged(self, store: Store) -> None:
        foreign = an_intent(3, node="node-2")
        store.commit(Changes(intents=[an_intent(2), an_intent(1), foreign]))
        assert store.tasks_for("node-1", 5) == [an_intent(1), an_intent(2)]
        assert store.tasks_for("node-1", 5) == [an_intent(1), an_intent(2)]

        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=True)])
        assert store.tasks_for("node-1", 5) == [an_intent(2)]
        refusal = TaskAck(task_id="t-2", accepted=False, code="bad_signature", message="no")
        store.acknowledge("node-1", [refusal, TaskAck(task_id="t-unknown", accepted=True)])
        assert store.tasks_for("node-1", 5) == []

        states = {intent.task_id: (intent.state, intent.detail) for intent in store.intents()}
        assert states == {
            "t-1": ("accepted", ""),
            "t-2": ("refused", "bad_signature: no"),
            "t-3": ("queued", ""),
        }
        assert [intent.task_id for intent in store.open_intents(5)] == ["t-1", "t-2", "t-3"]

    def test_a_node_acknowledges_its_own_tasks_only(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        store.acknowledge("node-2", [TaskAck(task_id="t-1", accepted=True)])
        assert store.tasks_for("node-1", 5) == [an_intent(1)]

    def test_the_first_word_on_a_task_stands(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=True)])
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=False, code="late")])
        assert [intent.state for intent in store.intents()] == ["accepted"]
        store.acknowledge("node-1", [])

    def test_a_task_expires(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1), an_intent(2, expires_at_ms=2_000)]))
        assert [intent.seq for intent in store.tasks_for("node-1", 999)] == [1, 2]
        assert [intent.seq for intent in store.tasks_for("node-1", 1_000)] == [2]
        assert [intent.seq for intent in store.open_intents(1_000)] == [2]
        assert [intent.state for intent in store.intents()] == ["expired", "queued"]

    def test_an_accepted_task_does_not_expire(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=True)])
        assert [intent.state for intent in store.open_intents(9_000)] == ["accepted"]

    def test_an_agent_that_took_a_task_in_time_is_believed_later(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        assert store.open_intents(9_000) == []
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=True)])
        assert [intent.state for intent in store.open_intents(9_000)] == ["accepted"]

    def test_closing_is_for_one_instance(self, store: Store) -> None:
        other = an_intent(2, instance=OTHER)
        store.commit(Changes(intents=[an_intent(1), other]))
        store.commit(Changes(closed=[HELLO]))
        assert store.open_intents(5) == [other]
        assert store.tasks_for("node-1", 5) == [other]
        assert store.intents(HELLO) == [an_intent(1, state="superseded")]
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=True)])
        assert store.open_intents(5) == [other]

    def test_a_refused_task_is_settled_by_closing_it(self, store: Store) -> None:
        store.commit(Changes(intents=[an_intent(1)]))
        store.acknowledge("node-1", [TaskAck(task_id="t-1", accepted=False, code="expired")])
        assert [intent.state for intent in store.open_intents(9_000)] == ["refused"]
        store.commit(Changes(closed=[HELLO]))
        assert store.open_intents(9_000) == []

    def test_the_newest_word_comes_last(self, store: Store) -> None:
        moved = an_intent(2, node="node-0", seq=1)
        store.commit(Changes(intents=[moved, an_intent(1, seq=7)]))
        assert [intent.task_id for intent in store.intents()] == ["t-1", "t-2"]
        assert [intent.task_id for intent in store.open_intents(5)] == ["t-1", "t-2"]

    def test_task_numbers_rise_above_intents_and_reports(self, store: Store) -> None:
        assert store.next_seq("node-1") == 1
        enrol(store)
        store.commit(Changes(intents=[an_intent(4), an_intent(9, node="node-2")]))
        assert store.next_seq("node-1") == 5
        store.save_report("node-1", "{}", 1, 7, 10)
        assert store.next_seq("node-1") == 8
        store.commit(Changes(intents=[an_intent(8)]))
        store.commit(Changes(closed=[HELLO]))
        assert store.next_seq("node-1") == 9


class TestJoining:
    def test_a_token_is_good_once(self, store: Store) -> None:
        store.add_join_token("hash", "node-1", 100)
        node = store.redeem_join_token("hash", "node-1", "1" * 64, 50)
        assert node == EnrolledNode("node-1", "1" * 64, 50)
        assert store.redeem_join_token("hash", "node-1", "2" * 64, 51) is None
        assert store.nodes() == [node]
        assert store.node("node-1") == node
        assert store.node("node-2") is None
        assert store.node_by_key(key_id("1" * 64)) == node
        assert store.node_by_key(key_id("2" * 64)) is None

    @pytest.mark.parametrize(
        ("secret_hash", "node", "now_ms"),
        [("other", "node-1", 50), ("hash", "node-2", 50), ("hash", "node-1", 100)],
        ids=["unknown", "another node's", "expired"],
    )
    def test_a_token_that_does_not_fit(
        self, store: Store, secret_hash: str, node: str, now_ms: int
    ) -> None:
        store.add_join_token("hash", "node-1", 100)
        assert store.redeem_join_token(secret_hash, node, "1" * 64, now_ms) is None
        assert store.nodes() == []
        assert store.redeem_join_token("hash", "node-1", "1" * 64, 50) is not None

    def test_one_of_many_redeems(self, store: Store) -> None:
        store.add_join_token("hash", "node-1", 100)

        def redeem(number: int) -> EnrolledNode | None:
            return store.redeem_join_token("hash", "node-1", f"{number:064x}", 50)

        with ThreadPoolExecutor(8) as pool:
            joined = [node for node in pool.map(redeem, range(16)) if node is not None]
        assert joined == list(store.nodes())

    def test_joining_again_with_a_new_key_drops_what_the_old_one_signed(self, store: Store) -> None:
        enrol(store)
        store.save_report("node-1", '{"old": 1}', 8, 5, 10)
        again = enrol(store, key="2" * 64, now_ms=20)
        assert again == EnrolledNode("node-1", "2" * 64, 20, last_task_seq=5)
        assert store.nodes() == [again]
        assert store.node_by_key(key_id("1" * 64)) is None
        assert store.save_report("node-1", "{}", 1, 0, 30)

    def test_joining_again_with_the_same_key_keeps_the_replay_guard(self, store: Store) -> None:
        enrol(store)
        store.save_report("node-1", "{}", 8, 5, 10)
        again = EnrolledNode("node-1", "1" * 64, 1, report_seq=8, last_task_seq=5)
        assert enrol(store, now_ms=20) == again
        assert store.nodes() == [again]
        assert not store.save_report("node-1", "{}", 8, 5, 30)

    def test_a_key_is_for_one_node(self, store: Store) -> None:
        enrol(store)
        store.add_join_token("hash", "node-2", 100)
        with pytest.raises(Refused) as refused:
            store.redeem_join_token("hash", "node-2", "1" * 64, 50)
        assert refused.value.code == "key_in_use"
        assert str(refused.value) == (
            "node-2: key_in_use: this agent key belongs to another node "
            "(delete the agent's copied state folder and join again: a key is for one node)"
        )
        assert store.redeem_join_token("hash", "node-2", "2" * 64, 50) is not None

    def test_the_same_token_is_not_added_twice(self, store: Store) -> None:
        store.add_join_token("hash", "node-1", 100)
        with pytest.raises(Transient) as refused:
            store.add_join_token("hash", "node-2", 100)
        assert refused.value.code == "store_conflict"


class TestReports:
    def test_the_last_report_is_kept(self, store: Store) -> None:
        enrol(store)
        assert store.save_report("node-1", '{"x": 1}', 3, 7, 10)
        assert store.node("node-1") == EnrolledNode(
            "node-1", "1" * 64, 1, '{"x": 1}', 10, 3, 7, heard_since_ms=10
        )

    def test_since_when_it_was_heard_of_without_a_break(self, store: Store) -> None:
        enrol(store)

        def heard_since(at_ms: int) -> int | None:
            store.save_report("node-1", "{}", at_ms, 0, at_ms)
            node = store.node("node-1")
            assert node is not None
            return node.heard_since_ms

        assert heard_since(10) == heard_since(60_010) == heard_since(120_010) == 10
        assert heard_since(180_011) == heard_since(180_012) == 180_011
        again = enrol(store, now_ms=180_020)
        assert again.heard_since_ms is None
        assert heard_since(180_030) == 180_030

    @pytest.mark.parametrize("report_seq", [3, 2, 0])
    def test_an_older_report_is_refused(self, store: Store, report_seq: int) -> None:
        enrol(store)
        store.save_report("node-1", '{"x": 1}', 3, 7, 10)
        before = store.node("node-1")
        assert not store.save_report("node-1", '{"x": 2}', report_seq, 9, 11)
        assert store.node("node-1") == before

    def test_task_numbers_never_go_back(self, store: Store) -> None:
        enrol(store)
        store.save_report("node-1", "{}", 1, 7, 10)
        store.save_report("node-1", "{}", 2, 0, 11)
        assert store.next_seq("node-1") == 8

    def test_a_node_that_never_joined(self, store: Store) -> None:
        assert not store.save_report("node-1", "{}", 1, 0, 10)
        assert store.nodes() == []

    def test_the_same_report_many_times_counts_once(self, store: Store) -> None:
        enrol(store)
        with ThreadPoolExecutor(8) as pool:
            saved = pool.map(lambda _: store.save_report("node-1", "{}", 1, 0, 10), range(16))
        assert sum(saved) == 1


class TestPasses:
    def test_requests_are_taken_once_and_in_order(self, store: Store) -> None:
        assert store.take_requests() == []
        store.request_pass("webhook", 2)
        store.request_pass("cli", 1)
        store.request_pass("webhook", 3)
        assert store.take_requests() == ["cli", "webhook"]
        assert store.take_requests() == []

    def test_the_last_pass_comes_back_exactly(self, store: Store) -> None:
        assert store.last_pass() is None
        findings = ({"path": "a.yaml", "line": 3, "nested": {"list": [1, None, True]}},)
        summary = PassSummary("stalled", REVISION, 1, 2, 3, 4, 5, "why", findings)
        store.commit(Changes(summary=summary))
        assert store.last_pass() == summary
        newer = PassSummary("done", REVISION, 9, 1)
        store.commit(Changes(summary=newer))
        assert store.last_pass() == newer
