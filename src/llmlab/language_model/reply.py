"""An answer while it comes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmlab.errors import InputError
from llmlab.inference.batching import Request
from llmlab.inference.cache import PromptCache
from llmlab.inference.engine import Token, stream
from llmlab.inference.on_loop import Found, Resample, Watched
from llmlab.inference.row import FinishReason
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import TextStream
from llmlab.language_model.ways import Ways
from llmlab.tokenization.chat import Message

if TYPE_CHECKING:
    from llmlab.language_model.model import LanguageModel


class Reply(Iterator[str]):
    """Iterate for the pieces of an answer. What is known so far: `text`, `ids` (the stop token included),
    `finish_reason` (None until the end), the `loops` that were met, how many ids were `drawn`, those included that a
    loop cost, and seconds that are for reports only."""

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
        if ways.on_loop is not None:
            ways.on_loop.fit(lm.bundle.architecture)
        self.prompt = list(prompt)
        self.text = ""
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.loops: list[Found] = []
        self.drawn = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._lm, self._ways, self._batching = lm, ways, lm.alone(ways)
        if memory is None and self._batching is None and ways.cache is None and isinstance(ways.on_loop, Resample):
            memory = PromptCache(min(lm.context, len(self.prompt) + sampling.max_new_tokens))
        self._memory = memory
        self._pieces = self._run(sampling)

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

    def _run(self, sampling: Sampling) -> Generator[str]:
        self._began, text = time.perf_counter(), self._stream_of(sampling)
        for id in self._settled(sampling):
            self.ids.append(id)
            if piece := text.push(id):
                yield piece
        if piece := text.finish():
            yield piece

    def _settled(self, sampling: Sampling) -> Generator[int]:
        """The ids of the answer, of which none is taken back."""
        if self._ways.on_loop is not None:
            watched = Watched(self._ways.on_loop, self._draw, sampling, self._lm.tokenizer)
            self.loops = watched.loops
            yield from watched.ids()
            self.finish_reason = watched.finish_reason
            return
        for token in self._draw((), sampling):
            self.finish_reason = token.finish_reason
            yield token.id

    def _draw(self, said: Sequence[int], sampling: Sampling) -> Generator[Token]:
        """The tokens that come after these of the answer. A stop text ends them as a stop token does."""
        lm, ids = self._lm, [*self.prompt, *said]
        guide, text = lm.guide(sampling), self._stream_of(sampling)
        for id in said:
            text.push(id)
            if guide is not None:
                guide.take(id)
        if self._batching is not None:
            request = Request(ids, sampling, lm.stop_ids, sampling.seed, guide=guide, said=len(said))
            tokens = self._batching.stream(request)
        else:
            tokens = stream(
                lm.model,
                ids,
                sampling,
                lm.stop_ids,
                sampling.seed,
                memory=self._memory,
                guide=guide,
                cache=self._ways.cache,
                said=len(said),
            )
        for token in tokens:
            self._count()
            text.push(token.id)
            if text.stopped:
                tokens.close()
                yield replace(token, finish_reason="stop")
                return
            yield token

    def _count(self) -> None:
        """One more token was drawn, just now. The first belongs to the prompt."""
        now = time.perf_counter()
        if self.drawn:
            self.decode_seconds = now - self._began
        else:
            self.prefill_seconds, self._began = now - self._began, now
        self.drawn += 1

    def _stream_of(self, sampling: Sampling) -> TextStream:
        return TextStream(self._lm.tokenizer, sampling.stop, start=self._lm.starts(self.prompt, sampling))


def conversation(text: str, system: str | None = None) -> list[Message]:
    """One user's message, after the system prompt if there is one."""
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]
