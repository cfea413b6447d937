"""Guesses by a draft model whose table of the vocabulary is padded otherwise than the model's."""

from __future__ import annotations

import pytest

from llmlab.inference.batching import Batching, Request
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.sampling import Sampling
from llmlab.inference.speculative import Draft
from llmlab.model.transformer import Architecture


def stepper(rows: int, seed: int = 5) -> PlainModel:
    return PlainModel(Architecture(dim=32, context=64, layers=1, initial_std=0.3).build(rows, seed=seed), 16)


@pytest.mark.parametrize("rows", [40, 64, 96])
def test_a_draft_model_of_another_padding_guesses_only_what_both_have(rows: int) -> None:
    """At 0 and above it, where rows that no token has are drawn as often as any: no id leaves its table."""
    model = stepper(64)
    for temperature in (0.0, 1.0, 3.0):
        sampling = Sampling(max_new_tokens=30, temperature=temperature)
        requests = [Request([1, 2, 3 + seed], sampling, seed=seed) for seed in range(4)]
        guessing = Batching(model, guesser=Draft(stepper(rows), 4, model.vocab_size))
        plain = [one.ids for one in Batching(model).generate(requests)]
        assert [one.ids for one in guessing.generate(requests)] == plain
        assert guessing.counts.guessed
