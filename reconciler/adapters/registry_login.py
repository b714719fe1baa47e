"""Tokens for a registry from its own token server, for who has a password: an intent, a robot.

Rules:
- The password goes to the server that the registry names, over TLS, and nowhere else; without TLS
  only where the registry itself is asked so, and then to its own host or to this one. Redirects
  are not followed.
- A token is kept until shortly before its end, and asked for anew then.
"""

from __future__ import annotations

import ipaddress
import re
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from reconciler.adapters.registry_http import Bearer, address_of, shown
from reconciler.adapters.registry_time import TimedClient
from reconciler.errors import Refused, Transient
from reconciler.ports import RegistryEndpoint, Secret

_PARAMETER = re.compile(r'([a-z_]+)="([^"\\]*)"')
_ANSWER_BYTES_MAX = 256 * 1024
_LASTS_S, _LASTS_S_MIN, _LASTS_S_MAX = 60.0, 30.0, 3600.0
"""How long a token is good for that does not say, and the least and most one is kept for."""
_Scopes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Challenge:
    realm: httpx.URL
    service: str


def login_bearer(
    client: TimedClient, endpoint: RegistryEndpoint, user: str, password: Secret
) -> Bearer:
    """Gives out tokens as `RegistryTokens.bearer` does; not for several threads at once."""
    kept: dict[str, tuple[Secret, float]] = {}
    challenges: list[_Challenge] = []

    def bearer(scopes: _Scopes) -> Secret:
        words = [f"repository:{name}:{','.join(acts)}" for name, acts in sorted(scopes.items())]
        name = " ".join(words)
        token, ends_s = kept.get(name, (None, 0.0))
        if token is not None and time.monotonic() < ends_s:
            return token
        if not challenges:
            challenges.append(_challenge(client, endpoint))
        fresh, lasts_s = _token(client, challenges[0], words, user, password)
        kept[name] = fresh, time.monotonic() + lasts_s - _LASTS_S_MIN
        return fresh

    return bearer


def _challenge(client: TimedClient, endpoint: RegistryEndpoint) -> _Challenge:
    scheme = "http" if endpoint.plain_http else "https"
    where = endpoint.endpoint
    answer = _asked(client, httpx.URL(f"{scheme}://{where}/v2/"), where)
    kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
    said = dict(_PARAMETER.findall(rest))
    if answer.status_code != 401 or kind.lower() != "bearer" or "realm" not in said:
        message = f"answered {answer.status_code} and names no token server"
        hint = "leave the credential out for a registry that asks for none"
        raise Refused("registry_asks_no_token", message, where=where, hint=hint)
    realm = address_of(said["realm"]) or httpx.URL()
    schemes = ("http", "https") if endpoint.plain_http else ("https",)
    if realm.scheme not in schemes or not realm.host:
        message = f"its token server is not asked over {' or '.join(schemes)}"
        raise Refused("token_server_unsafe", message, where=where)
    if realm.scheme == "http" and not _is_near(realm.host, answer.request.url.host):
        message = f"it would have the password sent to {shown(realm.host)}, in the clear"
        hint = "give its token server TLS, or the registry's own host"
        raise Refused("token_server_unsafe", message, where=where, hint=hint)
    return _Challenge(realm, said.get("service", ""))


def _is_near(host: str, registry: str) -> bool:
    try:
        return host in (registry, "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(
    client: TimedClient, challenge: _Challenge, scopes: list[str], user: str, password: Secret
) -> tuple[Secret, float]:
    """A token and for how many seconds it is good."""
    where = str(challenge.realm.copy_with(query=None))
    pairs = [("service", challenge.service), ("account", user), *(("scope", s) for s in scopes)]
    query = httpx.QueryParams([*challenge.realm.params.multi_items(), *pairs])
    url = challenge.realm.copy_with(query=str(query).encode())
    known = b64encode(f"{user}:{password.reveal()}".encode()).decode()
    answer = _asked(client, url, where, {"Authorization": f"Basic {known}"})
    if answer.status_code in (401, 403):
        hint = "a publish or pull intent's credential ends with it: ask for a new one"
        message = "the credential is not good"
        raise Refused("registry_login_refused", message, where=where, hint=hint)
    try:
        if answer.status_code != 200:
            raise ValueError
        said = answer.json()
        token = said.get("token") or said["access_token"]
        lasts_s = float(said.get("expires_in", _LASTS_S))
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        message = f"answered {answer.status_code}, and no token"
        raise Refused("registry_odd_answer", message, where=where) from None
    return Secret(token), min(lasts_s, _LASTS_S_MAX)


def _asked(
    client: TimedClient, url: httpx.URL, where: str, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """The whole answer, bounded."""
    try:
        with client.within(client.timeout_s), client.stream("GET", url, headers=headers) as answer:
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise Refused("registry_odd_answer", "it is encoded, unasked", where=where)
            content = bytearray()
            for piece in answer.iter_raw():
                content += piece
                if len(content) > _ANSWER_BYTES_MAX:
                    raise Refused("registry_odd_answer", "a very long answer", where=where)
            return httpx.Response(
                answer.status_code,
                headers=answer.headers,
                content=bytes(content),
                request=answer.request,
            )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # Its words may repeat what it was sent.
        message = type(error).__name__
        raise Transient("registry_unreachable", message, where=where) from None
