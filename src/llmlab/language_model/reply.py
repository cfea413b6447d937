"""An answer while it comes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from llmlab.errors import InputError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.cache import PromptCache
from llmlab.inference.caches import CacheKind
from llmlab.inference.engine import stream
from llmlab.inference.row import FinishReason
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import TextStream
from llmlab.language_model.ways import Ways
from llmlab.tokenization.chat import Message

if TYPE_CHECKING:
    from llmlab.language_model.model import LanguageModel


class Reply(Iterator[str]):
    """Iterate for the pieces of an answer. What is known so far: `text`, `ids` (the stop token included),
    `finish_reason` (None until the end), and seconds that are for reports only."""

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Sequence[int],
        sampling: Sampling,
        memory: PromptCache | None,
        ways: Ways,
    ) -> None:
        if ways.search is not None:
            raise InputError("search", f"{ways.search.kind} search knows its text at the end only", "do not stream it")
        self.prompt = list(prompt)
        self.text = ""
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._pieces = self._run(lm, sampling, memory, ways.cache, lm.alone(ways))

    def __next__(self) -> str:
        piece: str = next(self._pieces)
        self.text += piece
        return piece

    def read(self) -> str:
        """The whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Stop here."""
        self._pieces.close()

    def _run(
        self,
        lm: LanguageModel,
        sampling: Sampling,
        memory: PromptCache | None,
        cache: CacheKind | None,
        batching: Batching | None,
    ) -> Generator[str]:
        guide = lm.guide(sampling)
        text = TextStream(lm.tokenizer, sampling.stop, start=lm.starts(self.prompt, guide))
        began = time.perf_counter()
        if batching is not None:
            tokens = batching.stream(Request(self.prompt, sampling, lm.stop_ids, sampling.seed, guide=guide))
        else:
            tokens = stream(
                lm.model, self.prompt, sampling, lm.stop_ids, sampling.seed, memory=memory, guide=guide, cache=cache
            )
        for token in tokens:
            if not self.ids:
                self.prefill_seconds, began = time.perf_counter() - began, time.perf_counter()
            else:
                self.decode_seconds = time.perf_counter() - began
            self.ids.append(token.id)
            self.finish_reason = token.finish_reason
            if piece := text.push(token.id):
                yield piece
            if text.stopped:
                self.finish_reason = "stop"
                tokens.close()
                return
        if piece := text.finish():
            yield piece


def conversation(text: str, system: str | None = None) -> list[Message]:
    """One user's message, after the system prompt if there is one."""
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]
