"""Who may speak for a node, and what else a poll brings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from node_agent.wire import SECRETS_REQUEST_TYPE, ConfigSeen
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Plane, refusal, running, shows
from tests.waiting import wait_until

REPORT = "/v1/agent/report"
POLL = "/v1/agent/poll"
CERTIFICATE_REQUIRED = (403, "certificate_required")
ENDED = "the connection's certificate has ended: ask for a new one, then connect anew"
UNSHOWN = "the connection shows no certificate: ask for one, then show it"

REVOKED = (
    403,
    "node_revoked",
    "node node-1 was revoked: nothing of this key is believed any more",
)


class TestWhoSpeaks:
    """The connection's certificate is of the key that signed the message, or nothing is taken."""

    @pytest.mark.parametrize("path", [REPORT, POLL, "/v1/agent/secrets"])
    def test_a_connection_without_a_certificate(self, plane: Plane, path: str) -> None:
        agent = plane.enrol()
        for shown, message in (({}, UNSHOWN), (shows(agent.public_key, NOW_MS), ENDED)):
            answer = plane.post(path, agent.report(), shown)
            assert refusal(answer) == (*CERTIFICATE_REQUIRED, message)

    @pytest.mark.parametrize("whose", ["another node", "nobody's kind"])
    def test_a_certificate_of_another_key(self, plane: Plane, whose: str) -> None:
        """Attempted: a node's stolen signing key, used from another host of the fleet."""
        agent, other = plane.enrol(), plane.enrol("node-2")
        shown = shows(other.public_key) if whose == "another node" else shows("-")
        for path, message in ((REPORT, agent.report()), (POLL, agent.poll())):
            assert refusal(plane.post(path, message, shown)) == (
                403,
                "certificate_of_another",
                "the connection's certificate is of another key than the message's",
            )
        assert plane.store.nodes()[0].report_json is None

    @pytest.mark.parametrize("path", [REPORT, POLL, "/v1/agent/secrets"])
    def test_a_revoked_node(self, plane: Plane, path: str) -> None:
        agent = plane.enrol()
        plane.store.revoke_node("node-1", "stolen", NOW_MS)
        sealed = {REPORT: agent.report, POLL: agent.poll}.get(path)
        message = sealed() if sealed else agent.seal(b"{}", SECRETS_REQUEST_TYPE)
        assert refusal(plane.post(path, message)) == REVOKED

    def test_the_open_poll_of_a_node_that_is_revoked(self, plane: Plane) -> None:
        agent = plane.enrol()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(plane.post, POLL, agent.poll(wait_ms=60_000))
            wait_until(lambda: plane.signal.waiting_count == 1)
            plane.store.revoke_node("node-1", "stolen", NOW_MS)
            assert refusal(waiting.result()) == REVOKED

    @pytest.mark.parametrize("how", ["forgotten", "joined anew"])
    def test_the_open_poll_of_a_key_that_is_known_no_more(self, plane: Plane, how: str) -> None:
        agent = plane.enrol()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(plane.post, POLL, agent.poll(wait_ms=60_000))
            wait_until(lambda: plane.signal.waiting_count == 1)
            plane.store.forget_node("node-1") if how == "forgotten" else plane.enrol()
            assert refusal(waiting.result())[1] == "unknown_node"

    def test_people_are_told_nothing_by_these_routes(self, plane: Plane) -> None:
        agent = plane.enrol()
        assert plane.client.post(REPORT, json=agent.report()).status_code == 404
        assert plane.agents.get("/v1/status").status_code == 404


class TestConfig:
    def test_a_new_one_comes_with_the_poll(self) -> None:
        wanted = {"payload": "config 2"}

        def node_config(node: str, digest: str) -> dict[str, str] | None:
            return None if (node, digest) == ("node-1", "2") else wanted

        with running(MemoryStore(), node_config=node_config) as plane:
            agent = plane.enrol()
            answer = plane.post(POLL, agent.poll(wait_ms=60_000, config="1"))
            assert answer.json() == {"tasks": [], "config": wanted}
            # What is in force already is not sent again, and who asks for none gets none.
            assert plane.post(POLL, agent.poll(config="2")).json() == {"tasks": []}
            assert plane.post(POLL, agent.poll()).json() == {"tasks": []}

    def test_one_that_is_made_meanwhile_ends_the_wait(self) -> None:
        made: list[dict[str, str]] = []
        with (
            running(
                MemoryStore(),
                node_config=lambda *_: made[0] if made else None,
                task_recheck_interval_s=3600,
            ) as plane,
            ThreadPoolExecutor(1) as pool,
        ):
            agent = plane.enrol()
            waiting = pool.submit(plane.post, POLL, agent.poll(wait_ms=60_000, config=""))
            wait_until(lambda: plane.signal.waiting_count == 1)
            made.append({"payload": "config 1"})
            plane.signal.notify("node-1")
            assert waiting.result().json() == {"tasks": [], "config": made[0]}

    def test_one_that_came_into_force_is_news(self, plane: Plane) -> None:
        agent = plane.enrol()
        for seq, digest in enumerate(("", "1", "1"), 1):
            seen = ConfigSeen(digest=digest, newest_version=1, min_version=1)
            assert plane.post(REPORT, agent.report(seq, config=seen)).status_code == 200
        assert [plane.woken.get(timeout=60) for _ in range(2)] == ["report"] * 2
        assert plane.woken.empty()
