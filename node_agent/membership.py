"""How a node becomes one of the fleet, and what holds for it as a whole.

Rules:
- Joining goes over a connection that leads to the CA the join token pins; everything after it over
  one where both sides show a certificate.
- Of what a node is told of itself the newest word counts, and no older one ever again.
"""

from __future__ import annotations

import hashlib

from pydantic import Field

from node_agent.wire import VerifierKey
from node_agent.wire_base import Wire

CERTIFICATE_REQUEST_TYPE = "application/vnd.gpuaas.certificate-request.v1+json"
NODE_CONFIG_TYPE = "application/vnd.gpuaas.node-config.v1+json"
SERVER_NAME = "control-plane.gpuaas.internal"
"""What the control plane's certificate says, under whatever address it is dialled."""
NODE_DOMAIN = "node.gpuaas.internal"
"""An agent's certificate says `<node>.` and this."""


class JoinRequest(Wire):
    """Redeems a single-use join token. `public_key` is the agent's own ed25519 key, hex; `csr` asks
    for a certificate of the same key, PEM.
    """

    token: str
    node: str
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    csr: str = Field(max_length=8192)


class CertificateRequest(Wire):
    """Asks for a further certificate, signed with the agent's own key, which `csr` is for too."""

    node: str
    sent_at_ms: int
    csr: str = Field(max_length=8192)


class CertificateReply(Wire):
    """A certificate chain, PEM, leaf first. Empty where none could be made yet: to be asked for
    again. Whom to believe is said by a NodeConfig alone.
    """

    certificate: str


class JoinReply(Wire):
    """What tells a genuine task from another, and the agent's first certificate.

    It comes over a connection whose certificate leads to the CA that the token pins.
    """

    node: str
    verifiers: tuple[VerifierKey, ...]
    min_version: int = 1
    certificate: str = ""
    ca: str = ""


class JoinToken(Wire):
    """What `gpuaas node join` prints: where to dial, the secret, what to pin. Base64url of JSON.

    `ca_hash`: SHA-256 of the CA certificate's DER, hex.
    """

    server: str
    node: str
    secret: str
    ca_hash: str = Field(pattern=r"^[0-9a-f]{64}$")


class SshKey(Wire):
    """A key that may open tunnels as `user` of the node. `id` is `<tenant>/<project>/<version>`;
    `public_key` an OpenSSH line without comment.
    """

    user: str
    id: str
    public_key: str
    permit_open: tuple[str, ...] = ()
    """host:port that a tunnel may lead to; none at all when empty."""


class NodeConfig(Wire):
    """Which keys sign what this node believes, whose certificate its control plane shows, and who
    may open tunnels there. Signed like a task.

    It replaces the one before it. An agent takes none whose `issued_at_ms`, `min_version` or newest
    verifier is below that of the one it has. `ca`: the CA certificates to believe from now on, PEM;
    those it has where this is empty.
    """

    node: str
    issued_at_ms: int
    verifiers: tuple[VerifierKey, ...] = Field(min_length=1)
    min_version: int = Field(default=1, ge=1)
    ssh_keys: tuple[SshKey, ...] = ()
    ca: str = Field(default="", max_length=65_536)

    @property
    def digest(self) -> str:
        """Of what it says, whenever it was said."""
        said = self.model_copy(update={"issued_at_ms": 0})
        return hashlib.sha256(said.canonical()).hexdigest()
