"""Beam search, alone and in groups that keep away from one another.

B texts, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.constrain import Guide
from llmlab.inference.front import Front
from llmlab.inference.hypothesis import Hypothesis, SearchPart, refuse_drawing
from llmlab.inference.rules import Rules, Watch
from llmlab.inference.sampling import Sampling


class Beam(SearchPart):
    """The likeliest beginnings are kept, so many at a time (Lowerre 1976; Graves 2012, arXiv 1211.3711), as
    transformers has it. In `groups`, each after the first is moved away from what those before it say at the same
    place (Vijayakumar et al. 2018, diverse beam search, arXiv 1610.02424).

    A text's score is the sum of its log-probabilities over length^length_penalty, its length in new tokens with the
    stop token. In groups the penalties a text has met count as well.
    """

    kind: Literal["beam"] = "beam"
    beams: int = Field(4, gt=0, le=4096, description="beginnings kept for each prompt, all groups together")
    groups: int = Field(1, gt=0, description="groups that the beams are divided into")
    diversity_penalty: float = Field(
        0.0,
        ge=0,
        description="taken from a token's log-probability for each beam of the groups before that says it",
    )
    length_penalty: float = Field(1.0, description="above 0 favours long texts, below 0 short ones; 0: the plain sum")
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="true: as soon as there are as many ended texts as beams; false: when the best beginning, as long "
        "as it is, scores below all of them; never: when it would even at its best possible length",
    )

    @model_validator(mode="after")
    def _groups(self) -> Beam:
        if self.beams % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.beams} beams")
        if self.groups > 1 and not self.diversity_penalty:
            raise ValueError(f"{self.groups} groups without a diversity_penalty would all say the same")
        if self.groups == 1 and self.diversity_penalty:
            raise ValueError("diversity_penalty means something between groups only; set groups to 2 or more")
        return self

    def check(self, sampling: Sampling) -> None:
        refuse_drawing("beam", sampling)
        if sampling.top_k == 1:
            raise InputError("sampling.top_k", "1 leaves a search nothing to choose from", "leave one of them out")

    @torch.inference_mode()
    def find(
        self,
        front: Front,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: Sequence[int],
        watch: Watch | None = None,
        guide: Guide | None = None,
    ) -> list[list[Hypothesis]]:
        """All ended texts that were kept, at most `beams` a prompt. The processors act on log-probabilities, as in
        transformers; top-k and top-p bound what may follow a beginning."""
        self.check(sampling)
        if not prompts:
            return []
        texts = front.texts(prompts)
        limits = front.limits(texts, sampling.max_new_tokens)
        rules = Rules(texts, sampling.model_copy(update={"temperature": 1.0}), stop_ids, watch, guide)
        told = [[_Group(self, limit, row) for _ in range(self.groups)] for row, limit in enumerate(limits)]
        seen = front.start(prompts, max(limits))
        while True:
            best = _Best.of(rules.process(seen.logits_BV.float().log_softmax(-1), each=False), self, len(rules.stops))
            for groups in told:
                said: Counter[int] = Counter()
                for group in groups:
                    said.update(group.step(best, rules, said))
            running = [beam for groups in told for group in groups for beam in group.running]
            if not running:
                return [
                    sorted((one for group in groups for one in group.ended), key=lambda one: -one.score)
                    for groups in told
                ]
            ids, parents = [beam.ids[-1] for beam in running], [beam.row for beam in running]
            for row, beam in enumerate(running):
                beam.row = row
            rules.advance(ids, parents)
            seen = front.advance(ids, parents)


class _Best(NamedTuple):
    """The likeliest tokens of each text: enough that no group can want for one."""

    logprobs: list[list[float]]
    ids: list[list[int]]

    @staticmethod
    def of(logprobs_BV: Tensor, search: Beam, stops: int) -> _Best:
        # As many that go on as there are beams, whatever ends a text, and whatever the groups before may have taken.
        enough = max(2, 1 + stops) * search.beams + (search.beams if search.groups > 1 else 0)
        top = logprobs_BV.topk(min(enough, logprobs_BV.shape[-1]))
        return _Best(top.values.tolist(), top.indices.tolist())


@dataclass
class _Beginning:
    score: float  # its log-probabilities, processed, and the penalties it has met
    ids: list[int]
    row: int  # of the front


class _Next(NamedTuple):
    score: float
    parent: _Beginning
    token: int


@dataclass
class _Group:
    """The beams of one group of one prompt: what runs, best first, and the texts that have ended."""

    search: Beam
    limit: int
    row: int
    running: list[_Beginning] = field(init=False)
    ended: list[Hypothesis] = field(default_factory=list)
    length: int = 0

    def __post_init__(self) -> None:
        self.running, self.width = [_Beginning(0.0, [], self.row)], self.search.beams // self.search.groups

    def step(self, best: _Best, rules: Rules, said: Mapping[int, int]) -> list[int]:
        """Go on by one token; which tokens were taken, by texts that end with them too."""
        if not self.running:
            return []
        self.length += 1
        before, self.running = self.running, []
        ordered = sorted(self._nexts(before, best, said), key=lambda one: -one.score)
        if not ordered:
            self._no_way_on(before)
        taken = []
        for rank, one in enumerate(ordered):
            if len(self.running) == self.width or (self.length == self.limit and rank == self.width):
                break
            stopped = rules.ends(one.parent.row, one.token)
            if not stopped and self.length < self.limit:
                self.running.append(_Beginning(one.score, [*one.parent.ids, one.token], one.parent.row))
            elif rank < self.width:  # one that ends further down is no find
                self._end(one, "stop" if stopped else "length")
            else:
                continue
            taken.append(one.token)
        if self._settled():
            self.running = []
        return taken

    def _nexts(self, before: list[_Beginning], best: _Best, said: Mapping[int, int]) -> Iterator[_Next]:
        penalty = self.search.diversity_penalty
        for beginning in before:
            for logprob, token in zip(best.logprobs[beginning.row], best.ids[beginning.row], strict=True):
                if logprob > float("-inf"):
                    yield _Next(beginning.score + logprob - penalty * said.get(token, 0), beginning, token)

    def _end(self, one: _Next, reason: Literal["stop", "length"]) -> None:
        score = one.score / self.length**self.search.length_penalty
        self.ended.append(Hypothesis([*one.parent.ids, one.token], score, reason))
        self.ended = sorted(self.ended, key=lambda ended: -ended.score)[: self.width]

    def _no_way_on(self, before: list[_Beginning]) -> None:
        """Processors have banned everything: what was said so far is all there is."""
        if not before[0].ids:
            raise LlmlabError("nothing may be said: the settings ban every token")
        length = self.length - 1
        self.ended += [Hypothesis(one.ids, one.score / length**self.search.length_penalty, "length") for one in before]
        self.ended = sorted(self.ended, key=lambda ended: -ended.score)[: self.width]

    def _settled(self) -> bool:
        """Whether nothing that runs is waited for any more."""
        if not self.running or len(self.ended) < self.width:
            return not self.running
        if self.search.early_stopping is True:
            return True
        penalty = self.search.length_penalty
        length = self.limit if self.search.early_stopping == "never" and penalty > 0 else self.length
        possible: float = self.running[0].score / length**penalty
        return possible <= self.ended[-1].score
