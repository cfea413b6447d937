"""One choice on its way: tokens in, text that is certain out, and beside it the log-probabilities of that text.

Whether it is streamed or returned at once, the same pieces are made; what is returned at once is those pieces joined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.inference.batching import NO_ID, Request
from llmlab.inference.engine import Scored, Token
from llmlab.inference.row import FinishReason
from llmlab.inference.text import TextStream, text_of
from llmlab.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entry:
    """What is known of one id: where in the text it begins, its score, None for a prompt's first, which nothing
    predicts."""

    id: int
    offset: int
    scored: Scored | None


@dataclass(frozen=True)
class Told:
    """A piece of a choice. `finish_reason` is set on the last."""

    text: str
    entries: tuple[Entry, ...]
    finish_reason: FinishReason | None


class Choice:
    """`push` each token of a request. What is known so far: `text`, `entries` (one a token of the text, and one for a
    special token that ended it), `drawn` (how many ids), `finish_reason`.

    `echo`: the prompt stands before the answer. An entry is told with the text that its token begins in; those of a
    stop text, and behind it, never are.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request, stops: Sequence[str], echo: bool) -> None:
        self.text, self.drawn, self.total = "", 0, 0.0
        self.entries: list[Entry] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._prompt, self._echo = tokenizer, request.prompt, echo
        first = tokenizer.special_ids.issuperset(request.prompt)
        start = tokenizer.spells_space and first and request.guide is None  # as `LanguageModel.reply` has it
        self._stream = TextStream(tokenizer, stops, start)
        self._whole = TextStream(tokenizer, (), start)  # holds nothing back: where each token begins
        self._length = 0  # of the text with all that is held back
        self._held = deque[Entry]()

    @property
    def mean_logprob(self) -> float:
        """What the model itself thought of an id of the answer, on average."""
        return self.total / max(self.drawn, 1)

    def push(self, token: Token) -> Told:
        text = ""
        if self._echo:
            text = self._begin(token.prompt)
        if token.id != NO_ID:
            self.drawn += 1
            text += self._stream.push(token.id)
            if token.scored is not None:
                self.total += token.scored.logprob
                self._held.append(Entry(token.id, self._length, token.scored))
            self._length += len(self._whole.push(token.id))
        reason = token.finish_reason
        if self._stream.stopped:
            reason = "stop"
        elif reason is not None:
            text += self._stream.finish()
        self.text += text
        self.finish_reason = reason
        certain = self._certain(all_of_it=reason is not None and not self._stream.stopped)
        self.entries += certain
        return Told(text, certain, reason)

    def _certain(self, all_of_it: bool) -> tuple[Entry, ...]:
        found = []
        while self._held and (all_of_it or self._held[0].offset < len(self.text)):
            found.append(self._held.popleft())
        return tuple(found)

    def _begin(self, scores: Sequence[Scored]) -> str:
        """The prompt's text, once; where it was scored, with an entry for each of its ids."""
        self._echo = False
        start = self._tokenizer.spells_space
        text = text_of(self._tokenizer, self._prompt, (), start)
        if len(scores) == len(self._prompt) - 1:
            stream, offset = TextStream(self._tokenizer, (), start), 0
            for id, scored in zip(self._prompt, [None, *scores], strict=True):
                self._held.append(Entry(id, min(offset, len(text)), scored))
                offset += len(stream.push(id))
        self._length = len(text)
        return text
