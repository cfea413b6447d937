"""Best of n: several answers are drawn, the one that the model itself finds likeliest wins."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from pydantic import Field

from llmlab.errors import InputError
from llmlab.inference.constrain import Guide
from llmlab.inference.front import Front
from llmlab.inference.hypothesis import Hypothesis, SearchPart
from llmlab.inference.rules import Rules, Watch
from llmlab.inference.sampling import Sampling, choose, key_of
from llmlab.runtime import derive


class BestOf(SearchPart):
    """`n` answers, each drawn as `sampling` says from a seed of its own; the first is what would be drawn without a
    search.

    A text's score is the mean of its log-probabilities under the model itself, before any processor.
    """

    kind: Literal["best_of"] = "best_of"
    n: int = Field(4, gt=0, le=4096, description="answers that are drawn")

    def check(self, sampling: Sampling) -> None:
        if sampling.greedy and self.n > 1:
            name = "temperature" if sampling.temperature == 0 else "top_k"
            problem = f"{getattr(sampling, name):g} draws {self.n} times the same answer"
            raise InputError(f"sampling.{name}", problem, "raise it, or leave the search out")

    def seeds(self, seed: int) -> list[int]:
        """The seeds of the n answers."""
        return [seed, *(derive(seed, "best_of", str(number)) for number in range(1, self.n))]

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
        """All n hypotheses of each prompt, best first."""
        self.check(sampling)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        if not prompts:
            return []
        texts = front.texts(prompts)
        limits = [limit for limit in front.limits(texts, sampling.max_new_tokens) for _ in range(self.n)]
        lengths = [len(text) for text in texts for _ in range(self.n)]
        keys = [key_of(own) for seed in seeds for own in self.seeds(seed)]
        ids: list[list[int]] = [[] for _ in keys]
        totals, reasons = [0.0 for _ in keys], list[Literal["stop", "length"]](["length"] * len(keys))
        rows, slots = list(range(len(keys))), [row for row in range(len(prompts)) for _ in range(self.n)]
        rules = Rules(texts, sampling, stop_ids, watch, guide)
        logits_BV = front.start(prompts, max(limits)).logits_BV
        processed_BV, own_BV = rules.process(logits_BV)[slots], logits_BV.float().log_softmax(-1)[slots]
        while True:
            places = [lengths[row] + len(ids[row]) for row in rows]
            drawn = choose(processed_BV, sampling.greedy, [keys[row] for row in rows], places).ids_B
            told = own_BV.gather(-1, drawn[:, None])[:, 0].tolist()
            going, parents, tokens = list[int](), list[int](), list[int]()
            for row, slot, token, logprob in zip(rows, slots, drawn.tolist(), told, strict=True):
                ids[row].append(token)
                totals[row] += logprob
                if rules.ends(slot, token):
                    reasons[row] = "stop"
                elif len(ids[row]) < limits[row]:
                    for held, new in ((going, row), (parents, slot), (tokens, token)):
                        held.append(new)
            if not going:
                break
            rules.advance(tokens, parents)
            logits_BV = front.advance(tokens, parents).logits_BV
            rows, slots = going, list(range(len(going)))
            processed_BV, own_BV = rules.process(logits_BV), logits_BV.float().log_softmax(-1)
        means = [total / len(own) for total, own in zip(totals, ids, strict=True)]
        found = [Hypothesis(*parts) for parts in zip(ids, means, reasons, strict=True)]
        return [
            sorted(found[first : first + self.n], key=lambda one: -one.score) for first in range(0, len(found), self.n)
        ]
