"""What a model says, and how likely it finds what is said: many texts at once, by whatever makes its texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.batching import STEP_ROWS, Batching, Request
from llmlab.inference.engine import generate, require_continuing
from llmlab.inference.pages import PAGE
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.sampling import Sampling, never
from llmlab.language_model import LanguageModel
from llmlab.runtime import derive

_LONGEST = 256  # tokens of one text


class Said(NamedTuple):
    """A continuation, and how little the model itself expected each of its ids, in nats: before any setting bends what
    it is drawn from."""

    ids: list[int]
    nats: list[float]


class Voice:
    """One model, asked for texts of equal lengths: the tokens that end a text never come, unless they `may_end` it."""

    def __init__(self, lm: LanguageModel, seed: int) -> None:
        architecture = lm.bundle.architecture
        require_continuing(architecture)
        if architecture.encoder_layers or architecture.mask.reads_whole:
            has = "an encoder and a decoder" if architecture.encoder_layers else f"mask {architecture.mask.kind}"
            raise InputError(lm.bundle.origin, f"has {has}", "diagnose a model of the next token")
        self.lm, self._seed, self._batching = lm, seed, _for_many(lm)
        self._ends = never(lm.tokenizer.special_ids | lm.stop_ids)

    def unending(self, **settings: object) -> Sampling:
        return Sampling.model_validate({"logit_bias": self._ends, **settings})

    def say(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, purpose: str, may_end: bool = False
    ) -> list[Said]:
        """One continuation a prompt, each with noise of its own. The id that ends one is not part of it."""
        seeds = [derive(self._seed, purpose, row) for row in range(len(prompts))]
        stops = self.lm.stop_ids if may_end else frozenset[int]()
        if self._batching is None:
            done = generate(self.lm.model, prompts, sampling, stops, seeds)
            texts = [one.ids for one in done]
            nats = self.read([[*prompt, *ids] for prompt, ids in zip(prompts, texts, strict=True)])
            said = [Said(ids, row[-len(ids) :]) for ids, row in zip(texts, nats, strict=True)]
        else:
            requests = [
                Request(prompt, sampling, stops, seed, likeliest=0) for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            said = _answers(self._batching, requests)
        return [Said(one.ids[:-1], one.nats[:-1]) if one.ids and one.ids[-1] in stops else one for one in said]

    def read(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """How little each id but the first was expected after those before it, in nats."""
        if self._batching is None:
            return [self._plainly(ids) for ids in texts]
        requests = [Request(ids, Sampling(max_new_tokens=1), likeliest=0, echo=True, draws=False) for ids in texts]
        return [one.nats for one in _answers(self._batching, requests)]

    def _plainly(self, ids: Sequence[int]) -> list[float]:
        ids_1T = torch.tensor([list(ids)])
        logprobs_TV = self.lm.logits(ids_1T)[0, :-1].log_softmax(-1)
        nats: list[float] = (-logprobs_TV.gather(-1, ids_1T[0, 1:, None])[:, 0]).tolist()
        return nats


def _for_many(lm: LanguageModel) -> Batching | None:
    """What makes many texts at once. The plain one of a model has room for two; this one for all."""
    if lm.batching is None or not isinstance(lm.batching.model, PlainModel):
        return lm.batching
    return Batching(PlainModel(lm.model, STEP_ROWS * -(-min(lm.context, _LONGEST) // PAGE)))


def _answers(batching: Batching, requests: Sequence[Request]) -> list[Said]:
    """Of each request what was drawn, or, where nothing is, what its prompt cost."""
    rows = {batching.submit(request): Said([], []) for request in requests}
    try:
        while batching.busy:
            for token in batching.step():
                if token.error:
                    raise LlmlabError(token.error)
                said = rows[token.row]
                if token.scored is not None:
                    said.ids.append(token.id)
                    said.nats.append(-token.scored.logprob)
                elif token.prompt:
                    said.nats.extend(-scored.logprob for scored in token.prompt)
    except BaseException:
        for number in rows:
            batching.cancel(number)
        raise
    return list(rows.values())


def mean_nats(texts: Sequence[Said]) -> float:
    """Of all tokens together; NaN where there are none."""
    nats = [value for one in texts for value in one.nats]
    return sum(nats) / len(nats) if nats else math.nan
