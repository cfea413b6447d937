"""Every parameter changes the outcome, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from llmlab.serving.bodies import HARMLESS, ChatBody, CompletionBody

from .conftest import Running

PROMPT = "the whale and the ship and the sea"
PLAIN: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 24, "seed": 1}

# Of `Generation` and `CompletionBody`: how each field, changed, shows. What has a test elsewhere names it.
CHANGES: dict[str, Any] = {
    "temperature": 0,
    "top_p": 0.1,
    "top_k": 2,
    "min_p": 0.5,
    "typical_p": 0.1,
    "repetition_penalty": 0.1,
    "presence_penalty": 2.0,
    "frequency_penalty": -2.0,
    "no_repeat_ngram_size": 1,
    "logit_bias": {"65": 100},
    "max_tokens": 4,
    "seed": 2,
    "n": 2,
    "logprobs": 1,
    "echo": True,
    "prompt": "the sea",
}
ELSEWHERE = {
    "model": "test_api.test_models",
    "stop": "test_a_stop_text_is_never_seen",
    "stream": "test_streams",
    "stream_options": "test_streams",
    "best_of": "test_api.test_best_of_returns_the_likeliest_candidates",
    "min_tokens": "test_min_tokens_and_ignore_eos",
    "ignore_eos": "test_min_tokens_and_ignore_eos",
}
FORMS = {"response_format", "guided_json", "guided_regex", "guided_grammar"}  # test_forms


def test_every_field_is_looked_at() -> None:
    fields = set(CompletionBody.model_fields)
    assert fields == set(CHANGES) | set(ELSEWHERE) | FORMS
    assert set(ChatBody.model_fields) - fields == {"messages", "max_completion_tokens", "top_logprobs"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_parameter_changes_the_outcome(server: Running, name: str) -> None:
    plain = server.post("/v1/completions", **PLAIN).json()["choices"]
    assert server.post("/v1/completions", **PLAIN).json()["choices"] == plain
    changed = server.post("/v1/completions", **{**PLAIN, name: CHANGES[name]})
    assert changed.status_code == 200, changed.text
    assert changed.json()["choices"] != plain


@pytest.mark.parametrize("all_of_them", [0, -1])
def test_top_k_may_say_all(server: Running, all_of_them: int) -> None:
    plain = server.post("/v1/completions", **PLAIN).json()["choices"]
    assert server.post("/v1/completions", **PLAIN, top_k=all_of_them).json()["choices"] == plain


@pytest.mark.parametrize("width", [1, 3])
def test_a_stop_text_is_never_seen(server: Running, width: int) -> None:
    plain = server.post("/v1/completions", **PLAIN).json()["choices"][0]["text"]
    stop = plain[6 : 6 + width]
    for given in (stop, ["never", stop]):
        got = server.post("/v1/completions", **PLAIN, stop=given, logprobs=0).json()
        (choice,) = got["choices"]
        assert choice["text"] == plain[: plain.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])
        assert got["usage"]["completion_tokens"] < 24


def test_max_completion_tokens_is_max_tokens(server: Running) -> None:
    asked = {"messages": [{"role": "user", "content": "hello"}], "seed": 1}
    new = server.post("/v1/chat/completions", **asked, max_completion_tokens=5).json()
    old = server.post("/v1/chat/completions", **asked, max_tokens=5).json()
    assert new["choices"] == old["choices"]
    assert new["usage"]["completion_tokens"] == 5
    both = server.post("/v1/chat/completions", **asked, max_tokens=5, max_completion_tokens=5)
    assert both.status_code == 400


def test_a_chat_goes_on_to_the_end_of_the_context(server: Running) -> None:
    asked = {"messages": [{"role": "user", "content": "hello"}], "seed": 1, "ignore_eos": True}
    got = server.post("/v1/chat/completions", **asked).json()
    assert got["usage"]["total_tokens"] == server.lm.context
    assert got["choices"][0]["finish_reason"] == "length"


def test_min_tokens_and_ignore_eos(server: Running) -> None:
    """A seed is looked for whose answer ends early by itself."""
    asked = {"prompt": PROMPT, "max_tokens": 60, "temperature": 3.0}
    for seed in range(40):
        plain = server.post("/v1/completions", **asked, seed=seed, logprobs=0).json()
        if plain["choices"][0]["finish_reason"] == "stop" and plain["usage"]["completion_tokens"] < 50:
            break
    else:
        pytest.fail("no answer ended by itself")
    size = plain["usage"]["completion_tokens"]
    assert len(plain["choices"][0]["logprobs"]["tokens"]) == size  # the one that ended it too
    longer = server.post("/v1/completions", **asked, seed=seed, min_tokens=size + 5).json()
    assert longer["usage"]["completion_tokens"] >= size + 5
    on = server.post("/v1/completions", **asked, seed=seed, ignore_eos=True).json()
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (60, "length")


# ---------------------------------------------------------------- harmless, and refused

SENT: dict[str, list[Any]] = {
    "user": ["me"],
    "safety_identifier": ["x"],
    "prompt_cache_key": ["x"],
    "metadata": [{"a": "b"}],
    "store": [False],
    "service_tier": ["auto", "default"],
    "modalities": [["text"]],
    "parallel_tool_calls": [True, False],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "suffix": [""],
}
ASKING: dict[str, list[Any]] = {
    "user": [3],
    "safety_identifier": [3],
    "prompt_cache_key": [3],
    "metadata": ["x"],
    "store": [True],
    "service_tier": ["flex"],
    "modalities": [["audio"]],
    "parallel_tool_calls": ["x"],
    "tools": [[{"type": "function"}]],
    "tool_choice": ["required"],
    "functions": [[{}]],
    "function_call": [{"name": "f"}],
    "suffix": ["end"],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_asks_for_nothing_is_let_through_and_what_asks_is_refused(server: Running, name: str) -> None:
    plain = server.post("/v1/completions", **PLAIN).json()["choices"]
    for value in [*SENT[name], None]:
        got = server.post("/v1/completions", **PLAIN, **{name: value})
        assert got.status_code == 200, got.text
        assert got.json()["choices"] == plain
    for value in ASKING[name]:
        got = server.post("/v1/completions", **PLAIN, **{name: value})
        assert (got.status_code, got.json()["error"]["param"]) == (400, name)


def test_a_null_is_not_given(server: Running) -> None:
    plain = server.post("/v1/completions", **PLAIN).json()["choices"]
    nulls = {name: None for name in CompletionBody.model_fields if name not in PLAIN}
    assert server.post("/v1/completions", **PLAIN, **nulls).json()["choices"] == plain


@pytest.mark.parametrize(("name", "hint"), [("temprature", "temperature"), ("max_new_tokens", "max_tokens"), ("x", "")])
def test_an_unknown_field_is_refused_by_name(server: Running, name: str, hint: str) -> None:
    for value in (1, None):
        got = server.post("/v1/completions", **PLAIN, **{name: value})
        assert (got.status_code, got.json()["error"]["param"]) == (400, name)
        assert hint in got.json()["error"]["message"]
