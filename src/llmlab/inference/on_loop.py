"""What is done about a loop while an answer is drawn: it ends there, goes on another way, or it is merely told of.

A token that may prove to be a copy is held back until it cannot be one any more. So nothing that was given out is taken
back, and the pieces of a stream are the text that is returned at once. In text that does not loop that holds back the
last few tokens: as many as stood there before in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from itertools import islice
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from llmlab.errors import InputError
from llmlab.inference.engine import Token
from llmlab.inference.loops import Loop, Looping, LoopWatch
from llmlab.inference.row import FinishReason
from llmlab.inference.sampling import NEVER, Sampling
from llmlab.model.transformer import Architecture
from llmlab.recipe import KINDS
from llmlab.runtime import derive

# What ends a phrase. Where a copy begins with it, the copies are one token out of step with what they say.
CLOSING = frozenset(".,;:!?…)]}。，；：！？、）」』”")


class Found(NamedTuple):
    """A loop that was met: `ids`, of which the first is the answer's token `start`, were said over and over."""

    start: int
    ids: list[int]


class Draw(Protocol):
    """How an answer is drawn that has begun with these ids. The last token bears why it ends."""

    def __call__(self, said: Sequence[int], sampling: Sampling) -> Generator[Token]: ...


class Spelling(Protocol):
    """What is asked of a tokenizer."""

    def token_bytes(self, id: int) -> bytes: ...


class _OnLoop(Looping, ABC):
    def fit(self, architecture: Architecture) -> None:
        """InputError for a model that it cannot go with."""

    @abstractmethod
    def watch(self, answer: Watched) -> Generator[int]:
        """The ids of an answer, as soon as it is certain that they are part of it."""


class Stop(_OnLoop):
    """The text ends with the first saying of what then came again and again."""

    kind: Literal["stop"] = "stop"

    def watch(self, answer: Watched) -> Generator[int]:
        yield from answer.until_loop(answer.draw([], answer.sampling))
        yield from answer.rest()


class Resample(_OnLoop):
    """Back to where the first copy began, and on from there: with a token that the copy did not begin with, drawn at
    `temperature` for as long as what was thrown away, then by the text's own settings. After so many tries the text
    ends as with `stop`."""

    kind: Literal["resample"] = "resample"
    tries: int = Field(8, ge=1, description="how many loops of one answer are left by another way")
    temperature: float = Field(1.0, gt=0, description="at least so hot is the way out of a loop")

    def fit(self, architecture: Architecture) -> None:
        """An answer that is read again as a part of the prompt must be seen as it was when it was drawn."""
        has = "an encoder and a decoder" if architecture.encoder_layers else f"mask {architecture.mask.kind}"
        if architecture.encoder_layers or architecture.mask.reads_whole:
            problem = f"resample reads its answer again behind the prompt, which a model with {has} sees in another way"
            raise InputError("on_loop", problem, "use stop or warn")

    def watch(self, answer: Watched) -> Generator[int]:
        yield from answer.until_loop(answer.draw([], answer.sampling))
        for left in range(self.tries):
            if answer.finish_reason == "loop":
                yield from answer.until_loop(self._another_way(answer, left))
        yield from answer.rest()

    def _another_way(self, answer: Watched, left: int) -> Generator[Token]:
        """The answer from its last cut on. Its noise is that of its seed and of how many loops it has `left`."""
        own = answer.sampling.model_copy(update={"seed": derive(answer.sampling.seed, "loop", str(left))})
        top_k = None if own.top_k == 1 else own.top_k
        hot = own.model_copy(update={"temperature": max(self.temperature, own.temperature), "top_k": top_k})
        other = hot.model_copy(update={"logit_bias": {**own.logit_bias, answer.copied: NEVER}})
        for sampling, count in ((other, 1), (hot, answer.thrown - 1), (own, None)):
            tokens = answer.draw(tuple(answer.said), sampling)
            for token in islice(tokens, count):
                yield token
                if token.finish_reason is not None:
                    return
            tokens.close()


class Warn(_OnLoop):
    """The text goes on as if nothing were."""

    kind: Literal["warn"] = "warn"

    def watch(self, answer: Watched) -> Generator[int]:
        yield from answer.through(answer.draw([], answer.sampling))


OnLoop = Annotated[Stop | Resample | Warn, *KINDS]


class Watched:
    """One answer under a watch. `loops` are those that were met, `finish_reason` is known at the end."""

    def __init__(self, how: OnLoop, draw: Draw, sampling: Sampling, spelling: Spelling) -> None:
        self.draw, self.sampling = draw, sampling
        self.said: list[int] = []
        self.loops: list[Found] = []
        self.finish_reason: FinishReason | None = None
        self.thrown = 0  # tokens of the last loop that were cut off,
        self.copied = -1  # and the first of them
        self._how, self._spelling = how, spelling
        self._given = 0

    def ids(self) -> Generator[int]:
        return self._how.watch(self)

    def through(self, tokens: Generator[Token]) -> Generator[int]:
        """All that is drawn, loops noted when they are met."""
        watch, inside = LoopWatch(self._how), False
        for token in tokens:
            self.said.append(token.id)
            self.finish_reason = token.finish_reason
            loop = watch.push(token.id)
            if loop is not None and not inside:
                self._note(loop)
            inside = loop is not None
            yield token.id

    def until_loop(self, tokens: Generator[Token]) -> Generator[int]:
        """What is drawn, to its end or to a loop, all copies of which are cut off, `finish_reason` then being `loop`;
        what may prove to be a copy of something else is the `rest`."""
        watch = LoopWatch(self._how)
        for id in self.said:
            watch.push(id)
        self.finish_reason = None
        for token in tokens:
            self.said.append(token.id)
            loop = watch.push(token.id)
            self.finish_reason = token.finish_reason
            if loop is not None and token.finish_reason != "stop":
                tokens.close()
                self._cut(loop)
                break
            yield from self._up_to(len(self.said) - watch.under_way)

    def rest(self) -> Generator[int]:
        """What is still held back."""
        yield from self._up_to(len(self.said))

    def _up_to(self, end: int) -> Generator[int]:
        while self._given < end:
            self._given += 1
            yield self.said[self._given - 1]

    def _note(self, loop: Loop) -> None:
        self.loops.append(Found(loop.start, self.said[loop.start : loop.start + loop.period]))

    def _cut(self, loop: Loop) -> None:
        self._note(loop)
        end, most = loop.start + loop.period, loop.start + 2 * loop.period - 1
        while end < most and self._closes(self.said[end]):
            end += 1
        # Another way may go on with copies that the last one had left, and that were given out for that reason.
        end = max(end, self._given)
        self.thrown, self.copied = len(self.said) - end, self.said[end]
        del self.said[end:]
        self.finish_reason = "loop"

    def _closes(self, id: int) -> bool:
        text = self._spelling.token_bytes(id).decode(errors="replace").strip()
        return bool(text) and CLOSING.issuperset(text)
