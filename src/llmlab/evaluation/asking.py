"""Asking a model: prompts through its chat template where it has one, greedy answers as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.inference.engine import Completion, generate
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import text_of
from llmlab.tokenization.chat import Message, Renderer
from llmlab.tokenization.tokenizer import Tokenizer

_TOGETHER = 64  # prompts decoded side by side


@dataclass(frozen=True)
class Answer:
    """What a model said: the text without its stop token, and the ids without it."""

    text: str
    ids: list[int]
    finished: bool


class Asker:
    """Asks one model. A tokenizer without a chat template gets the last message's text as a raw prompt."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.tokenizer is None:
            raise InputError(bundle.origin, "has no tokenizer", "put tokenizer.json beside the weights")
        self.bundle, self.tokenizer = bundle, bundle.tokenizer
        self._renderer = Renderer(self.tokenizer) if self.tokenizer.chat_template is not None else None
        self.stop_ids = _stops(self.tokenizer) if self._renderer is None else self._renderer.stop_ids

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that an answer follows."""
        if self._renderer is not None:
            return self._renderer.render(messages, reply=True).ids
        return self.tokenizer.prompt(messages[-1]["content"])

    def answers(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[Answer]:
        """The likeliest answer to each prompt, token by token. InputError for a prompt that fills the context."""
        rendered = [self.prompt(messages) for messages in prompts]
        sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
        done: list[Completion] = []
        for start in range(0, len(rendered), _TOGETHER):
            group = rendered[start : start + _TOGETHER]
            done += generate(self.bundle.model, group, sampling, self.stop_ids, [0] * len(group))
        return [self._answer(one) for one in done]

    def _answer(self, done: Completion) -> Answer:
        finished = done.finish_reason == "stop"
        ids = done.ids[:-1] if finished else done.ids
        said = [i for i in ids if i not in self.tokenizer.special_ids]
        return Answer(text_of(self.tokenizer, said), ids, finished)


def user(text: str) -> list[dict[str, str]]:
    """A conversation that begins with this."""
    return [{"role": "user", "content": text}]


def _stops(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,))
