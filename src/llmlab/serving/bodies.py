"""What may be asked for: the bodies of requests, each field with its bounds, checked before any work.

The field names are OpenAI's; beyond those, as vLLM has them: top_k, min_p, typical_p, repetition_penalty,
no_repeat_ngram_size, min_tokens, ignore_eos, guided_json, guided_regex, guided_grammar. Every field changes the outcome
or is refused by name. Only `HARMLESS` ones, which official clients send and which ask for nothing, are let through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, field_validator, model_validator

from llmlab.recipe import Section

# The budget of one request. A sequence is one prompt answered once.
SEQUENCES, STOPS, STOP_CHARACTERS, LIKELIEST, BIASES, MESSAGES = 64, 16, 256, 20, 1024, 1024

# Fields that ask for a form of the answer.
FORMS = "response_format", "guided_json", "guided_regex", "guided_grammar"

# Fields that name nothing a model could do otherwise, each with the values that are let through.
HARMLESS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "user": lambda value: isinstance(value, str),
        "safety_identifier": lambda value: isinstance(value, str),
        "prompt_cache_key": lambda value: isinstance(value, str),
        "metadata": lambda value: isinstance(value, dict),
        "store": lambda value: value is False,
        "service_tier": lambda value: value in ("auto", "default"),
        "modalities": lambda value: value == ["text"],
        "parallel_tool_calls": lambda value: isinstance(value, bool),  # of tools, of which there are none
        "tools": lambda value: value == [],
        "tool_choice": lambda value: value in ("none", "auto"),
        "functions": lambda value: value == [],
        "function_call": lambda value: value in ("none", "auto"),
        "suffix": lambda value: value == "",
    }
)


class _First(FailFast):
    """Of what is wrong in a list the first is told: to name a million takes seconds, in which nothing else is done."""

    def __hash__(self) -> int:  # as part of a union
        return hash(self.fail_fast)


FIRST = _First()


class Body(Section):
    """Types are as JSON has them: "1" is no number, 1.0 no integer."""

    model_config = ConfigDict(strict=True)


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(Body):
    """A schema that the answer is held to."""

    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool = True


class ResponseFormat(Body):
    """`text`, `json_object`, or `json_schema` with its schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with type json_schema, and with no other")
        return self


class Generation(Body):
    """What both ways to ask have in common."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)  # 0 and -1: all, as llama.cpp and vLLM say it
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=BIASES)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=SEQUENCES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: list[str] = Field([], max_length=STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _short_stops(cls, value: list[str]) -> list[str]:
        if any(not 0 < len(stop) <= STOP_CHARACTERS for stop in value):
            raise ValueError(f"a stop text has 1 to {STOP_CHARACTERS} characters")
        if any("\ud800" <= character <= "\udfff" for stop in value for character in stop):
            raise ValueError("a stop text holds half of a surrogate pair, which no text does")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids_and_bounds(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for id, bias in (value or {}).items():
            if not (id.isascii() and id.isdecimal() and len(id) < 10) or not -100 <= bias <= 100:
                raise ValueError(f"logit_bias has {id[:20]!r}: {bias:g}, where a token id and -100 to 100 belong")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are given without stream")
        forms = [name for name in FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise ValueError(f"only one of {' and '.join(forms)} can hold")
        if forms and self.ignore_eos:
            raise ValueError(f"ignore_eos and {forms[0]} do not go together: a form has an end")
        return self


class Part(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Said(Body):
    """A message. What OpenAI's own answers have beside role and content may come back as null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], FIRST]
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Generation):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Said], FIRST] = Field(min_length=1, max_length=MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=LIKELIEST)

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        if self.max_tokens == 0:
            raise ValueError("max_tokens is 0, which leaves nothing to answer")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs are given without logprobs")
        return self


class CompletionBody(Generation):
    """`/v1/completions`. `prompt`: a text, a list of texts, ids, or a list of ids."""

    prompt: list[str | list[int]] = Field(min_length=1, max_length=SEQUENCES)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=SEQUENCES)
    logprobs: int | None = Field(None, ge=0, le=LIKELIEST)

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_a_list(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and value and all(type(item) is int for item in value)):
            value = [value]
        fine = isinstance(value, list) and all(
            isinstance(one, str) or (isinstance(one, list) and all(type(id) is int for id in one)) for one in value
        )
        if not fine:
            raise ValueError("prompt is neither a text, nor a list of texts, nor token ids, nor a list of those")
        return value

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> CompletionBody:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of {self.best_of} is fewer than n {self.n}")
        if self.stream and self.tried > self.n:
            raise ValueError("best_of is known at the end only, so it cannot stream")
        if len(self.prompt) * self.tried > SEQUENCES:
            raise ValueError(f"{len(self.prompt)} prompts with {self.tried} answers each are more than {SEQUENCES}")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0 without echo, which leaves nothing to answer")
        return self

    @property
    def tried(self) -> int:
        """Answers that are made of each prompt."""
        return self.best_of or self.n


class TokenizeBody(Body):
    """`/tokenize`: llama.cpp's `content`, or vLLM's `prompt` or `messages`. Text never makes a special token."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Said], FIRST] | None = Field(None, min_length=1, max_length=MESSAGES)
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    with_pieces: bool = False
    return_token_strs: bool = False
    parse_special: Literal[False] = False

    @model_validator(mode="after")
    def _one_text(self) -> TokenizeBody:
        if sum(one is not None for one in (self.content, self.prompt, self.messages)) != 1:
            raise ValueError("exactly one of content, prompt and messages belongs here")
        special = self.add_special if self.add_special is not None else self.add_special_tokens
        if self.messages is not None and special is not None:
            raise ValueError("the chat template says which special tokens stand between messages")
        if self.messages is None and not self.add_generation_prompt:
            raise ValueError("add_generation_prompt belongs to messages")
        return self


class DetokenizeBody(Body):
    """`/detokenize`."""

    model: str | None = None
    tokens: Annotated[list[int], FIRST] = Field(max_length=1 << 20)
