"""A registry that asks for our tokens, with the custody whose key it believes.

What is needed to stand in for the control plane: `mint` makes tokens, `realm_listen` is where
clients are sent for them, free until somebody serves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.artifacts.registry_keys import jwks, realm
from reconciler.artifacts.registry_tokens import RegistryTokens, Scopes, bundle, signing_keys
from reconciler.devkit.services import TokenAuth, free_port, start_registry
from reconciler.ports import RegistryEndpoint, SecretStore
from reconciler.settings import Settings


@dataclass(frozen=True)
class TokenRegistry:
    """`endpoint` is host:port; `settings` those of a control plane that serves its realm."""

    endpoint: str
    settings: Settings
    secrets: SecretStore

    @property
    def tokens(self) -> RegistryTokens:
        return RegistryTokens(self.secrets, SystemClock(), self.settings)

    @property
    def address(self) -> RegistryEndpoint:
        return RegistryEndpoint(self.endpoint, plain_http=True, token_auth=True)

    @property
    def realm_listen(self) -> str:
        """host:port where the control plane that gives out its tokens has to listen."""
        return self.settings.listen

    def mint(self, scopes: Scopes, subject: str = "test", ttl_s: float = 300) -> str:
        """A token for these repositories and actions."""
        return self.tokens.issue(scopes, subject, ttl_s).token.reveal()

    def push_token(self, repository: str) -> str:
        return self.mint({repository: ("pull", "push")})


@contextmanager
def open_token_registry(
    root: Path,
    port: int | None = None,
    state_dir: Path | None = None,
    listen: str = "",
    program: str | None = None,
) -> Iterator[TokenRegistry]:
    """Debian's docker-registry with its files under `root`, on `port` or a free one.

    `state_dir` and `listen` are those of the control plane whose tokens it takes, else of nobody.
    With `program` it is that build of distribution 3, which names keys otherwise.
    """
    chosen = Settings(
        state_dir=state_dir or root / "state",
        listen=listen or f"127.0.0.1:{free_port()}",
        registry_token_key_id="thumbprint" if program else "libtrust",
    )
    secrets = LocalSecrets(chosen.state_dir / "secrets")
    keys = json.dumps(jwks(signing_keys(secrets))) if program else bundle(secrets)
    service, issuer = chosen.registry_token_service, chosen.registry_token_issuer
    token = TokenAuth(realm(chosen), keys, service, issuer)
    with start_registry(root, port, token, program) as registry:
        yield TokenRegistry(registry.endpoint, chosen, secrets)
