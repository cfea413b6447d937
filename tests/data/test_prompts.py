"""Prompts for reinforcement learning: without their answers, each once, in an order that survives a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmlab.data.prompts import (
    ChatPrompts,
    PairPrompts,
    Prompt,
    PromptSampler,
    TaskPrompts,
    distinct,
    prompt_files,
    read_prompts,
    split_prompts,
)
from llmlab.data.tasks import gold
from llmlab.errors import InputError
from llmlab.tokenization.chat import Renderer


def _prompt(text: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}])


def test_sources_give_questions_without_answers(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"question": "Q", "answer": "A"}))
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "P", "chosen": "A", "rejected": "B"}))
    sources = [
        TaskPrompts(n=20),
        ChatPrompts(path=str(tmp_path / "c.jsonl")),
        PairPrompts(path=str(tmp_path / "p.jsonl")),
    ]
    prompts = read_prompts(sources, 0)
    assert [prompt.messages for prompt in prompts[20:]] == [_prompt("Q").messages, _prompt("P").messages]
    assert [source.kind for source in sources] == ["tasks", "chats", "pairs"]
    assert prompt_files(sources) == [tmp_path / "c.jsonl", tmp_path / "p.jsonl"]
    task = prompts[0].task
    assert task is not None
    assert prompts[0].messages[0]["content"] == task.prompt
    assert gold(task, task.say(True)).score == 1


def test_each_prompt_once_and_held_out_by_its_text() -> None:
    assert distinct([_prompt("a"), _prompt("b"), _prompt("a")]) == [_prompt("a"), _prompt("b")]
    train, held = split_prompts(read_prompts([TaskPrompts(n=300)], 0), 0.1, 0)
    assert {p.messages[0]["content"] for p in train}.isdisjoint(p.messages[0]["content"] for p in held)
    assert train
    assert held


def test_sampler_goes_on_where_it_stood(renderer: Renderer) -> None:
    def sampler() -> PromptSampler:
        return PromptSampler([_prompt(f"sea {i}") for i in range(7)], renderer, 40, seed=3)

    whole = sampler()
    unbroken = [[taken.prompt for taken in whole.take(3)] for _ in range(8)]
    saved, resumed = sampler().state(), []
    for _ in range(8):
        again = sampler()
        again.load(saved)
        resumed.append([taken.prompt for taken in again.take(3)])
        saved = again.state()
    assert resumed == unbroken
    taken = whole.take(1)[0]
    assert taken.ids == renderer.render(taken.prompt.messages, reply=True).ids
    assert renderer.tokenizer.decode(taken.ids).endswith("<|im_start|>assistant\n")


def test_prompts_too_long_are_refused_and_bounded(renderer: Renderer) -> None:
    prompts = [_prompt(f"sea {i}") for i in range(19)] + [_prompt("sea " * 90)]
    sampler = PromptSampler(prompts, renderer, 40, 0)
    assert (sampler.refused, len(sampler.prompts)) == (1, 19)
    with pytest.raises(InputError, match="2 of 20 are longer than 40 tokens"):
        PromptSampler([*prompts[1:], prompts[-1]], renderer, 40, 0)
    with pytest.raises(InputError, match="there are none"):
        PromptSampler([], renderer, 40, 0)
