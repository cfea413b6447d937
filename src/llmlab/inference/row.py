"""One row on its way: what it was asked for, what it has said, and how its next token is drawn.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.constrain import Guide
from llmlab.inference.sampling import Sampling, choose, key_of, process

FinishReason = Literal["stop", "length", "loop", "error"]

NOT_A_NUMBER = "the model's output is not a number: its weights or its activations overflowed"


class Drawn(NamedTuple):
    """An id with its log-probability in the distribution it was drawn from; `finish_reason` where the row ends. With
    `error`, which says why, the id is -1 and the log-probability NaN."""

    id: int
    logprob: float
    finish_reason: FinishReason | None
    error: str = ""


class History:
    """What one text has said, as far as its sampling asks. Each token costs the same, however long the text is; n-grams
    are searched for in numpy."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocabulary: int, device: torch.device, said: int = 0
    ) -> None:
        self.seen_V: Tensor | None = None  # bool: stands in prompt or answer
        self.counts_V: Tensor | None = None  # float32: how often the answer has said it
        self._gram = sampling.no_repeat_ngram_size
        if sampling.repetition_penalty != 1:
            self.seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.seen_V[list(prompt)] = True
        if sampling.counts:
            answer = torch.tensor(list(prompt[len(prompt) - said :]), dtype=torch.int64)
            self.counts_V = torch.bincount(answer, minlength=vocabulary).float().to(device)
        self._ids_T = np.array(prompt if self._gram else [], dtype=np.int64)
        self._length = len(self._ids_T)

    def take(self, id: int) -> None:
        """The text goes on with this token."""
        if self.seen_V is not None:
            self.seen_V[id] = True
        if self.counts_V is not None:
            self.counts_V[id] += 1
        if self._gram:
            if self._length == len(self._ids_T):
                self._ids_T = np.concatenate([self._ids_T, np.empty_like(self._ids_T)])
            self._ids_T[self._length] = id
            self._length += 1

    def repeats(self) -> list[int]:
        """Ids that would end an n-gram which stands in the text already."""
        if not self._gram or self._length < self._gram:
            return []
        ids_T, before = self._ids_T[: self._length], self._gram - 1
        starts = np.arange(self._length - before)
        for offset, id in enumerate(ids_T[self._length - before :]):
            starts = starts[ids_T[starts + offset] == id]
        found: list[int] = ids_T[starts + before].tolist()
        return found

    def copy(self) -> History:
        """Another text that begins with the same tokens."""
        copied = copy(self)
        copied.seen_V = None if self.seen_V is None else self.seen_V.clone()
        copied.counts_V = None if self.counts_V is None else self.counts_V.clone()
        copied._ids_T = self._ids_T.copy()
        return copied


@dataclass
class Row:
    """One prompt on its way. Made by `rows_of`."""

    index: int  # which prompt
    sampling: Sampling
    stops: frozenset[int]
    key: int  # of its noise
    length: int  # tokens so far, the prompt's included: the position of the next one
    limit: int  # where it ends
    minimum: int  # no stop token before this length
    history: History
    guide: Guide | None = None

    def draw(self, logits_1V: Tensor) -> Drawn:
        """The next token of this row, which is taken."""
        (drawn,) = draw([self], logits_1V)
        return drawn

    def take(self, id: int) -> FinishReason | None:
        """The text goes on with this token; why it ends, if it does. Errors: LlmlabError where the guide forbids it."""
        self.length += 1
        self.history.take(id)
        if self.guide is not None:
            self.guide.take(id)
        if id in self.stops or (self.guide is not None and self.guide.done):
            return "stop"
        return "length" if self.length >= self.limit else None

    def copy(self) -> Row:
        """Another text that begins with the same tokens. It has the same noise until it gets a `key` of its own."""
        copied = copy(self)
        copied.history = self.history.copy()
        copied.guide = None if self.guide is None else self.guide.copy()
        return copied

    def ban(self, banned_V: Tensor) -> list[str]:
        """Mark what must not come now; the settings that ban it. Errors: LlmlabError where the guide fails."""
        by = []
        if self.guide is not None:
            allowed_V, width = self.guide.allowed().to(banned_V.device), len(banned_V)
            banned_V[: len(allowed_V)] |= ~allowed_V[:width]
            banned_V[len(allowed_V) :] = True  # rows of the embedding that no token has
            by.append("constraint")
        if repeats := self.history.repeats():
            banned_V[repeats] = True
            by.append("no_repeat_ngram_size")
        if self.early:
            banned_V[[id for id in self.stops if 0 <= id < len(banned_V)]] = True
            by.append("min_new_tokens")
        return by

    @property
    def early(self) -> bool:
        """Whether a stop token could come that must not yet."""
        return self.length < self.minimum and bool(self.stops)


