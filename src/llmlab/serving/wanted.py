"""From a checked body to what the worker is asked: prompts as ids, one `Sampling`, a seed for every choice.

Everything that can be said before the model runs is said here: a prompt that does not fit, ids that there are not.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmlab.errors import InputError
from llmlab.inference.batching import Request
from llmlab.inference.constrain import Guide
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel
from llmlab.recipe import parse
from llmlab.runtime import derive
from llmlab.serving.bodies import FORMS, ChatBody, CompletionBody, Generation, Said, TokenizeBody

# OpenAI's own default for raw completions; a chat goes on until it ends or the context does.
COMPLETION_TOKENS = 16
# Texts below this are measured by being tokenised.
SHORT = 50_000

# Names of `Sampling` that a body has under another.
NAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
SAME = (
    "temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "no_repeat_ngram_size",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What one body asks for. `requests` go prompt by prompt, each answered `tried` times; `likeliest`: so many of the
    likeliest ids are to be shown beside each, None: no log-probabilities."""

    requests: tuple[Request, ...]
    tried: int
    kept: int
    stops: tuple[str, ...]
    seed: int
    likeliest: int | None
    echo: bool


class Asking:
    """Bodies read for one model, whose ids are below `vocabulary`. (`lm.model` would make the whole model of packed
    weights only to be asked its size.)"""

    def __init__(self, lm: LanguageModel, vocabulary: int) -> None:
        self.lm, self.vocabulary = lm, vocabulary

    async def chat(self, body: ChatBody) -> Wanted:
        """Raises InputError."""
        ids = await asyncio.to_thread(self.rendered, body.messages, True)
        likeliest = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        return await self._wanted(body, [ids], limit, body.n, likeliest, echo=False)

    async def completion(self, body: CompletionBody) -> Wanted:
        """Raises InputError."""
        prompts = await asyncio.to_thread(lambda: [self._prompt(prompt) for prompt in body.prompt])
        limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return await self._wanted(body, prompts, limit, body.tried, body.logprobs, body.echo)

    async def tokens(self, body: TokenizeBody) -> list[int]:
        """The ids of a text or of messages, as the model would read them. Raises InputError."""
        if body.messages is not None:
            return await asyncio.to_thread(self.rendered, body.messages, body.add_generation_prompt)
        text = body.content if body.content is not None else body.prompt
        assert text is not None
        special = body.add_special if body.add_special is not None else body.add_special_tokens
        # llama.cpp adds none to `content` unless told to, vLLM does to `prompt` unless told not to
        special = body.prompt is not None if special is None else special
        self._fits(text)
        return await asyncio.to_thread(self.lm.tokenizer.prompt if special else self.lm.tokenizer.encode, text)

    # ------------------------------------------------------------ prompts

    def rendered(self, messages: Sequence[Said], reply: bool) -> list[int]:
        """Messages by the chat template; OpenAI's `developer` is what others call `system`."""
        self._fits("".join(said.text for said in messages))
        plain = [{"role": "system" if s.role == "developer" else s.role, "content": s.text} for s in messages]
        return self.lm.renderer.render(plain, reply=reply).ids

    def _prompt(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            self._fits(prompt)
            return self.lm.tokenizer.prompt(prompt)
        return prompt

    def _fits(self, text: str) -> None:
        """Refuse what cannot fit before it is tokenised: no id stands for more than so many bytes."""
        if len(text) > max(SHORT, self.lm.context * self._longest):
            raise InputError(
                "body.prompt", f"has {len(text)} characters, more than the context of {self.lm.context} tokens holds"
            )

    @cached_property
    def _longest(self) -> int:
        """The most characters that one id stands for; composing characters may have made one of three."""
        tokenizer = self.lm.tokenizer
        longest = max((len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)), default=1)
        return longest * (1 if tokenizer.spec().get("normalizer") is None else 3)

    def _checked(self, place: str, ids: Sequence[int], limit: int | None) -> int:
        """Room for the answer, after a look at the prompt. InputError where there is none."""
        context, vocabulary = self.lm.context, self.vocabulary
        if not ids:
            raise InputError(place, "is empty", "give at least one token to go on from")
        wrong = next((id for id in ids if not 0 <= id < vocabulary), None)
        if wrong is not None:
            raise InputError(place, f"{str(wrong)[:20]} is outside the vocabulary of {vocabulary}")
        if len(ids) > context or (len(ids) == context and limit != 0):
            raise InputError(place, f"has {len(ids)} tokens, the context holds {context} with the answer", "shorten it")
        room = context - len(ids)
        if limit is not None and limit > room:
            problem = f"{limit} is more than the context of {context} leaves after a prompt of {len(ids)} tokens"
            raise InputError("body.max_tokens", problem, f"at most {room}")
        return room

    # ------------------------------------------------------------ requests

    async def _wanted(
        self,
        body: Generation,
        prompts: Sequence[Sequence[int]],
        limit: int | None,
        tried: int,
        likeliest: int | None,
        echo: bool,
    ) -> Wanted:
        place = "body.messages" if isinstance(body, ChatBody) else "body.prompt"
        room = min(self._checked(place, ids, limit) for ids in prompts)
        sampling = self._sampling(body, limit if limit is not None else room)
        guide = await asyncio.to_thread(self._guide, body, sampling)
        seed = secrets.randbits(53) if body.seed is None else body.seed  # as many bits as any JSON reader keeps
        # candidates of best_of are ranked by what the model itself thought of them
        scored = 0 if likeliest is None and tried > body.n else likeliest
        requests = tuple(
            Request(
                ids,
                sampling,
                () if body.ignore_eos else self.lm.stop_ids,
                seed_of(seed, choice),
                scored,
                echo and likeliest is not None,
                draws=limit != 0,
                guide=None if guide is None else guide.copy(),
            )
            for ids in prompts
            for choice in range(tried)
        )
        return Wanted(requests, tried, body.n, tuple(body.stop), seed, likeliest, echo)

    def _sampling(self, body: Generation, limit: int) -> Sampling:
        """Only what was given is handed on, so that `Sampling` has the last word on what there is."""
        values: dict[str, Any] = {name: getattr(body, name) for name in SAME if getattr(body, name) is not None}
        if body.top_k is not None and body.top_k > 0:
            values["top_k"] = body.top_k
        if body.logit_bias:
            values["logit_bias"] = self._biases(body.logit_bias)
        if body.min_tokens:
            values["min_new_tokens"] = body.min_tokens
        constraint = constraint_of(body)
        if constraint is not None:
            values["constraint"] = constraint
        values["max_new_tokens"] = max(limit, 1)
        try:
            return parse(Sampling, values, "body")
        except InputError as error:
            head, dot, name = error.place.partition(".")
            raise InputError(f"{head}{dot}{NAMED.get(name, name)}", error.problem, error.hint) from None

    def _guide(self, body: Generation, sampling: Sampling) -> Guide | None:
        """What holds answers to the form that is asked for. InputError for one that is not sound, or too large."""
        try:
            return self.lm.guide(sampling)
        except InputError as error:
            name = next(name for name in FORMS if getattr(body, name) is not None)
            raise InputError(f"body.{name}", error.problem, error.hint) from None

    def _biases(self, given: dict[str, float]) -> dict[int, float]:
        biases = {int(id): bias for id, bias in given.items()}
        wrong = next((id for id in biases if id >= self.vocabulary), None)
        if wrong is not None:
            raise InputError("body.logit_bias", f"{wrong} is outside the vocabulary of {self.vocabulary}")
        return biases


def constraint_of(body: Generation) -> dict[str, Any] | None:
    """The form that a body asks for, as the fields of `Sampling.constraint`; None for free text."""
    if body.guided_json is not None:
        return {"kind": "json_schema", "schema": body.guided_json}
    if body.guided_regex is not None:
        return {"kind": "regex", "pattern": body.guided_regex}
    if body.guided_grammar is not None:
        return {"kind": "grammar", "lark": body.guided_grammar}
    if body.response_format is None or body.response_format.type == "text":
        return None
    schema = body.response_format.json_schema
    return {"kind": "json_schema", "schema": True if schema is None else schema.schema_}


def seed_of(seed: int, choice: int) -> int:
    """The seed of a choice: the first one's is the caller's own, so that it says what `llmlab generate` says; prompts
    of one body do not change each other's."""
    return seed if choice == 0 else derive(seed, "choice", choice)
