"""Answers as OpenAI lays them out, whole or in pieces, for chats and for raw completions."""

from __future__ import annotations

import abc
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from llmlab.serving.choice import Choice, Entry, Told
from llmlab.tokenization.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no -infinity


class Layout(abc.ABC):
    """One answer's frame: what every piece of it repeats, and how a choice stands in it. `seed` is the one drawn
    with, the caller's or a random one, so that any answer can be had again."""

    prefix: str
    whole: str
    piece: str

    def __init__(self, tokenizer: Tokenizer, model: str, fingerprint: str, seed: int, scored: bool) -> None:
        self.tokenizer, self.scored = tokenizer, scored
        self._frame = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            "seed": seed,
        }

    def answer(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The whole answer."""
        laid = [self.choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._frame, "object": self.whole, "choices": laid, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None, with_usage: bool) -> str:
        """One event of a stream."""
        laid: dict[str, Any] = {**self._frame, "object": self.piece, "choices": choices}
        if with_usage:
            laid["usage"] = usage
        return f"data: {json.dumps(laid, ensure_ascii=False)}\n\n"

    def logprobs(self, entries: Sequence[Entry]) -> dict[str, Any] | None:
        """The scores of a piece of text, None where none were asked for."""
        return self.scores(entries) if self.scored else None

    def spelled(self, id: int) -> str:
        """A token as text; where its bytes are none, as their codes, so that two tokens do not look alike."""
        content = self.tokenizer.token_bytes(id)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What a stream says of a choice before its first piece."""
        return []

    @abc.abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]: ...
    @abc.abstractmethod
    def part(self, index: int, told: Told) -> dict[str, Any]: ...
    @abc.abstractmethod
    def scores(self, entries: Sequence[Entry]) -> dict[str, Any]: ...


class ChatLayout(Layout):
    """`/v1/chat/completions`."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self.logprobs(choice.entries),
            "finish_reason": choice.finish_reason,
        }

    def part(self, index: int, told: Told) -> dict[str, Any]:
        delta = {"content": told.text} if told.text or told.entries else {}
        logprobs = self.logprobs(told.entries) if told.entries or told.finish_reason is not None else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": told.finish_reason}

    def scores(self, entries: Sequence[Entry]) -> dict[str, Any]:
        content = []
        for entry in entries:
            assert entry.scored is not None
            top = [self._one(id, logprob) for id, logprob in entry.scored.likeliest]
            content.append({**self._one(entry.id, entry.scored.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _one(self, id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.spelled(id),
            "logprob": max(logprob, LEAST),
            "bytes": list(self.tokenizer.token_bytes(id)),
        }


class TextLayout(Layout):
    """`/v1/completions`. `text_offset` counts in the text of the choice."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self.logprobs(choice.entries),
            "finish_reason": choice.finish_reason,
        }

    def part(self, index: int, told: Told) -> dict[str, Any]:
        logprobs = self.logprobs(told.entries) if told.entries or told.finish_reason is not None else None
        return {"index": index, "text": told.text, "logprobs": logprobs, "finish_reason": told.finish_reason}

    def scores(self, entries: Sequence[Entry]) -> dict[str, Any]:
        return {
            "tokens": [self.spelled(entry.id) for entry in entries],
            "token_logprobs": [entry.scored and max(entry.scored.logprob, LEAST) for entry in entries],
            "top_logprobs": [self._likeliest(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _likeliest(self, entry: Entry) -> dict[str, float] | None:
        """The likeliest tokens and the one that stands there, which may make one more."""
        if entry.scored is None:
            return None
        # of two ids that are spelt alike the likelier one is told, unless the other stands there
        scores = {self.spelled(id): max(logprob, LEAST) for id, logprob in reversed(entry.scored.likeliest)}
        return {**dict(reversed(scores.items())), self.spelled(entry.id): max(entry.scored.logprob, LEAST)}