def rows_of(
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: Collection[int],
    context: int,
    vocabulary: int,
    device: torch.device | None = None,
    guides: Sequence[Guide | None] | None = None,
    said: int = 0,
) -> list[Row]:
    """The rows at their start, after a look at what was given. The last `said` ids of each prompt belong to its answer,
    which goes on: they count for its length and for what it has said.

    Errors: InputError for a prompt that is empty or leaves no room for an answer, for biases of ids outside the
    vocabulary, and for a constraint that nobody has made a guide of.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    guides = guides or [None] * len(prompts)
    wrong = next((id for id in sampling.logit_bias if not 0 <= id < vocabulary), None)
    if wrong is not None:
        raise InputError("sampling.logit_bias", f"{wrong} is outside the vocabulary of {vocabulary}")
    if sampling.constraint is not None and None in guides:
        hint = "Constrainer(tokenizer).guide(constraint, stop_ids) makes one; LanguageModel does it by itself"
        raise InputError("sampling.constraint", "needs a guide, for which ids alone do not suffice", hint)
    room_left(prompts, context)
    rows, stops = [], frozenset(stop_ids)
    for index, (prompt, seed, guide) in enumerate(zip(prompts, seeds, guides, strict=True)):
        place, size = _place(prompts, index), len(prompt)
        outside = next((id for id in (min(prompt), max(prompt)) if not 0 <= id < vocabulary), None)
        if outside is not None:
            raise InputError(place, f"{outside} is outside the vocabulary of {vocabulary}")
        asked = size - said
        limit, least = min(asked + sampling.max_new_tokens, context), asked + sampling.min_new_tokens
        history = History(sampling, prompt, vocabulary, device or torch.device("cpu"), said)
        rows.append(Row(index, sampling, stops, key_of(seed), size, limit, least, history, guide))
    return rows


def room_left(prompts: Sequence[Sequence[int]], context: int) -> list[int]:
    """How many tokens may follow each prompt. Errors: InputError for one that is empty or leaves no room."""
    for index, prompt in enumerate(prompts):
        size = len(prompt)
        if not size:
            raise InputError(_place(prompts, index), "is empty", "give at least one token to go on from")
        if size >= context:
            problem = f"has {size} tokens, which leaves no room for an answer in the context of {context}"
            raise InputError(_place(prompts, index), problem, f"shorten it to {context - 1} tokens or fewer")
    return [context - len(prompt) for prompt in prompts]


def _place(prompts: Sequence[Sequence[int]], index: int) -> str:
    return "prompt" if len(prompts) == 1 else f"prompt {index + 1}"


def processed(rows: Sequence[Row], logits_BV: Tensor) -> tuple[Tensor, dict[int, str]]:
    """The logits [B, V] of the distributions that rows of like samplings draw from; what ails which of the rows."""
    banned_BV, errors = None, dict[int, str]()
    if any(row.guide is not None or row.early or row.sampling.no_repeat_ngram_size for row in rows):
        banned_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        bans = [list[str]() for _ in rows]
        for slot, row in enumerate(rows):
            try:
                bans[slot] = row.ban(banned_BV[slot])
            except LlmlabError as error:
                errors[slot] = str(error)
        for slot in banned_BV.all(-1).nonzero()[:, 0].tolist():
            by, place = " and ".join(bans[slot]), rows[slot].length
            errors.setdefault(slot, f"sampling.{by}: no token is left that could come after {place}")
    seen = [row.history.seen_V for row in rows if row.history.seen_V is not None]
    counts = [row.history.counts_V for row in rows if row.history.counts_V is not None]
    seen_BV, counts_BV = (torch.stack(each) if each else None for each in (seen, counts))
    return process(logits_BV, rows[0].sampling, seen_BV, banned_BV, counts_BV), errors


def draw(rows: Sequence[Row], logits_BV: Tensor) -> list[Drawn]:
    """The next tokens of rows of like samplings (`Sampling.alike`), each taken by its row. What a row draws depends on
    that row alone."""
    processed_BV, errors = processed(rows, logits_BV)
    greedy = rows[0].sampling.greedy
    ids_B, logprobs_B = choose(processed_BV, greedy, [row.key for row in rows], [row.length for row in rows])
    found = []
    for slot, (row, id, logprob) in enumerate(zip(rows, ids_B.tolist(), logprobs_B.tolist(), strict=True)):
        error = errors.get(slot, NOT_A_NUMBER if math.isnan(logprob) else "")
        reason: FinishReason | None = None
        if not error:
            try:
                reason = row.take(id)
            except LlmlabError as caught:
                error = str(caught)
        found.append(Drawn(-1, math.nan, "error", error) if error else Drawn(id, logprob, reason))
    return found
