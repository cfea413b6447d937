"""Answers of a given form: JSON, a schema, a regular expression, a grammar; and forms that are refused."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .conftest import Running

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("asked", [{"response_format": WRAPPED}, {"guided_json": SCHEMA}], ids=lambda a: next(iter(a)))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_schema_holds(server: Running, asked: dict[str, Any], seed: int) -> None:
    got = server.post("/v1/chat/completions", messages=HELLO, max_tokens=200, seed=seed, **asked).json()
    (choice,) = got["choices"]
    assert choice["finish_reason"] == "stop"
    person = json.loads(choice["message"]["content"])
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 99
    again = server.post("/v1/chat/completions", messages=HELLO, max_tokens=200, seed=seed, stream=True, **asked)
    events = [json.loads(line[6:]) for line in again.text.split("\n\n") if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == choice["message"]["content"]


def test_any_object_holds(server: Running) -> None:
    """A tiny model seldom ends one, but what it says is the beginning of one: the first letter is its brace."""
    body = {"messages": HELLO, "max_tokens": 40, "response_format": {"type": "json_object"}}
    texts = [server.post("/v1/chat/completions", **body, seed=seed).json()["choices"][0] for seed in range(5)]
    assert all(choice["message"]["content"].lstrip().startswith("{") for choice in texts)
    plain = {**body, "response_format": {"type": "text"}, "seed": 1}
    free = server.post("/v1/chat/completions", **plain).json()["choices"]
    del plain["response_format"]
    assert server.post("/v1/chat/completions", **plain).json()["choices"] == free


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"guided_regex": "(yes|no), [a-c]{3,5}!"}, "(yes|no), [a-c]{3,5}!"),
        ({"guided_grammar": 'start: sign sign sign\nsign: "(" sign ")" | "x" | "y"\n'}, r"[(xy)]+"),
    ],
    ids=["regex", "grammar"],
)
def test_a_pattern_holds_for_every_choice(server: Running, asked: dict[str, str], pattern: str) -> None:
    got = server.post("/v1/completions", prompt="hello", max_tokens=100, seed=4, n=4, **asked).json()
    texts = [choice["text"] for choice in got["choices"]]
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert len(set(texts)) > 1
    assert {choice["finish_reason"] for choice in got["choices"]} == {"stop"}


HOSTILE: dict[str, dict[str, Any]] = {
    "a regex that is none": {"guided_regex": "(((("},
    "a regex with a look-around": {"guided_regex": "(?=a)b"},
    "a long regex": {"guided_regex": "a" * 100_000},
    "a regex that explodes": {"guided_regex": "(a{1,1000}){1,1000}{1,1000}"},
    "many groups": {"guided_regex": "(" * 2000 + "a" + ")" * 2000},
    "a grammar that is none": {"guided_grammar": "start: start start %%%"},
    "a grammar without a start": {"guided_grammar": 'begin: "x"'},
    "a long grammar": {"guided_grammar": "\n".join(f'r{at}: "x"' for at in range(20_000))},
    "a schema of nonsense": {"guided_json": {"type": "nonsense"}},
    "a schema without a text": {"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}},
    "a deep schema": {"guided_json": json.loads('{"items":' * 400 + "{}" + "}" * 400)},
    "a schema that refers to nothing": {"guided_json": {"$ref": "#/nowhere"}},
    "a large schema": {"guided_json": {"enum": ["x" * 100 + str(at) for at in range(3000)]}},
    "a form without an end": {"guided_regex": "a+", "ignore_eos": True},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_within_a_second_and_others_go_on(server: Running, name: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.post, "/v1/completions", prompt="x", max_tokens=4)
        began = time.monotonic()
        got = server.post("/v1/completions", prompt="x", **HOSTILE[name])
        assert time.monotonic() - began < 1.0
        assert got.status_code == 400, got.text
        if "ignore_eos" not in HOSTILE[name]:
            assert got.json()["error"]["param"] == next(iter(HOSTILE[name]))
        assert other.result().status_code == 200
    assert server.http.get("/health").status_code == 200
    assert server.worker.open == 0
