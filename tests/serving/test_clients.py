"""Clients that leave, too many of them, a worker that dies, an end: nobody else notices, or is told at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from llmlab.inference.engine import Token
from llmlab.tokenization.tokenizer import Tokenizer

from .conftest import KEY, Running, running, served

BEARER = {"Authorization": f"Bearer {KEY}"}


def until(true: Callable[[], bool], seconds: float = 5.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.005)
    return time.monotonic() - began


def slow(running: Running, seconds: float = 0.02) -> None:
    """A model that takes its time, so that requests meet."""
    step = running.worker.batching.step

    def later() -> list[Token]:
        time.sleep(seconds)
        return step()

    running.worker.batching.step = later  # type: ignore[method-assign]


@pytest.fixture
def narrow(tokenizer: Tokenizer) -> Iterator[Running]:
    """Two texts at a time, short steps, six requests at most."""
    with running(served(tokenizer, step_rows=2, step_tokens=16), waiting=6) as found:
        yield found


def opened(server: Running, path: str, body: str) -> socket.socket:
    """A request that was sent, its answer not read."""
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json"
    line.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return line


LONG = '{"prompt": "%s", "max_tokens": 150, "ignore_eos": true, "stream": %s}'


@pytest.mark.parametrize("streamed", ["true", "false"])
@pytest.mark.parametrize("when", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_place(narrow: Running, when: str, streamed: str) -> None:
    slow(narrow)
    want = {seed: narrow.post("/v1/completions", prompt="the sea", max_tokens=20, seed=seed).json() for seed in (1, 2)}
    batching = narrow.worker.batching
    with ThreadPoolExecutor(4) as pool:
        stay = []
        if when == "queued":  # two are answered, the leaving ones wait behind them
            body = {"prompt": "the sea", "max_tokens": 60, "ignore_eos": True}
            stay = [pool.submit(narrow.post, "/v1/completions", **body) for _ in "ab"]
            until(lambda: narrow.worker.open == 2)
        prompt = "x y " * 25 if when == "prefill" else "x"
        lines = [opened(narrow, "/v1/completions", LONG % (prompt, streamed)) for _ in range(3)]
        until(lambda: narrow.worker.open == 3 + len(stay))
        steps = batching.counts.steps
        until(lambda: batching.counts.steps >= steps + (5 if when == "decode" else 1))
        for line in lines:
            line.close()
        if when != "queued":
            others = [
                pool.submit(narrow.post, "/v1/completions", prompt="the sea", max_tokens=20, seed=s) for s in want
            ]
        assert until(lambda: narrow.worker.open <= 2) < 1.0
        if when != "queued":
            for seed, other in zip(want, others, strict=True):
                assert other.result().json()["choices"] == want[seed]["choices"]
        for one in stay:
            assert one.result().json()["usage"]["completion_tokens"] == 60
    until(lambda: not batching.busy)
    assert batching.counts.cancelled == 3
    assert batching.pages.free == batching.model.pages
    gone = [
        line for line in narrow.http.get("/metrics").text.splitlines() if line.startswith("llmlab_clients_gone_total")
    ]
    assert gone == ["llmlab_clients_gone_total 3.0"]


def test_a_full_queue_asks_to_come_again(narrow: Running) -> None:
    slow(narrow)
    body = {"prompt": "x", "max_tokens": 30, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(narrow.post, "/v1/completions", **body) for _ in range(5)]
        until(lambda: narrow.worker.open == 5)
        for streamed in (False, True):
            got = narrow.post("/v1/completions", **body, n=2, stream=streamed)  # all or none
            assert (got.status_code, got.json()["error"]["code"]) == (429, "queue_full")
            assert int(got.headers["retry-after"]) >= 1
        assert narrow.worker.open == 5
        assert {one.result().status_code for one in asked} == {200}
    assert narrow.post("/v1/completions", prompt="x", max_tokens=1, n=6).status_code == 200
    assert narrow.post("/v1/completions", prompt="x", max_tokens=1, n=7).status_code == 429


def test_a_dead_worker_is_said_at_once_to_those_who_wait_and_to_those_who_come(tokenizer: Tokenizer) -> None:
    with running(served(tokenizer, step_rows=2)) as found:
        slow(found)
        step, dies = found.worker.batching.step, threading.Event()

        def deadly() -> list[Token]:
            if dies.is_set():
                raise RuntimeError("something with a secret in it")
            return step()

        found.worker.batching.step = deadly  # type: ignore[method-assign]
        body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}
        with ThreadPoolExecutor(4) as pool:
            counts = found.worker.batching.counts
            asked = [pool.submit(found.post, "/v1/completions", **body, stream=True)]  # begins alone, and so first
            until(lambda: counts.steps > 2)
            asked += [pool.submit(found.post, "/v1/completions", **body, stream=at == 2) for at in (1, 2, 3)]
            until(lambda: found.worker.open == 4)
            assert found.http.get("/health").status_code == 200
            dies.set()
            began = time.monotonic()
            answers = [one.result() for one in asked]
            assert time.monotonic() - began < 1.0
        for at, answer in enumerate(answers):
            assert "the worker has died of RuntimeError" in answer.text
            assert "secret" not in answer.text
            assert "[DONE]" not in answer.text
            # a stream that had begun is told in its last event, who waits for a first token or for all by the status
            assert answer.status_code in {0: (200,), 2: (200, 503)}.get(at, (503,))
        assert found.http.get("/health").status_code == 503
        for path, more in (("/v1/completions", body), ("/v1/chat/completions", {"messages": [CHAT]})):
            for streamed in (True, False):
                began = time.monotonic()
                got = found.post(path, **more, stream=streamed)
                assert (got.status_code, got.json()["error"]["code"]) == (503, "unavailable")
                assert time.monotonic() - began < 1.0
        assert "llmlab_worker_alive 0.0" in found.http.get("/metrics").text
        assert found.worker.open == 0


CHAT = {"role": "user", "content": "hello"}


def test_a_request_that_fails_by_itself_fails_alone(narrow: Running) -> None:
    step = narrow.worker.batching.step

    def failing() -> list[Token]:
        return [
            Token(token.row, token.id, token.logprob, "error") if token.id % 2 and bad else token for token in step()
        ]

    bad = True
    narrow.worker.batching.step = failing  # type: ignore[method-assign]
    statuses = {narrow.post("/v1/completions", prompt="x", seed=seed, ignore_eos=True).status_code for seed in range(4)}
    assert statuses == {500}
    bad = False
    assert narrow.post("/v1/completions", prompt="x").status_code == 200
    assert narrow.http.get("/health").status_code == 200


def test_a_defect_in_a_handler_is_a_plain_500(narrow: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *args: Any) -> None:
        raise RuntimeError("something with a secret in it")

    monkeypatch.setattr("llmlab.serving.wanted.Asking._checked", broken)
    got = narrow.post("/v1/completions", prompt="x")
    assert (got.status_code, got.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in got.text
    monkeypatch.undo()
    assert narrow.post("/v1/completions", prompt="x").status_code == 200


def test_health_and_others_are_answered_while_the_worker_is_in_a_long_step(narrow: Running) -> None:
    slow(narrow, 0.4)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(narrow.post, "/v1/completions", prompt="x", max_tokens=4, ignore_eos=True)
        until(lambda: narrow.worker.open == 1)
        began = time.monotonic()
        for _ in range(5):
            assert narrow.http.get("/health").status_code == 200
            assert narrow.post("/tokenize", content="x").status_code == 200
        assert not asked.done()
        assert time.monotonic() - began < 0.8
        assert asked.result().status_code == 200


def test_the_worker_sleeps_where_nobody_waits(narrow: Running) -> None:
    narrow.post("/v1/completions", prompt="x", max_tokens=2)
    steps = narrow.worker.batching.counts.steps
    time.sleep(0.1)
    assert narrow.worker.batching.counts.steps == steps


def test_who_waits_at_the_end_is_told(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that take longer than the grace are cut, and the thread ends."""
    monkeypatch.setattr("llmlab.serving.serve.GRACE", 0)
    with ThreadPoolExecutor(1) as pool:
        with running(served(tokenizer)) as found:
            slow(found, 0.1)
            asked = pool.submit(httpx.post, f"{found.url}/v1/completions", json={"prompt": "x"}, headers=BEARER)
            until(lambda: found.worker.open == 1)
        with contextlib.suppress(httpx.HTTPError):
            assert asked.result().status_code in (500, 503)
        assert not found.worker.alive
