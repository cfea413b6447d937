"""Question 16's measures: beams against all texts, drawn sums, marks of a story, all with answers known by hand."""

import math

import pytest
import torch

from llmlab.handbook import addition, temperatures
from llmlab.handbook.toy_beam import beam, exhaustive, scores
from llmlab.inference.sampling import Sampling
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture


@pytest.fixture(scope="module")
def toy():
    architecture = Architecture(layers=1, dim=16, context=12, initial_std=0.5, attention=MultiHead(heads=2))
    return architecture.build(4).requires_grad_(False)


def test_more_beams_never_find_less_and_all_find_the_best(toy):
    prompt, length = [1, 2, 0], 3
    best, value = exhaustive(toy, prompt, length)
    found = [beam(toy, prompt, length, width) for width in (1, 4**length)]
    assert found[1][0] == best
    assert found[1][1] == pytest.approx(value, abs=1e-5)
    for text, told in found:
        assert told == pytest.approx(float(scores(toy, prompt, torch.tensor([text]))), abs=1e-5)
        assert told <= value + 1e-5


def test_scores_of_all_texts_sum_to_one(toy):
    texts = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert float(scores(toy, [3], texts).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_greedy_sums_are_those_that_addition_writes():
    model = addition.untrained({"dim": 16}, 0)
    addition.train(model, 0, 3)
    numbers = addition.exam(0, 20)
    cold = temperatures.drawn(model.eval(), numbers, Sampling(temperature=0), 0)
    assert torch.equal(cold, addition.generated(model, numbers))
    warm = [temperatures.drawn(model, numbers, Sampling(), seed) for seed in (0, 0, 1)]
    assert torch.equal(warm[0], warm[1])
    assert not torch.equal(warm[0], warm[2])


def test_divergence_of_two_distributions():
    same, other = {b"a": 0.5, b"b": 0.5}, {b"c": 1.0}
    assert temperatures.divergence(same, same) == 0
    assert temperatures.divergence(same, other) == pytest.approx(1)
    # H((3/4, 1/4)) - H((1/2, 1/2)) / 2, written out
    mixed = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert temperatures.divergence(same, {b"a": 1.0}) == pytest.approx(mixed)


def test_marks_of_what_was_written():
    human = [b"the whale swims in the sea and the whale dives"] * 2
    marked = temperatures.marks([b"xx the whale qzqzq the sea yy"], human)
    assert marked["words"] == pytest.approx(4 / 5)
    assert marked["distinct"] == 1
    assert temperatures.marks([b"a" * 40], human)["distinct"] == pytest.approx(1 / 33)
    assert temperatures.marks(human, human)["divergence"] == 0
