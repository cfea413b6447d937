"""`llmlab serve`: a socket, an application, and uvicorn between them, until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llmlab.errors import InputError, LlmlabError, Stopped
from llmlab.language_model import LanguageModel
from llmlab.serving.api import create
from llmlab.serving.keys import Keys, new_key, on_loopback
from llmlab.serving.patience import Patient

# Seconds that answers on their way are given after Ctrl-C; connections at once; bytes of a request's headers.
GRACE, CONNECTIONS, HEADER_BYTES = 10, 1024, 32 << 10


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def bind(host: str, port: int) -> tuple[socket.socket, Address]:
    """A socket of one's own, bound before a model is read; port 0 takes a free one. InputError where that fails."""
    if not 0 <= port < 65536:
        raise InputError("port", f"{port} is no port", "0 to 65535")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"{host}:{port}", f"cannot be listened at: {error.strerror or error}") from None
    return bound, Address(host, bound.getsockname()[1])


def key_of(host: str, given: str | None, none: bool) -> str | None:
    """The key to ask for: the one given, a new one, or None. A server that others reach has a key. InputError."""
    if none and given is not None:
        raise InputError("no-api-key", "stands beside an API key", "one or the other; is LLMLAB_API_KEY set?")
    if none and not on_loopback(host):
        raise InputError("no-api-key", f"is for loopback addresses only, and {host} is none", "give --api-key")
    return None if none else new_key() if given is None else given


def name_of(model: str) -> str:
    """What a model is called by those who ask: its name, or the last part of its path."""
    return Path(model).name or model


class Server(uvicorn.Server):
    """uvicorn, which says when it listens."""

    def __init__(self, app: FastAPI, ready: Callable[[], object] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,  # who asks for what is nobody's business
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=HEADER_BYTES,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._ready = ready
        self.interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()


def hosts_of(host: str, named: Sequence[str]) -> frozenset[str] | None:
    """The names to answer to beside loopback ones. Behind a key that others reach with, any: whoever could make a
    browser ask under a name of his own still lacks the key."""
    if not on_loopback(host) and not named:
        return None
    return frozenset(name.lower() for name in [*named, host])


def serve(
    lm: LanguageModel,
    name: str,
    keys: Keys | None,
    bound: socket.socket,
    hosts: frozenset[str] | None,
    ready: Callable[[], object],
) -> None:
    """Serve until a signal ends it; then answers on their way have `GRACE` seconds. `ready` is called once it listens.

    Errors: InputError for a model that cannot be served; Stopped after Ctrl-C; LlmlabError where it did not start."""
    server = Server(create(lm, name, keys, hosts), ready)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal anew when it is done
        server.run(sockets=[bound])
    if server.interrupted:
        raise Stopped("stopped")
    if not server.started:
        raise LlmlabError("the server did not start")
