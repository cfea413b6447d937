"""Who may come in: a key on every route, compared in constant time; and by which name, against DNS rebinding.

A web page may make a browser speak to 127.0.0.1 under a name of its own (DNS rebinding), so a server on loopback
answers to loopback names only. There are no CORS headers: pages of other origins read nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmlab.errors import InputError
from llmlab.serving.refusals import refusal


def new_key() -> str:
    """A random key of 256 bits."""
    return secrets.token_urlsafe(32)


class Keys:
    """Keys as SHA-256 hashes; no key is kept as it is. InputError for one that no header can carry."""

    def __init__(self, keys: Sequence[str]) -> None:
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError("api-key", "is empty or not printable ASCII", "letters and digits, no spaces")
        self._hashes = tuple(_hash(key.encode()) for key in keys)

    def fit(self, authorization: str | None) -> bool:
        """Whether `Bearer KEY` is one of them. Each is compared, whatever the others say."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.encode("utf-8", "surrogateescape"))
        fits = [hmac.compare_digest(given, known) for known in self._hashes]
        return any(fits) and scheme.lower() == "bearer"


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def on_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Doors:
    """In front of everything, so a route that is added later is behind it too. `keys` None: no key is asked for.
    `names`: the hosts that are answered to beside loopback ones; None: any."""

    def __init__(self, app: ASGIApp, keys: Keys | None, names: Collection[str] | None) -> None:
        self.app, self.keys, self.names = app, keys, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self.names is not None and not self._named(headers.get("host", "")):
                answer = refusal(403, "host: this server does not answer to that name", "host", "host_not_allowed")
                await answer(scope, receive, send)
                return
            if self.keys is not None and not self.keys.fit(headers.get("authorization")):
                answer = refusal(
                    401, "the API key is missing or wrong (Authorization: Bearer KEY)", None, "invalid_api_key"
                )
                answer.headers["WWW-Authenticate"] = "Bearer"
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _named(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        name = name.lower().rstrip(".")
        return on_loopback(name) or name in (self.names or ())
