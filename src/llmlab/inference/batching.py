"""Continuous batching over the native step: requests come and go between steps, each with its own sampling.

What a request answers is a function of its prompt, its sampling, its seed and the weights, to the last bit: not of who
else is served, what was served before, how its prompt was cut, or how many threads there are. The step computes each
token by itself, and here each row is drawn by itself. So a request that had to give up its pages simply reads its own
text again (Yu et al. 2022, Orca; Agrawal et al. 2023, chunked prefill, arXiv 2308.16369).
"""

from __future__ import annotations

import itertools
import math
import threading
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.constrain import Guide
from llmlab.inference.engine import Completion, Scored, Token
from llmlab.inference.pages import PAGE, Pages
from llmlab.inference.row import NOT_A_NUMBER, Drawn, Row, draw, rows_of
from llmlab.inference.sampling import Sampling
from llmlab.inference.speculative import Guesser, Known
from llmlab.inference.stepper import Piece, Stepper
from llmlab.runtime import threads

# Tokens of one step. More make prompts no faster and let those who are answering wait longer.
STEP_TOKENS, STEP_ROWS = 256, 64
NO_ID = -1  # of the token that ends a request which draws nothing


@dataclass(frozen=True)
class Request:
    """What one caller wants. `sampling.seed` and `sampling.stop` are not read here: the seed is `seed`, and texts are
    the caller's, who may cancel. `likeliest`: score every answered id, with so many of the likeliest beside it; None:
    do not. `echo`: score the prompt's ids as well, from the one of number `echo_from` on. `draws` false: the prompt is
    read and nothing is answered; one token of id NO_ID ends it, and bears the scores. `guide`: what follows
    `sampling.constraint`; no other request has it. `said`: so many of the prompt's last ids are the answer's, which
    goes on."""

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: Collection[int] = ()
    seed: int = 0
    likeliest: int | None = None
    echo: bool = False
    echo_from: int = 1  # nothing predicts the first
    draws: bool = True
    guide: Guide | None = None
    said: int = 0


@dataclass(eq=False)
class _Text:
    """One request on its way: its text so far, and how much of it lies in pages."""

    number: int
    request: Request
    ids: list[int]
    row: Row
    read: int = 0
    pages: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)  # of the prompt, where it is to be echoed
    guess: list[int] = field(default_factory=list)  # what may come next, read in this step after what is known
    over: bool = False

    def scores(self, place: int) -> bool:
        """Whether the id after `place` stands in a prompt that is to be echoed, and is not scored yet."""
        scored = self.request.echo_from + len(self.scored)
        return self.request.echo and scored <= place + 1 < len(self.request.prompt)


@dataclass
class Counts:
    """What was done, for whoever watches."""

    steps: int = 0
    rows: int = 0
    shared_tokens: int = 0
    preempted: int = 0
    cancelled: int = 0
    guessed: int = 0
    accepted: int = 0


