"""Bodies of every bad kind: refused within a second, by name, while others are answered."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import pytest

from llmlab.serving import reading
from llmlab.serving.bodies import BIASES, LIKELIEST, MESSAGES, SEQUENCES, STOPS

from .conftest import CONTEXT, KEY, Running

DEEP = "[" * 100_000
CHAT, RAW = "/v1/chat/completions", "/v1/completions"


def message(content: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


# path, body, status, param
BODIES: dict[str, tuple[str, Any, int, str | None]] = {
    "a prompt longer than the context": (RAW, {"prompt": [65] * (CONTEXT + 1)}, 400, "prompt"),
    "a prompt that leaves no room": (RAW, {"prompt": [65] * CONTEXT}, 400, "prompt"),
    "a long text": (RAW, {"prompt": "x" * 2_000_000}, 400, "prompt"),
    "a long message": (CHAT, message("x" * 2_000_000), 400, None),
    "no prompt": (RAW, {}, 400, "prompt"),
    "an empty prompt": (RAW, {"prompt": ""}, 400, "prompt"),
    "an empty list": (RAW, {"prompt": []}, 400, "prompt"),
    "no ids": (RAW, {"prompt": [[]]}, 400, "prompt"),
    "mixed prompts": (RAW, {"prompt": ["a", 1]}, 400, "prompt"),
    "truth as ids": (RAW, {"prompt": [True]}, 400, "prompt"),
    "an id too high": (RAW, {"prompt": [272]}, 400, "prompt"),
    "an id below 0": (RAW, {"prompt": [-1]}, 400, "prompt"),
    "an enormous id": (RAW, {"prompt": [10**30]}, 400, "prompt"),
    "too many prompts": (RAW, {"prompt": ["x"] * (SEQUENCES + 1)}, 400, "prompt"),
    "prompts times n": (RAW, {"prompt": ["x"] * 40, "n": 2}, 400, None),
    "half a surrogate": (RAW, {"prompt": "a\ud800b"}, 400, None),
    "half a surrogate in a message": (CHAT, message("\udfff"), 400, None),
    "half a surrogate as model": (RAW, {"prompt": "x", "model": "\ud800"}, 404, "model"),
    "half a surrogate as stop": (RAW, {"prompt": "x", "stop": "\ud800"}, 400, "stop"),
    "max_tokens beyond the context": (RAW, {"prompt": "x", "max_tokens": CONTEXT}, 400, "max_tokens"),
    "max_tokens enormous": (CHAT, {**message(), "max_tokens": 10**40}, 400, "max_tokens"),
    "max_tokens below 0": (RAW, {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
    "max_tokens 0": (RAW, {"prompt": "x", "max_tokens": 0}, 400, None),
    "max_tokens 0 in a chat": (CHAT, {**message(), "max_tokens": 0}, 400, None),
    "max_tokens 1.5": (RAW, {"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens"),
    "max_tokens in words": (RAW, {"prompt": "x", "max_tokens": "12"}, 400, "max_tokens"),
    "max_tokens true": (RAW, {"prompt": "x", "max_tokens": True}, 400, None),
    "min_tokens above max_tokens": (RAW, {"prompt": "x", "min_tokens": 20, "max_tokens": 10}, 400, None),
    "n of 100000": (RAW, {"prompt": "x", "n": 100_000}, 400, "n"),
    "n of 0": (CHAT, {**message(), "n": 0}, 400, "n"),
    "best_of of 100000": (RAW, {"prompt": "x", "best_of": 100_000}, 400, "best_of"),
    "best_of below n": (RAW, {"prompt": "x", "best_of": 1, "n": 2}, 400, None),
    "best_of streamed": (RAW, {"prompt": "x", "best_of": 2, "stream": True}, 400, None),
    "best_of in a chat": (CHAT, {**message(), "best_of": 2}, 400, "best_of"),
    "echo in a chat": (CHAT, {**message(), "echo": True}, 400, "echo"),
    "a thousand stops": (RAW, {"prompt": "x", "stop": ["a"] * 1000}, 400, "stop"),
    "one stop too many": (RAW, {"prompt": "x", "stop": ["a"] * (STOPS + 1)}, 400, "stop"),
    "a long stop": (RAW, {"prompt": "x", "stop": "a" * 10_000}, 400, "stop"),
    "an empty stop": (RAW, {"prompt": "x", "stop": [""]}, 400, "stop"),
    "a stop that is a number": (RAW, {"prompt": "x", "stop": 3}, 400, "stop"),
    "many logprobs": (RAW, {"prompt": "x", "logprobs": LIKELIEST + 1}, 400, "logprobs"),
    "logprobs true": (RAW, {"prompt": "x", "logprobs": True}, 400, None),
    "many top_logprobs": (CHAT, {**message(), "logprobs": True, "top_logprobs": 10**6}, 400, "top_logprobs"),
    "top_logprobs alone": (CHAT, {**message(), "top_logprobs": 2}, 400, None),
    "temperature NaN": (RAW, '{"prompt": "x", "temperature": NaN}', 400, None),
    "temperature Infinity": (RAW, '{"prompt": "x", "temperature": Infinity}', 400, None),
    "temperature 1e999": (RAW, '{"prompt": "x", "temperature": 1e999}', 400, "temperature"),
    "temperature below 0": (RAW, {"prompt": "x", "temperature": -0.1}, 400, "temperature"),
    "temperature in words": (RAW, {"prompt": "x", "temperature": "hot"}, 400, "temperature"),
    "top_p 0": (RAW, {"prompt": "x", "top_p": 0}, 400, "top_p"),
    "top_k -2": (RAW, {"prompt": "x", "top_k": -2}, 400, "top_k"),
    "repetition_penalty 0": (RAW, {"prompt": "x", "repetition_penalty": 0}, 400, "repetition_penalty"),
    "presence_penalty 3": (RAW, {"prompt": "x", "presence_penalty": 3}, 400, "presence_penalty"),
    "seed enormous": (RAW, {"prompt": "x", "seed": 2**64}, 400, "seed"),
    "a bias on words": (RAW, {"prompt": "x", "logit_bias": {"the": 1}}, 400, "logit_bias"),
    "a bias out of range": (RAW, {"prompt": "x", "logit_bias": {"1": 1000}}, 400, "logit_bias"),
    "a bias beyond the vocabulary": (RAW, {"prompt": "x", "logit_bias": {"272": 1}}, 400, "logit_bias"),
    "biases too many": (RAW, {"prompt": "x", "logit_bias": {str(i): 1 for i in range(BIASES + 1)}}, 400, "logit_bias"),
    "two forms": (RAW, {"prompt": "x", "guided_regex": "a", "guided_json": {}}, 400, None),
    "a format without its schema": (CHAT, {**message(), "response_format": {"type": "json_schema"}}, 400, None),
    "an unknown format": (CHAT, {**message(), "response_format": {"type": "xml"}}, 400, "response_format"),
    "stream_options without stream": (RAW, {"prompt": "x", "stream_options": {}}, 400, None),
    "unknown stream_options": (RAW, {"prompt": "x", "stream": True, "stream_options": {"x": 1}}, 400, "stream_options"),
    "stream in words": (RAW, {"prompt": "x", "stream": "yes"}, 400, "stream"),
    "tools": (CHAT, {**message(), "tools": [{"type": "function"}]}, 400, "tools"),
    "no messages": (CHAT, {"messages": []}, 400, "messages"),
    "messages too many": (CHAT, {"messages": message()["messages"] * (MESSAGES + 1)}, 400, "messages"),
    "a message without content": (CHAT, {"messages": [{"role": "user"}]}, 400, "messages"),
    "an unknown role": (CHAT, {"messages": [{"role": "<|im_start|>", "content": ""}]}, 400, "messages"),
    "a picture": (CHAT, message([{"type": "image_url", "image_url": {"url": "http://x"}}]), 400, "messages"),
    "a name in a message": (CHAT, message(name="x"), 400, "messages"),
    "tool calls": (CHAT, message(tool_calls=[{}]), 400, "messages"),
    "another model": (CHAT, {**message(), "model": "gpt-4"}, 404, "model"),
    "half a surrogate in a regex": (RAW, {"prompt": "x", "guided_regex": "a\ud800"}, 400, "guided_regex"),
    "half a surrogate in a grammar": (RAW, {"prompt": "x", "guided_grammar": "start: \"\udfff\""}, 400, None),
    "half a surrogate as a name": (RAW, {"prompt": "x", "\ud800": 1}, 400, None),
    "a name given twice": (RAW, '{"prompt": "x", "max_tokens": 1, "max_tokens": 2}', 400, None),
    "a name given twice inside": (CHAT, '{"messages": [{"role": "user", "role": "user", "content": ""}]}', 400, None),
    "names without end": (RAW, {str(name): 1 for name in range(300_000)}, 400, None),
    "biases without end": (RAW, {"prompt": "x", "logit_bias": {str(id): "a" for id in range(200_000)}}, 400, None),
    "parts that are none": (CHAT, message([1] * 900_000), 400, "messages"),
    "messages that are none": (CHAT, {"messages": [1] * 900_000}, 400, "messages"),
    "ids that are none": (RAW, {"prompt": [[1.5] * 800_000]}, 400, "prompt"),
    "words to detokenize without end": ("/detokenize", {"tokens": ["a"] * 800_000}, 400, "tokens"),
    "no JSON": (RAW, "prompt=x", 400, None),
    "an empty body": (RAW, "", 400, None),
    "a list": (RAW, "[]", 400, None),
    "a text": (RAW, '"x"', 400, None),
    "no UTF-8": (RAW, b'{"prompt": "\xff"}', 400, None),
    "nested without end": (RAW, DEEP, 400, None),
    "a nested prompt": (RAW, '{"prompt": ' + "[" * 500 + "]" * 500 + "}", 400, "prompt"),
    "a long number": (RAW, '{"prompt": "x", "seed": ' + "9" * 10_000 + "}", 400, None),
    "an id to detokenize": ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
    "words to detokenize": ("/detokenize", {"tokens": ["a"]}, 400, "tokens"),
    "two texts to tokenize": ("/tokenize", {"content": "a", "prompt": "b"}, 400, None),
    "special tokens to tokenize": ("/tokenize", {"content": "a", "parse_special": True}, 400, "parse_special"),
    "a long text to tokenize": ("/tokenize", {"content": "x" * 2_000_000}, 400, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_at_once(server: Running, name: str) -> None:
    path, body, status, param = BODIES[name]
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    began = time.monotonic()
    got = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert time.monotonic() - began < 1.0
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 600
    if param is not None:
        assert error["param"] == param, error
    assert server.worker.open == 0


def test_after_all_of_them_the_server_is_well(server: Running) -> None:
    assert server.http.get("/health").status_code == 200
    assert server.post(RAW, prompt="x", max_tokens=1).status_code == 200


@pytest.mark.parametrize("size", [reading.BODY_BYTES + 1, reading.DRAIN_BYTES + 1])
@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
def test_a_body_that_is_too_long(server: Running, size: int, told: bool) -> None:
    """Its sender hears why, but for one that goes on beyond all measure: there the line may be cut."""
    body = b'{"prompt": "' + b"x" * size
    pieces = body if told else (body[at : at + 65536] for at in range(0, len(body), 65536))
    try:
        got = server.http.post(RAW, content=pieces, headers={"Content-Type": "application/json"})
    except Exception:
        assert size > reading.DRAIN_BYTES
    else:
        assert (got.status_code, got.json()["error"]["code"]) == (413, "body_too_large")
    assert server.post(RAW, prompt="x", max_tokens=1).status_code == 200


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_says_it_is_no_json(server: Running, content: str) -> None:
    """What a browser may send to any server without asking."""
    got = server.http.post(RAW, content=b'{"prompt": "x"}', headers={"Content-Type": content})
    assert (got.status_code, got.json()["error"]["code"]) == (415, "not_json")


def test_a_slow_body_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.2)
    with connected(server) as line:
        line.sendall(head(RAW, "Content-Length: 1000", "Content-Type: application/json") + b'{"pro')
        assert line.recv(4096).startswith(b"HTTP/1.1 408")


def test_who_leaves_within_a_body_is_no_defect(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with connected(server) as line:
            line.sendall(head(RAW, "Content-Length: 1000", "Content-Type: application/json") + b'{"pro')
            time.sleep(0.1)
    time.sleep(0.2)
    assert server.http.get("/health").status_code == 200
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"", b"GET /hea"], ids=repr)
@pytest.mark.parametrize("before", [False, True], ids=["first", "after another request"])
def test_slow_headers_are_given_up(server: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes, before: bool) -> None:
    monkeypatch.setattr("llmlab.serving.patience.HEADER_SECONDS", 0.3)
    with connected(server) as line:
        if before:
            line.sendall(head("/health"))
            answer = b""
            while b'"ok"}' not in answer:
                answer += line.recv(4096)
            sent = sent or b"G"  # between two requests uvicorn's own patience counts
        line.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(4096) == b""
        assert 0.2 < time.monotonic() - began < 2


def test_an_answer_may_take_longer_than_headers(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.serving.patience.HEADER_SECONDS", 0.05)
    with connected(server) as line:
        line.sendall(head(RAW, "Content-Length: 39", "Content-Type: application/json"))
        time.sleep(0.2)
        line.sendall(b'{"prompt": "x", "max_tokens": 200}     ')
        assert line.recv(4096).startswith(b"HTTP/1.1 200")


def test_headers_have_a_bound(server: Running) -> None:
    with connected(server) as line:
        line.sendall(head("/health", *(f"X-{at}: {'y' * 1000}" for at in range(200))))
        assert line.recv(4096).startswith(b"HTTP/1.1 400")
    assert server.http.get("/health").status_code == 200


def test_others_are_answered_while_a_long_text_is_read(server: Running) -> None:
    """Just short enough to be tokenised: it does not stop the loop."""
    import threading

    text = "word " * 9_000
    thread = threading.Thread(target=server.post, args=("/tokenize",), kwargs={"content": text})
    thread.start()
    began = time.monotonic()
    assert server.http.get("/health").status_code == 200
    assert time.monotonic() - began < 0.5
    thread.join()


def connected(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    line.settimeout(5)
    return line


def head(path: str, *headers: str) -> bytes:
    method = "GET" if path == "/health" else "POST"
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers, "", ""]
    return "\r\n".join(lines).encode()
