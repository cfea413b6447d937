"""Who comes in: a key on every route, by the names of this machine only."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from llmlab.errors import InputError
from llmlab.serving.keys import Keys, new_key, on_loopback
from llmlab.serving.serve import Address, hosts_of, key_of, name_of
from llmlab.tokenization.tokenizer import Tokenizer

from .conftest import KEY, Running, running, served

WRONG = ["", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, f"Basic {KEY}", f"Bearer  {KEY}"]


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path there is, so that a new route joins these tests by itself."""
    found = []
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ()):
            found.append((method, str(route.path).replace("{model:path}", "tiny")))
    return found


@pytest.fixture
def bare(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=10) as found:
        yield found


def test_every_route_is_denied_without_a_key(server: Running, bare: httpx.Client) -> None:
    every = routes(server.app)
    paths = {path for _, path in every}
    assert {"/health", "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions"} <= paths
    others = [
        ("OPTIONS", "/v1/models"),
        ("DELETE", "/health"),
        ("GET", "/docs"),
        ("GET", "/nothing"),
        ("GET", "//health"),
    ]
    for method, path in [*every, *others]:
        for wrong in WRONG if path == "/health" else WRONG[:4]:
            headers = {"Authorization": wrong} if wrong else {}
            got = bare.request(method, path, headers=headers)
            assert got.status_code == 401, (method, path, wrong)
            assert got.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert got.json()["error"]["code"] == "invalid_api_key"
        assert server.http.request(method, path).status_code != 401


def test_what_is_refused_is_not_read(server: Running, bare: httpx.Client) -> None:
    answered = server.worker.batching.counts.steps
    assert bare.post("/v1/completions", json={"prompt": "x"}).status_code == 401
    assert server.worker.batching.counts.steps == answered


def test_keys_are_compared_as_hashes_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(["first-key", "second-key"])
    assert "first-key" not in repr(vars(keys))
    compared: list[Any] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr("llmlab.serving.keys.hmac", Watched)
    assert keys.fit("Bearer first-key")
    assert keys.fit("bearer second-key")
    assert not keys.fit("Bearer third-key")
    assert not keys.fit("Bearer \udcff")
    assert not keys.fit(None)
    assert len(compared) == 2 * 5  # each time both, whichever fits
    assert {len(side) for pair in compared for side in pair} == {hashlib.sha256().digest_size}


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="api-key"):
        Keys([key])


HOSTS = {
    "localhost": 200, "LOCALHOST:8000": 200, "127.0.0.1": 200, "127.9.9.9:1": 200, "[::1]:8000": 200, "[::1]": 200,
    "localhost.": 200, "evil.example": 403, "evil.example:8000": 403, "127.0.0.1.evil.example": 403, "10.0.0.1": 403,
    "": 403, "[::2]": 403, "localhost@evil.example": 403, "0.0.0.0": 403,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_only_names_of_this_machine_are_answered_to(server: Running, host: str) -> None:
    """A page that makes a browser call 127.0.0.1 by a name of its own is refused, whatever it asks."""
    got = server.http.get("/health", headers={"Host": host})
    assert got.status_code == HOSTS[host]


def test_other_origins_read_nothing(server: Running) -> None:
    got = server.http.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert not [name for name in got.headers if name.startswith("access-control")]
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    got = server.http.options("/v1/completions", headers=asked)
    assert got.status_code == 405
    assert not [name for name in got.headers if name.startswith("access-control")]


def test_a_server_without_a_key(tokenizer: Tokenizer) -> None:
    with running(served(tokenizer), keys=None) as found:
        assert httpx.get(f"{found.url}/health").status_code == 200
        assert httpx.get(f"{found.url}/health", headers={"Host": "evil.example"}).status_code == 403


def test_what_is_asked_for_at_the_start() -> None:
    assert key_of("127.0.0.1", "mine", False) == "mine"
    assert key_of("::1", None, True) is None
    first, second = key_of("0.0.0.0", None, False), key_of("127.0.0.1", None, False)
    assert first != second
    assert len(first or "") >= 40
    with pytest.raises(InputError, match="loopback"):
        key_of("0.0.0.0", None, True)
    with pytest.raises(InputError, match="LLMLAB_API_KEY"):
        key_of("127.0.0.1", "mine", True)
    assert hosts_of("0.0.0.0", []) is None
    assert hosts_of("0.0.0.0", ["Box.lan"]) == {"box.lan", "0.0.0.0"}
    assert hosts_of("127.0.0.1", ["box.lan"]) == {"box.lan", "127.0.0.1"}
    assert Address("::1", 80).url == "http://[::1]:80"
    assert (name_of("smollm2"), name_of("/a/runs/demo/"), name_of("x/y.gguf")) == ("smollm2", "demo", "y.gguf")
    assert [on_loopback(host) for host in ("localhost", "127.1.2.3", "::1", "0.0.0.0", "box")] == [True] * 3 + [
        False
    ] * 2
    assert len({new_key() for _ in range(100)}) == 100
