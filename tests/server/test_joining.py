"""Agents join and get their certificates, over real HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from node_agent.membership import CertificateReply, JoinReply
from reconciler.core.records import AuditRow
from reconciler.custody.wrap_mac import WrapMac, join_text
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Agent, Plane, refusal, running

TOKEN_REFUSED = (
    401,
    "token_refused",
    "the join token is unknown, used, expired or for another node: ask for a new one",
)
CERTIFICATE = "/v1/agent/certificate"
AWAY = Transient("custody_sealed", "the custody is sealed", retry_after_s=7.2)


def told(row: AuditRow) -> tuple[str, str, str, str]:
    return row.entry.actor, row.entry.action, row.entry.object, row.entry.result


class TestJoin:
    def test_a_token_buys_what_the_agent_must_pin(self, plane: Plane) -> None:
        agent = Agent()
        answer = plane.join(plane.token(), agent)
        assert answer.status_code == 200
        reply = JoinReply.model_validate_json(answer.content)
        assert reply.verifiers == plane.keys.verifier_keys("tasks")
        assert (reply.node, reply.min_version, reply.ca) == ("node-1", 1, plane.ca.root())
        certificate = x509.load_pem_x509_certificate(reply.certificate.encode())
        assert certificate.public_key() == agent.key.public_key()
        node = plane.store.node("node-1")
        assert node is not None
        assert (node.public_key, node.joined_at_ms) == (agent.public_key, NOW_MS)
        assert node.certificate_ends_at_ms == NOW_MS + 86_400_000
        assert [told(row) for row in plane.store.audit()] == [
            ("node/node-1", "secrets.wrap.unwrap", "joins/node-1/1", "done"),
            ("node/node-1", "fleet.node.joined", "node-1", "done"),
            ("node/node-1", "fleet.certificate.issued", "node-1", "done"),
        ]
        # What it came in with is left nowhere.
        assert plane.keys.paths("joins") == ()
        assert plane.woken.get(timeout=60) == "join"

    def test_a_token_is_good_once(self, plane: Plane) -> None:
        token = plane.token()
        assert plane.join(token, Agent()).status_code == 200
        assert refusal(plane.join(token, Agent())) == TOKEN_REFUSED

    def test_of_many_at_once_one_joins(self, plane: Plane) -> None:
        token = plane.token()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: plane.join(token, Agent()), range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7

    def test_an_unknown_token(self, plane: Plane) -> None:
        plane.token()
        assert refusal(plane.join("a guess", Agent())) == TOKEN_REFUSED

    def test_another_nodes_token(self, plane: Plane) -> None:
        token = plane.token()
        assert refusal(plane.join(token, Agent("node-2"))) == TOKEN_REFUSED
        assert plane.join(token, Agent("node-1")).status_code == 200

    def test_an_expired_token(self, plane: Plane) -> None:
        token = plane.token(ttl_ms=1_000)
        plane.clock.ms += 1_000
        assert refusal(plane.join(token, Agent())) == TOKEN_REFUSED

    def test_a_key_of_another_node(self, plane: Plane) -> None:
        agent = plane.enrol("node-1")
        token = plane.token("other", "node-2")
        assert refusal(plane.join(token, Agent("node-2", agent.key))) == (
            409,
            "key_in_use",
            "this agent key belongs to another node "
            "(delete the agent's copied state folder and join again: a key is for one node)",
        )

    def test_guessing_is_slowed_down(self, plane: Plane) -> None:
        token = plane.token()
        for number in range(10):
            assert refusal(plane.join(f"guess {number}", Agent())) == TOKEN_REFUSED
        answer = plane.join("a guess", Agent())
        assert refusal(answer) == (
            429,
            "too_many_tries",
            "too many failed joins: wait, then retry",
        )
        assert answer.headers["Retry-After"] == "60"
        plane.clock.ms += 59_999
        assert plane.join("a guess", Agent()).status_code == 429
        # From the same address, and not a guess.
        assert plane.join(token, Agent()).status_code == 200
        plane.clock.ms += 1
        assert refusal(plane.join("another guess", Agent())) == TOKEN_REFUSED

    def test_a_guess_is_no_alarm_and_mutes_none(self, plane: Plane) -> None:
        """Attempted: by somebody who knows the numbers, and by one who has a node's token."""
        token = plane.token()
        number, wrapping, ends_ms, mac = token.split(":")
        assert plane.join(token, Agent()).status_code == 200
        guesses = [
            f"{number}:hvs.x:{ends_ms}:{mac}",
            f"{number}:{wrapping}:{ends_ms}:{'0' * 64}",
            f"2:{wrapping}:{ends_ms}:{mac}",
            f"{number}:{wrapping}:{int(ends_ms) + 1}:{mac}",
            f"{number}:{wrapping}",
            "1:\u00e4:1:" + "0" * 64,
        ]
        before = len(plane.store.audit())
        for _ in range(10):
            for guess in guesses:
                assert plane.join(guess, Agent()).status_code in (401, 429)
            plane.clock.ms += 60_000
        assert refusal(plane.join(token, Agent("node-2"))) == TOKEN_REFUSED
        assert plane.store.audit()[before:] == []
        assert refusal(plane.join(token, Agent())) == TOKEN_REFUSED
        assert [told(row)[3] for row in plane.store.audit()[before:]] == ["wrap_spent"]

    def test_a_spent_token_is_not_tried_for_ever(self, plane: Plane) -> None:
        spent, other = plane.token(), plane.token("other")
        assert [plane.join(one, Agent()).status_code for one in (spent, other)] == [200, 200]
        statuses = [plane.join(spent, Agent()).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        message = "too many tries of this token: wait, then retry"
        assert refusal(plane.join(spent, Agent())) == (429, "too_many_tries", message)
        before = len(plane.store.audit())
        assert refusal(plane.join(other, Agent())) == TOKEN_REFUSED
        assert [told(row)[2:] for row in plane.store.audit()[before:]] == [
            ("joins/node-1/2", "wrap_spent")
        ]

    def test_joining_does_not_count_as_guessing(self, plane: Plane) -> None:
        for number in range(12):
            plane.enrol(f"node-{number}")

    def test_a_secret_store_that_is_away_costs_no_token(self, plane: Plane) -> None:
        token = plane.token()
        plane.keys.failure = Transient("sealed", "the vault is sealed", retry_after_s=7.2)
        answer = plane.join(token, Agent())
        assert refusal(answer) == (503, "sealed", "the vault is sealed")
        assert answer.headers["Retry-After"] == "8"
        plane.keys.failure = None
        assert plane.join(token, Agent()).status_code == 200

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"node": "No/Name"}, "node: not a valid node name"),
            ({"public_key": "short"}, "public_key: String should match pattern '^[0-9a-f]{64}$'"),
            ({"token": 3}, "token: Input should be a valid string"),
            ({"more": 1}, "more: Extra inputs are not permitted"),
        ],
    )
    def test_an_invalid_request(self, plane: Plane, change: dict[str, Any], message: str) -> None:
        wanted = {"token": "t", "node": "node-1", "public_key": "0" * 64, "csr": "", **change}
        answer = plane.post("/v1/agent/join", wanted)
        assert refusal(answer) == (422, "invalid_message", message)

    def test_what_was_sent_is_not_repeated(self, plane: Plane) -> None:
        answer = plane.agents.post("/v1/agent/join", content=b'{"token": "hush-hush')
        status, code, message = refusal(answer)
        assert (status, code) == (422, "invalid_message")
        assert message.startswith("Invalid JSON: ")
        assert "hush" not in answer.text

    def test_a_token_that_somebody_else_opened_is_an_alarm(self, plane: Plane) -> None:
        token = plane.token()
        assert plane.join(token, Agent()).status_code == 200
        with capture_logs() as logs:
            assert refusal(plane.join(token, Agent())) == TOKEN_REFUSED
            plane.keys.write("joins/node-2/2", Secret("another"))
            wrapped = plane.keys.wrap("joins/node-2/2", 60)
            given = WrapMac(plane.keys, plane.clock).given("joins/node-1/2", wrapped)
            assert refusal(plane.join(join_text(given), Agent())) == TOKEN_REFUSED
        alarms = [one for one in logs if one["event"] == "wrap_alarm"]
        assert [(one["log_level"], one["code"], one["path"]) for one in alarms] == [
            ("error", "wrap_spent", "joins/node-1/1"),
            ("error", "wrap_foreign", "joins/node-1/2"),
        ]
        assert token.partition(":")[2] not in str(logs)
        assert [told(row) for row in plane.store.audit()][-2:] == [
            ("node/node-1", "secrets.wrap.unwrap", "joins/node-1/1", "wrap_spent"),
            ("node/node-1", "secrets.wrap.unwrap", "joins/node-1/2", "wrap_foreign"),
        ]
        page = plane.client.get("/metrics").text
        assert 'gpuaas_wrap_alarms_total{reason="wrap_spent"} 1.0' in page
        assert 'gpuaas_wrap_alarms_total{reason="wrap_foreign"} 1.0' in page

    def test_a_ca_that_is_away_keeps_nobody_out(self, plane: Plane) -> None:
        agent = Agent()
        plane.ca.failure = AWAY
        reply = JoinReply.model_validate_json(plane.join(plane.token(), agent).content)
        assert (reply.certificate, reply.ca) == ("", "")
        assert refusal(plane.post(CERTIFICATE, agent.certificate_request()))[:2] == (
            503,
            "custody_sealed",
        )
        plane.ca.failure = None
        later = plane.post(CERTIFICATE, agent.certificate_request(sent_at_ms=NOW_MS + 1))
        assert CertificateReply.model_validate_json(later.content).certificate

    def test_a_control_plane_that_has_no_keys_yet_costs_no_token(self, plane: Plane) -> None:
        token, keys = plane.token(), plane.keys._keys.pop("tasks")
        assert refusal(plane.join(token, Agent()))[:2] == (503, "not_started")
        plane.keys._keys["tasks"] = keys
        assert plane.join(token, Agent()).status_code == 200

    def test_a_retired_version_is_not_handed_out(self, plane: Plane) -> None:
        plane.keys.rotate("tasks")
        plane.keys.retire("tasks", 2)
        reply = JoinReply.model_validate_json(plane.join(plane.token(), Agent()).content)
        assert ([key.version for key in reply.verifiers], reply.min_version) == ([2], 2)

    def test_a_revoked_node_comes_back_with_another_key_only(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.revoke_node("node-1", "stolen", NOW_MS)
        assert refusal(plane.join(plane.token("one"), agent)) == (
            409,
            "key_revoked",
            "this agent key was revoked "
            "(delete the agent's state folder and join again: it makes a new key)",
        )
        fresh = plane.enrol()
        assert plane.post("/v1/agent/report", fresh.report()).status_code == 200

    def test_the_certificate_of_the_key_before_is_revoked(self, plane: Plane) -> None:
        plane.enrol()
        before = plane.store.nodes()[0].certificate_serial
        plane.enrol()
        assert plane.ca.revoked() == (before,)
        assert plane.store.nodes()[0].certificate_serial not in ("", before)

    @pytest.mark.parametrize("how", ["another key", "another kind", "tampered", "no request"])
    def test_a_request_that_is_not_for_the_joining_key(self, plane: Plane, how: str) -> None:
        """Attempted: a certificate for a key that is somebody else's, or that nobody has shown."""
        agent, token = Agent(), plane.token()
        code, message = "csr_of_another_key", "csr: it is for another key than the agent's own"
        csr = Agent().csr()
        if how == "another kind":
            csr = ec_request()
        elif how == "tampered":
            csr, code = tampered(agent), "csr_refused"
            message = "csr: its signature does not hold"
        elif how == "no request":
            csr, code, message = "-", "csr_refused", "csr: not a signing request in PEM"
        assert refusal(plane.join(token, agent, csr=csr)) == (400, code, message)
        assert plane.join(token, agent).status_code == 200


def ec_request() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def tampered(agent: Agent) -> str:
    der = bytearray(x509.load_pem_x509_csr(agent.csr().encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


class TestCertificate:
    def test_a_further_one_needs_none_to_be_shown(self, plane: Plane) -> None:
        agent = plane.enrol()
        before = plane.store.nodes()[0].certificate_serial
        plane.clock.ms += 1_000
        asked = agent.certificate_request(sent_at_ms=plane.clock.ms)
        answer = plane.post(CERTIFICATE, asked, shown={})
        reply = CertificateReply.model_validate_json(answer.content)
        certificate = x509.load_pem_x509_certificate(reply.certificate.encode())
        assert certificate.public_key() == agent.key.public_key()
        node = plane.store.nodes()[0]
        assert node.certificate_serial not in ("", before)
        assert node.certificate_ends_at_ms == plane.clock.ms + 86_400_000
        entry = plane.store.audit()[-1].entry
        assert (entry.action, entry.reason) == (
            "fleet.certificate.issued",
            f"serial {node.certificate_serial}",
        )

    def test_the_same_request_again(self, plane: Plane) -> None:
        agent = plane.enrol()
        request = agent.certificate_request()
        assert plane.post(CERTIFICATE, request).status_code == 200
        assert refusal(plane.post(CERTIFICATE, request)) == (
            409,
            "replayed_request",
            "this very request was made before: make a new one",
        )

    def test_one_for_another_key(self, plane: Plane) -> None:
        agent = plane.enrol()
        request = agent.certificate_request(csr=Agent().csr())
        assert refusal(plane.post(CERTIFICATE, request)) == (
            400,
            "csr_of_another_key",
            "csr: it is for another key than the agent's own",
        )

    def test_a_revoked_node_gets_none(self, plane: Plane) -> None:
        agent = plane.enrol()
        plane.store.revoke_node("node-1", "stolen", NOW_MS)
        answer = plane.post(CERTIFICATE, agent.certificate_request())
        assert refusal(answer) == (
            403,
            "node_revoked",
            "node node-1 was revoked: nothing of this key is believed any more",
        )

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [({"node": "node-2"}, 403, "wrong_node"), ({"sent_at_ms": 1}, 422, "not_fresh")],
    )
    def test_refusals(self, plane: Plane, fields: dict[str, Any], status: int, code: str) -> None:
        agent = plane.enrol()
        answer = plane.post(CERTIFICATE, agent.certificate_request(**fields))
        assert refusal(answer)[:2] == (status, code)
        assert refusal(plane.post(CERTIFICATE, Agent().certificate_request()))[1] == "unknown_node"
        assert refusal(plane.post(CERTIFICATE, agent.report()))[1] == "wrong_type"

    def test_a_node_does_not_keep_the_ca_busy(self) -> None:
        with running(MemoryStore()) as plane:
            agent = plane.enrol()
            for number in range(10):
                asked = agent.certificate_request(sent_at_ms=NOW_MS + number)
                assert plane.post(CERTIFICATE, asked).status_code == 200
            asked = agent.certificate_request(sent_at_ms=NOW_MS + 10)
            answer = plane.post(CERTIFICATE, asked)
            assert refusal(answer)[1] == "too_many_tries"
            assert answer.headers["Retry-After"] == "60"


class TestCa:
    def test_anybody_is_given_it(self, plane: Plane) -> None:
        assert plane.agents.get("/v1/agent/ca").json() == {"ca": plane.ca.root()}

    def test_it_is_known_while_the_ca_is_away(self, plane: Plane) -> None:
        plane.ca.failure = AWAY
        assert refusal(plane.agents.get("/v1/agent/ca"))[:2] == (503, "custody_sealed")
        plane.ca.failure = None
        known = plane.agents.get("/v1/agent/ca").json()
        plane.ca.failure = AWAY
        plane.clock.ms += 3_600_000
        assert plane.agents.get("/v1/agent/ca").json() == known
        plane.ca.failure = Refused("ca_damaged", "there is no CA in the secret")
        plane.clock.ms += 3_600_000
        assert refusal(plane.agents.get("/v1/agent/ca"))[:2] == (503, "ca_damaged")
