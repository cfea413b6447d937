"""Streams: the pieces joined are the answer at once, alone and among fifty others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .conftest import NAME, Running

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def events(server: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    """What a stream sends, its end checked."""
    got = server.post(path, **body, stream=True)
    assert got.status_code == 200, got.text
    assert got.headers["content-type"].startswith("text/event-stream")
    lines = got.content.decode("utf-8").split("\n\n")  # strict: every event is valid UTF-8
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a whole answer, put together from a stream's events."""
    found: dict[int, dict[str, Any]] = {}
    for event in pieces:
        for part in event["choices"]:
            choice = found.setdefault(part["index"], {"text": "", "logprobs": None, "finish_reason": None})
            assert choice["finish_reason"] is None  # nothing comes after it
            choice["text"] += part["text"] if "text" in part else part["delta"].get("content", "")
            choice["finish_reason"] = part["finish_reason"]
            if part["logprobs"] is not None:
                scores = choice["logprobs"] = choice["logprobs"] or {}
                for name, values in part["logprobs"].items():
                    scores[name] = scores.get(name, []) + values if isinstance(values, list) else values
    return [{"index": index, **found[index]} for index in sorted(found)]


def plain(whole: dict[str, Any]) -> list[dict[str, Any]]:
    choices = []
    for choice in whole["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        choices.append(
            {"index": choice["index"], "text": text, **{k: choice[k] for k in ("logprobs", "finish_reason")}}
        )
    return choices


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 3}, {"stop": ["e", "\x05"]}], ids=str
)
def test_a_chat_streamed_is_the_chat_at_once(server: Running, more: dict[str, Any]) -> None:
    body = {"messages": HELLO, "max_tokens": 40, "seed": 5, **more}
    pieces = events(server, "/v1/chat/completions", **body)
    whole = server.post("/v1/chat/completions", **body).json()
    assert joined(pieces) == plain(whole)
    assert len({event["id"] for event in pieces}) == 1
    assert all(event["object"] == "chat.completion.chunk" and event["seed"] == 5 for event in pieces)
    openings = [event["choices"][0]["delta"] for event in pieces[: more.get("n", 1)]]
    assert openings == [{"role": "assistant", "content": ""}] * more.get("n", 1)
    assert "usage" not in pieces[0]


@settings(max_examples=25, deadline=None)
@example(seed=2055, stops=["["], n=1, logprobs=0, echo=False, prompt="the sea")  # its first token is the stop text
@given(
    seed=st.integers(0, 10**6),
    stops=st.lists(st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=2), max_size=4),
    n=st.integers(1, 3),
    logprobs=st.none() | st.integers(0, 3),
    echo=st.booleans(),
    prompt=st.sampled_from(["the sea", "三国", "a 👩‍👩‍👧 b"]),
)
def test_a_completion_streamed_is_the_completion_at_once(server: Running, **body: Any) -> None:
    body["stop"] = body.pop("stops")
    asked = {k: v for k, v in body.items() if v is not None} | {"max_tokens": 30}
    whole = server.post("/v1/completions", **asked).json()
    assert joined(events(server, "/v1/completions", **asked)) == plain(whole)
    for choice in whole["choices"]:
        answer = choice["text"].removeprefix(body["prompt"]) if body["echo"] else choice["text"]
        assert not any(stop in answer for stop in body["stop"])
        if body["logprobs"] is not None:
            assert choice["logprobs"]["text_offset"] == sorted(choice["logprobs"]["text_offset"])


def test_usage_comes_last_where_it_is_asked_for(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        max_tokens=7,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    *pieces, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(server.lm.prompt(HELLO)), 7)
    assert all(piece.usage is None and piece.choices for piece in pieces)


def test_fifty_streams_at_once_each_say_what_they_say_alone(server: Running) -> None:
    prompts = [f"{'the whale and the sea ' * (at % 5)}{at}" for at in range(50)]

    async def ask(client: openai.AsyncOpenAI, at: int) -> list[Any]:
        stream = await client.completions.create(
            model=NAME,
            prompt=prompts[at],
            max_tokens=10 + at,
            seed=at,
            temperature=0.5 + at / 50,
            stream=True,
            logprobs=1,
        )
        return [(piece.choices[0].text, piece.choices[0].logprobs) async for piece in stream]

    async def together() -> list[list[Any]]:
        async with server.asynchronous() as client:
            return await asyncio.gather(*(ask(client, at) for at in range(50)))

    async def alone() -> list[list[Any]]:
        async with server.asynchronous() as client:
            return [await ask(client, at) for at in range(50)]

    steps = server.worker.batching.counts.steps
    at_once = asyncio.run(together())
    assert server.worker.batching.counts.steps - steps < 400  # of 1725 tokens: they shared steps
    assert asyncio.run(alone()) == at_once
    assert server.worker.open == 0