class Batching:
    """Submit requests, call `step` until nothing is left. Oldest first, in everything. A `guesser` may save steps; it
    changes no token. Threads may share it: whoever steps, steps for all, and `stream` and `generate` get what is theirs
    from any step."""

    def __init__(
        self,
        model: Stepper,
        step_tokens: int = STEP_TOKENS,
        step_rows: int = STEP_ROWS,
        guesser: Guesser | None = None,
    ) -> None:
        self.model, self.step_tokens, self.step_rows, self.guesser = model, step_tokens, step_rows, guesser
        self.counts = Counts()
        self.pages = Pages(model.pages)
        self._running: list[_Text] = []
        self._waiting: list[_Text] = []
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # held by who steps or cancels
        self._boxes: dict[int, deque[Token]] = {}  # by number: what `stream` and `generate` have not fetched yet
        self._others: list[Token] = []  # of nobody's box, from a step that was made for one: the next `step` tells them

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._others)

    def submit(self, request: Request) -> int:
        """A number by which the request's tokens are known. Errors: InputError for a prompt that is empty, too long, or
        has ids outside the vocabulary, for biases of such ids, and for a constraint without a guide."""
        text = self._text(request)
        self._waiting.append(text)
        return text.number

    def _text(self, request: Request) -> _Text:
        room = min(self.model.architecture.context, self.model.pages * PAGE)
        prompt, vocabulary = list(request.prompt), self.model.vocab_size
        if not request.draws and len(prompt) > room:
            raise InputError("prompt", f"has {len(prompt)} tokens, the context holds {room}")
        (row,) = rows_of(
            [prompt],
            request.sampling,
            [request.seed],
            request.stop_ids,
            room + (not request.draws),
            vocabulary,
            guides=[request.guide],
            said=request.said,
        )
        return _Text(next(self._numbers), request, prompt, row)

    def cancel(self, number: int) -> bool:
        """Forget a request; whether there was one. Its pages are free for the next step."""
        with self._lock:
            for texts in (self._running, self._waiting):
                for text in texts:
                    if text.number == number:
                        texts.remove(text)
                        self._release(text)
                        self.counts.cancelled += 1
                        return True
        return False

    def step(self) -> list[Token]:
        """One call of the model; the tokens that came of it, `row` being the request's number. Where guesses were right
        a request has several, in order."""
        with self._lock:
            self._advance()
            tokens, self._others = self._others, []
        return tokens

    @torch.inference_mode()
    def _advance(self) -> None:
        """One call of the model; each token to whom it belongs."""
        plan = self._plan()
        if not plan:
            return
        try:
            tokens = self._made(plan)
        except BaseException:  # Ctrl-C, say: nobody knows how far these texts have come
            for text, _ in plan:
                self._hand(Token(text.number, NO_ID, math.nan, "error", error="the step was broken off"))
                if not text.over:
                    self._finish(text)
            raise
        for token in tokens:
            self._hand(token)

    def _hand(self, token: Token) -> None:
        box = self._boxes.get(token.row)
        (self._others if box is None else box).append(token)

    def _made(self, plan: Sequence[tuple[_Text, int]]) -> list[Token]:
        self._guess(plan)
        pieces, ask, asked, size = list[Piece](), list[int](), list[tuple[_Text, int]](), 0
        for text, count in plan:
            ids = text.ids[text.read : text.read + count] + text.guess
            pieces.append(Piece(ids, text.read, text.pages))
            for place in range(text.read, text.read + len(ids)):
                if place >= len(text.ids) - 1 or text.scores(place):
                    ask.append(size + place - text.read)
                    asked.append((text, place))
            size += len(ids)
        logits_RV = self.model.step(pieces, ask)
        self.counts.steps += 1
        self.counts.rows += len(plan)
        for text, count in plan:
            self._remember(text, count)
        # torch's other threads would go on spinning on the cores that the next step wants: 91 against 281 tokens a
        # second where OpenMP was loaded before llmlab could set GOMP_SPINCOUNT.
        with threads(1):
            return self._answers(asked, logits_RV)

    def _answers(self, asked: Sequence[tuple[_Text, int]], logits_RV: Tensor) -> list[Token]:
        """Score what is to be echoed, draw what comes next. What a guess was followed by counts only if it was what was
        drawn."""
        tokens = []
        known = {text.number: len(text.ids) for text, _ in asked}
        drawn = self._drawn(asked, logits_RV)
        for slot, (text, place) in enumerate(asked):
            logits_1V = logits_RV[slot : slot + 1]
            if text.scores(place):
                text.scored.append(score(logits_1V, text.ids[place + 1], text.request.likeliest or 0))
            guessed = place - known[text.number]
            if place != len(text.ids) - 1 or text.over or (guessed >= 0 and text.guess[guessed] != text.ids[place]):
                continue
            if guessed >= 0:
                self.counts.accepted += 1
                self._remember(text, 1)
            if text.request.draws:
                tokens.append(self._token(text, drawn.get(slot) or text.row.draw(logits_1V), logits_1V))
            else:
                tokens.append(self._read(text))
        return tokens

    def _drawn(self, asked: Sequence[tuple[_Text, int]], logits_RV: Tensor) -> dict[int, Drawn]:
        """The first token that each text draws now, by slot: texts of like samplings together."""
        alike = defaultdict[str, list[int]](list)
        for slot, (text, place) in enumerate(asked):
            if place == len(text.ids) - 1 and text.request.draws:
                alike[text.row.sampling.alike].append(slot)
        found = dict[int, Drawn]()
        for slots in alike.values():
            logits_BV = logits_RV if len(slots) == len(logits_RV) else logits_RV[slots]
            found |= zip(slots, draw([asked[slot][0].row for slot in slots], logits_BV), strict=True)
        return found

    # ------------------------------------------------------------ who is next

    def _plan(self) -> list[tuple[_Text, int]]:
        """Who reads how many tokens now: those who are answering first, then prompts, as far as the step goes."""
        left, plan = self.step_tokens, list[tuple[_Text, int]]()
        for text in sorted(self._running, key=lambda one: one.read < len(one.ids) - 1):
            count = min(left, len(text.ids) - text.read)
            if count and text in self._running and self._has_room(text, count, plan):
                plan.append((text, count))
                left -= count
        while self._waiting and left and len(self._running) < self.step_rows:
            text = self._waiting[0]
            # What is echoed must be computed here and now.
            alone = text.request.echo and len(text.scored) < len(text.request.prompt) - text.request.echo_from
            text.pages = [] if alone else self.pages.share(text.ids)
            text.read = len(text.pages) * PAGE
            count = min(left, len(text.ids) - text.read)
            if not self._grow(text, count):
                self._release(text)
                break
            self.counts.shared_tokens += text.read
            self._running.append(self._waiting.pop(0))
            plan.append((text, count))
            left -= count
        return plan

    def _guess(self, plan: Sequence[tuple[_Text, int]]) -> None:
        """Let the guesser go on where a token is drawn now, as far as tokens of the step and pages are left over."""
        asked = [text for text, count in plan if text.read + count == len(text.ids) and text.request.draws]
        for text in asked:
            text.guess = []
        left = self.step_tokens - sum(count for _, count in plan)
        if self.guesser is None or not asked or left < len(asked):
            return
        known = []
        for text in asked:
            # The last token of the text is never guessed: nothing would be drawn after it.
            most = min(self.guesser.tokens, text.row.limit - text.row.length - 1, left // len(asked))
            self._grow(text, len(text.ids) - text.read + most)
            most = min(most, len(text.pages) * PAGE - len(text.ids))
            known.append(Known(text.number, text.ids, most, text.request.sampling, text.row.key))
        for text, guess in zip(asked, self.guesser.guess(known), strict=True):
            text.guess = guess
            self.counts.guessed += len(guess)

    def _has_room(self, text: _Text, count: int, plan: list[tuple[_Text, int]]) -> bool:
        """Pages for `count` more tokens, taken from the youngest where none are free. False: it was the youngest."""
        while not self._grow(text, count):
            youngest = max(self._running, key=lambda one: one.number)
            self._running.remove(youngest)
            self._release(youngest)
            insort(self._waiting, youngest, key=lambda one: one.number)
            plan[:] = [entry for entry in plan if entry[0] is not youngest]
            self.counts.preempted += 1
            if youngest is text:
                return False
        return True

    def _grow(self, text: _Text, count: int) -> bool:
        while len(text.pages) * PAGE < text.read + count:
            page = self.pages.take()
            if page is None:
                return False
            self.model.clear(page)
            text.pages.append(page)
        return True

    def _release(self, text: _Text) -> None:
        self.pages.give_back(text.pages)
        text.pages, text.read, text.guess = [], 0, []
        if self.guesser is not None:
            self.guesser.forget(text.number)

    def _remember(self, text: _Text, count: int) -> None:
        """Pages that have become full are known from now on."""
        first, text.read = text.read // PAGE, text.read + count
        for at in range(first, text.read // PAGE):
            before = text.pages[at - 1] if at else None
            self.pages.name(text.pages[at], before, text.ids[at * PAGE : (at + 1) * PAGE])

    # ------------------------------------------------------------ the next token

    def _token(self, text: _Text, drawn: Drawn, logits_1V: Tensor) -> Token:
        if drawn.finish_reason is not None:
            self._finish(text)
        if drawn.error:
            return Token(text.number, drawn.id, drawn.logprob, "error", error=drawn.error)
        first = len(text.request.prompt) + 1
        text.ids.append(drawn.id)
        wanted = text.request.likeliest
        scored = None if wanted is None else score(logits_1V, drawn.id, wanted)
        echoed = tuple(text.scored) if len(text.ids) == first else ()
        return Token(text.number, drawn.id, drawn.logprob, drawn.finish_reason, scored, echoed)

    def _read(self, text: _Text) -> Token:
        self._finish(text)
        if any(math.isnan(scored.logprob) for scored in text.scored):
            return Token(text.number, NO_ID, math.nan, "error", error=NOT_A_NUMBER)
        return Token(text.number, NO_ID, 0.0, "length", None, tuple(text.scored))

    def _finish(self, text: _Text) -> None:
        self._running.remove(text)
        self._release(text)
        text.over = True

    # ------------------------------------------------------------ for one caller

    def stream(self, request: Request) -> Generator[Token]:
        """The tokens of one request, nobody else's being waited for. Who stops asking cancels it. LlmlabError where it
        fails."""
        number = self._boxed(request)
        try:
            yield from self._fetched(number)
        finally:
            self._leave(number)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order. LlmlabError where one fails; the others are forgotten then."""
        numbers = list[int]()
        try:
            for request in requests:
                numbers.append(self._boxed(request))
            return [_completion(list(self._fetched(number))) for number in numbers]
        finally:
            for number in numbers:
                self._leave(number)

    def _boxed(self, request: Request) -> int:
        """Submit a request whose tokens wait in a box. Without the lock, which a busy thread gives away too rarely."""
        text = self._text(request)
        self._boxes[text.number] = deque()
        self._waiting.append(text)
        return text.number

    def _fetched(self, number: int) -> Generator[Token]:
        """What comes into a box, until the request is over; steps are made as long as it is empty."""
        box, reason = self._boxes[number], None
        while reason is None:
            while not box:
                with self._lock:
                    if not box:
                        self._advance()
            token = box.popleft()
            if token.error:
                raise LlmlabError(token.error)
            reason = token.finish_reason
            yield token

    def _leave(self, number: int) -> None:
        self.cancel(number)
        del self._boxes[number]


def _completion(tokens: Sequence[Token]) -> Completion:
    ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
    return Completion(ids, logprobs, tokens[-1].finish_reason or "length")


def score(logits_1V: Tensor, id: int, likeliest: int) -> Scored:
    """How likely the model finds an id, and its likeliest ids, in float32."""
    logprobs_V = logits_1V[0].float().log_softmax(-1)
    top = logprobs_V.topk(min(likeliest, len(logprobs_V)))
    return Scored(float(logprobs_V[id]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
