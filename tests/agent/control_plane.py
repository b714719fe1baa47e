"""A small control plane over real HTTPS: hands out tasks until acknowledged, keeps reports."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from node_agent.artifact_wire import BLOB_REQUEST_TYPE, BlobRequest
from node_agent.envelope import unseal
from node_agent.link import AgentKey
from node_agent.membership import (
    CERTIFICATE_REQUEST_TYPE,
    NODE_CONFIG_TYPE,
    CertificateReply,
    CertificateRequest,
    JoinReply,
    JoinRequest,
    JoinToken,
    NodeConfig,
)
from node_agent.sealing import seal_values
from node_agent.wire import (
    POLL_TYPE,
    REPORT_TYPE,
    SECRETS_REQUEST_TYPE,
    SECRETS_TYPE,
    LaunchTask,
    Poll,
    PollReply,
    Report,
    Secrets,
    SecretsRequest,
    TaskAck,
    VerifierKey,
    WorkloadReport,
    key_id,
)
from tests.agent.authority import DAY_S, Authority
from tests.agent.cases import INSTANCE, NODE, AnyTask, envelope, verifier

PATIENCE_S = 120.0
SECRET = "only-once"


class ControlPlane:
    """`away` answers 503 to everything. `reports` are those whose signature held.

    `faults` are reports that contradict themselves; a test ends with none. `secrets` are given to
    whoever asks, signed by `secrets_signer` after `secrets_twist` has had its way with them.
    Certificates are good for `certificate_ttl_s`, and none is given while `ca_away`. `revoked` says
    so to everything. `config` goes to who has another, signed by `config_signer`. `blobs` are given
    by digest as they are, right or wrong; after `blob_cut` bytes the connection breaks off; with
    `blob_elsewhere` agents are sent there.
    """

    def __init__(self) -> None:
        self.key = AgentKey.generate()
        self.authority = Authority()
        self.certificate_ttl_s = DAY_S
        self.ca_away = False
        self.certificates: list[str] = []
        self.revoked = False
        self.config: NodeConfig | None = None
        self.config_signer = self.key
        self.reports: list[Report] = []
        self.away = False
        self.secrets: dict[str, str] = {}
        self.secrets_asked: list[tuple[str, ...]] = []
        self.secrets_signer = self.key
        self.secrets_twist: Callable[[Secrets], Secrets] = lambda answer: answer
        self.blobs: dict[str, bytes] = {}
        self.blobs_asked: list[BlobRequest] = []
        self.blob_cut: int | None = None
        self.blob_elsewhere = ""
        self.polls = 0
        self._agent: VerifierKey | None = None
        self._queue: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, AnyTask] = {}
        self.faults: list[str] = []
        self._seq = 0
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._folder = tempfile.TemporaryDirectory()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.show(self.authority)
        self._server.socket = self.tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    @property
    def reply(self) -> JoinReply:
        return JoinReply(node=NODE, verifiers=(verifier(self.key),), ca=self.authority.pem)

    def show(self, authority: Authority, **changes: Any) -> None:
        """What new connections see from now on."""
        authority.serve(Path(self._folder.name), self.tls, **changes)

    def token(self, **changes: Any) -> str:
        fields = {
            "server": self.url, "node": NODE, "secret": SECRET, "ca_hash": self.authority.hash,
        }  # fmt: skip
        raw = JoinToken(**{**fields, **changes}).canonical()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def close(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()
        assert self.faults == []

    def send(self, make: Callable[..., AnyTask], *arguments: Any, **changes: Any) -> AnyTask:
        """Signs `make(seq, …)` as a fresh task and queues it."""
        with self._changed:
            self._seq += 1
            task = make(self._seq, *arguments, now_ms=time.time_ns() // 1_000_000, **changes)
            self._queue[task.task_id] = envelope(task, self.key)
            self._sent[task.task_id] = task
            self._changed.notify_all()
        return task

    def forget_tasks(self) -> None:
        """Drops what no agent has acknowledged."""
        with self._changed:
            self._queue.clear()

    def wait_for(
        self, condition: Callable[[Report], bool], timeout_s: float = PATIENCE_S
    ) -> Report:
        """The first report from now on, or the last one, that meets the condition."""
        with self._changed:
            seen = max(0, len(self.reports) - 1)
            deadline_s = time.monotonic() + timeout_s
            while True:
                for report in self.reports[seen:]:
                    if condition(report):
                        return report
                seen = len(self.reports)
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"last report: {self.reports[-1:]}"
                self._changed.wait(left_s)

    def wait_for_workload(
        self, condition: Callable[[WorkloadReport], bool], instance: str = INSTANCE
    ) -> WorkloadReport:
        def met(report: Report) -> bool:
            return any(w.instance == instance and condition(w) for w in report.workloads)

        report = self.wait_for(met)
        return next(w for w in report.workloads if w.instance == instance)

    # --- what the agent calls ---

    def answer(self, path: str, body: bytes, peer: bytes | None) -> tuple[int, bytes]:
        """`peer`: the certificate that was shown, DER."""
        if self.away:
            return 503, _error("away", "down for maintenance")
        if self.revoked:
            return 403, _error("node_revoked", "this node was revoked: lost")
        match path:
            case "/v1/agent/ca":
                return 200, json.dumps({"ca": self.authority.pem}).encode()
            case "/v1/agent/join":
                return self._join(JoinRequest.model_validate_json(body))
            case "/v1/agent/certificate":
                return self._certify(body)
        if not self._is_agents(peer):
            return 403, _error("certificate_required", "no certificate of the agent's was shown")
        match path:
            case "/v1/agent/report":
                return self._take_report(body)
            case "/v1/agent/poll":
                return self._poll(body)
            case "/v1/agent/secrets":
                return self._answer_secrets(body)
        return 404, _error("not_found", path)

    def answer_blob(self, body: bytes, peer: bytes | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, and as much of the content as is sent before it breaks off."""
        if self.away or not self._is_agents(peer):
            return 503, {}, _error("away", "down for maintenance")
        assert self._agent is not None
        payload, _ = unseal(body, BLOB_REQUEST_TYPE, [self._agent])
        request = BlobRequest.model_validate_json(payload)
        self.blobs_asked.append(request)
        content, offset = self.blobs.get(request.digest), request.offset
        if content is None:
            return 404, {}, _error("no_such_blob", "it is not in the store")
        if self.blob_elsewhere:
            return 307, {"Location": self.blob_elsewhere}, b""
        if offset > len(content):
            return 416, {}, _error("wrong_offset", "the blob is shorter")
        headers = {"Content-Length": str(len(content) - offset)}
        ranged = f"bytes {offset}-{len(content) - 1}/{len(content)}"
        if offset == len(content):
            ranged = f"bytes */{len(content)}"
        if offset:
            headers["Content-Range"] = ranged
        status = 206 if 0 < offset < len(content) else 200
        return status, headers, content[offset:][: self.blob_cut]

    def _is_agents(self, peer: bytes | None) -> bool:
        if peer is None or self._agent is None:
            return False
        key: Any = x509.load_der_x509_certificate(peer).public_key()
        return bool(key.public_bytes_raw().hex() == self._agent.public_key)

    def _join(self, request: JoinRequest) -> tuple[int, bytes]:
        if request.token != SECRET or self._agent is not None:
            return 403, _error("token_invalid", "unknown, used or expired join token")
        self.enrol(request.public_key)
        certificate = "" if self.ca_away else self.certified(request.csr)
        return 200, self.reply.model_copy(update={"certificate": certificate}).canonical()

    def enrol(self, public_key: str) -> None:
        self._agent = VerifierKey(key_id=key_id(public_key), version=1, public_key=public_key)

    def certified(self, csr: str) -> str:
        self.certificates.append(self.authority.agent(csr, NODE, self.certificate_ttl_s))
        return self.certificates[-1]

    def _certify(self, body: bytes) -> tuple[int, bytes]:
        assert self._agent is not None
        payload, _ = unseal(body, CERTIFICATE_REQUEST_TYPE, [self._agent])
        request = CertificateRequest.model_validate_json(payload)
        if self.ca_away:
            return 503, _error("custody_sealed", "the CA is away")
        reply = CertificateReply(certificate=self.certified(request.csr))
        return 200, reply.canonical()

    def _take_report(self, body: bytes) -> tuple[int, bytes]:
        assert self._agent is not None
        payload, _ = unseal(body, REPORT_TYPE, [self._agent])
        report = Report.model_validate_json(payload)
        with self._changed:
            assert not self.reports or report.report_seq > self.reports[-1].report_seq
            self.reports.append(report)
            for ack in report.acks:
                self._queue.pop(ack.task_id, None)
                self._check_ack(report, ack)
            self._changed.notify_all()
        return 204, b""

    def _check_ack(self, report: Report, ack: TaskAck) -> None:
        """A report that says a launch was taken over says what became of it, too."""
        task = self._sent.get(ack.task_id)
        if not ack.accepted or not isinstance(task, LaunchTask):
            return
        targets = {
            sent.workload.spec_hash if isinstance(sent, LaunchTask) else None
            for sent in self._sent.values()
            if sent.instance == task.instance and sent.seq >= task.seq
        }
        told = [w.target_hash for w in report.workloads if w.instance == task.instance]
        if not told or told[0] not in targets:
            self.faults.append(f"task {task.seq} acknowledged by a report that is older: {told}")

    def _answer_secrets(self, body: bytes) -> tuple[int, bytes]:
        assert self._agent is not None
        payload, _ = unseal(body, SECRETS_REQUEST_TYPE, [self._agent])
        request = SecretsRequest.model_validate_json(payload)
        self.secrets_asked.append(request.names)
        if not set(request.names) <= self.secrets.keys():
            return 403, _error("not_placed", "no such instance is placed on this node")
        answer = seal_values(request, {name: self.secrets[name] for name in request.names})
        return 200, self.secrets_signer.seal(self.secrets_twist(answer).canonical(), SECRETS_TYPE)

    def _poll(self, body: bytes) -> tuple[int, bytes]:
        assert self._agent is not None
        payload, _ = unseal(body, POLL_TYPE, [self._agent])
        poll = Poll.model_validate_json(payload)
        with self._changed:
            self.polls += 1
            self._changed.wait_for(
                lambda: bool(self._queue) or self._config_for(poll) is not None,
                poll.wait_ms / 1_000,
            )
            tasks = tuple(self._queue.values())
            return 200, PollReply(tasks=tasks, config=self._config_for(poll)).canonical()

    def _config_for(self, poll: Poll) -> dict[str, Any] | None:
        if self.config is None or poll.config in {None, self.config.digest}:
            return None
        sealed = self.config_signer.seal(self.config.canonical(), NODE_CONFIG_TYPE)
        document: dict[str, Any] = json.loads(sealed)
        return document


def _error(code: str, message: str) -> bytes:
    document = {"error": {"code": code, "message": message, "correlation_id": "c-1"}}
    return json.dumps(document).encode()


def _handler_for(plane: ControlPlane) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one piece, or the kernel holds the second back for 40 ms.
        wbufsize = -1

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            peer = self.connection.getpeercert(binary_form=True)
            headers: dict[str, str] = {}
            if self.path == "/v1/agent/blob":
                status, headers, content = plane.answer_blob(body, peer)
            else:
                status, content = plane.answer(self.path, body, peer)
            try:
                self.send_response(status)
                if status != 204:
                    headers = {"Content-Length": str(len(content)), **headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
                if len(content) < int(headers.get("Content-Length", "0")):
                    self.close_connection = True
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: pytest shows what a test did."""

    return Handler
