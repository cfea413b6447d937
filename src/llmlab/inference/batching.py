"""Continuous batching over the native step: requests come and go between steps, each with its own sampling.

What a request answers is a function of its prompt, its sampling, its seed and the weights, to the last bit: not of who
else is served, what was served before, how its prompt was cut, or how many threads there are. The step computes each
token by itself, and here each row is drawn by itself. So a request that had to give up its pages simply reads its own
text again (Yu et al. 2022, Orca; Agrawal et al. 2023, chunked prefill, arXiv 2308.16369).
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmlab.errors import LlmlabError
from llmlab.inference.engine import Completion, FinishReason, Row, Token, rows_of
from llmlab.inference.fast import FastModel
from llmlab.inference.pages import PAGE, Pages
from llmlab.inference.sampling import Sampling, choose, process
from llmlab.runtime import threads

# Tokens of one step. More make prompts no faster and let those who are answering wait longer.
STEP_TOKENS, STEP_ROWS = 256, 64


@dataclass(eq=False)
class _Text:
    """One request on its way: its text so far, and how much of it lies in pages."""

    number: int
    ids: list[int]
    sampling: Sampling
    stops: frozenset[int]
    row: Row
    seen_1V: Tensor | None  # which ids stand in it, where a penalty asks
    read: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass
class Counts:
    """What was done, for whoever watches."""

    steps: int = 0
    rows: int = 0
    shared_tokens: int = 0
    preempted: int = 0
    cancelled: int = 0


class Batching:
    """Submit requests, call `step` until nothing is left. Oldest first, in everything."""

    def __init__(self, model: FastModel, step_tokens: int = STEP_TOKENS, step_rows: int = STEP_ROWS) -> None:
        self.model, self.step_tokens, self.step_rows = model, step_tokens, step_rows
        self.counts = Counts()
        self._pages = Pages(model.pages)
        self._running: list[_Text] = []
        self._waiting: list[_Text] = []
        self._numbers = itertools.count()

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def submit(self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], seed: int) -> int:
        """A number by which the request's tokens are known. Errors: InputError for an empty or too long prompt."""
        room = min(self.model.architecture.context, self.model.pages * PAGE)
        (row,) = rows_of([prompt], sampling, [seed], None, room)
        seen_1V = None
        if sampling.repetition_penalty != 1:
            seen_1V = torch.zeros(1, self.model.vocab_size, dtype=torch.bool)
            seen_1V[0, list(prompt)] = True
        text = _Text(next(self._numbers), list(prompt), sampling, frozenset(stop_ids), row, seen_1V)
        self._waiting.append(text)
        return text.number

    def cancel(self, number: int) -> bool:
        """Forget a request; whether there was one. Its pages are free for the next step."""
        for texts in (self._running, self._waiting):
            for text in texts:
                if text.number == number:
                    texts.remove(text)
                    self._release(text)
                    self.counts.cancelled += 1
                    return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One call of the model; the tokens that came of it, `row` being the request's number."""
        plan = self._plan()
        ids, places, tables = list[int](), list[int](), list[list[int]]()
        ask, asked = list[int](), list[_Text]()
        longest = max((len(text.pages) for text, _ in plan), default=0)
        for text, count in plan:
            ids += text.ids[text.read : text.read + count]
            places += range(text.read, text.read + count)
            tables.append(text.pages + [0] * (longest - len(text.pages)))
            if text.read + count == len(text.ids):
                ask.append(len(ids) - 1)
                asked.append(text)
        if not ids:
            return []
        counts = torch.tensor([count for _, count in plan])
        logits_RV = self.model.step(
            ids, places, torch.tensor(tables, dtype=torch.int32).repeat_interleave(counts, 0), ask
        )
        self.counts.steps += 1
        self.counts.rows += len(plan)
        for text, count in plan:
            self._remember(text, count)
        # torch's other threads would go on spinning on the cores that the next step wants: 91 against 281 tokens a
        # second where OpenMP was loaded before llmlab could set GOMP_SPINCOUNT.
        with threads(1):
            return [self._draw(text, logits_RV[slot : slot + 1]) for slot, text in enumerate(asked)]

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
            text.pages = self._pages.share(text.ids)
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
            page = self._pages.take()
            if page is None:
                return False
            text.pages.append(page)
        return True

    def _release(self, text: _Text) -> None:
        self._pages.give_back(text.pages)
        text.pages, text.read = [], 0

    def _remember(self, text: _Text, count: int) -> None:
        """Pages that have become full are known from now on."""
        first, text.read = text.read // PAGE, text.read + count
        for at in range(first, text.read // PAGE):
            before = text.pages[at - 1] if at else None
            self._pages.name(text.pages[at], before, text.ids[at * PAGE : (at + 1) * PAGE])

    # ------------------------------------------------------------ the next token

    def _draw(self, text: _Text, logits_1V: Tensor) -> Token:
        row, sampling = text.row, text.sampling
        banned_1V = None
        if row.length < row.minimum and text.stops:
            banned_1V = torch.zeros_like(logits_1V, dtype=torch.bool)
            banned_1V[0, sorted(text.stops)] = True
        drawn = choose(process(logits_1V, sampling, text.seen_1V, banned_1V), sampling.greedy, [row.key], [row.length])
        id, logprob = int(drawn.ids_B), float(drawn.logprobs_B)
        if math.isnan(logprob):
            self._finish(text)
            raise LlmlabError("the model's output is not a number: its weights or its activations overflowed")
        row.length += 1
        text.ids.append(id)
        if text.seen_1V is not None:
            text.seen_1V[0, id] = True
        reason: FinishReason | None = "stop" if id in text.stops else "length" if row.length >= row.limit else None
        if reason is not None:
            self._finish(text)
        return Token(text.number, id, logprob, reason)

    def _finish(self, text: _Text) -> None:
        self._running.remove(text)
        self._release(text)

    # ------------------------------------------------------------ for one caller

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], seed: int
    ) -> Generator[Token]:
        """The tokens of one request, nobody else's being waited for. Who stops asking cancels it."""
        number = self.submit(prompt, sampling, stop_ids, seed)
        try:
            while True:
                for token in self.step():
                    if token.row == number:
                        yield token
                        if token.finish_reason is not None:
                            return
        finally:
            self.cancel(number)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One completion a prompt, in their order."""
        numbers = [self.submit(p, sampling, stop_ids, seed) for p, seed in zip(prompts, seeds, strict=True)]
        found: dict[int, Completion] = {number: Completion([], [], "length") for number in numbers}
        while self.busy:
            for token in self.step():
                if token.row in found:
                    one = found[token.row]
                    one.ids.append(token.id)
                    one.logprobs.append(token.logprob)
                    found[token.row] = Completion(one.ids, one.logprobs, token.finish_reason or "length")
        return [found[number] for number in numbers]
